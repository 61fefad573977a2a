"""Resampling of batches by matrices, each image with its own scale and offset."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _box(x: Tensor) -> Tensor:
    # The tolerance chooses the same one of two equally near pixels on every device, as Pillow does.
    return ((x > -0.4999) & (x <= 0.5001)).to(x.dtype)


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _hamming(x: Tensor) -> Tensor:
    return (x.sinc() * (0.54 + 0.46 * (math.pi * x).cos())).where(x.abs() < 1, 0)


def _cubic(x: Tensor) -> Tensor:
    x = x.abs()
    outer = (((-0.5 * x + 2.5) * x - 4) * x + 2).where(x < 2, 0)
    return ((1.5 * x - 2.5) * x * x + 1).where(x < 1, outer)


def _lanczos(x: Tensor) -> Tensor:
    return (x.sinc() * (x / 3).sinc()).where(x.abs() < 3, 0)


# Pillow's kernels, with their radius; "nearest" is the box without antialiasing.
KERNELS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "nearest": (1, _box),
    "box": (1, _box),
    "bilinear": (1, _triangle),
    "hamming": (1, _hamming),
    "bicubic": (2, _cubic),
    "lanczos": (3, _lanczos),
}


def resampling_weights(centres: Tensor, pixels: Tensor, exist: Tensor, width: Tensor | float, filter: str) -> Tensor:
    """Return the weights of pixels at the centres of new pixels, along one axis.

    Args:
        centres: the new pixels' centres (N, M).
        pixels: the pixels' centres (N, K).
        exist: bool (N, K), false for pixels of weight 0.
        width: width of the filter, broadcast to (N, 1): the distance of the centres when shrinking, else that of the
            pixels.
        filter: the filter, in `KERNELS`.

    Returns:
        Matrices (N, M, K), with rows of sum 1.

    Examples:
        >>> exist = torch.tensor([[True, True, True, False]])
        >>> pixels = torch.tensor([[0.5, 1.5, 2.5, 3.5]])
        >>> resampling_weights(torch.tensor([[1.0, 3.0]]), pixels, exist, 2.0, "box")
        tensor([[[0.5000, 0.5000, 0.0000, 0.0000],
                 [0.0000, 0.0000, 1.0000, 0.0000]]])
    """
    distances = (pixels[:, None] - centres[:, :, None]) / (width[:, None] if isinstance(width, Tensor) else width)
    weights = KERNELS[filter][1](distances) * exist[:, None]
    return weights / weights.sum(dim=2, keepdim=True).clamp(min=1e-6)  # 0 where no pixel is in the filter's reach


def resample(images: Tensor, vertical: Sequence[Tensor], horizontal: Sequence[Tensor]) -> Tensor:
    """Multiply images by matrices along both axes.

    Values are clipped to [0, 255] after each product, as in 8-bit images, but not rounded.

    Args:
        images: images (N, H, W, C), values in [0, 255].
        vertical: one or two matrices (N, M, H), ... for the rows, in the order of their use.
        horizontal: as many matrices for the columns.

    Returns:
        Images float32 (N, H', W', C).
    """
    n, _, width, channels = images.shape
    with torch.autocast(images.device.type, enabled=False):
        rows = images.float().flatten(2)
        for matrix in vertical[:-1]:
            rows = (matrix @ rows).clamp_(0, 255)
        # Most of the time there are few rows here, so that the transpositions to (rows, C, W) and back cost little.
        lines = rows.unflatten(2, (width, channels)).movedim(3, 2).reshape(n, -1, width)
        for matrix in horizontal:
            lines = (lines @ matrix.mT).clamp_(0, 255)
        rows = lines.unflatten(1, (-1, channels)).movedim(2, 3).flatten(2)
        return (vertical[-1] @ rows).clamp_(0, 255).unflatten(2, (-1, channels))
