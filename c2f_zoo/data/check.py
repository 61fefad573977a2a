"""Check of a dataset: decode every image once and report all problems."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from c2f_zoo.data.csv_list import list_csv
from c2f_zoo.data.cub import FILES as CUB_FILES
from c2f_zoo.data.cub import cub_folder, list_cub
from c2f_zoo.data.files import CLOSED, MAX_SHOWN, MISSING, TOO_FEW, Entry, Listing, assign_splits, nonempty_splits
from c2f_zoo.data.folder import list_folder
from c2f_zoo.data.registry import SPLITS
from c2f_zoo.data.splits import stratified_split
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.hierarchy.escape import rich_text
from c2f_zoo.hierarchy.faults import MAX_FAULTS, group_similar
from c2f_zoo.images.formats import open_image
from c2f_zoo.images.reading import read_image
from c2f_zoo.io.progress import map_in_threads
from c2f_zoo.paths import expand


class ImageInfo(NamedTuple):
    """A decoded image."""

    size: tuple[int, int]  # width, height, in pixels
    format: str  # format and mode of the file
    file_digest: bytes
    pixel_digest: bytes


@dataclass(eq=False)
class Report(Listing):
    """The result of a check: a listing with a split for each entry, and with all errors and warnings.

    Attributes:
        images: information on each image; None if it cannot be decoded.
    """

    images: list[ImageInfo | None] = field(default_factory=list)


def list_images(
    path: str | Path,
    hierarchy: str | Path | Hierarchy | None = None,
    root: str | Path | None = None,
    levels: Sequence[str] | None = None,
    ragged: str | None = None,
) -> Listing:
    """List the images of a CSV file, a folder in CUB's layout, or class folders.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: an option does not apply to this kind of dataset.
    """
    path = expand(path)
    if path.suffix.lower() == ".csv":
        if hierarchy is None:
            raise ValueError(f"{path} needs a tree; pass a CSV file or the name of a tree as --hierarchy")
        return list_csv(path, hierarchy, root, levels, ragged)
    if root is not None:
        raise ValueError(f"--root {root} applies to CSV files only, and {path} is not one")
    if os.path.isfile(cub_folder(path) / CUB_FILES[0]):
        if levels is not None:
            raise ValueError(f"--levels applies to class folders only, and {path} has CUB-200-2011's layout")
        return list_cub(path, hierarchy or "cub", annotations=None)
    return list_folder(path, hierarchy, levels, ragged)


def check_images(listing: Listing, workers: int | None = None, test_fraction: float = 0.2, seed: int = 0) -> Report:
    """Decode every image once, as training does, and look for problems.

    Args:
        listing: the images; it may have errors.
        workers: number of decoding threads, >= 1; None: a few more than there are cores.
        test_fraction: fraction of each class for the test set, if no splits are named.
        seed: seed of this split.

    Returns:
        The report. Errors include the listing's errors, unreadable images, a missing test set, a level without a label
        in a split, and a tree with a single class.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"reading images needs 1 worker or more, not {workers}")
    entries = assign_splits(listing.entries, test_fraction, seed)
    report = Report(listing.source, listing.hierarchy, entries, deepcopy(listing.errors), deepcopy(listing.warnings))
    empty = [split for split in ("train", "test") if split not in nonempty_splits(entries)]
    if entries and empty and "splits without an image" not in report.errors:
        report.errors["splits without an image"].append(f"{empty[0]!r}: {TOO_FEW}")
    paths = [entry.path for entry in entries]
    found = map_in_threads(_inspect, paths, "reading images", workers)
    report.images = [info if isinstance(info, ImageInfo) else None for info in found]
    missing = {item.rpartition(": ")[0] for item in report.errors[CLOSED]}.union(report.errors[MISSING])
    report.errors["images that cannot be decoded (on_error: skip leaves them out)"] += [
        error for path, error in zip(paths, found, strict=True) if isinstance(error, str) and str(path) not in missing
    ]
    _check_labels(report)
    _check_duplicates(report)
    _check_boxes(report)
    return report


