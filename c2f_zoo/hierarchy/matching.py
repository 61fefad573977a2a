"""Matching the names and paths of folders and lists with the classes of a tree and with files."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from c2f_zoo.hierarchy.names import letters_of, normalize_name
from c2f_zoo.hierarchy.paths import unqualified
from c2f_zoo.hierarchy.tree import Hierarchy
from c2f_zoo.paths import expand

Names = tuple[str, ...]
Label = tuple[int, ...]  # at each level, coarse to fine; -1 where unknown


def labels_by_path(tree: Hierarchy) -> dict[tuple[str, ...], Label]:
    """Return the label of each class of every level, by its path from the top.

    A short branch has the label of its leaf class. Names are those of the tree, and those before they were qualified.
    """
    exact = dict(_paths(tree))
    return {unqualified(names): label for names, label in exact.items()} | exact


def labels_by_suffix(tree: Hierarchy) -> dict[tuple[str, ...], Label]:
    """Return `labels_by_path` by each suffix of a path; finer classes win.

    Suffixes that several classes of a level have before they are qualified are left out.
    """
    table: dict[tuple[str, ...], Label] = {}
    for _, same_depth in groupby(_paths(tree), key=lambda item: sum(label >= 0 for label in item[1])):
        exact: dict[tuple[str, ...], Label] = {}
        short: dict[tuple[str, ...], set[Label]] = defaultdict(set)
        for names, label in same_depth:
            before = unqualified(names)
            for start in range(len(names)):
                exact[names[start:]] = label
                if before != names:
                    short[before[start:]].add(label)
        for suffix, labels in short.items():
            table.pop(suffix, None)
            if len(labels) == 1:
                table[suffix] = labels.pop()
        table |= exact
    return table


def find_listed_file(root: Path, written: str) -> Path:
    """Return the file that a list means by a path, relative to a folder.

    Spaces at its ends do not count. If there is no such file, it is looked for with the spaces, with slashes instead of
    backslashes, as on Windows, and with accents in Unicode's forms NFC and NFD.
    """
    path = written.strip()
    file = root / expand(path)
    if os.path.isfile(file):
        return file
    spellings = [spelling for form in ("NFC", "NFD") for spelling in _spellings(unicodedata.normalize(form, written))]
    return next((root / spelling for spelling in spellings if os.path.isfile(root / spelling)), file)


def _spellings(path: str) -> list[str]:
    return [path, path.strip(), path.strip().replace("\\", "/")]


def match_labels(paths: Iterable[Names], tree: Hierarchy) -> tuple[dict[Names, Label], list[str]]:
    """Match the names of folders or labels with the classes of a tree.

    A name that is not in the tree is compared by its letters and digits, in any case: file systems and spreadsheets
    change the others. It is left out if no class matches, or several.

    Args:
        paths: each the name of a class, or its path or the end of its path.
        tree: the tree.

    Returns:
        The label of each path, and a line for each path that is not spelled as in the tree.
    """
    exact = {tuple(map(normalize_name, path)): label for path, label in labels_by_suffix(tree).items()}
    normal = {path: tuple(map(normalize_name, path)) for path in paths}
    labels = {path: exact[names] for path, names in normal.items() if names in exact}
    inexact: list[str] = []
    if len(labels) == len(normal):
        return labels, inexact
    loose: dict[Names, dict[Label, Names]] = defaultdict(dict)  # label -> a path with these letters
    for names, label in exact.items():
        loose[tuple(map(letters_of, names))].setdefault(label, names)
    for path in [path for path in normal if path not in labels]:
        letters = tuple(map(letters_of, path))
        if all(letters) and len(loose[letters]) == 1:
            ((labels[path], known),) = loose[letters].items()
            inexact.append(f"{'/'.join(path)!r} is {'/'.join(known)!r}")
    return labels, inexact


def _paths(tree: Hierarchy) -> Iterator[tuple[tuple[str, ...], Label]]:
    """Yield the path of each class, with all, some or none of its repeats, and its label, coarse to fine."""
    for depth, level in enumerate(tree.levels):
        above, below = tree.truncate(level), [-1] * (len(tree.levels) - depth - 1)
        for label, row in enumerate(zip(*above.ancestor_labels, strict=True)):
            names = above.path(label)
            count = sum(found not in repeats for found, repeats in zip(row, above.repeats, strict=True))
            yield from ((names[:end], (*row, *below)) for end in range(count, len(names) + 1))
