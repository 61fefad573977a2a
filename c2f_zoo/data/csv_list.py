"""Datasets listed in a CSV file."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from c2f_zoo.data.files import INEXACT, Entry, ImageFiles, Listing
from c2f_zoo.data.registry import SPLITS, register_dataset
from c2f_zoo.data.split_names import UNCLEAR, explain_unclear, split_of
from c2f_zoo.hierarchy import Hierarchy, open_hierarchy
from c2f_zoo.hierarchy.matching import find_listed_file, match_labels
from c2f_zoo.hierarchy.names import normalize_name
from c2f_zoo.hierarchy.reading import Row, read_csv_rows
from c2f_zoo.paths import expand
from c2f_zoo.registry import unknown_name


@register_dataset("csv")
def csv(
    file: str | Path,
    split: str,
    hierarchy: str | Path | Hierarchy,
    root: str | Path | None = None,
    levels: Sequence[str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    ragged: str | None = None,
) -> ImageFiles:
    """Open a dataset listed in a CSV file.

    The file is UTF-8 with the header `path,label` or `path,label,split`. A path is relative to `root`; backslashes and
    spaces at its ends are understood. A label is the name of a class of any level of the tree. If classes of several
    levels have the name, it is the finest of them; if several classes of a level have it, it needs the parent's in
    brackets, `Ficus (Moraceae)`. An image labelled with a genus has no species label. Classes without images are kept.

    Args:
        file: the CSV file. Its splits are `train`, `test` and optionally `val`, in any case; `training`, `testing`,
            `valid`, `dev` and the like are understood. Without that column, a seeded split takes the same fraction of
            each class for the test set.
        split: `"train"`, `"val"` or `"test"`. Without test images, those of `val` are used.
        hierarchy: path of the tree's CSV file, name of a registered tree, or a tree.
        root: the folder to which the paths are relative; default: the folder of the CSV file.
        levels: names of the levels, coarse to fine, if the tree's file has the header `child,parent`.
        test_fraction: fraction of each class's images for the test set, if the file names no splits.
        seed: seed of this split.
        ragged: treatment of branches that end above the leaf level, see `Hierarchy`; default: the tree's own.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file or the tree is invalid (the message lists all errors with their lines), or the split does
            not exist.

    Examples:
        >>> lines = ["path,label,split", "1.png,Scarlet Tanager,train", "2.png,Piranga,train", "3.png,Piranga,test"]
        >>> for number in "123":
        ...     Image.new("RGB", (64, 48)).save(f"{number}.png")
        >>> _ = Path("birds.csv").write_text("\\n".join(lines))
        >>> tree = Hierarchy.from_rows(("genus", "species"), [("Piranga", "Scarlet Tanager")])
        >>> create_dataset("csv", "train", file="birds.csv", hierarchy=tree).labels
        tensor([[ 0,  0],
                [ 0, -1]])
    """
    return list_csv(file, hierarchy, root, levels, ragged).open_split(split, test_fraction, seed)


def list_csv(
    file: str | Path,
    hierarchy: str | Path | Hierarchy,
    root: str | Path | None = None,
    levels: Sequence[str] | None = None,
    ragged: str | None = None,
) -> Listing:
    """Return the listing of `csv`, including errors."""
    file = expand(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    tree = open_hierarchy(hierarchy, levels, ragged)
    listing = Listing(file, tree)
    rows, errors = read_csv_rows(file)
    listing.errors["errors in the file"] = errors
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    if sorted(header) not in (["label", "path"], ["label", "path", "split"]):
        if rows or not errors:
            found = ",".join(rows[0][1] if rows else [])
            errors.append(f"expected the header 'path,label' or 'path,label,split', not {found!r}")
        return listing
    if len(rows) == 1:
        errors.append("there is no row below the header")
    root = file.parent if root is None else expand(root)
    lines = _drop_repeated(_read_lines(rows[1:], header, root, errors), listing)
    labels, inexact = match_labels(dict.fromkeys((line.label,) for line in lines), tree)
    listing.warnings[INEXACT] += inexact
    places: dict[str, list[str]] = defaultdict(list)  # of the classes outside the tree
    for line in lines:
        if (line.label,) not in labels:
            places[line.label].append(line.location)
    unknown = {name: where + (f" and {len(more)} more" if more else "") for name, (where, *more) in places.items()}
    listing.add_unknown_classes(unknown, [name for names in tree.classes for name in names])
    no_label = (-1,) * len(tree.levels)
    listing.entries = [Entry(line.file, labels.get((line.label,), no_label), line.split) for line in lines]
    listing.add_missing_files()
    listing.complete_splits()
    return listing


class _Line(NamedTuple):
    location: str
    path: str  # as it is written
    file: Path
    label: str
    split: str


def _read_lines(rows: Sequence[Row], header: Sequence[str], root: Path, errors: list[str]) -> list[_Line]:
    """Return the valid rows; add the errors of the others."""
    lines = []
    for location, cells in rows:
        written = dict(zip(header, cells, strict=False))
        named = {column: cell.strip() for column, cell in written.items()}
        found = [f"{column} is empty" for column in header if not named.get(column, "")]
        if len(cells) != len(header):
            found = [f"{len(cells)} cells, not {len(header)}: {','.join(cells)}"]
        split = named.get("split", "")
        if len(cells) == len(header) and split and split_of(split) not in SPLITS:
            unclear = split_of(split) == UNCLEAR
            found.append(explain_unclear(split) if unclear else str(unknown_name("split", split, SPLITS)))
        errors += [f"{location}: {error}" for error in found]
        if not found:
            label = normalize_name(named["label"])
            lines.append(
                _Line(location, named["path"], find_listed_file(root, written["path"]), label, split_of(split))
            )
    return lines


def _drop_repeated(lines: Sequence[_Line], listing: Listing) -> list[_Line]:
    """Return one line for each image; add an error if its lines disagree."""
    first: dict[str, _Line] = {}
    for line in lines:
        before = first.setdefault(os.path.abspath(line.file), line)  # a path may be spelled in several ways
        if before.label != line.label:
            both = f"{before.label!r} ({before.location}) and {line.label!r} ({line.location})"
            listing.errors["images with two labels"].append(f"{line.path}: {both}")
        elif before.split != line.split:
            both = f"{before.split} ({before.location}) and {line.split} ({line.location})"
            listing.errors["images in two splits"].append(f"{line.path}: {both}")
        elif before is not line:
            both = f"{before.location} and {line.location}"
            listing.warnings["images listed more than once, used once"].append(f"{line.path}: {both}")
    return list(first.values())
