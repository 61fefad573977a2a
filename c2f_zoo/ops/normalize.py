"""The signed square root and the l2 norm that follow every second-order pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def signed_sqrt(x: Tensor, grad_eps: float = 1e-4) -> Tensor:
    """Signed square root: y = sign(x) sqrt(|x|), exact forward, with a gradient that is bounded at 0.

    The backward pass uses dy/dx = 0.5 / (|y| + grad_eps), at most 0.5 / grad_eps. `grad_eps = 0.03` is
    what HBP's Caffe release does (Yu et al., ECCV 2018); the root itself comes from Lin et al., ICCV 2015.

    Args:
        x: floating-point tensor of any shape.
        grad_eps: what bounds the gradient, > 0; 0 gives the exact one, infinite at 0.

    Returns:
        A tensor like `x`.

    Examples:
        >>> signed_sqrt(torch.tensor([-4.0, 0.0, 9.0]))
        tensor([-2.,  0.,  3.])
    """
    return _SignedSqrt.apply(x, grad_eps)


def signed_sqrt_l2(x: Tensor, grad_eps: float = 1e-4) -> Tensor:
    """Signed square root of each row, divided by the row's Euclidean norm: sign(x) sqrt(|x| / sum |x|).

    In one piece, since the norm of a row of roots is the root of the sum of |x|: no square overflows, and no
    root is kept for the backward pass, only `x`. The root's gradient is bounded as in `signed_sqrt`, the norm's is
    exact. A row of zeros stays one, and passes no gradient on.

    Args:
        x: float32 or float64 tensor (N, D).
        grad_eps: as in `signed_sqrt`.

    Returns:
        A tensor like `x`.

    Examples:
        >>> signed_sqrt_l2(torch.tensor([[-9.0, 16.0], [0.0, 0.0]]))
        tensor([[-0.6000,  0.8000],
                [ 0.0000,  0.0000]])
    """
    return _SignedSqrtL2.apply(x, grad_eps)


class _SignedSqrt(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, grad_eps: float) -> Tensor:
        return x.sign() * x.abs().sqrt()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.grad_eps = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # y is a saved *output*, so a second derivative flows through it and is right too.
        (y,) = ctx.saved_tensors
        return 0.5 * grad / (y.abs() + ctx.grad_eps), None


class _SignedSqrtL2(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, grad_eps: float) -> Tensor:
        y = x.abs()
        return y.div_(y.sum(dim=1, keepdim=True).clamp(min=_least(x))).sqrt_().copysign_(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.grad_eps = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # from x, by operations that have a derivative: a second one is right too
            return _slope(x, grad, ctx.grad_eps), None
        return _slope_in_place(x, grad, ctx.grad_eps), None


def _slope(x: Tensor, grad: Tensor, grad_eps: float) -> Tensor:
    total = x.abs().sum(dim=1, keepdim=True).clamp(min=_least(x))
    norm, root = total.sqrt(), x.abs().sqrt()
    y = root.copysign(x) / norm
    tangent = grad - y * (y * grad).sum(dim=1, keepdim=True)
    # A row of zeros has no direction.
    return tangent * torch.where(total > _least(x), 0.5 / norm, 0) / (root + grad_eps)


def _slope_in_place(x: Tensor, grad: Tensor, grad_eps: float) -> Tensor:
    """As `_slope`, with half as many new tensors of x's size: for B-CNN they take as long as a matrix product."""
    root = x.abs()
    total = root.sum(dim=1, keepdim=True).clamp(min=_least(x))
    signed = root.sqrt_().copysign(x)
    along = torch.bmm(signed[:, None], grad[:, :, None])[:, 0] / total  # row by row; vecdot would write the products
    tangent = torch.addcmul(grad, signed, along, value=-1, out=signed)
    return tangent.mul_(torch.where(total > _least(x), 0.5 * total.rsqrt(), 0)).div_(root.add_(grad_eps))


def _least(x: Tensor) -> float:
    """What a row's sum is at least, so that dividing by it or by its root stays finite, in the gradient too."""
    return torch.finfo(x.dtype).tiny ** 0.95
