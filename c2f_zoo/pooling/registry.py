"""Where poolings are registered and made; what every pooling may take for granted about its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from c2f_zoo.ops import at_least_float32
from c2f_zoo.pooling.base import Pooling
from c2f_zoo.registry import Registry, check_options, unknown_name

POOLINGS: Registry[Callable[..., Pooling]] = Registry("pooling", "c2f_zoo.poolings")
register_pooling = POOLINGS.register

Align = Literal["error", "pool"]


def list_poolings(pattern: str = "*") -> list[str]:
    """Lists the names that `create_pooling` knows, filtered by a wildcard."""
    return POOLINGS.names(pattern)


def create_pooling(name: str, in_channels: Sequence[int], **options: object) -> Pooling:
    """Makes a pooling: a module from a list of feature maps to one vector.

    No pooling seeds or reads the global generator but for the initial weights of its projections, which come
    from it as those of any PyTorch layer do. Random sketches have a `seed` of their own and are saved as buffers.

    Args:
        name: one of `list_poolings()`.
        in_channels: number of channels of each map, one a tap.
        **options: what the pooling of that name takes further, e.g. `dim=8192`; JSON-able.

    Returns:
        A module with `forward(maps) -> Tensor`, from a list of (N, C_i, H, W) to (N, `out_features`). Where the
        pooling multiplies maps with each other they must be of one spatial size, or `align="pool"` makes them so.

    Raises:
        ValueError: the name or an option is unknown, or the number of maps does not fit the pooling.

    Examples:
        >>> pooling = create_pooling("mlp", in_channels=[8, 8, 8], dim=16)
        >>> pooling([torch.rand(2, 8, 5, 5)] * 3).shape == (2, pooling.out_features)
        True
    """
    factory = POOLINGS[name]
    check_options(f"option of pooling {name!r}:", factory, options)
    pooling = factory(list(in_channels), **options)
    if not isinstance(pooling, Pooling):
        raise ValueError(f"pooling {name!r} is a {type(pooling).__name__}; derive it from c2f_zoo.Pooling")
    return pooling


def check_num_maps(name: str, in_channels: Sequence[int], allowed: Sequence[int]) -> None:
    """Raises a ValueError unless a pooling of this name can take that many maps."""
    if len(in_channels) not in allowed:
        wanted = " or ".join(str(number) for number in allowed)
        noun = "map" if list(allowed) == [1] else "maps"
        raise ValueError(f"{name} pools {wanted} {noun}, not {len(in_channels)}; name that many taps")


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Raises a ValueError, with close names, unless an option has one of the values that it may have."""
    if value not in choices:
        raise unknown_name(option, value, choices)


def check_channels(maps: Sequence[Tensor], in_channels: Sequence[int]) -> None:
    """Raises a ValueError unless the maps have the promised numbers of channels."""
    channels = [x.shape[1] for x in maps]
    if channels != list(in_channels):
        raise ValueError(f"the pooling was made for maps of {list(in_channels)} channels, not {channels}")


def align_maps(maps: Sequence[Tensor], in_channels: Sequence[int], align: Align) -> list[Tensor]:
    """Brings maps to one spatial size, by the rule that the user chose.

    Args:
        maps: the feature maps (N, C_i, H_i, W_i).
        in_channels: the numbers of channels C_i that they must have.
        align: `"error"`: they must be of one size. `"pool"`: each is average-pooled to the least height and
            the least width among them (`adaptive_avg_pool2d`); a map of that size stays as it is.

    Raises:
        ValueError: other numbers of channels, or another size under `"error"`.
    """
    check_channels(maps, in_channels)
    sizes = [(x.shape[2], x.shape[3]) for x in maps]
    if align == "error":
        check_one_size(sizes)
        return list(maps)
    least = (min(height for height, _ in sizes), min(width for _, width in sizes))
    return [
        x if size == least else F.adaptive_avg_pool2d(at_least_float32(x), least).to(x.dtype)
        for x, size in zip(maps, sizes, strict=True)
    ]


def check_one_size(sizes: Sequence[tuple[int, int]]) -> None:
    """Raises a ValueError unless all (height, width) are the same."""
    if any(size != sizes[0] for size in sizes):  # not a set: under torch.export sizes may be symbols
        shown = ", ".join(f"{height} x {width}" for height, width in sizes)
        raise ValueError(
            f"the maps differ in spatial size ({shown}); choose taps of one size, or a pooling's option align='pool'"
        )
