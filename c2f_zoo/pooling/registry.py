"""Where poolings are registered and made; what every pooling may take for granted about its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from c2f_zoo.registry import Registry, check_options

POOLINGS: Registry[Callable[..., nn.Module]] = Registry("pooling")
register_pooling = POOLINGS.register


def list_poolings(pattern: str = "*") -> list[str]:
    """Lists the names that `create_pooling` knows, filtered by a wildcard."""
    return POOLINGS.names(pattern)


def create_pooling(name: str, in_channels: Sequence[int], **options: object) -> nn.Module:
    """Makes a pooling: a module from a list of feature maps to one vector.

    Args:
        name: one of `list_poolings()`.
        in_channels: number of channels of each map, one a tap.
        **options: what the pooling of that name takes further, e.g. `dim=8192`; JSON-able.

    Returns:
        A module with `forward(maps) -> Tensor`, from a list of (N, C_i, H, W), all of one spatial size, to
        (N, `out_features`).

    Raises:
        ValueError: the name or an option is unknown, or the number of maps does not fit the pooling.

    Examples:
        >>> pooling = create_pooling("mlp", in_channels=[8, 8, 8], dim=16)
        >>> pooling([torch.rand(2, 8, 5, 5)] * 3).shape == (2, pooling.out_features)
        True
    """
    pooling = POOLINGS[name]
    check_options(f"option of pooling {name!r}:", pooling, options)
    return pooling(list(in_channels), **options)


def check_num_maps(name: str, in_channels: Sequence[int], allowed: Sequence[int]) -> None:
    """Raises a ValueError unless a pooling of this name can take that many maps."""
    if len(in_channels) not in allowed:
        wanted = " or ".join(str(number) for number in allowed)
        raise ValueError(f"{name} pools {wanted} maps, not {len(in_channels)}; name that many taps")


def check_maps(maps: Sequence[Tensor], in_channels: Sequence[int]) -> None:
    """Raises a ValueError unless the maps have the promised channels and one spatial size."""
    channels = [x.shape[1] for x in maps]
    if channels != list(in_channels):
        raise ValueError(f"the pooling was made for maps of {list(in_channels)} channels, not {channels}")
    check_one_size([(x.shape[2], x.shape[3]) for x in maps])


def check_one_size(sizes: Sequence[tuple[int, int]]) -> None:
    """Raises a ValueError unless all (height, width) are the same."""
    if len(set(sizes)) > 1:
        shown = ", ".join(f"{height} x {width}" for height, width in sizes)
        raise ValueError(f"the maps differ in spatial size ({shown}); choose taps of one size")
