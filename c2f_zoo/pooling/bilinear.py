"""Bilinear pooling (B-CNN): the Gram matrix of one map, or of two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from c2f_zoo.ops import l2_normalize, signed_sqrt
from c2f_zoo.pooling.registry import check_maps, check_num_maps, register_pooling


@register_pooling("bilinear")
class BilinearPooling(nn.Module):
    """Bilinear pooling: sum_l x_l y_l^T over locations, signed root, l2 (Lin et al., ICCV 2015; Huo et al., eq. 1).

    It has no parameters. With one map, y is x.

    Args:
        in_channels: number of channels of the one or two maps.
        grad_eps: bound on the root's gradient, see `c2f_zoo.ops.signed_sqrt`.

    Raises:
        ValueError: neither one map nor two.
    """

    def __init__(self, in_channels: Sequence[int], grad_eps: float = 1e-4) -> None:
        super().__init__()
        check_num_maps("bilinear", in_channels, allowed=[1, 2])
        self.in_channels = tuple(in_channels)
        self.grad_eps = grad_eps
        self.out_features = in_channels[0] * in_channels[-1]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pools maps of shape (N, C_i, H, W) to (N, out_features): row-major x_i y_j."""
        check_maps(maps, self.in_channels)
        with torch.autocast(maps[0].device.type, enabled=False):
            # float32 at the least: a Gram of fp16 maps overflows.
            x, y = (m.to(torch.promote_types(m.dtype, torch.float32)).flatten(2) for m in (maps[0], maps[-1]))
            gram = x @ y.transpose(1, 2)
            pooled = l2_normalize(signed_sqrt(gram.flatten(1), self.grad_eps))
        return pooled.to(maps[0].dtype)
