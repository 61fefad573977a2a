"""Paths of a tree whose branches differ in depth, or whose classes share names.

A short branch repeats its last class down to the leaf level: `Fruit > Banana > Banana`. Several classes of one name get
their parent's name in brackets: `Ficus (Moraceae)`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from c2f_zoo.hierarchy.escape import printable

Names = tuple[str, ...]

RAGGED = ("repeat", "stop")


def qualify(name: str, parent: str) -> str:
    """Return a class's name with its parent's in brackets.

    Examples:
        >>> qualify("Ficus", "Moraceae")
        'Ficus (Moraceae)'
    """
    return f"{name} ({parent})"


def unqualified(path: Names) -> Names:
    """Return a path with the names that its classes had before `qualify`.

    Examples:
        >>> unqualified(("Moraceae", "Ficus (Moraceae)", "carica (Ficus (Moraceae))"))
        ('Moraceae', 'Ficus', 'carica')
    """
    return (*path[:1], *(name.removesuffix(qualify("", above)) for above, name in pairwise(path)))


def complete_paths(paths: Sequence[Names], num_levels: int, has_unique_names: bool = False) -> list[Names]:
    """Return paths of equal length, whose names are unique at each level.

    Args:
        paths: the path of each leaf class, of at most `num_levels` names.
        num_levels: number of levels.
        has_unique_names: whether names are unique already.

    Examples:
        >>> complete_paths([("a", "x"), ("b", "x", "y")], 3)
        [('a', 'x (a)', 'x (a)'), ('b', 'x (b)', 'y')]
    """
    full = [(*path, *path[-1:] * (num_levels - len(path))) for path in paths]
    if has_unique_names:
        return full
    nodes = {path[: depth + 1] for path in full for depth in range(num_levels)}
    count = Counter((len(node), node[-1]) for node in nodes)
    completed = []
    for path, names in zip(paths, full, strict=True):
        unique: list[str] = []
        for depth, name in enumerate(names, start=1):
            if depth > len(path):
                unique.append(unique[-1])
            else:
                unique.append(qualify(name, unique[-1]) if unique and count[depth, name] > 1 else name)
        completed.append(tuple(unique))
    return completed


def warn_of_changes(source: object, levels: Sequence[str], paths: Sequence[Names], completed: Sequence[Names]) -> None:
    """Warn of short branches and qualified names, each in one line with its count."""
    source = printable(source)
    short = [path for path in paths if len(path) < len(levels)]
    if short:
        long = next(path for path in paths if len(path) == len(levels))
        shown = f"{' > '.join(short[0])!r} beside {' > '.join(long)!r}"
        count = f"{len(short)} of {len(paths)} branches end above {levels[-1]!r}"
        warnings.warn(f"{source}: {count} and repeat their last class down to it, e.g. {shown}", stacklevel=5)
    changed: dict[tuple[str, str], None] = {}
    for path, names in zip(paths, completed, strict=True):
        changed |= {(level, new): None for level, old, new in zip(levels, path, names, strict=False) if old != new}
    if changed:
        level, name = next(iter(changed))
        reason = "have the name of another class of their level"
        shown = f"the parent's name in brackets, e.g. {level} {name!r}"
        warnings.warn(f"{source}: {len(changed)} classes {reason} and get {shown}", stacklevel=5)


def find_repeats(classes: Sequence[Sequence[str]], parents: Sequence[Sequence[int]]) -> tuple[frozenset[int], ...]:
    """Return the classes of each level that repeat their parent.

    A class repeats its parent if it is the only child and has the same name, and if that is true of its descendants:
    nothing below the parent has another name.

    Examples:
        >>> find_repeats([("fruit",), ("apple", "banana"), ("gala", "banana")], [(0, 0), (0, 1)])
        (frozenset(), frozenset(), frozenset({1}))
    """
    repeats: list[frozenset[int]] = []
    ends = set(range(len(classes[-1])))  # classes with nothing below but repeats
    for above, names, labels in zip(classes[-2::-1], classes[:0:-1], parents[::-1], strict=True):
        siblings = Counter(labels)
        found = [
            label for label in sorted(ends) if siblings[labels[label]] == 1 and names[label] == above[labels[label]]
        ]
        repeats.insert(0, frozenset(found))
        ends = {labels[label] for label in found}
    return (frozenset(), *repeats)
