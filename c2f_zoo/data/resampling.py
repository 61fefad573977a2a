"""Resizing of batches by matrices, each image with its own scale and offset."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _box(x: Tensor) -> Tensor:
    return ((x > -0.5) & (x <= 0.5)).to(x.dtype)


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


def shrinking_matrices(
    small: Tensor, size: Tensor, start: Tensor, length: int, count: int, filter: str, up_filter: str
) -> tuple[Tensor, Tensor]:
    """Return the matrices that shrink crops along one axis and resize them back.

    The result is that of shrinking a whole image from `size` to `small` pixels, resizing it back and cropping it, if
    the filter does not reach beyond the crop. A pixel of the small image whose centre is outside the crop gets the
    value at the crop's edge.

    Args:
        small: numbers of pixels of the small images, int64 (N,), less than `size`.
        size: numbers of pixels of the whole images, int64 (N,).
        start: the first pixels of the crops in the whole images, int64 (N,).
        length: number of pixels of the crops.
        count: number of rows of the first matrix: at least `length * small / size + 2 * radius + 2`, where `radius` is
            that of `up_filter` in `KERNELS`.
        filter: the filter for shrinking, in `KERNELS`.
        up_filter: the filter for resizing back, in `KERNELS`.

    Returns:
        Matrices float32 (N, count, length) and (N, length, count), with rows of sum 1. They are finite even if `small`
        is not less than `size`.

    Examples:
        >>> numbers = [torch.tensor([number]) for number in (2, 4, 0)]
        >>> down, up = shrinking_matrices(*numbers, length=4, count=6, filter="box", up_filter="nearest")
        >>> (up @ down)[0] @ torch.tensor([10.0, 20.0, 30.0, 50.0])
        tensor([15., 15., 40., 40.])
    """
    (radius, up_kernel), kernel = KERNELS[up_filter], KERNELS[filter][1]
    pitch = (size / small)[:, None]  # of the small image's pixels, in pixels of the crop
    pixels = start[:, None] + 0.5 + torch.arange(length, device=start.device)
    first = (pixels[:, :1] / pitch - 0.5 - radius).floor()
    cells = first + torch.arange(count, device=start.device)
    exist = (cells >= 0) & (cells < small[:, None])
    # A kernel around a centre outside the crop would see its negative lobes alone.
    centres = ((cells + 0.5) * pitch).clamp(start[:, None], start[:, None] + length)
    down = kernel((pixels[:, None] - centres[:, :, None]) / pitch[:, :, None])
    up = up_kernel(cells[:, None] + 0.5 - (pixels / pitch)[:, :, None]) * exist[:, None]
    return _to_sum_1(down), _to_sum_1(up)


def _to_sum_1(weights: Tensor) -> Tensor:
    # The sum is 0 where no pixel is within the kernel's reach.
    return weights / weights.sum(dim=2, keepdim=True).clamp(min=1e-6)


def resample(
    images: Tensor, mask: Tensor, vertical: tuple[Tensor, Tensor], horizontal: tuple[Tensor, Tensor]
) -> Tensor:
    """Shrink images of a batch and resize them back, by the matrices of both axes.

    Values are clipped to [0, 255] after each pass, as in 8-bit images, but not rounded.

    Args:
        images: images (N, H, W, C), values in [0, 255].
        mask: bool (N,), the images to resample; the others stay the same.
        vertical: the matrices of `shrinking_matrices` along H.
        horizontal: the matrices along W.

    Returns:
        Images float32 (N, H, W, C).
    """
    n, height, width, channels = images.shape
    (down, up), (down_across, up_across) = vertical, horizontal
    chosen = mask[:, None, None].float()
    with torch.autocast(images.device.type, enabled=False):
        x = images.reshape(n, height, -1).to(torch.float32, copy=True)
        rows = (down @ x).clamp_(0, 255)
        # Only few rows are left: transposing them to (rows, C, W) costs little.
        lines = rows.view(n, -1, width, channels).movedim(3, 2).reshape(n, -1, width)
        lines = (lines @ down_across.mT).clamp_(0, 255)
        lines = (lines @ up_across.mT).clamp_(0, 255)
        rows = lines.view(n, -1, channels, width).movedim(2, 3).reshape(n, -1, width * channels)
        # In place: on a CPU, writing to new memory takes longer than the products.
        return x.mul_(1 - chosen).baddbmm_(chosen * up, rows).clamp_(0, 255).view(images.shape)
