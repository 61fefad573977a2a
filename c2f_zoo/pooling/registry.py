"""The registry of poolings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from c2f_zoo.pooling.base import Pooling
from c2f_zoo.registry import Registry, check_options

POOLINGS: Registry[Callable[..., Pooling]] = Registry("pooling", "c2f_zoo.poolings")
register_pooling = POOLINGS.register


def list_poolings(pattern: str = "*") -> list[str]:
    """List the names of the registered poolings, filtered by a wildcard."""
    return POOLINGS.names(pattern)


def create_pooling(name: str, in_channels: Sequence[int], **options: object) -> Pooling:
    """Create a pooling.

    Initial weights are drawn from PyTorch's global generator, as for any layer. Random sketches are drawn from a
    separate generator, by the option `seed`, and are saved as buffers.

    Args:
        name: one of `list_poolings()`.
        in_channels: number of channels of each map, one map per tap.
        **options: additional keyword arguments of the pooling, e.g. `dim=8192`; values of JSON types.

    Returns:
        A module with `forward(maps) -> Tensor`, from a list of (N, C_i, H, W) to (N, `out_features`). Products of maps
        require maps of one spatial size, or the option `align="pool"`.

    Raises:
        ValueError: the name or an option is unknown, or the pooling does not support this number of maps.

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
