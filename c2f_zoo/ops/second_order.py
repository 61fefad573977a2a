"""Gram and covariance matrices of feature maps, and the square root of a matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from c2f_zoo.ops.normalize import signed_sqrt
from c2f_zoo.ops.precision import at_least_float32, is_exporting, without_autocast
from c2f_zoo.ops.products import bmm


def gram(x: Tensor, y: Tensor) -> Tensor:
    """Return the (cross-)Gram matrix sum_l x_l y_l^T over locations.

    See Lin et al., ICCV 2015. The sums are computed in float32 or wider: float16 would overflow.

    Args:
        x: a feature map, (N, C_1, H, W).
        y: another of the same spatial size, (N, C_2, H, W), or `x` again.

    Returns:
        (N, C_1, C_2), float32 or float64.

    Examples:
        >>> gram(torch.ones(1, 1, 2, 2), torch.full((1, 2, 2, 2), 3.0))  # 4 locations, 1 * 3 at each
        tensor([[[12., 12.]]])
    """
    with without_autocast(x):
        flat = at_least_float32(x).flatten(2)
        if x is y and not is_exporting():  # ONNX's exporter by tracing cannot fill a matrix block by block
            return _SelfGram.apply(flat)
        return bmm(flat, at_least_float32(y).flatten(2).transpose(1, 2))


class _SelfGram(torch.autograd.Function):
    """The Gram matrix x x^T, with three of four blocks computed.

    The gradient (G + G^T) x is a single product.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        upper, lower = x[:, :half], x[:, half:]
        product = x.new_empty(x.shape[0], x.shape[1], x.shape[1])
        product[:, :half] = bmm(upper, x.transpose(1, 2))
        product[:, half:, :half] = product[:, :half, half:].transpose(1, 2)
        product[:, half:, half:] = bmm(lower, lower.transpose(1, 2))
        return product

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with without_autocast(x):
            return bmm(grad + grad.transpose(1, 2), x)


def covariance(x: Tensor) -> Tensor:
    """Return the covariance matrix 1/L sum_l (x_l - m)(x_l - m)^T of L vectors.

    Args:
        x: vectors in columns, (N, C, L), float32 or float64.

    Returns:
        (N, C, C), positive semi-definite up to rounding. One location gives zeros.

    Examples:
        >>> covariance(torch.tensor([[[1.0, 3.0], [5.0, 5.0]]]))
        tensor([[[1., 0.],
                 [0., 0.]]])
    """
    with without_autocast(x):
        return _Covariance.apply(x)


class _Covariance(torch.autograd.Function):
    """The covariance matrix, with a single product as its gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        centred = x - x.mean(dim=2, keepdim=True)
        return bmm(centred, centred.transpose(1, 2)) / x.shape[2]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with without_autocast(x):
            return bmm(grad + grad.transpose(1, 2), (x - x.mean(dim=2, keepdim=True)) / x.shape[2])


def matrix_sqrt(a: Tensor, iterations: int = 5, grad_eps: float = 1e-4) -> Tensor:
    """Return the square root of positive semi-definite matrices, by Newton-Schulz.

    See Li et al., CVPR 2018. The matrix is divided by its trace, so that the iteration converges, and the result is
    scaled back. Zeros give zeros and a gradient of zero.

    Args:
        a: symmetric positive semi-definite matrices (N, d, d), float32 or float64.
        iterations: number of iterations, >= 1. After the paper's 5 the roots of small eigenvalues are too small; in
            float32 more than 20 may diverge for singular matrices.
        grad_eps: bound of the gradient of the trace's root, see `signed_sqrt`.

    Returns:
        A tensor like `a`.

    Raises:
        ValueError: `iterations` is below 1.

    Examples:
        >>> matrix_sqrt(torch.tensor([[[4.0, 0.0], [0.0, 9.0]]]), iterations=20)
        tensor([[[2.0000, 0.0000],
                 [0.0000, 3.0000]]])
    """
    if iterations < 1:
        raise ValueError(f"matrix_sqrt requires iterations >= 1, not {iterations}")
    with without_autocast(a):
        trace = a.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
        middle = 1.5 * torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
        y = a / torch.where(trace > 0, trace, 1)
        z = middle - 0.5 * y  # the first step, from z = identity
        y = bmm(y, z)
        for iteration in range(1, iterations):
            step = middle - 0.5 * bmm(z, y)
            y = bmm(y, step)
            if iteration < iterations - 1:
                z = bmm(step, z)
        return y * signed_sqrt(trace, grad_eps)
