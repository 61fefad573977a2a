"""The registry of heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from c2f_zoo.heads.base import Head
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.registry import Registry, check_names, check_options

HEADS: Registry[Callable[..., Head]] = Registry("head", "c2f_zoo.heads")
register_head = HEADS.register


def list_heads(pattern: str = "*") -> list[str]:
    """List the names of the registered heads, filtered by a wildcard."""
    return HEADS.names(pattern)


def create_head(name: str, in_features: int, hierarchy: Hierarchy, levels: Sequence[str], **options: object) -> Head:
    """Create a head.

    Args:
        name: one of `list_heads()`.
        in_features: length of the pooled vector.
        hierarchy: the class tree.
        levels: the levels to predict, coarse to fine, one or more.
        **options: additional keyword arguments of the head, e.g. `dim=512`; values of JSON types.

    Returns:
        A module with `forward(v, levels) -> dict`, from (N, in_features) to logits (N, classes) for each of `levels`,
        and `log_probs(logits) -> dict`, from logits to log-probabilities; see `c2f_zoo.Head`.

    Raises:
        ValueError: the name, a level or an option is unknown.

    Examples:
        >>> head = create_head("marginal", 16, load_hierarchy("cub"), ["family", "species"])
        >>> {level: tuple(z.shape) for level, z in head(torch.rand(2, 16), ["family"]).items()}
        {'family': (2, 36)}
    """
    factory = HEADS[name]
    check_options(f"option of head {name!r}:", factory, options)
    check_names("level", levels, hierarchy.levels)
    head = factory(in_features, hierarchy, tuple(levels), **options)
    if not isinstance(head, Head):
        raise ValueError(f"head {name!r} is a {type(head).__name__}; derive it from c2f_zoo.Head")
    return head


def depth_of(level: str, levels: Sequence[str]) -> int:
    """Return the index of a level in `levels`.

    Raises:
        ValueError: the level is not in `levels`; the message suggests close names.
    """
    check_names("level", [level], levels)
    return levels.index(level)
