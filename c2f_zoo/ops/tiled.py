"""Multilinear sums tile by tile, without a tensor of size N x d x HW.

A tile is a block of rows of one image's projections. It is projected, multiplied, summed over locations and discarded;
the backward pass projects it again. Rows stay in the cache while all images use them. A training step with three maps
has 12 large matrix products instead of 9, but is faster because their results are not written to memory. With `keep`,
projections are kept in bfloat16, for 9 products and more memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from c2f_zoo.ops.memory_efficient import Operands, members, register_sums, row_slices
from c2f_zoo.ops.products import add_product, matmul

_TILE_ROWS = 512


def _forward(operands: Operands, masks: Sequence[int], rectify: bool, sums: Tensor, kept: Tensor) -> None:
    tiles = _Tiles(operands)
    for n, rows in tiles:
        projected = tiles.project(rows, rectify)
        for term, mask in enumerate(masks):
            torch.sum(_product(projected, members(mask), tiles.scratch), dim=1, out=sums[term, n, rows])
        if kept.numel():
            for index, tile in enumerate(projected):
                kept[index, n, rows] = tile


def _new_kept(operands: Operands, masks: Sequence[int]) -> Tensor:
    """Allocate a tensor for all projections, (projections, N, d, L)."""
    x = operands.maps[0]
    shape = (len(operands.maps), x.shape[0], operands.weights[0].shape[0], x.shape[2])
    return x.new_empty(shape, dtype=torch.bfloat16)


def _backward(
    operands: Operands,
    masks: Sequence[int],
    rectify: bool,
    kept: Tensor,
    grad: Tensor,
    gradients: Sequence[Sequence[Tensor | None]],
) -> None:
    tiles = _Tiles(operands)
    for n, rows in tiles:
        projected = list(kept[:, n, rows].to(tiles.dtype)) if kept.numel() else tiles.project(rows, rectify)
        for index, (of_map, of_weight, of_bias) in enumerate(zip(*gradients, strict=True)):
            if of_map is None and of_weight is None and of_bias is None:
                continue
            upstream = _upstream(index, projected, masks, grad[:, n, rows, None], tiles)
            if rectify:  # one pass, in place: 0 where ReLU gave 0
                torch.ops.aten.threshold_backward(upstream, projected[index], 0, grad_input=upstream)
            if of_map is not None:
                add_product(of_map[n], tiles.transposed()[index], upstream, is_first=rows.start == 0)
            if of_weight is not None:
                add_product(of_weight[rows], upstream, tiles.maps[index].T, is_first=n == 0)
            if of_bias is not None:
                of_bias[rows].add_(upstream.sum(dim=1)) if n else torch.sum(upstream, dim=1, out=of_bias[rows])


class _Tiles:
    """An iterator over images and rows of the projections, with one tile's buffers."""

    def __init__(self, operands: Operands) -> None:
        self._operands, self.dtype = operands, operands.dtype

    def __iter__(self) -> Iterator[tuple[int, slice]]:
        maps, weights, _ = self._operands
        buffers = maps[0].new_empty(2, _TILE_ROWS, maps[0].shape[2], dtype=self.dtype)
        for rows in row_slices(len(weights[0]), _TILE_ROWS):
            self.scratch, self.upstream = buffers[:, : rows.stop - rows.start]
            self.weights = [weight[rows].to(self.dtype) for weight in weights]
            self._transposed: list[Tensor] = []
            for n in range(len(maps[0])):
                self.maps = [x[n].to(self.dtype) for x in maps]
                yield n, rows

    def transposed(self) -> list[Tensor]:
        """Return these rows of the weights transposed, once for all images."""
        self._transposed = self._transposed or [weight.T.contiguous() for weight in self.weights]
        return self._transposed

    def project(self, rows: slice, rectify: bool) -> list[Tensor]:
        """Return this tile's projections, (rows, L) each."""
        biases = [bias[rows, None].to(self.dtype) for bias in self._operands.biases]
        projected = [
            matmul(weight, x).add_(bias) for x, weight, bias in zip(self.maps, self.weights, biases, strict=True)
        ]
        return [tile.relu_() for tile in projected] if rectify else projected


def _product(projected: Sequence[Tensor], indices: Sequence[int], out: Tensor) -> Tensor:
    """Return the product of projections, in `out` if there are two or more."""
    if not indices:
        return out.fill_(1)
    if len(indices) == 1:
        return projected[indices[0]]
    torch.mul(projected[indices[0]], projected[indices[1]], out=out)
    for index in indices[2:]:
        out.mul_(projected[index])
    return out


def _upstream(index: int, projected: Sequence[Tensor], masks: Sequence[int], grad: Tensor, tiles: _Tiles) -> Tensor:
    """Return the gradient of one projection: sum of grad x product of the others."""
    total = tiles.upstream
    terms = [term for term, mask in enumerate(masks) if mask >> index & 1]
    if not terms:
        return total.zero_()
    for term in terms:
        product = _product(projected, members(masks[term] & ~(1 << index)), tiles.scratch)
        if term == terms[0]:
            torch.mul(product, grad[term], out=total)
        else:
            total.addcmul_(product, grad[term])
    return total


tiled_sums = register_sums("tiled_sums", _forward, _backward, _new_kept)