def _inspect(path: Path) -> ImageInfo | str:
    """Decode an image; return information on it, or the error."""
    try:
        image = read_image(path)
        with open_image(path) as file:
            image_format = f"{file.format} {file.mode}"
        file_digest = hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    except (ValueError, OSError) as error:
        return str(error)
    pixels = hashlib.blake2b(str(image.size).encode(), digest_size=16)
    pixels.update(image.tobytes())
    return ImageInfo(image.size, image_format, file_digest, pixels.digest())


def _check_labels(report: Report) -> None:
    """Look for levels and classes without labels."""
    tree = report.hierarchy
    if tree is None:
        return
    if len(tree.classes[-1]) == 1:
        report.errors["there is only one class"].append(f"the tree has one {tree.finest}")
    if len(tree.levels) == 1:
        report.warnings["there is no coarser level"].append("the tree has one level; pass a tree as --hierarchy")
    splits = nonempty_splits(report.entries)
    for split in splits:
        for depth, (level, left_out) in enumerate(zip(tree.levels, tree.left_out, strict=True)):
            if {e.label[depth] for e in report.entries if e.split == split} <= {-1, *left_out}:
                report.errors["levels without a label in a split (leave them out of the model's levels)"].append(
                    f"{level} in {split!r}"
                )
    labels = [entry.label for entry in report.entries if entry.split == "train"]
    if "val" not in splits:
        _check_held_out(labels, tree, report)
    trained = {label[-1] for label in labels}
    report.warnings["classes without a training image"] += [
        name for label, name in enumerate(tree.classes[-1]) if label not in trained
    ]


def _check_held_out(labels: Sequence[tuple[int, ...]], tree: Hierarchy, report: Report) -> None:
    """Look for levels without a label in the recipes' validation set."""
    held_out = stratified_split(torch.tensor(labels), 0.1, 0)[1] if labels else []
    validation = [labels[i] for i in held_out] or labels  # as in the recipes
    for depth, (level, left_out) in enumerate(zip(tree.levels, tree.left_out, strict=True)):
        trained, validated = ({label[depth] for label in rows} - {-1, *left_out} for rows in (labels, validation))
        if trained and not validated:
            report.warnings[
                "levels without a label to validate on, which stops training (add images, or choose another "
                "val_fraction than 0.1)"
            ].append(level)


def _check_duplicates(report: Report) -> None:
    """Look for images with the same pixels."""
    groups: dict[bytes, list[tuple[Entry, ImageInfo]]] = defaultdict(list)
    for entry, info in zip(report.entries, report.images, strict=True):
        if info is not None:
            groups[info.pixel_digest].append((entry, info))
    for group in groups.values():
        if len(group) == 1:
            continue
        group.sort(key=lambda found: SPLITS.index(found[0].split))
        entries = [entry for entry, _ in group]
        splits = nonempty_splits(entries)
        known = [{label for label in column if label >= 0} for column in zip(*(e.label for e in entries), strict=True)]
        if len(splits) > 1:
            heading = f"the same image in {' and '.join(splits)}"
        elif any(len(labels) > 1 for labels in known):
            heading = "the same image under several classes"
        else:
            heading = "the same image more than once"
        items = [f"{entry.path} ({entry.split}, {_class_name(entry, report.hierarchy)})" for entry in entries]
        for item, (_, info) in zip(items[1:], group[1:], strict=True):
            same = "bytes" if info.file_digest == group[0][1].file_digest else "pixels"
            report.warnings[heading].append(f"same {same}: {items[0]}, {item}")


def _check_boxes(report: Report) -> None:
    """Look for boxes that reach beyond their image."""
    for entry, info in zip(report.entries, report.images, strict=True):
        if entry.annotation is not None and info is not None and entry.annotation.exceeds(*info.size):
            box, size = ", ".join(f"{side:g}" for side in entry.annotation.box), "{} x {}".format(*info.size)
            report.warnings["boxes outside the image"].append(f"{entry.path}: {box} of an image of {size} pixels")


