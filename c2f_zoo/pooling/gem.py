"""Generalised-mean pooling: between average and max."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from c2f_zoo.ops import at_least_float32
from c2f_zoo.pooling.base import Pooling
from c2f_zoo.pooling.checks import check_channels
from c2f_zoo.pooling.registry import register_pooling


@register_pooling("gem")
class GeneralizedMeanPooling(Pooling):
    """The generalised mean `(mean_l x_l^p)^(1/p)` of each map, concatenated (Radenovic et al., TPAMI 2019).

    p = 1 is the average, p -> infinity the maximum; p is one trained number. Values below `eps` count as `eps`,
    negative ones too: it is made for maps behind a ReLU.

    Args:
        in_channels: number of channels of each map; the maps may differ in size.
        p: where p starts, > 0.
        eps: the least value, > 0.

    Raises:
        ValueError: `p` or `eps` is not above 0.
    """

    description = "The generalised mean `(mean_l x_l^p)^(1/p)` of each map, concatenated"
    source = "Radenovic et al., TPAMI 2019"
    one_size = False

    def __init__(self, in_channels: Sequence[int], p: float = 3.0, eps: float = 1e-6) -> None:
        if p <= 0 or eps <= 0:
            raise ValueError(f"gem wants p and eps above 0, not p={p} and eps={eps}")
        super().__init__(in_channels, out_features=sum(in_channels))
        self.eps = eps
        self.p = nn.Parameter(torch.tensor(float(p)))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pools maps of shape (N, C_i, H_i, W_i) to (N, out_features)."""
        check_channels(maps, self.in_channels)
        return torch.cat([self._mean(at_least_float32(x)) for x in maps], dim=1).to(maps[0].dtype)

    def _mean(self, x: Tensor) -> Tensor:
        x = x.clamp(min=self.eps)
        # Powers of at most 1 do not overflow. The largest value is a constant to autograd: the mean is
        # homogeneous, so it does not depend on what x is divided by and multiplied with.
        largest = x.detach().amax(dim=(2, 3), keepdim=True)
        p = self.p.to(x.dtype)
        return (x / largest).pow(p).mean(dim=(2, 3)).pow(1 / p) * largest.flatten(1)
