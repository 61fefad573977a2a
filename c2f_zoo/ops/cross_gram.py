"""Sums of products of pairs by cross-Gram matrices, without projections.

sum_l (u . x_l)(v . y_l) = u^T (sum_l x_l y_l^T) v. The cross-Gram matrix of two maps is computed once for each image. A
product with a C x C matrix then replaces the projection of L locations: fewer multiplications if C / L + C / d < 1.
The matrices are smaller than the maps and are kept for the backward pass. The outer loop is over rows of the weights,
so that these stay in the cache for all images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from c2f_zoo.ops.memory_efficient import Operands, members, register_sums, row_slices
from c2f_zoo.ops.products import add_product, matmul

_ROWS = 1024


def _forward(operands: Operands, masks: Sequence[int], rectify: bool, sums: Tensor, kept: Tensor) -> None:
    maps, weights, biases = operands
    grams = _grams(operands, masks, kept if kept.numel() else _new_kept(operands, masks))
    totals = [x.sum(dim=2, dtype=sums.dtype) for x in maps]
    for rows in row_slices(len(weights[0]), _ROWS):
        u, b = ([x[rows].to(sums.dtype) for x in group] for group in (weights, biases))
        means = [weight @ total.T for weight, total in zip(u, totals, strict=True)]
        for term, mask in enumerate(masks):
            i, j = members(mask)
            for n, gram in enumerate(grams[term]):
                torch.sum(matmul(u[i], gram).mul_(u[j]), dim=1, out=sums[term, n, rows])
            linear = b[j][:, None] * means[i] + b[i][:, None] * means[j]
            sums[term, :, rows] += (linear + maps[0].shape[2] * (b[i] * b[j])[:, None]).T


def _new_kept(operands: Operands, masks: Sequence[int]) -> Tensor:
    """Allocate a flat tensor for the cross-Gram matrices of all terms and images."""
    maps = operands.maps
    size = sum(maps[i].shape[1] * maps[j].shape[1] for i, j in map(members, masks))
    return maps[0].new_empty(maps[0].shape[0] * size, dtype=operands.dtype)


def _grams(operands: Operands, masks: Sequence[int], packed: Tensor) -> list[Tensor]:
    """Write the cross-Gram matrices to a flat tensor; return those of each term."""
    grams = _split(packed, operands.maps, masks)
    for mask, matrices in zip(masks, grams, strict=True):
        x, y = (operands.maps[index] for index in members(mask))
        for n, out in enumerate(matrices):
            out.copy_(matmul(x[n].to(packed.dtype), y[n].to(packed.dtype).T))
    return grams


def _split(packed: Tensor, maps: Sequence[Tensor], masks: Sequence[int]) -> list[Tensor]:
    """Return the matrices of each term, (N, C_i, C_j)."""
    shapes = [(maps[0].shape[0], maps[i].shape[1], maps[j].shape[1]) for i, j in map(members, masks)]
    parts = packed.split([n * rows * columns for n, rows, columns in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _backward(
    operands: Operands,
    masks: Sequence[int],
    rectify: bool,
    kept: Tensor,
    grad: Tensor,
    gradients: Sequence[Sequence[Tensor | None]],
) -> None:
    maps, weights, biases = operands
    of_maps, of_weights, of_biases = gradients
    dtype = operands.dtype
    grams = _split(kept, maps, masks) if kept.numel() else _grams(operands, masks, _new_kept(operands, masks))
    of_grams = _split(_new_kept(operands, masks).zero_(), maps, masks)
    totals = [x.sum(dim=2, dtype=dtype) for x in maps]
    of_totals = [torch.zeros_like(total) for total in totals]
    for rows in row_slices(len(weights[0]), _ROWS):
        u, b = ([x[rows].to(dtype) for x in group] for group in (weights, biases))
        of_u, of_b = ([None if x is None else x[rows] for x in group] for group in (of_weights, of_biases))
        # Transposed once for all images, or oneDNN would copy them for each image.
        transposed = [weight.T.contiguous() for weight in u] if any(x is not None for x in of_maps) else []
        upstream = grad[:, :, rows]
        _through_totals(totals, u, b, masks, upstream, maps[0].shape[2], of_totals, of_u, of_b)
        for term, mask in enumerate(masks):
            i, j = members(mask)
            into = of_grams[term] if of_maps[i] is not None or of_maps[j] is not None else None
            _through_products(i, j, u, transposed, grams[term], upstream[term], into, of_u)
    for gradient, of_total in zip(of_maps, of_totals, strict=True):
        if gradient is not None:
            gradient.copy_(of_total[:, :, None].expand_as(gradient))
    for mask, of_gram in zip(masks, of_grams, strict=True):
        i, j = members(mask)
        for n, matrix in enumerate(of_gram):
            if (gradient := of_maps[i]) is not None:
                add_product(gradient[n], matrix, maps[j][n].to(dtype))
            if (gradient := of_maps[j]) is not None:
                add_product(gradient[n], matrix.T, maps[i][n].to(dtype))


def _through_totals(
    totals: Sequence[Tensor],
    u: Sequence[Tensor],
    b: Sequence[Tensor],
    masks: Sequence[int],
    grad: Tensor,
    locations: int,
    of_totals: Sequence[Tensor],
    of_u: Sequence[Tensor | None],
    of_b: Sequence[Tensor | None],
) -> None:
    """Write the gradients of b_j u_i . t_i + b_i u_j . t_j + L b_i b_j.

    t is a map's sum over locations. Gradients of weights and biases are overwritten, those of t accumulated.
    """
    means = [weight @ total.T for weight, total in zip(u, totals, strict=True)]
    of_means, constant = [torch.zeros_like(mean) for mean in means], [torch.zeros_like(bias) for bias in b]
    for term, mask in enumerate(masks):
        i, j = members(mask)
        for one, other in ((i, j), (j, i)):
            of_means[one] += grad[term].T * b[other][:, None]
            constant[one] += (grad[term].T * (means[other] + locations * b[other][:, None])).sum(dim=1)
    for index, of_mean in enumerate(of_means):
        if (gradient := of_b[index]) is not None:
            gradient.copy_(constant[index])
        if (gradient := of_u[index]) is not None:
            torch.mm(of_mean, totals[index], out=gradient)
        of_totals[index].addmm_(of_mean.T, u[index])


def _through_products(
    i: int,
    j: int,
    u: Sequence[Tensor],
    transposed: Sequence[Tensor],
    grams: Tensor,
    grad: Tensor,
    of_grams: Tensor | None,
    of_u: Sequence[Tensor | None],
) -> None:
    """Add a pair's gradients of both weights' rows and of the cross-Gram matrices."""
    scaled_j = torch.empty_like(u[j])
    for n, gram in enumerate(grams):
        factor = grad[n][:, None]
        if of_u[i] is not None or of_grams is not None:
            torch.mul(u[j], factor, out=scaled_j)
        if (gradient := of_u[i]) is not None:
            add_product(gradient, scaled_j, gram.T)
        if of_grams is not None:
            add_product(of_grams[n], transposed[i], scaled_j)
        if (gradient := of_u[j]) is not None:
            gradient.addcmul_(matmul(u[i], gram), factor)


cross_gram_sums = register_sums("cross_gram_sums", _forward, _backward, _new_kept)
