"""Shared checks of the poolings' options and maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from c2f_zoo.ops import at_least_float32

Align = Literal["error", "pool"]


def check_num_maps(name: str, in_channels: Sequence[int], allowed: Sequence[int]) -> None:
    """Raise a ValueError unless the number of maps is one of `allowed`."""
    if len(in_channels) not in allowed:
        wanted = " or ".join(str(number) for number in allowed)
        noun = "map" if list(allowed) == [1] else "maps"
        raise ValueError(f"{name} pools {wanted} {noun}, not {len(in_channels)}; name that many taps")


def check_channels(maps: Sequence[Tensor], in_channels: Sequence[int]) -> None:
    """Raise a ValueError unless the maps have these numbers of channels."""
    channels = [x.shape[1] for x in maps]
    if channels != list(in_channels):
        raise ValueError(f"the pooling expects maps of {list(in_channels)} channels, not {channels}")


def align_maps(maps: Sequence[Tensor], in_channels: Sequence[int], align: Align) -> list[Tensor]:
    """Check that maps have one spatial size, or pool them to one size.

    Args:
        maps: the feature maps (N, C_i, H_i, W_i).
        in_channels: their numbers of channels C_i.
        align: `"error"` requires one size. `"pool"` average-pools each map to the smallest height and the smallest
            width among them (`adaptive_avg_pool2d`); a map of that size is unchanged.

    Raises:
        ValueError: the numbers of channels differ from `in_channels`, or the sizes differ with `"error"`.
    """
    check_channels(maps, in_channels)
    sizes = [(x.shape[2], x.shape[3]) for x in maps]
    if align == "error":
        check_one_size(sizes)
        return list(maps)
    if torch.jit.is_tracing():  # sizes are tensors there, and ONNX needs constants
        sizes = [(int(height), int(width)) for height, width in sizes]
    least = (min(height for height, _ in sizes), min(width for _, width in sizes))
    return [
        x if size == least else F.adaptive_avg_pool2d(at_least_float32(x), least).to(x.dtype)
        for x, size in zip(maps, sizes, strict=True)
    ]


def check_one_size(sizes: Sequence[tuple[int, int]]) -> None:
    """Raise a ValueError unless all (height, width) are equal."""
    if any(size != sizes[0] for size in sizes):  # not a set: under torch.export sizes may be symbols
        shown = ", ".join(f"{height} x {width}" for height, width in sizes)
        raise ValueError(
            f"the maps differ in spatial size ({shown}); choose taps of one size, or a pooling's option align='pool'"
        )
