"""Where hierarchy heads are registered and made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from c2f_zoo.heads.base import Head
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.registry import Registry, check_options, unknown_name

HEADS: Registry[Callable[..., Head]] = Registry("head", "c2f_zoo.heads")
register_head = HEADS.register


def list_heads(pattern: str = "*") -> list[str]:
    """Lists the names that `create_head` knows, filtered by a wildcard."""
    return HEADS.names(pattern)


def create_head(name: str, in_features: int, hierarchy: Hierarchy, levels: Sequence[str], **options: object) -> Head:
    """Makes a head: a module from a vector to logits for each level.

    Args:
        name: one of `list_heads()`.
        in_features: length of the pooled vector.
        hierarchy: the class tree.
        levels: the levels to answer, coarse to fine, one or more.
        **options: what the head of that name takes further, e.g. `dim=512`; JSON-able.

    Returns:
        A module with `forward(v, levels) -> dict`, from (N, in_features) to (N, classes) for each of the levels asked
        for; `log_probs(logits) -> dict`, from such logits to log-probabilities; `get_classifier(level)`; and
        `levels_are_marginals`, which says whether the levels are marginals of one distribution over the tree.

    Raises:
        ValueError: the name, a level or an option is unknown.

    Examples:
        >>> head = create_head("marginal", 16, load_hierarchy("cub"), ["family", "species"])
        >>> {level: tuple(z.shape) for level, z in head(torch.rand(2, 16), ["family"]).items()}
        {'family': (2, 36)}
    """
    factory = HEADS[name]
    check_options(f"option of head {name!r}:", factory, options)
    for level in levels:
        hierarchy.depth(level)
    head = factory(in_features, hierarchy, tuple(levels), **options)
    if not isinstance(head, Head):
        raise ValueError(f"head {name!r} is a {type(head).__name__}; derive it from c2f_zoo.Head")
    return head


def depth_of(level: str, levels: Sequence[str]) -> int:
    """The place of a level among some, from 0.

    Raises:
        ValueError: it is none of them; the message names the closest ones.
    """
    if level not in levels:
        raise unknown_name("level", level, levels)
    return levels.index(level)