def _class_name(entry: Entry, tree: Hierarchy | None) -> str:
    """Return the name of the finest known class of an image."""
    known = [(depth, label) for depth, label in enumerate(entry.label) if label >= 0]
    return tree.classes[known[-1][0]][known[-1][1]] if tree is not None and known else "?"


def print_report(report: Report, console: Console, show_all: bool = False) -> None:
    """Print the tables, errors and warnings of a report.

    Args:
        report: the report.
        console: where to print; created with `emoji=False`, or names such as `:cat:` become images.
        show_all: print long lists of classes, errors and warnings in full.
    """
    console.print(f"{len(report.entries)} images in {rich_text(report.source)}", soft_wrap=True)
    if report.hierarchy is not None:
        _print_labels(report, report.hierarchy, console, show_all)
    _print_images([info for info in report.images if info is not None], console)
    for kind, colour, messages in (("error", "red", report.errors), ("warning", "yellow", report.warnings)):
        for heading, items in messages.items():
            if items:
                console.print(f"[{colour}]{kind}[/]: {rich_text(heading)}: {len(items)}", soft_wrap=True)
            for item in items if show_all else group_similar(items):
                console.print(f"  {rich_text(item)}", soft_wrap=True)
            if len(items) > MAX_FAULTS and not show_all:
                console.print("  --all shows them", soft_wrap=True)
    if any(report.errors.values()):
        console.print("[red]training would fail[/]; see the errors")
    else:
        console.print("[green]training can start[/]" + ("; see the warnings" if any(report.warnings.values()) else ""))


def _print_labels(report: Report, tree: Hierarchy, console: Console, show_all: bool) -> None:
    """Print the number of images of each level, split and leaf class."""
    rows: list[tuple[object, ...]] = []
    for depth, level in enumerate(tree.levels):
        left_out = tree.left_out[depth]
        known = [entry for entry in report.entries if entry.label[depth] >= 0 and entry.label[depth] not in left_out]
        trained = {entry.label[depth] for entry in known if entry.split == "train"}
        rows.append((level, len(tree.classes[depth]) - len(left_out), len(trained), len(known)))
    _print_table(console, ("level", "classes", "with training images", "labelled images"), rows)

    splits = nonempty_splits(report.entries)
    counts = {split: Counter(e.label[-1] for e in report.entries if e.split == split) for split in splits}
    rows = []
    for split, count in counts.items():
        known_counts = [number for label, number in count.items() if label >= 0]
        rows.append((split, count.total(), len(known_counts), *_min_median_max(known_counts)))
    columns = ("split", "images", f"{tree.finest} classes", "min per class", "median", "max per class")
    _print_table(console, columns, rows)

    # Classes with few images come first.
    labels = sorted(range(len(tree.classes[-1])), key=lambda label: sum(count[label] for count in counts.values()))
    shown = labels if show_all else labels[:MAX_SHOWN]
    rows = [(tree.classes[-1][label], *(count[label] for count in counts.values())) for label in shown]
    _print_table(console, (tree.finest, *splits), rows)
    if len(shown) < len(labels):
        hidden = f"{len(labels) - len(shown)} more {rich_text(tree.finest)} classes"
        console.print(f"  ... and {hidden}; --all shows them")


def _print_images(images: Sequence[ImageInfo], console: Console) -> None:
    """Print the sizes and formats of the images."""
    if not images:
        return
    lengths = {
        "width": [image.size[0] for image in images],
        "height": [image.size[1] for image in images],
        "shorter side": [min(image.size) for image in images],
    }
    rows = [(name, *_min_median_max(values)) for name, values in lengths.items()]
    _print_table(console, ("pixels", "min", "median", "max"), rows)
    _print_table(console, ("format", "images"), Counter(image.format for image in images).most_common())


def _print_table(console: Console, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    table = Table()
    for name in columns:
        table.add_column(rich_text(name), justify="right" if table.columns else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(rich_text, row))
    console.print(table)


def _min_median_max(values: Sequence[int]) -> tuple[str, str, str]:
    return (str(min(values)), str(median_low(values)), str(max(values))) if values else ("-", "-", "-")
