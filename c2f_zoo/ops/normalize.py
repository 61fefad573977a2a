"""The signed square root and the l2 norm after second-order poolings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from c2f_zoo.ops.precision import is_exporting


def signed_sqrt(x: Tensor, grad_eps: float = 1e-4) -> Tensor:
    """Return y = sign(x) sqrt(|x|), with a bounded gradient at 0.

    The backward pass uses dy/dx = 0.5 / (|y| + grad_eps), at most 0.5 / grad_eps. `grad_eps = 0.03` is
    the value of HBP's Caffe release (Yu et al., ECCV 2018); the root follows Lin et al., ICCV 2015.

    Args:
        x: floating-point tensor of any shape.
        grad_eps: >= 0, bounds the gradient; 0 gives the exact gradient, infinite at 0.

    Returns:
        A tensor like `x`.

    Examples:
        >>> signed_sqrt(torch.tensor([-4.0, 0.0, 9.0]))
        tensor([-2.,  0.,  3.])
    """
    return _SignedSqrt.apply(x, grad_eps)


def signed_sqrt_l2(x: Tensor, grad_eps: float = 1e-4) -> Tensor:
    """Return the signed square roots of each row, divided by their norm.

    The result is sign(x) sqrt(|x| / sum |x|): the norm of a row of roots is the root of the sum of |x|. No square
    overflows, and only `x` is kept for the backward pass. The root's gradient is bounded as in `signed_sqrt`, the
    norm's is exact. A row of zeros gives zeros and a gradient of zero.

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
        # y is a saved output, so that the second derivative flows through it.
        (y,) = ctx.saved_tensors
        return 0.5 * grad / (y.abs() + ctx.grad_eps), None


class _SignedSqrtL2(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, grad_eps: float) -> Tensor:
        y = x.abs()
        total = y.sum(dim=1, keepdim=True).clamp(min=_least(x))
        # ONNX has no copysign, and its exporter by tracing no operations in place.
        return (y / total).sqrt() * x.sign() if is_exporting() else y.div_(total).sqrt_().mul_(x.sign())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.grad_eps = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: these operations have a derivative
            return _slope(x, grad, ctx.grad_eps), None
        return _slope_in_place(x, grad, ctx.grad_eps), None


def _slope(x: Tensor, grad: Tensor, grad_eps: float) -> Tensor:
    total = x.abs().sum(dim=1, keepdim=True).clamp(min=_least(x))
    norm, root = total.sqrt(), x.abs().sqrt()
    y = root.copysign(x) / norm
    tangent = grad - y * (y * grad).sum(dim=1, keepdim=True)
    # The gradient of a row of zeros is 0.
    return tangent * torch.where(total > _least(x), 0.5 / norm, 0) / (root + grad_eps)


def _slope_in_place(x: Tensor, grad: Tensor, grad_eps: float) -> Tensor:
    """Compute `_slope` with half as many temporary tensors, which matters for B-CNN."""
    root = x.abs()
    total = root.sum(dim=1, keepdim=True).clamp(min=_least(x))
    signed = root.sqrt_().copysign(x)
    along = torch.bmm(signed[:, None], grad[:, :, None])[:, 0] / total  # vecdot would write all products to memory
    tangent = torch.addcmul(grad, signed, along, value=-1, out=signed)
    return tangent.mul_(torch.where(total > _least(x), 0.5 * total.rsqrt(), 0)).div_(root.add_(grad_eps))


def _least(x: Tensor) -> float:
    """Return a lower bound of a row's sum that keeps quotients and gradients finite."""
    return torch.finfo(x.dtype).tiny ** 0.95
