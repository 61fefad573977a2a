"""Images and their classes listed in a CSV file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from c2f_zoo.data.files import (
    SPLIT_OF,
    Entry,
    ImageFiles,
    Listing,
    find_missing,
    open_hierarchy,
    open_split,
    outside_the_tree,
    paths_of,
    settle_splits,
)
from c2f_zoo.data.registry import register_dataset
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.hierarchy.reading import Row, csv_rows
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
) -> ImageFiles:
    """Images listed in a UTF-8 CSV file with the header `path,label` or `path,label,split`.

    A label is the name of a class of any level of the tree, the finest where a name stands at several: an image
    labelled with a genus has no label at the species. All of the tree is kept, classes without images too.

    Args:
        file: the CSV file. Its splits are `train`, `test` and perhaps `val` (or `valid`, `validation`); without that
            column, images are parted by a seeded split that takes the same share of each class.
        split: `"train"`, `"val"` or `"test"`. Without test images, those of `val` are taken for them.
        hierarchy: the path of the tree's CSV file, the name of a registered tree, or a tree.
        root: the folder to which the paths are relative; the CSV file's by default.
        levels: names of the levels, coarse to fine, where the tree's file has the header `child,parent`.
        test_fraction: share of each class's images that is for the test, where the file names no splits.
        seed: decides which.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file or the tree has faults, which are all told with their lines, or there is no such split.

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
    return open_split(list_csv(file, hierarchy, root, levels), split, test_fraction, seed)


def list_csv(
    file: str | Path,
    hierarchy: str | Path | Hierarchy,
    root: str | Path | None = None,
    levels: Sequence[str] | None = None,
) -> Listing:
    """What `csv` finds, whatever is wrong with it."""
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    listing = Listing(file, open_hierarchy(hierarchy, levels))
    rows, listing.faults["faults of the file"] = csv_rows(file)
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    if sorted(header) not in (["label", "path"], ["label", "path", "split"]):
        if rows or not listing.faults["faults of the file"]:
            listing.faults["faults of the file"].append(
                f"it needs the header 'path,label' or 'path,label,split', not {','.join(rows[0][1] if rows else [])!r}"
            )
        return listing
    if len(rows) == 1:
        listing.faults["faults of the file"].append("it has no row below the header")
    root = file.parent if root is None else Path(root)
    _label(_without_repeated(_read_lines(rows[1:], header, listing), root, listing), root, listing)
    find_missing(listing)
    settle_splits(listing)
    return listing


class _Line(NamedTuple):
    where: str
    path: str
    label: str
    split: str


def _read_lines(rows: Sequence[Row], header: Sequence[str], listing: Listing) -> list[_Line]:
    """The rows without a fault in themselves."""
    lines = []
    for where, cells in rows:
        named = dict(zip(header, (cell.strip() for cell in cells), strict=False))
        faults = [f"{column} is empty" for column in header if not named.get(column, "")]
        if len(cells) != len(header):
            faults = [f"{len(cells)} cells, not {len(header)}: {','.join(cells)}"]
        elif named.get("split") and named["split"] not in SPLIT_OF:
            faults.append(str(unknown_name("split", named["split"], ("train", "val", "test"))))
        listing.faults["faults of the file"] += [f"{where}: {fault}" for fault in faults]
        if not faults:
            lines.append(_Line(where, named["path"], named["label"], SPLIT_OF.get(named.get("split", ""), "")))
    return lines


def _without_repeated(lines: Sequence[_Line], root: Path, listing: Listing) -> list[_Line]:
    first: dict[str, _Line] = {}
    for line in lines:
        before = first.setdefault(os.path.abspath(root / line.path), line)  # however it is spelled
        if before.label != line.label:
            two = f"{before.label!r} ({before.where}) and {line.label!r} ({line.where})"
            listing.faults["images with two labels"].append(f"{line.path}: {two}")
        elif before.split != line.split:
            two = f"{before.split} ({before.where}) and {line.split} ({line.where})"
            listing.faults["images in two splits"].append(f"{line.path}: {two}")
        elif before is not line:
            listing.notes["images listed again, taken once"].append(f"{line.path}: {before.where} and {line.where}")
    return list(first.values())


def _label(lines: Sequence[_Line], root: Path, listing: Listing) -> None:
    """Finds each image's file and class."""
    assert listing.hierarchy is not None, "it was opened"
    rows = {names[-1]: row for names, row in paths_of(listing.hierarchy).items()}
    count = Counter(line.label for line in lines if line.label not in rows)
    first = {line.label: line.where for line in reversed(lines) if line.label in count}
    more = {name: f" and {count[name] - 1} more" if count[name] > 1 else "" for name in count}
    outside_the_tree(listing, {name: first[name] + more[name] for name in count}, rows)
    no_label = (-1,) * len(listing.hierarchy.levels)
    listing.entries = [Entry(root / line.path, rows.get(line.label, no_label), line.split) for line in lines]
