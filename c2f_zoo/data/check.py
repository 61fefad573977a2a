"""What `c2f-zoo data check` finds: every image is decoded once, and all that is wrong is told."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from c2f_zoo.data.csv_list import list_csv
from c2f_zoo.data.cub import FILES as CUB_FILES
from c2f_zoo.data.cub import cub_folder, list_cub
from c2f_zoo.data.files import MAX_SHOWN, SPLITS, TOO_FEW, Entry, Findings, Listing, part, splits_of
from c2f_zoo.data.folder import list_folder
from c2f_zoo.data.images import read_image
from c2f_zoo.data.splits import stratified_split
from c2f_zoo.hierarchy import Hierarchy

_CHUNK = 256  # images that are under way at a time


class Seen(NamedTuple):
    """What decoding an image told."""

    size: tuple[int, int]  # width, height, in pixels
    kind: str  # format and mode of the file
    of_bytes: bytes  # digests
    of_pixels: bytes


@dataclass(eq=False)
class Check:
    """What a check found.

    Attributes:
        listing: what was found without opening images.
        entries: the images, each in its split.
        seen: for each what decoding it told, None where that failed.
        errors: what makes training fail.
        warnings: what else is worth knowing.
    """

    listing: Listing
    entries: list[Entry]
    seen: list[Seen | None] = field(default_factory=list)
    errors: Findings = field(default_factory=lambda: defaultdict(list))
    warnings: Findings = field(default_factory=lambda: defaultdict(list))


def list_path(
    path: str | Path,
    hierarchy: str | Path | Hierarchy | None = None,
    root: str | Path | None = None,
    levels: Sequence[str] | None = None,
) -> Listing:
    """Lists what is at a path: a CSV file, a folder in CUB's layout, or class folders.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: an option does not fit what is there.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        if hierarchy is None:
            raise ValueError(f"{path} lists images and needs a tree: name a CSV file or a tree with --hierarchy")
        return list_csv(path, hierarchy, root, levels)
    if root is not None:
        raise ValueError(f"--root {root} goes with a CSV file, and {path} is none")
    if (cub_folder(path) / CUB_FILES[0]).is_file():
        if levels is not None:
            raise ValueError(f"--levels names the levels of class folders, and {path} has CUB-200-2011's layout")
        return list_cub(path, hierarchy or "cub")
    return list_folder(path, hierarchy, levels)


