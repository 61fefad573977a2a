"""Images in folders, one for each class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from torchvision.datasets.folder import IMG_EXTENSIONS

from c2f_zoo.data.files import (
    SPLIT_OF,
    Entry,
    ImageFiles,
    Listing,
    endings_of,
    open_hierarchy,
    open_split,
    outside_the_tree,
    paths_of,
    settle_splits,
)
from c2f_zoo.data.registry import register_dataset
from c2f_zoo.hierarchy import Hierarchy

Names = tuple[str, ...]  # of folders, from the outermost to the innermost


@register_dataset("folder")
def folder(
    root: str | Path,
    split: str,
    hierarchy: str | Path | Hierarchy | None = None,
    levels: Sequence[str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> ImageFiles:
    """Images in class folders, nested as the tree is, or flat beside a tree.

    `root` holds `train/`, `test/` and perhaps `val/` (or `valid/`, `validation/`); where it does not, all images
    are parted by a seeded split that takes the same share of each class. Below:

    - without `hierarchy` the folders are the tree, `family/genus/species/1.jpg`, read from all splits together. A
      image that lies in the folder of a coarser class is labelled down to that class only.
    - with `hierarchy` the folder in which an image lies is named like a class of any level, the finest where a name
      stands at several. Folders around it, if there are any, must be named like the classes above it. All of the tree
      is kept, classes without images too.

    Files are images by the extensions that torchvision knows (`.jpg`, `.png`, `.webp`, ...). Others, and all that is
    hidden, are left out; `c2f-zoo data check` counts them. No image is opened.

    Args:
        root: the folder.
        split: `"train"`, `"val"` or `"test"`. Without `test/`, `val/` is taken for it.
        hierarchy: the path of the tree's CSV file, the name of a registered tree, or a tree.
        levels: without `hierarchy`: the names of the levels, coarse to fine, see `Hierarchy.from_folders`.
        test_fraction: share of each class's images that is for the test, where there are no split folders.
        seed: decides which.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folders are no tree, classes are outside it, or there is no such split; all faults are told.

    Examples:
        >>> for name in ("round/disc", "round/ring", "edged/box"):
        ...     Path("shapes", name).mkdir(parents=True)
        ...     for number in range(5):
        ...         Image.new("RGB", (64, 48)).save(Path("shapes", name, f"{number}.png"))
        >>> dataset = create_dataset("folder", "train", root="shapes", levels=["kind", "shape"])
        >>> len(dataset), dataset.hierarchy.classes
        (12, (('edged', 'round'), ('box', 'disc', 'ring')))
    """
    return open_split(list_folder(root, hierarchy, levels), split, test_fraction, seed)


def list_folder(
    root: str | Path, hierarchy: str | Path | Hierarchy | None = None, levels: Sequence[str] | None = None
) -> Listing:
    """What `folder` finds, whatever is wrong with it."""
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    listing = Listing(root)
    tree = None if hierarchy is None else open_hierarchy(hierarchy, levels)
    found = [
        (split, names, path)
        for split, place in _split_folders(root, listing).items()
        for names, path in _images(place, listing)
    ]
    folders = Counter(names for _, names, _ in found)
    if not folders:
        listing.faults["no image lies in a folder"].append(f"extensions of images are {' '.join(IMG_EXTENSIONS)}")
        return listing
    if tree is None:
        rows = _read_tree(listing, sorted(folders), levels)
    else:
        listing.hierarchy, rows = tree, endings_of(tree)
        unknown = {names: count for names, count in folders.items() if names not in rows}
        lengths = set(map(len, unknown))
        known = ["/".join(names) for names in rows if len(names) in lengths]
        counts = {"/".join(names): f"{count} image{'s' * (count > 1)}" for names, count in unknown.items()}
        outside_the_tree(listing, counts, known)
    no_label = (-1,) * len(listing.hierarchy.levels) if listing.hierarchy else ()
    listing.entries = [Entry(path, rows.get(names, no_label), split) for split, names, path in found]
    settle_splits(listing)
    return listing


def _split_folders(root: Path, listing: Listing) -> dict[str, Path]:
    """The folder of each split, or the root for the split "", where there are none."""
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    named = [name for name in names if name in SPLIT_OF]
    if not named or (len(named) == 1 and len(names) > 1):  # "train" may be a class too, beside "bus"
        return {"": root}
    places: dict[str, Path] = {}
    for name in names:
        split = SPLIT_OF.get(name)
        if split is None:
            listing.notes["folders beside those of the splits, left out"].append(name)
        elif split in places:
            listing.faults["two folders for one split; leave one"].append(f"{places[split].name} and {name}")
        else:
            places[split] = root / name
    return places


def _images(place: Path, listing: Listing) -> Iterator[tuple[Names, Path]]:
    """The images below a folder, each with the names of the folders in which it lies, sorted."""
    for names, files, is_leaf in _walk(place, (), frozenset({place.resolve()})):
        images = [file for file in files if _is_image(file)]
        listing.notes["files that are no images by their extension, left out"] += [
            str(file) for file in files if not _is_image(file)
        ]
        if not names:
            listing.notes["images in no class's folder, left out"] += map(str, images)
            continue
        if is_leaf and not images:
            listing.notes["folders without an image, left out"].append(str(place.joinpath(*names)))
        for file in images:
            yield names, file


def _is_image(file: Path) -> bool:
    return file.name.lower().endswith(IMG_EXTENSIONS)


def _walk(place: Path, names: Names, above: frozenset[Path]) -> Iterator[tuple[Names, list[Path], bool]]:
    """Each folder below a place: its names, its files, and whether it has no folders.

    Links are followed, but for those that lead back to a folder `above`, and so on without end.
    """
    inside = place.joinpath(*names)
    with os.scandir(inside) as entries:
        visible = {entry.name: entry.is_dir() for entry in entries if not entry.name.startswith(".")}
    folders = sorted(name for name, is_folder in visible.items() if is_folder)
    yield names, [inside / name for name in sorted(set(visible) - set(folders))], not folders
    for name in folders:
        real = (inside / name).resolve()
        if real not in above:
            yield from _walk(place, (*names, name), above | {real})


def _read_tree(
    listing: Listing, folders: Sequence[Names], levels: Sequence[str] | None
) -> dict[Names, tuple[int, ...]]:
    """Reads the tree from the folders in which images lie; gives the labels of each folder."""
    try:
        listing.hierarchy = Hierarchy.from_paths([PurePath(*names, "image") for names in folders], levels)
    except ValueError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        listing.faults["the folders are no tree (make them one, or give 'hierarchy')"] += lines[1:] or lines
        return {}
    return paths_of(listing.hierarchy)
