"""What the lean implementations of multilinear sums share: how one becomes a PyTorch operator with gradients.

An operator, not an `autograd.Function`: `torch.compile` calls it as it is, in one piece.
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
    """Makes the operator `c2f_zoo::<name>`, (maps, weights, biases, masks, keep, rectify) -> (sums, kept).

    Maps are (N, C_i, L), weights (d, C_i), biases (d,); a mask is a term, the set of the projections that it
    multiplies as bits; `keep` says what to keep for the backward pass; `rectify` clips projections at 0. Sums are
    (terms, N, d), float32 at the least.

    Args:
        name: of the operator.
        forward: its values.
        backward: (maps, weights, biases, masks, rectify, kept, grad of sums, which inputs need a gradient) -> a
            gradient for each map, weight and bias, empty where none is needed.
        fake_kept: the arguments of `forward` -> an empty tensor of `kept`'s shape and dtype.
        formula: the plain formula (maps, weights, biases, masks, rectify) -> sums, for a gradient of the gradient.
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

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        maps, weights, biases, ctx.masks, _, ctx.rectify = inputs
        ctx.set_materialize_grads(False)  # or zeros as large as what is kept would be made
        ctx.save_for_backward(*maps, *weights, *biases, output[1])

    def differentiate(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
        *inputs, kept = ctx.saved_tensors
        count = len(inputs) // 3
        if grad is None:  # zero, as a second derivative may find it
            return (*([None] * count for _ in range(3)), None, None, None)
        groups = [inputs[i * count : (i + 1) * count] for i in range(3)]
        needed = [need for group in ctx.needs_input_grad[:3] for need in group]
        if torch.is_grad_enabled():  # create_graph=True: the formula's own gradient has a gradient
            wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
            sums = formula(*groups, ctx.masks, ctx.rectify)
            found = iter(torch.autograd.grad(sums, wanted, grad, create_graph=True, allow_unused=True))
            grads: list[Any] = [next(found) if need else None for need in needed]
        else:
            with without_autocast(grad):
                made = backward_operator(*groups, ctx.masks, ctx.rectify, kept, grad.contiguous(), needed)
            grads = [x if need else None for x, need in zip(made, needed, strict=True)]
        return (*(grads[i * count : (i + 1) * count] for i in range(3)), None, None, None)

    operator.register_autograd(differentiate, setup_context=save)
    return operator


def accumulators(
    inputs: Sequence[Tensor], needed: Sequence[bool], make: Callable[..., Tensor] = torch.zeros
) -> list[Tensor | None]:
    """Tensors to add gradients up in, float32 at the least, for those inputs that need one."""
    dtype = torch.promote_types(inputs[0].dtype, torch.float32)
    if inputs[0].shape[0] == 0:  # no image writes into what is made empty
        make = torch.zeros
    return [
        make(x.shape, dtype=dtype, device=x.device) if need else None for x, need in zip(inputs, needed, strict=True)
    ]


def finished(gradients: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients in their inputs' dtypes; empty tensors for those that nobody needs."""
    return [
        x.new_empty(0) if gradient is None else gradient.to(x.dtype)
        for gradient, x in zip(gradients, inputs, strict=True)
    ]