def check_images(listing: Listing, workers: int | None = None, test_fraction: float = 0.2, seed: int = 0) -> Check:
    """Decodes every image once, as training does, and looks for what is wrong.

    Args:
        listing: what to check, with faults and all.
        workers: threads that decode, >= 1, which Pillow lets work side by side; None: some more than there are cores.
        test_fraction: share of each class for the test, where no splits are named.
        seed: decides which.

    Returns:
        All that was found. `errors` holds what makes training fail or be about nothing: the listing's faults, images
        that cannot be decoded, no images to test on, a level at which no image of a split has a label, a tree with
        one class.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"it takes 1 worker or more to read images, not {workers}")
    check = Check(listing, part(listing.entries, test_fraction, seed))
    check.errors.update(listing.faults)
    check.warnings.update(listing.notes)
    for split in ("train", "test"):
        if check.entries and split not in splits_of(check.entries) and "splits without an image" not in check.errors:
            check.errors["splits without an image"].append(f"{split!r}: {TOO_FEW}")
    missing = set(listing.faults.get("missing files", ()))
    paths = [entry.path for entry in check.entries]
    for path, seen in zip(paths, _inspect_all(paths, workers), strict=True):
        check.seen.append(seen if isinstance(seen, Seen) else None)
        if isinstance(seen, Exception) and str(path) not in missing:
            check.errors["images that cannot be decoded (on_error: skip leaves them out)"].append(str(seen))
    _check_labels(check)
    _check_repeated(check)
    return check


def _inspect_all(paths: Sequence[Path], workers: int | None) -> Iterator[Seen | Exception]:
    rest = iter(tqdm(paths, unit="image", disable=None))
    with ThreadPoolExecutor(workers) as pool:
        while chunk := list(islice(rest, _CHUNK)):
            yield from pool.map(_inspect, chunk)


def _inspect(path: Path) -> Seen | Exception:
    try:
        image = read_image(path)
        with Image.open(path) as file:
            kind = f"{file.format} {file.mode}"
        of_pixels = hashlib.blake2b(str(image.size).encode(), digest_size=16)
        of_pixels.update(image.tobytes())
        return Seen(image.size, kind, hashlib.blake2b(path.read_bytes(), digest_size=16).digest(), of_pixels.digest())
    except (ValueError, OSError) as error:
        return error


def _check_labels(check: Check) -> None:
    tree = check.listing.hierarchy
    if tree is None:
        return
    if len(tree.classes[-1]) == 1:
        check.errors["there is nothing to tell apart"].append(f"the tree has one {tree.finest}")
    if len(tree.levels) == 1:
        check.warnings["there is no coarser level"].append("the tree has one level; give a tree with --hierarchy")
    for split in splits_of(check.entries):
        for depth, level in enumerate(tree.levels):
            if all(entry.label[depth] < 0 for entry in check.entries if entry.split == split):
                check.errors["levels without a label in a split (leave them out of the model's levels)"].append(
                    f"{level} in {split!r}"
                )
    if "val" not in splits_of(check.entries):
        _check_held_out([entry.label for entry in check.entries if entry.split == "train"], check)
    taught = {entry.label[-1] for entry in check.entries if entry.split == "train"}
    check.warnings["classes without a training image"] += [
        name for label, name in enumerate(tree.classes[-1]) if label not in taught
    ]


def _check_held_out(labels: Sequence[tuple[int, ...]], check: Check) -> None:
    """Looks for levels that nothing would validate, where the recipes hold out a part of the training images."""
    assert check.listing.hierarchy is not None, "there are labels"
    held_out = stratified_split(torch.tensor(labels), 0.1, 0)[1] if labels else []
    validating = [labels[i] for i in held_out] or labels  # as the recipes do
    for depth, level in enumerate(check.listing.hierarchy.levels):
        if any(label[depth] >= 0 for label in labels) and all(label[depth] < 0 for label in validating):
            check.warnings[
                "levels without a label to validate with, so that training stops (add images, or choose another "
                "val_fraction than 0.1)"
            ].append(level)


def _check_repeated(check: Check) -> None:
    """Looks for images that are the same, pixel by pixel."""
    groups: dict[bytes, list[tuple[Entry, Seen]]] = defaultdict(list)
    for entry, seen in zip(check.entries, check.seen, strict=True):
        if seen is not None:
            groups[seen.of_pixels].append((entry, seen))
    for group in groups.values():
        entries = sorted((entry for entry, _ in group), key=lambda entry: SPLITS.index(entry.split))
        if len(entries) == 1:
            continue
        how = "bytes" if len({seen.of_bytes for _, seen in group}) == 1 else "pixels"
        splits = splits_of(entries)
        known = [{label for label in column if label >= 0} for column in zip(*(e.label for e in entries), strict=True)]
        if len(splits) > 1:
            heading = f"the same image in {' and '.join(splits)}"
        elif any(len(labels) > 1 for labels in known):
            heading = "the same image under several classes"
        else:
            heading = "the same image again"
        items = [f"{entry.path} ({entry.split}, {_class_of(entry, check.listing.hierarchy)})" for entry in entries]
        check.warnings[heading].append(f"same {how}: {', '.join(items)}")


def _class_of(entry: Entry, tree: Hierarchy | None) -> str:
    """The name of the finest class that is known of an image."""
    known = [(depth, label) for depth, label in enumerate(entry.label) if label >= 0]
    return tree.classes[known[-1][0]][known[-1][1]] if tree is not None and known else "?"


def print_check(check: Check, console: Console, show_all: bool = False) -> None:
    """Prints tables of what is there, and what was found.

    Args:
        check: what was found.
        console: where to print; made with `emoji=False`, or names such as `:cat:` turn into images.
        show_all: long lists of classes and of warnings are not cut.
    """
    console.print(f"{len(check.entries)} images in {_plain(check.listing.source)}", soft_wrap=True)
    for table in _tables(check, show_all):
        console.print(table)
    for kind, colour, findings in (("error", "red", check.errors), ("warning", "yellow", check.warnings)):
        for heading, items in findings.items():
            if items:
                console.print(f"[{colour}]{kind}[/]: {_plain(heading)}: {len(items)}", soft_wrap=True)
            shown = items if show_all or kind == "error" else items[:MAX_SHOWN]
            for item in shown:
                console.print(f"  {_plain(item)}", soft_wrap=True)
            if len(shown) < len(items):
                console.print(f"  ... and {len(items) - len(shown)} more; --all shows them", soft_wrap=True)
    if any(check.errors.values()):
        console.print("[red]training would fail[/]; see the errors")
    else:
        console.print("[green]training can start[/]" + ("; see the warnings" if any(check.warnings.values()) else ""))


def _plain(text: object) -> str:
    """Text as it is, without markup; what cannot be printed, as file names may hold it, is escaped."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return escape("".join(shown))


