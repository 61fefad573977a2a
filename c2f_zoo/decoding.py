"""Decodings: choosing a label at every level from log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from c2f_zoo.heads.grouped import grouped_logsumexp
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.registry import Registry

DECODINGS: Registry[Callable[[Mapping[str, Tensor], Hierarchy], Tensor]] = Registry("decoding", "c2f_zoo.decodings")
register_decoding = DECODINGS.register

MAX_SCORES = 2**22  # scores of paths that `joint` holds at once: 16 MiB in float32


def list_decodings(pattern: str = "*") -> list[str]:
    """List the names of the registered decodings, filtered by a wildcard.

    Examples:
        >>> list_decodings()
        ['bottom_up', 'independent', 'joint', 'top_down']
    """
    return DECODINGS.names(pattern)


def decode(log_probs: Mapping[str, Tensor], hierarchy: Hierarchy, how: str) -> Tensor:
    """Choose a class at every level.

    - `independent`: the most probable class of each level. The labels may not be a path.
    - `top_down`: the most probable class of the coarsest level, then the most probable of its children, and so on.
    - `bottom_up`: the most probable leaf class, and its ancestors.
    - `joint`: the path with the greatest product of its classes' probabilities, one factor for each level.

    If coarse levels are missing, `independent` and `top_down` marginalize; `bottom_up` and `joint` use only the levels
    of `log_probs`. Levels finer than all of `log_probs` get the label -1. Of equally probable classes the lowest label
    is chosen.

    Args:
        log_probs: log-probabilities (N, classes) of one or more levels, consistent or not, normalized or not.
        hierarchy: the class tree.
        how: one of `list_decodings()`.

    Returns:
        int64 labels (N, levels of the tree), coarse to fine, on the device of the log-probabilities.

    Raises:
        ValueError: the decoding or a level is unknown, `log_probs` is empty or nan, or the number of classes of a level
            does not match the tree.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> log_probs = {"kind": torch.tensor([[0.4, 0.6]]).log(), "shape": torch.tensor([[0.6, 0.3, 0.1]]).log()}
        >>> for how in ("independent", "top_down", "bottom_up", "joint"):
        ...     print(how, decode(log_probs, tree, how).tolist())
        independent [[1, 0]]
        top_down [[1, 2]]
        bottom_up [[0, 0]]
        joint [[0, 0]]
    """
    decoding = DECODINGS[how]
    _check(log_probs, hierarchy)
    for level, z in log_probs.items():
        if z.isnan().any():
            raise ValueError(f"log-probabilities of {level} are not a number (nan): the model's outputs are not finite")
    labels = decoding(log_probs, hierarchy)
    missing = labels.new_full((len(labels), len(hierarchy.levels) - labels.shape[1]), -1)
    return torch.cat([labels, missing], dim=1)


def marginalize(log_probs: Mapping[str, Tensor], hierarchy: Hierarchy) -> dict[str, Tensor]:
    """Add missing coarse levels by marginalizing finer levels.

    The probability of a class is the sum over its children. Levels finer than all of `log_probs` stay missing. With the
    head `hex`, where an image may stop at an inner class, the sum is a lower bound.

    Args:
        log_probs: log-probabilities (N, classes) of one or more levels.
        hierarchy: the class tree.

    Returns:
        Log-probabilities (N, classes) of every level down to the finest of `log_probs`, coarse to fine. Those of
        `log_probs` are unchanged.

    Raises:
        ValueError: a level is unknown, `log_probs` is empty, or the number of classes of a level does not match the
            tree.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> marginalize({"shape": torch.tensor([[0.5, 0.25, 0.25]]).log()}, tree)["kind"].exp()
        tensor([[0.7500, 0.2500]])
    """
    _check(log_probs, hierarchy)
    found: dict[str, Tensor] = {}
    for depth in reversed(range(len(hierarchy.levels))):
        level = hierarchy.levels[depth]
        if level in log_probs:
            found[level] = log_probs[level]
        elif found:
            finer, z = next(reversed(found.items()))
            parents = hierarchy.parent_index(finer, z.device)
            found[level] = grouped_logsumexp(_finite(z), parents, len(hierarchy.classes[depth]))
    return dict(reversed(found.items()))


def is_path(labels: Tensor, hierarchy: Hierarchy) -> Tensor:
    """Return whether labels are a path: each a child of the next coarser label.

    Args:
        labels: integer labels (N, levels of the tree), coarse to fine; a path may stop early, with -1 from there on.
        hierarchy: the class tree.

    Returns:
        bool tensor (N,); false also if a level has a label but the next coarser level has none.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> is_path(torch.tensor([[0, 1], [0, 2], [1, -1]]), tree)
        tensor([ True, False,  True])
    """
    connected = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    for depth, level in enumerate(hierarchy.levels[1:], start=1):
        label = labels[:, depth]
        parent = hierarchy.parent_index(level, labels.device)[label.clamp(min=0)]
        connected &= (label < 0) | (parent == labels[:, depth - 1])
    return connected


@register_decoding("independent")
def _independent(log_probs: Mapping[str, Tensor], hierarchy: Hierarchy) -> Tensor:
    return torch.stack([z.argmax(dim=1) for z in marginalize(log_probs, hierarchy).values()], dim=1)


@register_decoding("top_down")
def _top_down(log_probs: Mapping[str, Tensor], hierarchy: Hierarchy) -> Tensor:
    labels: list[Tensor] = []
    for level, z in marginalize(log_probs, hierarchy).items():
        if labels:
            is_child = hierarchy.parent_index(level, z.device) == labels[-1][:, None]
            z = _finite(z).masked_fill(~is_child, -torch.inf)  # a child of probability 0 still beats other classes
        labels.append(z.argmax(dim=1))
    return torch.stack(labels, dim=1)


@register_decoding("bottom_up")
def _bottom_up(log_probs: Mapping[str, Tensor], hierarchy: Hierarchy) -> Tensor:
    level = _finest(log_probs, hierarchy)
    return hierarchy.truncate(level).ancestors(log_probs[level].argmax(dim=1))


@register_decoding("joint")
def _joint(log_probs: Mapping[str, Tensor], hierarchy: Hierarchy) -> Tensor:
    tree = hierarchy.truncate(_finest(log_probs, hierarchy))
    rows = max(1, MAX_SCORES // tree.num_classes[tree.finest])
    blocks = zip(*(z.split(rows) for z in log_probs.values()), strict=True)
    leaves = torch.cat([_best_leaf(dict(zip(log_probs, block, strict=True)), tree) for block in blocks])
    return torch.stack([tree.ancestor_index(level, leaves.device)[leaves] for level in tree.levels], dim=1)


def _best_leaf(log_probs: Mapping[str, Tensor], tree: Hierarchy) -> Tensor:
    """Return the leaf class (N,) of the path with the greatest sum of log-probabilities."""
    total: Tensor | None = None
    for level in tree.levels:
        if total is not None:
            total = total[:, tree.parent_index(level, total.device)]
        if level in log_probs:
            z = log_probs[level]
            z = z.to(torch.promote_types(z.dtype, torch.float32))  # half precision would not distinguish paths
            total = z if total is None else total + z
    assert total is not None, "the leaf level has log-probabilities"
    return total.argmax(dim=1)


def _finest(log_probs: Mapping[str, Tensor], hierarchy: Hierarchy) -> str:
    return next(level for level in reversed(hierarchy.levels) if level in log_probs)


def _finite(z: Tensor) -> Tensor:
    return z.clamp(min=torch.finfo(z.dtype).min)


def _check(log_probs: Mapping[str, Tensor], hierarchy: Hierarchy) -> None:
    if not log_probs:
        raise ValueError(f"there are no log-probabilities; pass those of one or more of {hierarchy.levels}")
    for level, z in log_probs.items():
        count = len(hierarchy.class_names(level))
        if z.ndim != 2 or z.shape[1] != count:
            raise ValueError(
                f"{level} has {count} classes: its log-probabilities are (N, {count}), not {tuple(z.shape)}"
            )
