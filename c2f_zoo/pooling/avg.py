"""Average pooling: a baseline, also used by the linear probe."""

from __future__ import annotations

from torch import Tensor

from c2f_zoo.ops import at_least_float32
from c2f_zoo.pooling.base import ChannelwisePooling
from c2f_zoo.pooling.registry import register_pooling


@register_pooling("avg")
class AveragePooling(ChannelwisePooling):
    """Global average pooling: the mean over locations of each channel.

    Args:
        in_channels: number of channels of each map; the maps may differ in size.
    """

    description = "Global average pooling: the mean of each channel over locations"
    source = "Lin et al., ICLR 2014"

    def pool_map(self, x: Tensor) -> Tensor:
        """Pool one map (N, C_i, H_i, W_i) to (N, C_i), float32 or wider."""
        return at_least_float32(x).mean(dim=(2, 3))
