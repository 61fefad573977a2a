"""Max pooling: a plain baseline."""

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
    """The largest value over locations of each map, concatenated: global max pooling (Oquab et al., CVPR 2015).

    Locations that share the largest value share its gradient.

    Args:
        in_channels: number of channels of each map; the maps may differ in size.
    """

    description = "The largest value over locations of each map, concatenated: global max pooling"
    source = "Oquab et al., CVPR 2015"
    one_size = False

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__(in_channels, out_features=sum(in_channels))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pools maps of shape (N, C_i, H_i, W_i) to (N, out_features)."""
        check_channels(maps, self.in_channels)
        return torch.cat([at_least_float32(x.amax(dim=(2, 3))) for x in maps], dim=1).to(maps[0].dtype)
