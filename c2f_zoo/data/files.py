"""Datasets made of image files: what was found, what is wrong with it, and one split of it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from c2f_zoo.data.images import read_image
from c2f_zoo.data.splits import stratified_split
from c2f_zoo.hierarchy import HIERARCHIES, Hierarchy, load_hierarchy
from c2f_zoo.hierarchy.reading import csv_rows
from c2f_zoo.registry import unknown_name

SPLITS = ("train", "val", "test")
SPLIT_OF = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MAX_SHOWN = 20
TOO_FEW = "each class needs two images or more to be parted, and test_fraction to be more than 0; or name the splits"

Findings = dict[str, list[str]]  # a heading, and a line for each thing found


@dataclass(eq=False)
class ImageFiles:
    """Images in files, one each: a `LabelledImages`.

    Args:
        paths: the files.
        targets: for each its label at the finest level, -1 where that is unknown.
        hierarchy: the tree.
        labels: int64 (n, levels), -1 for what is unknown, where some images are labelled at coarser levels only.
        splits: which splits the whole dataset has.

    Examples:
        >>> Image.new("RGB", (64, 48)).save("1.png")
        >>> tree = Hierarchy(("shape",), (("disc", "box"),), ())
        >>> dataset = ImageFiles([Path("1.png")], [1], tree)
        >>> dataset[0][0].size, dataset[0][1]
        ((64, 48), 1)
    """

    paths: list[Path]
    targets: list[int]
    hierarchy: Hierarchy
    labels: Tensor | None = None
    splits: tuple[str, ...] = ("train", "test")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.read(index), self.targets[index]

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """One image in RGB, decoded by `read_image`.

        Args:
            index: which.
            shorter_side: a JPEG may come smaller than it is, its shorter side still as long as this.

        Raises:
            FileNotFoundError: the file is gone.
            ValueError: it cannot be decoded; the message names it.
        """
        return read_image(self.paths[index], shorter_side)


class Entry(NamedTuple):
    """An image that was found."""

    path: Path
    label: tuple[int, ...]  # at each level, coarse to fine; -1 where unknown
    split: str  # "" where none is named


@dataclass(eq=False)
class Listing:
    """All that was found of a dataset, whatever is wrong with it.

    Attributes:
        source: the folder or file it was read from.
        hierarchy: the tree; None where there is none to be had.
        entries: the images; the label of one outside the tree is -1 at every level.
        faults: what keeps the dataset from being opened.
        notes: what was left out, or understood in a way worth knowing.
    """

    source: Path
    hierarchy: Hierarchy | None = None
    entries: list[Entry] = field(default_factory=list)
    faults: Findings = field(default_factory=lambda: defaultdict(list))
    notes: Findings = field(default_factory=lambda: defaultdict(list))


def open_split(listing: Listing, split: str, test_fraction: float = 0.2, seed: int = 0) -> ImageFiles:
    """One split of what was found.

    Args:
        listing: what was found.
        split: `"train"`, `"val"` or `"test"`.
        test_fraction: share of each class that is for the test, where no splits are named.
        seed: decides which.

    Raises:
        ValueError: the listing has faults, which are all told, or has no such split.
    """
    refuse(listing)
    assert listing.hierarchy is not None, "without a tree there is a fault"
    entries = part(listing.entries, test_fraction, seed)
    splits = splits_of(entries)
    if split not in splits:
        why = f": {TOO_FEW}" if split == "test" else ""  # named splits have one, see settle_splits
        raise ValueError(f"{listing.source} has no split {split!r}; it has {' and '.join(map(repr, splits))}{why}")
    chosen = [entry for entry in entries if entry.split == split]
    labels = torch.tensor([entry.label for entry in chosen])
    targets = labels[:, -1]
    is_mixed = bool((targets < 0).any())
    paths = [entry.path for entry in chosen]
    return ImageFiles(paths, targets.tolist(), listing.hierarchy, labels if is_mixed else None, splits)


def refuse(listing: Listing) -> None:
    """Raises a ValueError with all faults of a listing, if there are any; long lists are cut."""
    faults = {heading: items for heading, items in listing.faults.items() if items}
    if faults:
        lines = [f"cannot use {listing.source}:"]
        for heading, items in faults.items():
            lines += [f"  {heading}:", *(f"    {item}" for item in items[:MAX_SHOWN])]
            if len(items) > MAX_SHOWN:
                lines.append(f"    ... and {len(items) - MAX_SHOWN} more; `c2f-zoo data check` shows them all")
        raise ValueError("\n".join(lines))


def part(entries: Sequence[Entry], test_fraction: float = 0.2, seed: int = 0) -> list[Entry]:
    """Gives each image its split: the one that it has, or, where none has one, a seeded one."""
    if any(entry.split for entry in entries):
        return list(entries)
    labels = torch.tensor([entry.label or (-1,) for entry in entries])  # without a tree there is none
    test = set(stratified_split(labels, test_fraction, seed)[1])
    return [entry._replace(split="test" if i in test else "train") for i, entry in enumerate(entries)]


def splits_of(entries: Iterable[Entry]) -> tuple[str, ...]:
    """The splits that have images."""
    there = {entry.split for entry in entries}
    return tuple(split for split in SPLITS if split in there)


def settle_splits(listing: Listing) -> None:
    """Where splits are named, sees to it that there is one to train on and one to test on.

    Without "test", "val" is taken for it, as ImageNet's is; what validates is then a part of "train".
    """
    splits = splits_of(listing.entries)
    if "val" in splits and "test" not in splits:
        listing.entries = [entry._replace(split="test") if entry.split == "val" else entry for entry in listing.entries]
        listing.notes["there are no test images"].append("those of 'val' are taken for them")
        splits = splits_of(listing.entries)
    for split in ("train", "test"):
        if splits and split not in splits:
            listing.faults["splits without an image"].append(
                f"{split!r}: give it some; or name no splits and they are made (of a folder, what is below 'train')"
            )


def open_hierarchy(hierarchy: str | Path | Hierarchy, levels: Sequence[str] | None = None) -> Hierarchy:
    """The tree that an option `hierarchy` names.

    Args:
        hierarchy: the path of a tree's CSV file, the name of a registered tree, or a tree.
        levels: names of the levels, coarse to fine; only for a CSV file with the header `child,parent`.

    Raises:
        ValueError: the file is no tree, there is neither a file nor a tree of that name, or `levels` is missing or
            too many.

    Examples:
        >>> open_hierarchy("cub").levels
        ('family', 'genus', 'species')
    """
    if not isinstance(hierarchy, Hierarchy) and Path(hierarchy).is_file():
        rows, _ = csv_rows(hierarchy)
        if rows and sorted(cell.strip().lower() for cell in rows[0][1]) == ["child", "parent"]:
            if levels is None:
                raise ValueError(f"{hierarchy} has the header 'child,parent'; name its levels with the option 'levels'")
            return Hierarchy.from_parents(hierarchy, levels)
    if levels is not None:
        raise ValueError(f"levels {list(levels)} and a hierarchy that names its own; leave out one of them")
    if isinstance(hierarchy, Hierarchy):
        return hierarchy
    if Path(hierarchy).is_file():
        return Hierarchy.from_csv(hierarchy)
    if str(hierarchy) not in HIERARCHIES:
        known = unknown_name("hierarchy", str(hierarchy), HIERARCHIES.names())
        raise ValueError(f"there is no file {str(hierarchy)!r}, and it is an {known}")
    return load_hierarchy(str(hierarchy))


def paths_of(tree: Hierarchy) -> dict[tuple[str, ...], tuple[int, ...]]:
    """For each class of every level, coarse to fine: the names from the top down to it -> its labels, -1 below it."""
    table = {}
    for depth, level in enumerate(tree.levels):
        above = tree.truncate(level)
        for row in above.ancestors(torch.arange(len(above.classes[-1]))).tolist():
            names = tuple(above.classes[at][label] for at, label in enumerate(row))
            table[names] = (*row, *[-1] * (len(tree.levels) - depth - 1))
    return table


def endings_of(tree: Hierarchy) -> dict[tuple[str, ...], tuple[int, ...]]:
    """`paths_of`, by each ending of a path, its last name alone the shortest; finer classes win."""
    return {names[start:]: row for names, row in paths_of(tree).items() for start in range(len(names))}


def outside_the_tree(listing: Listing, classes: Mapping[str, str], known: Iterable[str]) -> None:
    """Notes the fault that classes are not in the tree.

    Args:
        listing: where to note it.
        classes: for each class its place, or how many images it has.
        known: the tree's names.
    """
    known = list(known)
    for number, (name, where) in enumerate(classes.items()):
        # Looking for close names takes long in a large tree.
        hint = str(unknown_name("class", name, known)) if number < MAX_SHOWN else f"unknown class {name!r}"
        listing.faults["classes outside the tree (rename them, or give a tree that has them)"].append(
            f"{where}: {hint}"
        )


def find_missing(listing: Listing) -> None:
    """Notes the fault that listed files are not there."""
    missing = [str(entry.path) for entry in listing.entries if not os.path.isfile(entry.path)]
    if missing:
        listing.faults["missing files"] += missing


def refuse_missing(source: str | Path, paths: Iterable[Path]) -> None:
    """Raises a ValueError that lists the files that are not there, if there are any."""
    listing = Listing(Path(source), entries=[Entry(path, (), "") for path in paths])
    find_missing(listing)
    refuse(listing)
