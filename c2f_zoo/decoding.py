"""From log-probabilities of every level to a label for every level."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from c2f_zoo.heads.grouped import grouped_logsumexp
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.registry import unknown_name


def decode(log_probs: Mapping[str, Tensor], hierarchy: Hierarchy, how: str) -> Tensor:
    """Chooses a class at every level.

    - `independent`: the most probable class of each level by itself. Only this one may give labels that are no path.
    - `top_down`: the most probable class of the coarsest level, then the most probable of its children, and so on.
    - `bottom_up`: the most probable class of the finest level, and its ancestors.
    - `joint`: the path with the greatest product of its classes' probabilities, one factor a level.

    Where levels are missing, the first two take the coarser ones from `marginalize`, the last two need only those that
    are there. Levels finer than all that are there have the label -1. Of equals the lowest label wins.

    Args:
        log_probs: for each level that was answered, or for some, log-probabilities (N, classes). They need not
            agree with each other, nor sum to 1.
        hierarchy: the class tree.
        how: one of `DECODINGS`.

    Returns:
        int64 labels (N, levels of the tree), coarse to fine, on the device of the log-probabilities.

    Raises:
        ValueError: the decoding or a level is unknown, there is no level, or a level has another number of classes.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> log_probs = {"kind": torch.tensor([[0.4, 0.6]]).log(), "shape": torch.tensor([[0.6, 0.3, 0.1]]).log()}
        >>> for how in DECODINGS:
        ...     print(how, decode(log_probs, tree, how).tolist())
        independent [[1, 0]]
        top_down [[1, 2]]
        bottom_up [[0, 0]]
        joint [[0, 0]]
    """
    if how not in _DECODERS:
        raise unknown_name("decoding", how, DECODINGS)
    _check(log_probs, hierarchy)
    labels = _DECODERS[how](log_probs, hierarchy)
    missing = labels.new_full((len(labels), len(hierarchy.levels) - labels.shape[1]), -1)
    return torch.cat([labels, missing], dim=1)


def marginalize(log_probs: Mapping[str, Tensor], hierarchy: Hierarchy) -> dict[str, Tensor]:
    """Adds the levels that follow from finer ones: a class is as probable as its children together.

    A level that is missing is summed up from the next finer one, which may itself have been missing; levels finer
    than all that are there stay missing. Where an image may stop at a class without being any of its children (the
    head `hex`), the sum is a lower bound.

    Args:
        log_probs: for some levels log-probabilities (N, classes).
        hierarchy: the class tree.

    Returns:
        Log-probabilities (N, classes) of every level down to the finest that is there, coarse to fine; those that
        were there unchanged.

    Raises:
        ValueError: a level is unknown, there is no level, or a level has another number of classes.

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
            finer = found[hierarchy.levels[depth + 1]]
            parents = hierarchy.parent_index(hierarchy.levels[depth + 1], finer.device)
            found[level] = grouped_logsumexp(_finite(finer), parents, len(hierarchy.classes[depth]))
    return dict(reversed(found.items()))


def is_path(labels: Tensor, hierarchy: Hierarchy) -> Tensor:
    """Whether labels of all levels belong to each other: each is a child of the one before it.

    Args:
        labels: integer labels (N, levels of the tree), coarse to fine; -1 where a level has none, as for all levels
            below it.
        hierarchy: the class tree.

    Returns:
        bool tensor (N,); false, too, where a level has a label and the one above it has none.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> is_path(torch.tensor([[0, 1], [0, 2], [1, -1]]), tree)
        tensor([ True, False,  True])
    """
    belong = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    for depth, level in enumerate(hierarchy.levels[1:], start=1):
        label = labels[:, depth]
        parent = hierarchy.parent_index(level, labels.device)[label.clamp(min=0)]
        belong &= (label < 0) | (parent == labels[:, depth - 1])
    return belong


def _independent(log_probs: Mapping[str, Tensor], hierarchy: Hierarchy) -> Tensor:
    return torch.stack([z.argmax(dim=1) for z in marginalize(log_probs, hierarchy).values()], dim=1)


def _top_down(log_probs: Mapping[str, Tensor], hierarchy: Hierarchy) -> Tensor:
    coarsest, *finer = marginalize(log_probs, hierarchy).items()
    labels = [coarsest[1].argmax(dim=1)]
    for level, z in finer:
        is_child = hierarchy.parent_index(level, z.device) == labels[-1][:, None]
        # A child whose probability is 0 still goes before a class that is no child.
        labels.append(_finite(z).masked_fill(~is_child, -torch.inf).argmax(dim=1))
    return torch.stack(labels, dim=1)


def _bottom_up(log_probs: Mapping[str, Tensor], hierarchy: Hierarchy) -> Tensor:
    level = _finest(log_probs, hierarchy)
    return hierarchy.truncate(level).ancestors(log_probs[level].argmax(dim=1))


def _joint(log_probs: Mapping[str, Tensor], hierarchy: Hierarchy) -> Tensor:
    tree = hierarchy.truncate(_finest(log_probs, hierarchy))
    device = log_probs[tree.finest].device
    paths = tree.ancestors(torch.arange(tree.num_classes[tree.finest], device=device))  # (paths, levels)
    scores = [log_probs[level][:, paths[:, depth]] for depth, level in enumerate(tree.levels) if level in log_probs]
    # The sum of half precision numbers has too few digits to tell paths apart.
    scores = [z.to(torch.promote_types(z.dtype, torch.float32)) for z in scores]
    return paths[torch.stack(scores).sum(dim=0).argmax(dim=1)]


_DECODERS: dict[str, Callable[[Mapping[str, Tensor], Hierarchy], Tensor]] = {
    "independent": _independent,
    "top_down": _top_down,
    "bottom_up": _bottom_up,
    "joint": _joint,
}
DECODINGS = tuple(_DECODERS)


def _finest(log_probs: Mapping[str, Tensor], hierarchy: Hierarchy) -> str:
    return next(level for level in reversed(hierarchy.levels) if level in log_probs)


def _finite(z: Tensor) -> Tensor:
    return z.clamp(min=torch.finfo(z.dtype).min)


def _check(log_probs: Mapping[str, Tensor], hierarchy: Hierarchy) -> None:
    if not log_probs:
        raise ValueError(f"there are no log-probabilities; give those of one or more of {hierarchy.levels}")
    for level, z in log_probs.items():
        count = len(hierarchy.class_names(level))
        if z.ndim != 2 or z.shape[1] != count:
            raise ValueError(
                f"{level} has {count} classes: its log-probabilities are (N, {count}), not {tuple(z.shape)}"
            )
