"""Max pooling: a baseline."""

from __future__ import annotations

from torch import Tensor

from c2f_zoo.ops import at_least_float32
from c2f_zoo.pooling.base import ChannelwisePooling
from c2f_zoo.pooling.registry import register_pooling


@register_pooling("max")
class MaxPooling(ChannelwisePooling):
    """Global max pooling: the maximum over locations of each channel.

    Equal maxima share the gradient equally.

    Args:
        in_channels: number of channels of each map; the maps may differ in size.
    """

    description = "Global max pooling: the maximum of each channel over locations"
    source = "Oquab et al., CVPR 2015"

    def pool_map(self, x: Tensor) -> Tensor:
        """Pool one map (N, C_i, H_i, W_i) to (N, C_i), float32 or wider."""
        return at_least_float32(x.amax(dim=(2, 3)))
