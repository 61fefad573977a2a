"""Max pooling: a baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from c2f_zoo.ops import at_least_float32
from c2f_zoo.pooling.base import Pooling
from c2f_zoo.pooling.checks import check_channels
from c2f_zoo.pooling.registry import register_pooling


@register_pooling("max")
class MaxPooling(Pooling):
    """Global max pooling: the maximum over locations of each channel.

    Equal maxima share the gradient equally.

    Args:
        in_channels: number of channels of each map; the maps may differ in size.
    """

    description = "Global max pooling: the maximum of each channel over locations"
    source = "Oquab et al., CVPR 2015"
    one_size = False

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__(in_channels, out_features=sum(in_channels))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pool maps of shape (N, C_i, H_i, W_i) to (N, out_features)."""
        check_channels(maps, self.in_channels)
        return torch.cat([at_least_float32(x.amax(dim=(2, 3))) for x in maps], dim=1).to(maps[0].dtype)
