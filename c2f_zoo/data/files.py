"""Datasets of image files: the list of images, its errors, and its splits."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from c2f_zoo.data.annotations import Annotation
from c2f_zoo.data.registry import SPLITS, IndexedImages
from c2f_zoo.data.splits import stratified_split
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.hierarchy.escape import printable
from c2f_zoo.hierarchy.faults import MAX_FAULTS, group_similar
from c2f_zoo.hierarchy.matching import Label
from c2f_zoo.images.formats import NO_IMAGES
from c2f_zoo.images.reading import read_image
from c2f_zoo.registry import unknown_name

INEXACT = "names matched with the tree's by letters and digits only"
MAX_SHOWN = 20
MISSING, CLOSED = "missing files", "listed files that cannot be read"
_MAX_KINDS = 4  # in a line
TOO_FEW = "a class needs two images or more to be split, and test_fraction must be above 0; or name the splits"

Messages = dict[str, list[str]]  # lines under headings


@dataclass(eq=False)
class ImageFiles(IndexedImages):
    """A `LabelledImages` of image files.

    Args:
        paths: the files.
        targets: for each image the label of its leaf class, -1 if unknown.
        hierarchy: the tree.
        labels: int64 (n, levels), -1 if unknown, where some images are labelled at coarser levels only.
        splits: the splits of the dataset.
        notes: lines on what was left out or assumed; see `notes_of`.
        annotations: the annotation of each image, if they were asked for.

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
    notes: tuple[str, ...] = ()
    annotations: list[Annotation] | None = None

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """Return an image in RGB, decoded by `read_image`; see there for `shorter_side`.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: the file cannot be decoded.
        """
        return read_image(self.paths[index], shorter_side)


class Entry(NamedTuple):
    """An image of a listing."""

    path: Path
    label: Label
    split: str  # "" if none is named
    annotation: Annotation | None = None


