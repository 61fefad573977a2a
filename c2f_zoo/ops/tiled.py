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

from c2f_zoo.ops.memory_efficient import accumulators, finished, register_sums
from c2f_zoo.ops.products import add_product, matmul

_TILE_ROWS = 512


def plain_sums(
    maps: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    masks: Sequence[int],
    rectify: bool = False,
) -> Tensor:
    """Return the sums (terms, N, d) by the plain formula, in float32 or wider."""
    dtype = torch.promote_types(maps[0].dtype, torch.float32)
    projected = [
        weight.to(dtype) @ x.to(dtype) + bias.to(dtype)[:, None]
        for x, weight, bias in zip(maps, weights, biases, strict=True)
    ]
    if rectify:
        projected = [x.relu() for x in projected]
    sums = []
    for mask in masks:
        first, *others = members(mask)
        product = projected[first]
        for index in others:
            product = product * projected[index]
        sums.append(product.sum(dim=2))
    return torch.stack(sums)


def members(mask: int) -> list[int]:
    """Return the indices of the projections in a term."""
    return [index for index in range(mask.bit_length()) if mask >> index & 1]


def _forward(
    maps: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    masks: Sequence[int],
    keep: bool,
    rectify: bool,
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(maps[0].dtype, torch.float32)
    sums = maps[0].new_empty(len(masks), len(maps[0]), len(weights[0]), dtype=dtype)
    kept = _fake_kept(maps, weights, biases, masks, keep)
    tiles = _Tiles(maps, weights, biases)
    for n, rows in tiles:
        projected = tiles.project(rows, rectify)
        for term, mask in enumerate(masks):
            torch.sum(_product(projected, members(mask), tiles.scratch), dim=1, out=sums[term, n, rows])
        if keep:
            for index, tile in enumerate(projected):
                kept[index, n, rows] = tile
    return sums, kept


def _fake_kept(
    maps: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], masks: Sequence[int], keep: bool
) -> Tensor:
    if not keep:
        return maps[0].new_empty(0)
    shape = (len(maps), maps[0].shape[0], weights[0].shape[0], maps[0].shape[2])
    return maps[0].new_empty(shape, dtype=torch.bfloat16)


def _backward(
    maps: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    masks: Sequence[int],
    rectify: bool,
    kept: Tensor,
    grad: Tensor,
    needed: Sequence[bool],
) -> list[Tensor]:
    inputs, count = [*maps, *weights, *biases], len(maps)
    gradients = accumulators(inputs, needed, torch.empty)
    of_maps, of_weights, of_biases = (gradients[i * count : (i + 1) * count] for i in range(3))
    tiles = _Tiles(maps, weights, biases)
    for n, rows in tiles:
        projected = list(kept[:, n, rows].to(tiles.dtype)) if kept.numel() else tiles.project(rows, rectify)
        for index in range(count):
            if of_maps[index] is None and of_weights[index] is None and of_biases[index] is None:
                continue
            upstream = _upstream(index, projected, masks, grad[:, n, rows, None], tiles)
            if rectify:  # one pass, in place: 0 where ReLU gave 0
                torch.ops.aten.threshold_backward(upstream, projected[index], 0, grad_input=upstream)
            if (gradient := of_maps[index]) is not None:
                add_product(gradient[n], tiles.transposed()[index], upstream, is_first=rows.start == 0)
            if (gradient := of_weights[index]) is not None:
                add_product(gradient[rows], upstream, tiles.maps[index].T, is_first=n == 0)
            if (gradient := of_biases[index]) is not None:
                gradient[rows].add_(upstream.sum(dim=1)) if n else torch.sum(upstream, dim=1, out=gradient[rows])
    return finished(gradients, inputs)


class _Tiles:
    """An iterator over images and rows of the projections, with one tile's buffers."""

    def __init__(self, maps: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        self._all = (maps, weights, biases)
        self.dtype = torch.promote_types(maps[0].dtype, torch.float32)

    def __iter__(self) -> Iterator[tuple[int, slice]]:
        maps, weights, _ = self._all
        buffers = maps[0].new_empty(2, _TILE_ROWS, maps[0].shape[2], dtype=self.dtype)
        for start in range(0, len(weights[0]), _TILE_ROWS):
            rows = slice(start, min(start + _TILE_ROWS, len(weights[0])))
            self.scratch, self.upstream = buffers[:, : rows.stop - start]
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
        biases = [bias[rows, None].to(self.dtype) for bias in self._all[2]]
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
    is_first = True
    for term, mask in enumerate(masks):
        if not mask >> index & 1:
            continue
        product = _product(projected, members(mask & ~(1 << index)), tiles.scratch)
        if is_first:
            torch.mul(product, grad[term], out=total)
        else:
            total.addcmul_(product, grad[term])
        is_first = False
    return total.zero_() if is_first else total


tiled_sums = register_sums("tiled_sums", _forward, _backward, _fake_kept, plain_sums)
