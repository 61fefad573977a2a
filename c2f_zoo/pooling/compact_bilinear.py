"""Compact bilinear pooling (CB-CNN): a random sketch of the Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from c2f_zoo.ops import draw_hashes, draw_signs, gram, multilinear_sums, signed_sqrt_l2, sketch_matrix
from c2f_zoo.pooling.base import Pooling
from c2f_zoo.pooling.checks import Align, align_maps, check_num_maps
from c2f_zoo.pooling.registry import register_pooling
from c2f_zoo.registry import check_names

Sketch = Literal["tensor_sketch", "random_maclaurin"]


@register_pooling("compact_bilinear")
class CompactBilinearPooling(Pooling):
    """Compact bilinear pooling (CB-CNN): a random sketch of `X Y^T` with d entries.

    The inner product of two sketches is an unbiased estimate of that of the bilinear vectors. Signed root and l2
    follow. There are no parameters: the sketch is drawn once, from a separate generator, and saved.

    Args:
        in_channels: number of channels of the one or two maps.
        dim: length d of the sketch.
        sketch: `"tensor_sketch"` (algorithm 2 of the paper), or `"random_maclaurin"` (algorithm 1), products of
            projections on random signs.
        seed: seed of the sketch.
        grad_eps: bound on the root's gradient, see `c2f_zoo.ops.signed_sqrt`.
        align: treatment of two maps of different sizes: `"error"` or `"pool"`.

    Raises:
        ValueError: the number of maps is not 1 or 2, or `sketch` is unknown.
    """

    description = "A fixed random sketch of `X Y^T` with d entries"
    source = "Gao et al., CVPR 2016"

    hashes_x: Tensor
    hashes_y: Tensor
    signs_x: Tensor
    signs_y: Tensor

    def __init__(
        self,
        in_channels: Sequence[int],
        dim: int = 8192,
        sketch: Sketch = "tensor_sketch",
        seed: int = 0,
        grad_eps: float = 1e-4,
        align: Align = "error",
    ) -> None:
        check_num_maps("compact_bilinear", in_channels, allowed=[1, 2])
        check_names("sketch", [sketch], get_args(Sketch))
        super().__init__(in_channels, dim, align)
        self.sketch = sketch
        self.grad_eps = grad_eps
        generator = torch.Generator().manual_seed(seed)
        for name, channels in zip("xy", (in_channels[0], in_channels[-1]), strict=True):
            if sketch == "tensor_sketch":
                hashes, signs = draw_hashes(1, channels, dim, generator)
                self.register_buffer(f"hashes_{name}", hashes[0])
                self.register_buffer(f"signs_{name}", signs[0])
            else:
                self.register_buffer(f"signs_{name}", draw_signs((dim, channels), generator))

    def sums(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the sketches (N, d) of Gram matrices, before root and norm."""
        maps = align_maps(maps, self.in_channels, self.align)
        x, y = maps[0], maps[-1]
        if self.sketch == "tensor_sketch":
            rows, columns = (self.hashes_x, self.signs_x), (self.hashes_y, self.signs_y)
            return sketch_matrix(gram(x, y), rows, columns, self.out_features)
        signs = [self.signs_x.to(x.dtype), self.signs_y.to(y.dtype)]
        return multilinear_sums([x, y], signs, [None, None], [(0, 1)])[0] / self.out_features**0.5

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pool maps of shape (N, C_i, H, W) to (N, dim)."""
        return signed_sqrt_l2(self.sums(maps), self.grad_eps).to(maps[0].dtype)
