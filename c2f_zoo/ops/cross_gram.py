"""Sums of pairs without any projection: sum_l (u . x_l)(v . y_l) = u^T (sum_l x_l y_l^T) v.

The cross-Gram matrix of two maps is made once for each picture; what was projected at L locations is then a product
with a C x C matrix. It takes fewer multiplications where C / L + C / d < 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from c2f_zoo.ops.lean import accumulators, finished, register_sums
from c2f_zoo.ops.tiled import members, plain_sums

_ROWS = 1024


def _row_slices(dim: int) -> Iterator[slice]:
    return (slice(start, min(start + _ROWS, dim)) for start in range(0, dim, _ROWS))


def _forward(
    maps: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    masks: Sequence[int],
    keep: str,
    rectify: bool,
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(maps[0].dtype, torch.float32)
    dim, locations = len(weights[0]), maps[0].shape[2]
    sums = maps[0].new_empty(len(masks), len(maps[0]), dim, dtype=dtype)
    u, b = ([x.to(dtype) for x in group] for group in (weights, biases))
    for n in range(len(maps[0])):
        x = [feature_map[n].to(dtype) for feature_map in maps]
        means = [weight @ vectors.sum(dim=1) for weight, vectors in zip(u, x, strict=True)]
        for term, mask in enumerate(masks):
            i, j = members(mask)
            gram = x[i] @ x[j].T
            for rows in _row_slices(dim):
                torch.sum((u[i][rows] @ gram).mul_(u[j][rows]), dim=1, out=sums[term, n, rows])
            sums[term, n] += b[j] * means[i] + b[i] * means[j] + locations * b[i] * b[j]
    return sums, maps[0].new_empty(0)


def _fake_kept(
    maps: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], masks: Sequence[int], keep: str
) -> Tensor:
    return maps[0].new_empty(0)


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
    dtype = torch.promote_types(maps[0].dtype, torch.float32)
    gradients = accumulators(inputs, needed)
    of_maps, of_weights, of_biases = (gradients[i * count : (i + 1) * count] for i in range(3))
    u, b = ([x.to(dtype) for x in group] for group in (weights, biases))
    for n in range(len(maps[0])):
        x = [feature_map[n].to(dtype) for feature_map in maps]
        for term, mask in enumerate(masks):
            i, j = members(mask)
            of_gram = _through_products(i, j, x, u, grad[term, n], of_maps, of_weights)
            if (gradient := of_maps[i]) is not None:
                gradient[n].addmm_(of_gram, x[j])
            if (gradient := of_maps[j]) is not None:
                gradient[n].addmm_(of_gram.T, x[i])
        _through_biases(n, x, u, b, masks, grad[:, n], of_maps, of_weights, of_biases)
    return finished(gradients, inputs)


def _through_products(
    i: int,
    j: int,
    x: Sequence[Tensor],
    u: Sequence[Tensor],
    grad: Tensor,
    of_maps: Sequence[Tensor | None],
    of_weights: Sequence[Tensor | None],
) -> Tensor:
    """Adds to the gradients of both weights of a pair; gives that of the cross-Gram matrix, (C_i, C_j)."""
    gram = x[i] @ x[j].T
    of_gram = torch.zeros_like(gram)
    for rows in _row_slices(len(grad)):
        # A row's factor may as well come before the product.
        scaled = u[j][rows] * grad[rows, None]
        if (gradient := of_weights[i]) is not None:
            gradient[rows].addmm_(scaled, gram.T)
        if of_maps[i] is not None or of_maps[j] is not None:
            of_gram.addmm_(u[i][rows].T, scaled)
        if (gradient := of_weights[j]) is not None:
            gradient[rows].addmm_(u[i][rows] * grad[rows, None], gram)
    return of_gram


def _through_biases(
    n: int,
    x: Sequence[Tensor],
    u: Sequence[Tensor],
    b: Sequence[Tensor],
    masks: Sequence[int],
    grad: Tensor,
    of_maps: Sequence[Tensor | None],
    of_weights: Sequence[Tensor | None],
    of_biases: Sequence[Tensor | None],
) -> None:
    """Adds the gradients of b_j u_i . m_i + b_i u_j . m_j + L b_i b_j, where m is a map's sum over locations."""
    sums = [vectors.sum(dim=1) for vectors in x]
    means = [weight @ total for weight, total in zip(u, sums, strict=True)]
    of_means = [torch.zeros_like(bias) for bias in b]
    for term, mask in enumerate(masks):
        i, j = members(mask)
        for one, other in ((i, j), (j, i)):
            of_means[one] += grad[term] * b[other]
            if (gradient := of_biases[one]) is not None:
                gradient += grad[term] * (means[other] + x[0].shape[1] * b[other])
    for index, of_mean in enumerate(of_means):
        if (gradient := of_weights[index]) is not None:
            gradient.addr_(of_mean, sums[index])
        if (gradient := of_maps[index]) is not None:
            gradient[n] += (of_mean @ u[index])[:, None]


cross_gram_sums = register_sums("cross_gram_sums", _forward, _backward, _fake_kept, plain_sums)
