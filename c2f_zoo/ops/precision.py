"""What keeps half precision from overflowing, vanishing or going where nobody sees it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Casts float16 and bfloat16 to float32; leaves float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def without_autocast(x: Tensor) -> Any:
    """A context in which operations on `x`'s device keep the dtypes of their inputs."""
    return torch.autocast(x.device.type, enabled=False)


def is_exporting() -> bool:
    """Whether `torch.export` is looking on, for which everything must be made of PyTorch's own operations."""
    # Before torch 2.7 an export cannot be told from a compilation.
    return getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)()


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution of a feature map, in the dtype that autocast or the weight asks for; the result in float32.

    In float16 each image's map is first divided by a power of two that brings it into [-1, 1], and the
    result is multiplied by it in float32: 1e-8 does not vanish, 1e4 does not overflow, and nor do their gradients.

    Args:
        x: the map, (N, C, H, W).
        weight: (d, C).
        bias: (d,), added in the result's dtype.

    Returns:
        The projection, (N, d, H * W), float32 (float64 for a float64 map).

    Examples:
        >>> with torch.autocast("cpu", dtype=torch.float16):
        ...     project(torch.full((1, 2, 1, 1), 6e4), torch.ones(1, 2))  # float16 ends at 65504
        tensor([[[120000.]]])
    """
    kernel = weight[:, :, None, None]
    dtype = x.dtype if torch.is_autocast_enabled(x.device.type) else weight.dtype
    if compute_dtype(x, weight) != torch.float16:
        return at_least_float32(F.conv2d(x.to(dtype), kernel, bias).flatten(2))
    scale = power_of_two_above(x)
    projected = F.conv2d((x.float() / scale).to(dtype), kernel).float() * scale
    return projected.flatten(2) if bias is None else projected.flatten(2) + bias.float()[:, None]


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype in which PyTorch would project `x` by `weight`: autocast's where it is on, otherwise the weight's."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return weight.dtype


def power_of_two_above(x: Tensor) -> Tensor:
    """For each image the least power of two that its values do not exceed, (N, 1, 1, 1); no part of the graph."""
    largest = x.detach().float().abs().amax(dim=(1, 2, 3), keepdim=True)
    return largest.clamp(1e-30, 1e30).log2().ceil().exp2()