@dataclass(eq=False)
class Listing:
    """The images of a dataset, with its errors and warnings.

    Attributes:
        source: the folder or file that was read.
        hierarchy: the tree; None if it is missing or invalid.
        entries: the images; the label of a class outside the tree is -1 at every level.
        errors: problems that make opening the dataset fail.
        warnings: other problems, such as ignored files.
    """

    source: Path
    hierarchy: Hierarchy | None = None
    entries: list[Entry] = field(default_factory=list)
    errors: Messages = field(default_factory=lambda: defaultdict(list))
    warnings: Messages = field(default_factory=lambda: defaultdict(list))

    def open_split(self, split: str, test_fraction: float = 0.2, seed: int = 0) -> ImageFiles:
        """Return one split.

        Args:
            split: `"train"`, `"val"` or `"test"`.
            test_fraction: fraction of each class for the test set, if no splits are named.
            seed: seed of this choice.

        Raises:
            ValueError: the listing has errors, which are all named, or does not have the split.
        """
        self.raise_for_errors()
        assert self.hierarchy is not None, "a listing without a tree has errors"
        entries = assign_splits(self.entries, test_fraction, seed)
        splits = nonempty_splits(entries)
        if split not in splits:
            hint = f": {TOO_FEW}" if split == "test" else ""  # named splits include "test", see complete_splits
            raise ValueError(f"{self.source} has no split {split!r}; it has {' and '.join(map(repr, splits))}{hint}")
        chosen = [entry for entry in entries if entry.split == split]
        labels = torch.tensor([entry.label for entry in chosen])
        targets = labels[:, -1]
        coarse = int((targets < 0).sum())
        notes = self.summary()
        if coarse:
            notes += (f"{self.source}: {split} images labelled at a coarser level only: {coarse} of {len(chosen)}",)
        paths = [entry.path for entry in chosen]
        found = [entry.annotation for entry in chosen if entry.annotation is not None]
        annotations = found if len(found) == len(chosen) else None
        mixed = labels if coarse else None
        return ImageFiles(paths, targets.tolist(), self.hierarchy, mixed, splits, notes, annotations)

    def summary(self) -> tuple[str, ...]:
        """Return a line for each kind of warning, with its count."""
        return tuple(
            printable(f"{self.source}: {_summarize(heading, items)}")
            for heading, items in self.warnings.items()
            if items
        )

    def raise_for_errors(self) -> None:
        """Raise a ValueError with all errors, long lists grouped by kind, if there are any."""
        lines = [f"cannot use {self.source}:"]
        for heading, items in self.errors.items():
            if items:
                lines += [f"  {heading}:", *(f"    {line}" for line in group_similar(items))]
            if len(items) > MAX_FAULTS:
                lines.append(f"    {len(items)} in all; `c2f-zoo data check --all` shows them")
        if len(lines) > 1:
            raise ValueError("\n".join(lines))

    def add_unknown_classes(self, classes: Mapping[str, str], known: Iterable[str]) -> None:
        """Add an error for each class outside the tree.

        Args:
            classes: for each class its location, or its number of images.
            known: names of the tree's classes.
        """
        known = list(known)
        for number, (name, location) in enumerate(classes.items()):
            # Finding similar names is slow in a large tree.
            unknown = str(unknown_name("class", name, known)) if number < MAX_SHOWN else f"unknown class {name!r}"
            heading = "classes outside the tree (rename them, or use a tree that has them)"
            self.errors[heading].append(f"{location}: {unknown}")

    def add_missing_files(self) -> None:
        """Add an error for each file that does not exist, or is no file, or is in a folder without permission."""
        for path in (entry.path for entry in self.entries if not os.path.isfile(entry.path)):
            try:
                os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                self.errors[MISSING].append(str(path))
            except OSError as error:
                self.errors[CLOSED].append(f"{path}: {error.strerror}")
            else:
                self.errors[CLOSED].append(f"{path}: it is a folder, a pipe or a device")

    def complete_splits(self) -> None:
        """Use the images of "val" as the test set if there is none, as for ImageNet.

        Add an error if the training or test set is still missing. Without named splits, do nothing.
        """
        splits = nonempty_splits(self.entries)
        if "val" in splits and "test" not in splits:
            self.entries = [entry._replace(split="test") if entry.split == "val" else entry for entry in self.entries]
            self.warnings["there are no test images"].append("the images of 'val' are used instead")
            splits = nonempty_splits(self.entries)
        for split in ("train", "test"):
            if splits and split not in splits:
                hint = "add images, or name no splits to have them assigned (for a folder, pass its subfolder 'train')"
                self.errors["splits without an image"].append(f"{split!r}: {hint}")


def assign_splits(entries: Sequence[Entry], test_fraction: float = 0.2, seed: int = 0) -> list[Entry]:
    """Return the entries with a seeded split for each image, if no entry names one."""
    if any(entry.split for entry in entries):
        return list(entries)
    labels = torch.tensor([entry.label or (-1,) for entry in entries])  # without a tree there are no labels
    test = set(stratified_split(labels, test_fraction, seed)[1])
    return [entry._replace(split="test" if i in test else "train") for i, entry in enumerate(entries)]


def nonempty_splits(entries: Iterable[Entry]) -> tuple[str, ...]:
    """Return the splits that have images."""
    found = {entry.split for entry in entries}
    return tuple(split for split in SPLITS if split in found)


def _summarize(heading: str, items: Sequence[str]) -> str:
    """Return one line on a warning's items: their number, and their kinds or the first ones."""
    if heading == NO_IMAGES:
        kinds = Counter(os.path.splitext(item)[1].lower() or "without" for item in items)
        shown = [f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))]
    else:
        shown = list(items)
    more = ["..."] if len(shown) > _MAX_KINDS else []
    return f"{heading}: {len(items)} ({', '.join(shown[:_MAX_KINDS] + more)})"


def raise_for_missing_files(source: str | Path, paths: Iterable[Path]) -> None:
    """Raise a ValueError that lists the files that do not exist, if any."""
    listing = Listing(Path(source), entries=[Entry(path, (), "") for path in paths])
    listing.add_missing_files()
    listing.raise_for_errors()
