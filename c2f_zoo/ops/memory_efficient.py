"""Memory-efficient implementations of multilinear sums as PyTorch operators.

`torch.compile` calls an operator as a whole, unlike an `autograd.Function`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import mul
from typing import Any, NamedTuple

import torch
from torch import Tensor

from c2f_zoo.ops.precision import without_autocast

SumsOperator = Callable[
    [Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Sequence[int], bool, bool], tuple[Tensor, Tensor]
]

_INPUTS = "Tensor[] maps, Tensor[] weights, Tensor[] biases, int[] masks"
_FORWARD = f"({_INPUTS}, bool keep, bool rectify) -> (Tensor, Tensor)"
_BACKWARD = f"({_INPUTS}, bool rectify, Tensor kept, Tensor grad, bool[] needed) -> Tensor[]"


class Operands(NamedTuple):
    """Flat maps (N, C_i, L), weights (d, C_i) and biases (d,), one of each for a projection."""

    maps: Sequence[Tensor]
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of sums and gradients: the maps', but at least float32."""
        return torch.promote_types(self.maps[0].dtype, torch.float32)


def register_sums(
    name: str, forward: Callable[..., None], backward: Callable[..., None], new_kept: Callable[..., Tensor]
) -> SumsOperator:
    """Register the operator `c2f_zoo::<name>` with its gradients.

    From (maps, weights, biases, masks, keep, rectify) the operator computes (sums, kept): with maps (N, C_i, L),
    weights (d, C_i) and biases (d,), sums are (terms, N, d), float32 or wider. A mask has a bit for each projection of
    a term. `keep` keeps intermediate results for the backward pass; `rectify` applies ReLU to projections. Second
    derivatives are those of `plain_sums`.

    Args:
        name: name of the operator.
        forward: a function of (operands, masks, rectify, sums, kept) that writes to `sums`, and to `kept` unless it is
            empty.
        backward: a function of (operands, masks, rectify, kept, grad, gradients) that writes to `gradients`: for maps,
            weights and biases a list of tensors, float32 or wider, or None if not needed.
        new_kept: a function of (operands, masks) that allocates `kept`.
    """

    def allocate(operands: Operands, masks: Any, keep: bool) -> tuple[Tensor, Tensor]:
        x = operands.maps[0]
        sums = x.new_empty(len(masks), x.shape[0], operands.weights[0].shape[0], dtype=operands.dtype)
        return sums, new_kept(operands, masks) if keep else x.new_empty(0)

    def run(maps: Any, weights: Any, biases: Any, masks: Any, keep: bool, rectify: bool) -> tuple[Tensor, Tensor]:
        operands = Operands(maps, weights, biases)
        sums, kept = allocate(operands, masks, keep)
        forward(operands, masks, rectify, sums, kept)
        return sums, kept

    def run_backward(
        maps: Any, weights: Any, biases: Any, masks: Any, rectify: bool, kept: Any, grad: Any, needed: Any
    ) -> list[Tensor]:
        operands, inputs = Operands(maps, weights, biases), [*maps, *weights, *biases]
        make = torch.empty if len(maps[0]) else torch.zeros  # without images nothing is written
        gradients = [
            make(x.shape, dtype=operands.dtype, device=x.device) if need else None
            for x, need in zip(inputs, needed, strict=True)
        ]
        backward(operands, masks, rectify, kept, grad, in_three(gradients))
        return [x.new_empty(0) if y is None else y.to(x.dtype) for x, y in zip(inputs, gradients, strict=True)]

    operator = torch.library.custom_op(f"c2f_zoo::{name}", run, mutates_args=(), schema=_FORWARD)
    backward_operator = torch.library.custom_op(
        f"c2f_zoo::{name}_backward", run_backward, mutates_args=(), schema=_BACKWARD
    )

    @operator.register_fake
    def _(maps: Any, weights: Any, biases: Any, masks: Any, keep: bool, rectify: bool) -> tuple[Tensor, Tensor]:
        return allocate(Operands(maps, weights, biases), masks, keep)

    @backward_operator.register_fake
    def _(
        maps: Any, weights: Any, biases: Any, masks: Any, rectify: bool, kept: Any, grad: Any, needed: Any
    ) -> list[Tensor]:
        inputs = [*maps, *weights, *biases]
        return [x.new_empty(x.shape if need else 0) for x, need in zip(inputs, needed, strict=True)]

    def differentiate(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
        *inputs, kept = ctx.saved_tensors
        needed = [need for group in ctx.needs_input_grad[:3] for need in group]
        grads: list[Tensor | None] = [None] * len(inputs)
        if grad is not None and torch.is_grad_enabled():  # create_graph=True: plain_sums is differentiable twice
            wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
            sums = plain_sums(Operands(*in_three(inputs)), ctx.masks, ctx.rectify)
            found = iter(torch.autograd.grad(sums, wanted, grad, create_graph=True, allow_unused=True))
            grads = [next(found) if need else None for need in needed]
        elif grad is not None:  # None is a gradient of zero, as in a second derivative
            with without_autocast(grad):
                made = backward_operator(*in_three(inputs), ctx.masks, ctx.rectify, kept, grad.contiguous(), needed)
            grads = [x if need else None for x, need in zip(made, needed, strict=True)]
        return (*in_three(grads), None, None, None)

    operator.register_autograd(differentiate, setup_context=_save)
    return operator


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    maps, weights, biases, ctx.masks, _, ctx.rectify = inputs
    ctx.set_materialize_grads(False)  # otherwise zeros of the size of `kept` are allocated
    ctx.save_for_backward(*maps, *weights, *biases, output[1])


def plain_sums(operands: Operands, masks: Sequence[int], rectify: bool = False) -> Tensor:
    """Return the sums (terms, N, d) by the plain formula, in float32 or wider."""
    dtype = operands.dtype
    projected = [
        weight.to(dtype) @ x.to(dtype) + bias.to(dtype)[:, None] for x, weight, bias in zip(*operands, strict=True)
    ]
    if rectify:
        projected = [x.relu() for x in projected]
    return torch.stack([reduce(mul, [projected[index] for index in members(mask)]).sum(dim=2) for mask in masks])


def bit_masks(terms: Sequence[tuple[int, ...]]) -> list[int]:
    """Return a mask for each term, with a bit for each of its projections."""
    return [sum(1 << index for index in term) for term in terms]


def members(mask: int) -> list[int]:
    """Return the indices of the projections in a term."""
    return [index for index in range(mask.bit_length()) if mask >> index & 1]


def in_three(items: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """Split a list into thirds: those of maps, weights and biases."""
    count = len(items) // 3
    return items[:count], items[count : 2 * count], items[2 * count :]


def row_slices(dim: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` rows that cover `dim` rows."""
    return (slice(start, min(start + size, dim)) for start in range(0, dim, size))
