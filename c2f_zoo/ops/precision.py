"""Casts and scales for half precision, and checks of autocast and export."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Cast float16 and bfloat16 to float32; return float32 and float64 unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def widest_dtype(device: torch.device) -> torch.dtype:
    """Return the widest floating dtype of a device: float64, but MPS has float32 only.

    Examples:
        >>> widest_dtype(torch.device("cpu")), widest_dtype(torch.device("mps"))
        (torch.float64, torch.float32)
    """
    return torch.float32 if device.type == "mps" else torch.float64


def check_finite(logits: Mapping[str, Tensor]) -> None:
    """Check that a model's logits (N, classes) of each level are finite.

    Raises:
        ValueError: an image has a logit that is infinite or not a number.

    Examples:
        >>> check_finite({"genus": torch.tensor([[0.0, 1.0], [0.0, torch.nan]])})
        Traceback (most recent call last):
        ValueError: the model's outputs at 'genus' are not finite for 1 of 2 images: ...
    """
    for level, z in logits.items():
        bad = int((~z.isfinite().all(dim=1)).sum())
        if bad:
            raise ValueError(
                f"the model's outputs at {level!r} are not finite for {bad} of {len(z)} images: its weights are "
                f"damaged, or too large for {str(z.dtype).removeprefix('torch.')}; use float32, or other weights"
            )


def without_autocast(x: Tensor) -> Any:
    """Return a context manager that disables autocast on the device of `x`."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def is_exporting() -> bool:
    """Return whether `torch.export` or `torch.onnx.export` is running.

    An exported program contains PyTorch's own operations only.
    """
    # torch 2.6 cannot tell an export from a compilation.
    is_torch_export = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)()
    return is_torch_export or torch.onnx.is_in_onnx_export()


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a 1x1 convolution, in the dtype of autocast or of the weight.

    In float16 each image's map is first scaled to [-1, 1] by a power of two; the result is scaled back in float32.
    Values from 1e-8 to 1e4, and their gradients, neither vanish nor overflow.

    Args:
        x: the map, (N, C, H, W).
        weight: (d, C).
        bias: (d,), added in the result's dtype.

    Returns:
        The projection, (N, d, H * W), float32 (float64 for a float64 map).

    Examples:
        >>> with torch.autocast("cpu", dtype=torch.float16):
        ...     project(torch.full((1, 2, 1, 1), 6e4), torch.ones(1, 2))  # the largest float16 is 65504
        tensor([[[120000.]]])
    """
    kernel = weight[:, :, None, None]
    dtype = x.dtype if _is_autocast_enabled(x) else weight.dtype
    if compute_dtype(x, weight) != torch.float16:
        return at_least_float32(F.conv2d(x.to(dtype), kernel, bias).flatten(2))
    scale = power_of_two_above(x)
    projected = F.conv2d((x.float() / scale).to(dtype), kernel).float() * scale
    return projected.flatten(2) if bias is None else projected.flatten(2) + bias.float()[:, None]


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype of a projection of `x`: autocast's or the weight's."""
    if _is_autocast_enabled(x) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return weight.dtype


def _is_autocast_enabled(x: Tensor) -> bool:
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)  # the meta device has no autocast


def power_of_two_above(x: Tensor) -> Tensor:
    """Return the least power of two above each image's values, (N, 1, 1, 1), detached."""
    largest = x.detach().float().abs().amax(dim=(1, 2, 3), keepdim=True)
    return largest.clamp(1e-30, 1e30).log2().ceil().exp2()
