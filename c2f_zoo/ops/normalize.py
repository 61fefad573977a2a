"""The signed square root and the l2 norm that follow every second-order pooling."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
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


def l2_normalize(x: Tensor) -> Tensor:
    """Divides each row by its Euclidean norm; a row of zeros stays one, and passes no gradient on.

    Args:
        x: floating-point tensor (N, D).

    Returns:
        A tensor like `x`.

    Examples:
        >>> l2_normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    # F.normalize alone neither brings a row of 1e-13 to length 1 nor keeps the squares of 1e20 finite. The scale
    # is a constant to autograd: the result does not depend on it. The floor keeps 1 / scale finite in the gradient.
    scale = x.detach().abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny ** 0.75)
    # F.normalize would also multiply the gradient of a row of zeros by 1e12.
    return F.normalize(x / scale, dim=1) * (x != 0).any(dim=1, keepdim=True)


class _SignedSqrt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grad_eps: float) -> Tensor:
        y = x.sign() * x.abs().sqrt()
        ctx.save_for_backward(y)
        ctx.grad_eps = grad_eps
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # y is a saved *output*, so a second derivative flows through it and is right too.
        (y,) = ctx.saved_tensors
        return 0.5 * grad / (y.abs() + ctx.grad_eps), None
