"""Where hierarchy heads are registered and made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.registry import Registry

HEADS: Registry[Callable[..., nn.Module]] = Registry("head")
register_head = HEADS.register


def list_heads(pattern: str = "*") -> list[str]:
    """Lists the names that `create_head` knows, filtered by a wildcard."""
    return HEADS.names(pattern)


def create_head(name: str, in_features: int, hierarchy: Hierarchy, levels: Sequence[str]) -> nn.Module:
    """Makes a head: a module from a vector to logits for each level.

    Args:
        name: one of `list_heads()`.
        in_features: length of the pooled vector.
        hierarchy: the class tree.
        levels: the levels to answer, coarse to fine.

    Returns:
        A module with `forward(v, levels) -> dict`, from (N, in_features) to (N, classes) for each
        of the levels asked for, and `get_classifier(level)`.

    Raises:
        ValueError: the name or a level is unknown.

    Examples:
        >>> head = create_head("levels", 16, load_hierarchy("cub"), ["family", "species"])
        >>> {level: tuple(z.shape) for level, z in head(torch.rand(2, 16), ["family"]).items()}
        {'family': (2, 36)}
    """
    return HEADS[name](in_features, hierarchy, tuple(levels))
