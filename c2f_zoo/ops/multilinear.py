"""Sums over locations of products of projected feature maps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import mul

import torch
from torch import Tensor

from c2f_zoo.ops.choice import SumsShape, choose
from c2f_zoo.ops.cross_gram import cross_gram_sums
from c2f_zoo.ops.memory_efficient import SumsOperator, bit_masks
from c2f_zoo.ops.precision import compute_dtype, is_exporting, project, without_autocast
from c2f_zoo.ops.tiled import tiled_sums
from c2f_zoo.ops.triton_multilinear import triton_multilinear_sums


def multilinear_sums(
    maps: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    terms: Sequence[tuple[int, ...]],
    impl: str | None = None,
) -> list[Tensor]:
    """Project maps, multiply the projections of each term, and sum over locations.

    With P_i = U_i X_i + b_i, a term such as (0, 2) gives sum_l P_0[:, l] * P_2[:, l] (Huo et al. 2019,
    eqs. 4 to 6, before root and norm). The projections may follow autocast; products and sums are computed in
    float32 (float64 for float64 maps).

    Args:
        maps: the feature maps X_i, (N, C_i, H, W), one spatial size.
        weights: the projections U_i, (d, C_i).
        biases: their biases b_i, (d,), or None.
        terms: indices of the maps of each product.
        impl: one of `c2f_zoo.ops.IMPLEMENTATIONS`. Default: chosen automatically, see `c2f_zoo.ops.explain`. This is
            also the fallback for an unsupported implementation, with a warning the first time.

    Returns:
        For each term a tensor (N, d), float32 or float64.

    Raises:
        ValueError: `impl` is unknown, or the maps differ in batch or spatial size.

    Examples:
        >>> x, u, b = torch.ones(1, 2, 3, 3), torch.ones(4, 2), torch.zeros(4)
        >>> multilinear_sums([x, x], [u, u], [b, b], [(0, 1)])[0]  # 9 locations, 2 * 2 at each
        tensor([[36., 36., 36., 36.]])
    """
    first = maps[0].shape
    if any(x.shape[0] != first[0] or x.shape[2:] != first[2:] for x in maps):
        raise ValueError(f"the maps differ in batch or spatial size: {[tuple(x.shape) for x in maps]}; make both equal")
    choice = choose(_sums_shape(maps, weights, terms), impl)
    # No warning in an export, since torch 2.6 cannot trace one.
    if choice.refused is not None and choice.refused not in _warned and not is_exporting():
        _warned.add(choice.refused)
        warnings.warn(f"multilinear_sums: {choice.refused}; using {choice.impl!r} instead", stacklevel=2)
    return _RUN[choice.impl](maps, weights, biases, terms)


_warned: set[str] = set()


def _plain(
    maps: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    terms: Sequence[tuple[int, ...]],
) -> list[Tensor]:
    projected = [project(x, weight, bias) for x, weight, bias in zip(maps, weights, biases, strict=True)]
    with without_autocast(maps[0]):
        return [reduce(mul, [projected[index] for index in term]).sum(dim=2) for term in terms]


def _memory_efficient(
    operator: SumsOperator,
    keep: bool,
    maps: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    terms: Sequence[tuple[int, ...]],
) -> list[Tensor]:
    """Call an operator on flat maps, biases and bit masks."""
    given = [weight.new_zeros(len(weight)) if b is None else b for weight, b in zip(weights, biases, strict=True)]
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (*maps, *weights, *given))
    flat = [x.flatten(2) for x in maps]
    with without_autocast(maps[0]):
        return list(operator(flat, list(weights), given, bit_masks(terms), keep and trained, False)[0])


_RUN: dict[str, Callable[..., list[Tensor]]] = {
    "plain": _plain,
    "tiled": partial(_memory_efficient, tiled_sums, False),
    "saved_bf16": partial(_memory_efficient, tiled_sums, True),
    "gram": partial(_memory_efficient, cross_gram_sums, True),
    "triton": triton_multilinear_sums,
}


def _sums_shape(maps: Sequence[Tensor], weights: Sequence[Tensor], terms: Sequence[tuple[int, ...]]) -> SumsShape:
    return SumsShape(
        batch=maps[0].shape[0],
        channels=tuple(x.shape[1] for x in maps),
        locations=maps[0].shape[2] * maps[0].shape[3],
        dim=weights[0].shape[0],
        terms=tuple(terms),
        dtypes=(compute_dtype(maps[0], weights[0]), *(x.dtype for x in (*maps, *weights))),
        device=maps[0].device.type,
        exporting=is_exporting(),
    )
