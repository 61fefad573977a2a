"""The class tree: levels from coarse to fine, the classes of each, and every class's parent."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c2f_zoo.registry import unknown_name

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Hierarchy:
    """A tree of classes whose leaves all lie at the same depth.

    Labels are indices into a level's classes. Every class below the coarsest level has exactly one
    parent, and every class above the finest level has at least one child.

    Args:
        levels: names of the levels, coarse to fine, e.g. `("family", "genus", "species")`.
        classes: for each level the names of its classes, in label order.
        parents: for each level but the coarsest, for each of its classes, the label of its parent in
            the level above.
        version: which edition of the tree this is, e.g. `"1.0"`; empty where nobody said. A part of a tree keeps it.

    Raises:
        ValueError: the tree has a fault; all faults are named at once.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> tree.num_classes
        {'kind': 2, 'shape': 3}
        >>> tree.to_parent(torch.tensor([2, 0]), "kind")
        tensor([1, 0])
    """

    levels: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    parents: tuple[tuple[int, ...], ...]
    version: str = ""

    def __post_init__(self) -> None:
        faults = _faults(self.levels, self.classes, self.parents)
        if faults:
            raise ValueError("not a hierarchy: " + "; ".join(faults))

    @property
    def finest(self) -> str:
        """Name of the last level."""
        return self.levels[-1]

    @property
    def num_classes(self) -> dict[str, int]:
        """Number of classes of each level, coarse to fine."""
        return {level: len(names) for level, names in zip(self.levels, self.classes, strict=True)}

    def class_names(self, level: str) -> tuple[str, ...]:
        """Names of a level's classes, in label order."""
        return self.classes[self._depth(level)]

    def to_parent(self, fine_labels: torch.Tensor, level: str) -> torch.Tensor:
        """Maps labels of the finest level to the labels of their ancestors at `level`.

        Args:
            fine_labels: integer tensor of any shape, values in `[0, num_classes[finest])`.
            level: the level to map to; the finest gives the labels back.

        Returns:
            int64 tensor of the same shape, on the same device.

        Raises:
            ValueError: a label lies outside the tree, or the level is unknown.
        """
        import torch

        count = len(self.classes[-1])
        outside = (fine_labels < 0) | (fine_labels >= count)
        if outside.any():
            bad = fine_labels[outside].flatten()[0].item()
            raise ValueError(f"label {bad} is outside the tree: {self.finest} has {count} classes (0..{count - 1})")
        table = torch.tensor(self._ancestors(level), device=fine_labels.device)
        return table[fine_labels.long()]

    def ancestors(self, fine_labels: torch.Tensor) -> torch.Tensor:
        """The whole path of each label of the finest level.

        Args:
            fine_labels: integer tensor of any shape (...), values in `[0, num_classes[finest])`.

        Returns:
            int64 tensor (..., levels): the labels from the coarsest level down to the finest.

        Raises:
            ValueError: a label lies outside the tree.

        Examples:
            >>> load_hierarchy("fashion_mnist").ancestors(torch.tensor([0, 9]))  # T-shirt, ankle boot
            tensor([[0, 0, 0],
                    [1, 4, 9]])
        """
        import torch

        return torch.stack([self.to_parent(fine_labels, level) for level in self.levels], dim=-1)

    def lca_height(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """How far above the finest level the lowest common ancestor of two labels lies (Bertinetto et al., CVPR 2020).

        0 for the same class, 1 for siblings, and so on; the number of levels for classes that share no ancestor, as
        if one root stood above the coarsest level.

        Args:
            a: labels of the finest level, integer tensor.
            b: other labels; both shapes are broadcast.

        Returns:
            int64 tensor, values in `[0, number of levels]`.

        Raises:
            ValueError: a label lies outside the tree.

        Examples:
            >>> load_hierarchy("fashion_mnist").lca_height(torch.tensor(0), torch.tensor([0, 2, 3, 9]))
            tensor([0, 1, 2, 3])
        """
        shared = self.ancestors(a) == self.ancestors(b)
        return len(self.levels) - shared.sum(dim=-1)

    def collapse(self, level: str) -> Hierarchy:
        """The tree down to a level, which becomes the finest; labels stay as they are.

        Raises:
            ValueError: the level is unknown.

        Examples:
            >>> load_hierarchy("cub").collapse("genus").num_classes
            {'family': 36, 'genus': 113}
        """
        depth = self._depth(level)
        return Hierarchy(self.levels[: depth + 1], self.classes[: depth + 1], self.parents[:depth], self.version)

    def path(self, fine_label: int) -> tuple[str, ...]:
        """Class names from the coarsest level down to the class of a finest-level label."""
        return tuple(
            names[self._ancestors(level)[fine_label]] for level, names in zip(self.levels, self.classes, strict=True)
        )

    def subtree(self, fine_classes: Iterable[str]) -> Hierarchy:
        """Keeps some of the finest classes, their ancestors, and nothing else, in this tree's order.

        Raises:
            ValueError: a class is not in the tree.
        """
        wanted = set(fine_classes)
        unknown = wanted.difference(self.classes[-1])
        if unknown:
            raise unknown_name(self.finest, min(unknown), self.classes[-1])
        rows = [self.path(label) for label, name in enumerate(self.classes[-1]) if name in wanted]
        return replace(Hierarchy.from_rows(self.levels, rows), version=self.version)

    @classmethod
    def from_rows(cls, levels: Sequence[str], rows: Iterable[Sequence[str]]) -> Hierarchy:
        """Builds a tree from paths: one row a finest class, one name a level, coarse to fine.

        Classes are labelled in the order in which they first appear.

        Raises:
            ValueError: a row of the wrong length, a class under two parents, or a repeated row.
        """
        rows = [tuple(row) for row in rows]
        for number, row in enumerate(rows, start=1):
            if len(row) != len(levels):
                raise ValueError(f"row {number} has {len(row)} names, the tree has {len(levels)} levels: {row}")
        for name, count in Counter(row[-1] for row in rows).items():
            if count > 1:
                raise ValueError(f"{levels[-1]} {name!r} stands in {count} rows; it needs exactly one")
        labels: list[dict[str, int]] = [{} for _ in levels]
        parents: list[dict[int, int]] = [{} for _ in levels]
        for row in rows:
            above = -1
            for depth, name in enumerate(row):
                label = labels[depth].setdefault(name, len(labels[depth]))
                if parents[depth].setdefault(label, above) != above:
                    names = list(labels[depth - 1])
                    raise ValueError(
                        f"{levels[depth]} {name!r} has two parents: "
                        f"{names[parents[depth][label]]!r} and {names[above]!r}"
                    )
                above = label
        return cls(
            tuple(levels),
            tuple(tuple(names) for names in labels),
            tuple(tuple(above.values()) for above in parents[1:]),
        )

    @classmethod
    def from_csv(cls, path: str | Path) -> Hierarchy:
        """Reads a UTF-8 CSV file: the header names the levels, coarse to fine; one row a finest class.

        Raises:
            ValueError: the file is empty or its rows are no tree; the message names the file.
        """
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
        if len(rows) < 2:
            raise ValueError(f"{path}: a hierarchy needs a header with the levels and a row for each finest class")
        try:
            return cls.from_rows(rows[0], rows[1:])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The tree as lists and strings, ready for `json.dumps`; `from_dict` reads it back."""
        return {
            "version": self.version,
            "levels": list(self.levels),
            "classes": [list(names) for names in self.classes],
            "parents": [list(labels) for labels in self.parents],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Hierarchy:
        """Rebuilds the tree that `to_dict` wrote.

        Raises:
            ValueError: a key is missing or unknown, or the tree has a fault.
        """
        expected = {"levels", "classes", "parents"}
        if set(data) - {"version"} != expected:
            raise ValueError(f"a hierarchy has the keys {sorted(expected)} and perhaps 'version', not {sorted(data)}")
        return cls(
            tuple(data["levels"]),
            tuple(tuple(names) for names in data["classes"]),
            tuple(tuple(labels) for labels in data["parents"]),
            str(data.get("version", "")),
        )

    def _depth(self, level: str) -> int:
        if level not in self.levels:
            raise unknown_name("level", level, self.levels)
        return self.levels.index(level)

    def _ancestors(self, level: str) -> list[int]:
        """For each finest label, the label of its ancestor at `level`."""
        ancestors = list(range(len(self.classes[-1])))
        for above in reversed(self.parents[self._depth(level) :]):
            ancestors = [above[label] for label in ancestors]
        return ancestors


def _faults(levels: Sequence[str], classes: Sequence[Sequence[str]], parents: Sequence[Sequence[int]]) -> list[str]:
    if not levels or len(classes) != len(levels) or len(parents) != len(levels) - 1:
        return [
            f"{len(levels)} levels need as many lists of classes and one list of parents fewer, "
            f"not {len(classes)} and {len(parents)}"
        ]
    faults = [f"level {name!r} is named twice" for name, count in Counter(levels).items() if count > 1]
    faults += ["a level has an empty name"] * any(not name.strip() for name in levels)
    for level, names in zip(levels, classes, strict=True):
        faults += [f"{level} has no classes"] * (not names)
        faults += [f"{level} has a class with an empty name"] * any(not name.strip() for name in names)
        faults += [f"{level} {name!r} is named twice" for name, count in Counter(names).items() if count > 1]
    for depth, labels in enumerate(parents):
        above, level, names = classes[depth], levels[depth + 1], classes[depth + 1]
        if len(labels) != len(names):
            faults.append(f"{level} has {len(names)} classes but {len(labels)} parents")
        faults += [
            f"{level} {name!r} is an orphan: its parent {label} is none of the {len(above)} {levels[depth]} labels"
            for name, label in zip(names, labels, strict=False)
            if not 0 <= label < len(above)
        ]
        faults += [
            f"{levels[depth]} {name!r} has no {level}" for label, name in enumerate(above) if label not in labels
        ]
    return faults
