"""The registry of poolings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from c2f_zoo.pooling.base import Pooling
from c2f_zoo.registry import Registry, check_options

POOLINGS: Registry[Callable[..., Pooling]] = Registry("pooling", "c2f_zoo.poolings")
register_pooling = POOLINGS.register


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