def _tables(check: Check, show_all: bool) -> Iterator[Table | str]:
    tree = check.listing.hierarchy
    if tree is not None:
        table = _table("level", "classes", "with training images", "labelled images")
        for depth, level in enumerate(tree.levels):
            known = [entry for entry in check.entries if entry.label[depth] >= 0]
            taught = {entry.label[depth] for entry in known if entry.split == "train"}
            table.add_row(_plain(level), str(len(tree.classes[depth])), str(len(taught)), str(len(known)))
        yield table
        table = _table("split", "images", f"{_plain(tree.finest)} classes", "least", "median", "most in one")
        for split in splits_of(check.entries):
            there = [entry.label[-1] for entry in check.entries if entry.split == split]
            counts = Counter(label for label in there if label >= 0)
            table.add_row(split, str(len(there)), str(len(counts)), *_spread(list(counts.values())))
        yield table
        yield from _classes(check, tree, show_all)
    seen = [image for image in check.seen if image is not None]
    if seen:
        table = _table("pixels", "least", "median", "most")
        for name, sizes in (
            ("width", [image.size[0] for image in seen]),
            ("height", [image.size[1] for image in seen]),
            ("shorter side", [min(image.size) for image in seen]),
        ):
            table.add_row(name, *_spread(sizes))
        yield table
        table = _table("format", "images")
        for kind, count in Counter(image.kind for image in seen).most_common():
            table.add_row(_plain(kind), str(count))
        yield table


def _classes(check: Check, tree: Hierarchy, show_all: bool) -> Iterator[Table | str]:
    """How many images each of the finest classes has, the fewest first."""
    splits = splits_of(check.entries)
    count = Counter((entry.label[-1], entry.split) for entry in check.entries)
    rows = [(name, [count[label, split] for split in splits]) for label, name in enumerate(tree.classes[-1])]
    rows.sort(key=lambda row: sum(row[1]))
    shown = rows if show_all else rows[:MAX_SHOWN]
    table = _table(_plain(tree.finest), *splits)
    for name, counts in shown:
        table.add_row(_plain(name), *map(str, counts))
    yield table
    if len(shown) < len(rows):
        yield f"  ... and {len(rows) - len(shown)} more {_plain(tree.finest)} classes; --all shows them"


def _table(first: str, *others: str) -> Table:
    table = Table()
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _spread(values: Sequence[int]) -> tuple[str, str, str]:
    return (str(min(values)), str(median_low(values)), str(max(values))) if values else ("-", "-", "-")
