"""Bilinear pooling (B-CNN): the Gram matrix of one map, or of two."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from c2f_zoo.ops import gram, signed_sqrt_l2
from c2f_zoo.pooling.base import Pooling
from c2f_zoo.pooling.checks import Align, align_maps, check_num_maps
from c2f_zoo.pooling.registry import register_pooling


@register_pooling("bilinear")
class BilinearPooling(Pooling):
    """Bilinear pooling (B-CNN): the Gram matrix `X Y^T` of one map or of two.

    It is sum_l x_l y_l^T over locations, followed by signed root and l2, without parameters. With one map, y is x.

    Args:
        in_channels: number of channels of the one or two maps.
        grad_eps: bound on the root's gradient, see `c2f_zoo.ops.signed_sqrt`.
        align: treatment of two maps of different sizes: `"error"` or `"pool"`.

    Raises:
        ValueError: the number of maps is not 1 or 2.
    """

    description = "The Gram matrix of one map or two: `X Y^T`"
    source = "Lin et al., ICCV 2015; Huo et al., eq. 1"

    def __init__(self, in_channels: Sequence[int], grad_eps: float = 1e-4, align: Align = "error") -> None:
        check_num_maps("bilinear", in_channels, allowed=[1, 2])
        super().__init__(in_channels, out_features=in_channels[0] * in_channels[-1], align=align)
        self.grad_eps = grad_eps

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pool maps of shape (N, C_i, H, W) to (N, out_features), x_i y_j row by row."""
        maps = align_maps(maps, self.in_channels, self.align)
        sums = gram(maps[0], maps[-1]).flatten(1)
        return signed_sqrt_l2(sums, self.grad_eps).to(maps[0].dtype)
