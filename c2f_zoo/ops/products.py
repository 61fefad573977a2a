"""Matrix products by oneDNN if available."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from c2f_zoo.ops.precision import is_exporting

_LARGE = 2**20  # multiply-adds of one product; below it, calling another library costs more than it saves


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b for matrices (m, k) and (k, n) of one dtype, outside autograd.

    For float32 on a CPU it calls oneDNN, which PyTorch itself uses for convolutions. `torch.mm` calls MKL, which was
    half as fast on an AMD processor with AVX-512 (docs/explanation/fast-pooling.md).

    Examples:
        >>> matmul(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
        tensor([[11.]])
    """
    (inner, count), (outer, _) = sorted(zip(b.stride(), b.shape, strict=True))
    overlaps = outer < inner * count  # oneDNN does not accept overlapping rows, e.g. sliding windows, as weights
    return torch.mm(a, b) if overlaps or not _uses_onednn(a, b) else _onednn_linear(a, b.T, None, "none", [], "")


def add_product(total: Tensor, a: Tensor, b: Tensor, is_first: bool = False) -> None:
    """Add a @ b to `total` in place, or overwrite it if `is_first`."""
    if not _uses_onednn(a, b):
        total.addmm_(a, b, beta=int(not is_first))
    elif is_first:
        total.copy_(matmul(a, b))
    else:
        total.add_(matmul(a, b))


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b for (N, m, k) and (N, k, n), with gradients of any order.

    Examples:
        >>> bmm(torch.ones(1, 2, 3), torch.ones(1, 3, 2))
        tensor([[[3., 3.],
                 [3., 3.]]])
    """
    if is_exporting() or a.shape[1] * a.shape[2] * b.shape[2] < _LARGE or not _uses_onednn(a, b):
        return torch.bmm(a, b)
    return _onednn_bmm(a, b)


@torch.library.custom_op("c2f_zoo::bmm", mutates_args=())
def _onednn_bmm(a: Tensor, b: Tensor) -> Tensor:
    out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    for x, y, z in zip(a, b, out, strict=True):
        z.copy_(matmul(x, y))
    return out


@_onednn_bmm.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[1], b.shape[2])


@_onednn_bmm.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], a: Tensor, b: Tensor) -> tuple[Tensor, int]:
    moved = [
        x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip((a, b), in_dims, strict=True)
    ]
    a, b = (x.flatten(0, 1) for x in moved)
    return bmm(a, b).unflatten(0, (info.batch_size, -1)), 0


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a, b = ctx.saved_tensors
    of_a = bmm(grad, b.transpose(1, 2)) if ctx.needs_input_grad[0] else None
    return of_a, bmm(a.transpose(1, 2), grad) if ctx.needs_input_grad[1] else None


_onednn_bmm.register_autograd(_differentiate, setup_context=_save)


def _uses_onednn(a: Tensor, b: Tensor) -> bool:
    return (
        _onednn_linear is not None
        and a.device.type == "cpu"
        and a.dtype == b.dtype == torch.float32
        and a.numel() > 0
        and b.numel() > 0
        and bool(torch.backends.mkldnn.enabled)
    )


# torch.compile uses this operator for linear layers. It has no public name, and is missing in builds without oneDNN.
_onednn_linear: Any = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
)
