"""Generalised-mean pooling: between average and max."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from c2f_zoo.ops import at_least_float32
from c2f_zoo.pooling.base import ChannelwisePooling
from c2f_zoo.pooling.registry import register_pooling


@register_pooling("gem")
class GeneralizedMeanPooling(ChannelwisePooling):
    """Generalised-mean pooling: `(mean_l x_l^p)^(1/p)` of each channel.

    p is a trained scalar: 1 gives the average, infinity the maximum. Values below `eps`, including negative values, are
    clamped to `eps`: the pooling is meant for maps after a ReLU.

    Args:
        in_channels: number of channels of each map; the maps may differ in size.
        p: initial value of p, > 0.
        eps: lower bound of the values, > 0.

    Raises:
        ValueError: `p` or `eps` is 0 or less.
    """

    description = "The generalised mean `(mean_l x_l^p)^(1/p)` of each channel"
    source = "Radenovic et al., TPAMI 2019"

    def __init__(self, in_channels: Sequence[int], p: float = 3.0, eps: float = 1e-6) -> None:
        if p <= 0 or eps <= 0:
            raise ValueError(f"gem requires p > 0 and eps > 0, not p={p} and eps={eps}")
        super().__init__(in_channels)
        self.eps = eps
        self.p = nn.Parameter(torch.tensor(float(p)))

    def pool_map(self, x: Tensor) -> Tensor:
        """Pool one map (N, C_i, H_i, W_i) to (N, C_i), float32 or wider."""
        x = at_least_float32(x).clamp(min=self.eps)
        # Powers of values up to 1 do not overflow. The largest value is a constant for autograd: the mean is
        # homogeneous, so that the result does not depend on the scale.
        largest = x.detach().amax(dim=(2, 3), keepdim=True)
        p = self.p.to(x.dtype)
        return (x / largest).pow(p).mean(dim=(2, 3)).pow(1 / p) * largest.flatten(1)
