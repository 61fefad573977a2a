"""Restriction of predictions to some classes of the tree, by their names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.hierarchy.escape import printable
from c2f_zoo.hierarchy.matching import match_labels
from c2f_zoo.inference.nodes import Nodes
from c2f_zoo.paths import expand
from c2f_zoo.registry import unknown_name

_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Restriction:
    """The leaf classes to which predictions are restricted.

    Attributes:
        leaves: their labels, rising.
        text: the restriction in words.
        notes: lines on names that were left out or spelled differently.
    """

    leaves: tuple[int, ...]
    text: str
    notes: tuple[str, ...] = field(default=(), compare=False)


def find_restriction(
    tree: Hierarchy, only: str | Sequence[str] | None = None, species_list: str | os.PathLike[str] | None = None
) -> Restriction | None:
    """Return the restriction to classes and to those of a list; None without either.

    Args:
        tree: the class tree.
        only: the name of a class of any level, or several names; a class stands for all leaf classes under it.
        species_list: a text file with a name on each line, as in `only`. Empty lines and lines that begin with `#` are
            skipped. Names that are not in the tree are left out, with a note. With both, a leaf class must be in both.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a name of `only` is not in the tree, the list has no class of the tree or is not UTF-8, or no leaf
            class is in both.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> find_restriction(tree, only=["round"])
        Restriction(leaves=(0, 1), text='only round', notes=())
    """
    if only is None and species_list is None:
        return None
    only = [only] if isinstance(only, str) else only
    leaves, texts, notes = set(range(len(tree.classes[-1]))), [], []
    if only is not None:
        found, unknown, inexact = _find_leaves(tree, only)
        if unknown:
            raise unknown_name("class", unknown[0], _all_names(tree))
        leaves &= found
        texts.append(f"only {', '.join(only)}")
        notes += inexact
    if species_list is not None:
        names = read_names(species_list)
        found, unknown, inexact = _find_leaves(tree, names)
        if not found:
            raise ValueError(f"{species_list}: none of its {len(names)} names is in the model's tree{_some(unknown)}")
        leaves &= found
        texts.append(f"the list {Path(species_list).name}: {len(names) - len(unknown)} of {len(names)} names")
        notes += [f"{species_list}: {line}" for line in inexact]
        if unknown:
            count = f"{len(unknown)} of {len(names)} names"
            notes.append(f"{species_list}: {count} are not in the model's tree and are left out{_some(unknown)}")
    if not leaves:
        raise ValueError(f"no leaf class is left; the restrictions exclude each other: {' and '.join(texts)}")
    return Restriction(tuple(sorted(leaves)), "; ".join(texts), tuple(notes))


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Read the names of a list, one a line; empty lines and lines that begin with `#` are skipped.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not UTF-8 or has no names.
    """
    try:
        text = expand(path).read_text(encoding="utf-8-sig")  # spreadsheets and editors begin with a mark
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8; save it as UTF-8, with one name a line") from None
    lines = [line.strip() for line in text.splitlines()]
    names = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not names:
        raise ValueError(f"{path} has no names; write one a line")
    return names


def _find_leaves(tree: Hierarchy, names: Iterable[str]) -> tuple[set[int], list[str], list[str]]:
    """Return the leaf classes under classes of these names, the unknown names, and notes on the spelling."""
    wanted = [(name,) for name in names]
    labels, inexact = match_labels(wanted, tree)
    paths = Nodes(tree).leaf_paths
    leaves: set[int] = set()
    for label in labels.values():
        depth = sum(part >= 0 for part in label) - 1
        leaves.update(np.flatnonzero(paths[:, depth] == label[depth]).tolist())
    unknown = [name for (name,) in wanted if (name,) not in labels]
    notes = [f"{len(inexact)} names are matched by letters and digits only{_some(inexact)}"] if inexact else []
    return leaves, unknown, notes


def _all_names(tree: Hierarchy) -> list[str]:
    return list(dict.fromkeys(name for names in tree.classes for name in names))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:_SHOWN])
    return f": {shown}{', ...' if len(names) > _SHOWN else ''}" if names else ""
