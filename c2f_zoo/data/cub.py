"""CUB-200-2011, or a subset of it in the same layout."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from c2f_zoo.data.annotations import Annotation, parse_box, read_points
from c2f_zoo.data.archives import download_file, extract
from c2f_zoo.data.files import Entry, ImageFiles, Listing, Messages
from c2f_zoo.data.registry import register_dataset
from c2f_zoo.hierarchy import Hierarchy, open_hierarchy
from c2f_zoo.hierarchy.datasets import read_lines
from c2f_zoo.hierarchy.matching import find_listed_file, labels_by_suffix
from c2f_zoo.paths import expand

FILES = ("images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt")
ANNOTATION_FILES = ("bounding_boxes.txt", "parts/parts.txt", "parts/part_locs.txt")
FOLDER = "CUB_200_2011"

# From https://data.caltech.edu/records/65de6-vp158.
URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
MD5 = "97eceeb196236b17998738112f37df78"


@register_dataset("cub")
def cub(
    root: str | Path,
    split: str,
    download: bool = False,
    hierarchy: str | Path | Hierarchy = "cub",
    annotations: bool = False,
) -> ImageFiles:
    """Open CUB-200-2011, or a subset of it in the same layout.

    By Wah et al. (CNS-TR-2011-001). The folder may contain any of the 200 classes, under any numbers. Classes are
    matched by their names in `classes.txt`; the tree is their subtree of `hierarchy`. No image is opened.

    Args:
        root: the folder with `images.txt`, `image_class_labels.txt`, `classes.txt`, `train_test_split.txt` and
            `images/`, or its parent folder if it is called `CUB_200_2011/`.
        split: `"train"` or `"test"`, as in `train_test_split.txt`.
        download: if the folder does not exist, download the archive (1.1 GB) to `root`, compare it with the published
            checksum and unpack it there. An existing `CUB_200_2011.tgz` is used instead of a download.
        hierarchy: the tree of the classes: `"cub"`, `"cub_modern"`, the path of a tree's CSV file, or a tree.
        annotations: read the boxes and the points of parts, from `bounding_boxes.txt`, `parts/parts.txt` and
            `parts/part_locs.txt`: the dataset has an attribute `annotations`, an `Annotation` of each image.

    Raises:
        FileNotFoundError: a file is missing from the folder.
        OSError: the download failed.
        ValueError: lines, classes, files or annotations are invalid (the message lists all errors), or the archive has
            another checksum.
    """
    if download and not _is_cub(cub_folder(root)):
        folder, archive = expand(root) / FOLDER, expand(root) / URL.rsplit("/", 1)[1]
        if folder.exists():
            raise FileExistsError(
                f"{folder} exists, but is not a CUB-200-2011 folder; move it away to download the dataset"
            )
        download_file(URL, archive, MD5)
        extract(archive, folder, inner=FOLDER)
    return list_cub(root, hierarchy, annotations).open_split(split)


def cub_folder(root: str | Path) -> Path:
    """Return the folder of the four files: `root`, or `CUB_200_2011/` in it."""
    root = expand(root)
    return root / FOLDER if _is_cub(root / FOLDER) and not _is_cub(root) else root


def _is_cub(folder: Path) -> bool:
    return not _missing(folder, FILES)


def _missing(folder: Path, files: Sequence[str]) -> list[str]:
    return [name for name in files if not os.path.isfile(folder / name)]


def list_cub(root: str | Path, hierarchy: str | Path | Hierarchy = "cub", annotations: bool | None = False) -> Listing:
    """Return the listing of `cub`, including errors.

    Args:
        root: as in `cub`, as is `hierarchy`.
        hierarchy: the tree.
        annotations: whether to read the annotations. None: if all files are there, with warnings in place of errors.
    """
    folder = cub_folder(root)
    missing = _missing(folder, FILES)
    if missing:
        raise FileNotFoundError(
            f"{folder} is not a CUB-200-2011 folder: it has no {', '.join(missing)}; choose the folder with these "
            "files, or pass download=True to download the dataset"
        )
    missing = _missing(folder, ANNOTATION_FILES)
    if missing and annotations:
        raise FileNotFoundError(f"{folder} has no annotations: no {', '.join(missing)}; set annotations=False")
    listing = Listing(folder)
    errors: list[str] = []
    names, numbers, classes, is_train = (_read_table(folder / name, errors) for name in FILES)
    tree = listing.hierarchy = _subtree(open_hierarchy(hierarchy), classes, listing)
    listing.errors["errors in the lists"] = errors
    annotated: dict[str, Annotation] = {}
    if annotations or (annotations is None and not missing):
        annotated = _read_annotations(folder, names, listing, listing.errors if annotations else listing.warnings)
    labels, unknown = labels_by_suffix(tree), (-1,) * len(tree.levels)
    for image_id, name in names.items():
        for table, file in ((numbers, FILES[1]), (is_train, FILES[3])):
            if image_id not in table:
                errors.append(f"{file} has no line for image {image_id} ({name})")
        number, flag = numbers.get(image_id, ""), is_train.get(image_id, "1")
        if number and number not in classes:
            errors.append(f"{FILES[1]}: image {image_id} has class {number}, not in classes.txt")
        if flag not in ("0", "1"):
            errors.append(f"{FILES[3]}: image {image_id} has {flag!r}, neither 0 nor 1")
        label = labels.get((classes.get(number, ""),), unknown)
        path, split = find_listed_file(folder / "images", name), "train" if flag == "1" else "test"
        listing.entries.append(Entry(path, label, split, annotated.get(image_id)))
    listing.add_missing_files()
    listing.complete_splits()
    return listing


def _read_annotations(
    folder: Path, names: Mapping[str, str], listing: Listing, faults: Messages
) -> dict[str, Annotation]:
    """Return the valid annotations by the images' numbers.

    Args:
        folder: the folder of the lists.
        names: the number of each image -> its file.
        listing: gets warnings of parts.
        faults: gets the errors.
    """
    lines = faults["errors in the annotations"]
    boxes, parts = (_read_table(folder / name, lines) for name in ANNOTATION_FILES[:2])
    points = read_points(folder / ANNOTATION_FILES[2], parts, lines)
    found = {}
    for image_id, name in names.items():
        if image_id not in boxes:
            faults["images without a box"].append(f"{name}: {ANNOTATION_FILES[0]} has no line for image {image_id}")
            continue
        try:
            annotation = Annotation(parse_box(boxes[image_id]), points.get(image_id, {}))
        except ValueError as error:
            faults["images without a box"].append(f"{name}: {error}")
            continue
        found[image_id] = annotation
        if not annotation.points:
            listing.warnings["images without visible parts"].append(name)
        listing.warnings["parts outside the box"] += [f"{name}: {part}" for part in annotation.points_outside()]
    return found


def _subtree(tree: Hierarchy, classes: Mapping[str, str], listing: Listing) -> Hierarchy:
    """Return the subtree of the classes; add an error for each one outside the tree."""
    leaves = set(tree.classes[-1])
    outside = {name: f"classes.txt, class {number}" for number, name in classes.items() if name not in leaves}
    listing.add_unknown_classes(outside, tree.classes[-1])
    inside = leaves & set(classes.values())
    return tree.subtree(inside) if inside else tree


def _read_table(path: Path, errors: list[str]) -> dict[str, str]:
    """Return the lines `key value` of a file; add an error for each invalid line."""
    table: dict[str, str] = {}
    for place, line in read_lines(path):
        key, _, value = line.partition(" ")
        if key in table:
            errors.append(f"{place}: {key} is on an earlier line already")
        elif not value:
            errors.append(f"{place}: expected a number and a value, not {line!r}")
        table.setdefault(key, value.strip())
    return table
