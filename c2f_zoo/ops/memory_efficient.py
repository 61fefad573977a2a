"""Memory-efficient implementations of multilinear sums as PyTorch operators.

`torch.compile` calls an operator as a whole, unlike an `autograd.Function`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from c2f_zoo.ops.precision import without_autocast

SumsOperator = Callable[
    [Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Sequence[int], bool, bool], tuple[Tensor, Tensor]
]

_FORWARD = (
    "(Tensor[] maps, Tensor[] weights, Tensor[] biases, int[] masks, bool keep, bool rectify) -> (Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor[] maps, Tensor[] weights, Tensor[] biases, int[] masks, bool rectify, Tensor kept, Tensor grad,"
    " bool[] needed)"
    " -> Tensor[]"
)


def register_sums(
    name: str,
    forward: Callable[..., tuple[Tensor, Tensor]],
    backward: Callable[..., list[Tensor]],
    fake_kept: Callable[..., Tensor],
    formula: Callable[..., Tensor],
) -> SumsOperator:
    """Register the operator `c2f_zoo::<name>` with its gradients.

    From (maps, weights, biases, masks, keep, rectify) the operator computes (sums, kept): with maps (N, C_i, L),
    weights (d, C_i) and biases (d,), sums are (terms, N, d), float32 or wider. A mask has a bit for each projection of
    a term. `keep` keeps intermediate results for the backward pass; `rectify` applies ReLU to projections.

    Args:
        name: name of the operator.
        forward: the function.
        backward: a function of (maps, weights, biases, masks, rectify, kept, grad, needed) that returns a gradient for
            each input; an empty tensor if it is not needed.
        fake_kept: a function of (maps, weights, biases, masks, keep) that returns an empty tensor like `kept`.
        formula: a function of (maps, weights, biases, masks, rectify) that computes the sums by the plain formula, for
            second derivatives.
    """
    operator = torch.library.custom_op(f"c2f_zoo::{name}", forward, mutates_args=(), schema=_FORWARD)
    backward_operator = torch.library.custom_op(
        f"c2f_zoo::{name}_backward", backward, mutates_args=(), schema=_BACKWARD
    )

    @operator.register_fake
    def _(maps: Any, weights: Any, biases: Any, masks: Any, keep: bool, rectify: bool) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(maps[0].dtype, torch.float32)
        sums = maps[0].new_empty(len(masks), maps[0].shape[0], weights[0].shape[0], dtype=dtype)
        return sums, fake_kept(maps, weights, biases, masks, keep)

    @backward_operator.register_fake
    def _(
        maps: Any, weights: Any, biases: Any, masks: Any, rectify: bool, kept: Any, grad: Any, needed: Any
    ) -> list[Tensor]:
        inputs = [*maps, *weights, *biases]
        return [x.new_empty(x.shape if need else 0) for x, need in zip(inputs, needed, strict=True)]

    def differentiate(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
        *inputs, kept = ctx.saved_tensors
        count = len(inputs) // 3
        if grad is None:  # a gradient of zero, as in a second derivative
            return (*([None] * count for _ in range(3)), None, None, None)
        groups = [inputs[i * count : (i + 1) * count] for i in range(3)]
        needed = [need for group in ctx.needs_input_grad[:3] for need in group]
        if torch.is_grad_enabled():  # create_graph=True: the plain formula is differentiable twice
            wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
            sums = formula(*groups, ctx.masks, ctx.rectify)
            found = iter(torch.autograd.grad(sums, wanted, grad, create_graph=True, allow_unused=True))
            grads: list[Any] = [next(found) if need else None for need in needed]
        else:
            with without_autocast(grad):
                made = backward_operator(*groups, ctx.masks, ctx.rectify, kept, grad.contiguous(), needed)
            grads = [x if need else None for x, need in zip(made, needed, strict=True)]
        return (*(grads[i * count : (i + 1) * count] for i in range(3)), None, None, None)

    operator.register_autograd(differentiate, setup_context=_save)
    return operator


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    maps, weights, biases, ctx.masks, _, ctx.rectify = inputs
    ctx.set_materialize_grads(False)  # otherwise zeros of the size of `kept` are allocated
    ctx.save_for_backward(*maps, *weights, *biases, output[1])


def accumulators(
    inputs: Sequence[Tensor], needed: Sequence[bool], make: Callable[..., Tensor] = torch.zeros
) -> list[Tensor | None]:
    """Return tensors for accumulating gradients, float32 or wider; None if not needed."""
    dtype = torch.promote_types(inputs[0].dtype, torch.float32)
    if inputs[0].shape[0] == 0:  # without images nothing is written to empty tensors
        make = torch.zeros
    return [
        make(x.shape, dtype=dtype, device=x.device) if need else None for x, need in zip(inputs, needed, strict=True)
    ]


def finished(gradients: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return gradients in their inputs' dtypes, and empty tensors for None."""
    return [
        x.new_empty(0) if gradient is None else gradient.to(x.dtype)
        for gradient, x in zip(gradients, inputs, strict=True)
    ]
