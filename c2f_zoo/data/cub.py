"""CUB-200-2011, or any part of it in its own layout."""

from __future__ import annotations

from pathlib import Path

from c2f_zoo.data.archives import download_file, extract
from c2f_zoo.data.files import (
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

FILES = ("images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt")
FOLDER = "CUB_200_2011"

# https://data.caltech.edu/records/65de6-vp158, with the checksum that stands there
URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
MD5 = "97eceeb196236b17998738112f37df78"


@register_dataset("cub")
def cub(root: str | Path, split: str, download: bool = False, hierarchy: str | Path | Hierarchy = "cub") -> ImageFiles:
    """Birds in CUB-200-2011's layout (Wah et al., CNS-TR-2011-001): four text files and `images/`.

    The folder may hold any of the 200 classes, under any numbers: classes are known by their names in `classes.txt`,
    and the tree is the part of `hierarchy` that holds them. No image is opened.

    Args:
        root: the folder with `images.txt`, `image_class_labels.txt`, `classes.txt`, `train_test_split.txt` and
            `images/`, or the one that holds it as `CUB_200_2011/`.
        split: `"train"` or `"test"`, as `train_test_split.txt` has it.
        download: where `root` has no such folder, download the archive (1.1 GB) into `root`, check it by the published
            checksum and extract it there. A `CUB_200_2011.tgz` that is there is used instead.
        hierarchy: the tree of the classes: `"cub"`, `"cub_modern"`, the path of a tree's CSV file, or a tree.

    Raises:
        FileNotFoundError: the folder lacks one of the files.
        OSError: the download failed.
        ValueError: lines, classes or files are bad, which are all told; or the archive is not the published one.
    """
    if download and not _is_cub(cub_folder(root)):
        _download(Path(root))
    return open_split(list_cub(root, hierarchy), split)


def _download(root: Path) -> None:
    place = root / FOLDER
    if place.exists():
        raise FileExistsError(f"{place} exists, but is not a CUB-200-2011 folder; move it away to download the dataset")
    archive = root / URL.rsplit("/", 1)[1]
    download_file(URL, archive, MD5)
    extract(archive, place, inner=FOLDER)


def cub_folder(root: str | Path) -> Path:
    """The folder that holds the four files: `root`, or `CUB_200_2011/` in it."""
    inner = Path(root, FOLDER)
    return inner if _is_cub(inner) and not _is_cub(Path(root)) else Path(root)


def _is_cub(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def list_cub(root: str | Path, hierarchy: str | Path | Hierarchy = "cub") -> Listing:
    """What `cub` finds, whatever is wrong with it."""
    folder = cub_folder(root)
    lacking = [name for name in FILES if not (folder / name).is_file()]
    if lacking:
        raise FileNotFoundError(
            f"{folder} is no CUB-200-2011 folder: it lacks {', '.join(lacking)}; name the one that has them, or a "
            "folder to put it in, with download=True, where there is a network"
        )
    tree = open_hierarchy(hierarchy)
    listing = Listing(folder, tree)
    names, labels, classes, is_train = (_read_table(folder / name, listing) for name in FILES)
    outside = {name: f"classes.txt, class {number}" for number, name in classes.items() if name not in tree.classes[-1]}
    outside_the_tree(listing, outside, tree.classes[-1])
    if len(outside) < len(set(classes.values())):
        listing.hierarchy = tree = tree.subtree(set(classes.values()) - set(outside))
    rows = {names[-1]: row for names, row in paths_of(tree).items()}
    no_label = (-1,) * len(tree.levels)
    for image_id, name in names.items():
        faults = [
            f"{file} has no line for image {image_id} ({name})"
            for table, file in ((labels, FILES[1]), (is_train, FILES[3]))
            if image_id not in table
        ]
        label, flag = labels.get(image_id, ""), is_train.get(image_id, "1")
        if label and label not in classes:
            faults.append(f"{FILES[1]}: image {image_id} has class {label}, not in classes.txt")
        if flag not in ("0", "1"):
            faults.append(f"{FILES[3]}: image {image_id} has {flag!r}, neither 0 nor 1")
        listing.faults["faults of the lists"] += faults
        row = rows.get(classes.get(label, ""), no_label)
        listing.entries.append(Entry(folder / "images" / name, row, "train" if flag == "1" else "test"))
    find_missing(listing)
    settle_splits(listing)
    return listing


def _read_table(path: Path, listing: Listing) -> dict[str, str]:
    """Reads lines of `key value`."""
    table: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="backslashreplace").splitlines(), start=1):
        if not line.strip():
            continue
        key, _, value = line.strip().partition(" ")
        if key in table:
            listing.faults["faults of the lists"].append(
                f"{path.name}, line {number}: {key} stands on an earlier line already"
            )
        elif not value:
            listing.faults["faults of the lists"].append(
                f"{path.name}, line {number}: expected a number and a value, not {line!r}"
            )
        table.setdefault(key, value.strip())
    return table
