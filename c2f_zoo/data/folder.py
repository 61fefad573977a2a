"""Datasets of class folders."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath

from c2f_zoo.data.files import INEXACT, Entry, ImageFiles, Listing
from c2f_zoo.data.registry import register_dataset
from c2f_zoo.data.split_names import UNCLEAR, explain_unclear, has_several_splits, split_of
from c2f_zoo.hierarchy import Hierarchy, open_hierarchy
from c2f_zoo.hierarchy.faults import InvalidTreeError
from c2f_zoo.hierarchy.folders import UNREADABLE, LeftOut, list_folder_content, walk_folders
from c2f_zoo.hierarchy.matching import Label, Names, labels_by_path, labels_by_suffix, match_labels
from c2f_zoo.hierarchy.names import normalize_name
from c2f_zoo.images.formats import NO_IMAGES, image_extensions, is_image_name
from c2f_zoo.paths import expand


@register_dataset("folder")
def folder(
    root: str | Path,
    split: str,
    hierarchy: str | Path | Hierarchy | None = None,
    levels: Sequence[str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    ragged: str | None = None,
) -> ImageFiles:
    """Open a dataset of class folders, nested like the tree or flat.

    `root` contains `train/`, `test/` and optionally `val/`, in any case; `training`, `testing`, `valid`, `dev` and the
    like are understood. Without these, a seeded split takes the same fraction of each class for the test set. In each
    of them, or in `root`:

    - without `hierarchy` the folders are the tree, `family/genus/species/1.jpg`, read from all splits together. An
      image in the folder of a coarser class has no labels at finer levels. A branch ends at a folder without class
      folders, at any level.
    - with `hierarchy` an image's folder has the name of a class of any level; if several classes have the name, it is
      the finest of them. Outer folders, if any, must have the names of the ancestors. Only letters and digits are
      compared if that finds one class: the folder `T-shirt_top` is the class `T-shirt/top`. Classes without images are
      kept.

    Images have the extensions of the formats that `read_image` reads. Other files, hidden ones and service folders such
    as `@eaDir`, `lost+found` and `__MACOSX` are left out; training prints their numbers, `c2f-zoo data check` their
    names. No image is opened.

    Args:
        root: the folder.
        split: `"train"`, `"val"` or `"test"`. Without `test/`, `val/` is used.
        hierarchy: path of the tree's CSV file, name of a registered tree, or a tree.
        levels: without `hierarchy`: names of the levels, coarse to fine, see `Hierarchy.from_folders`.
        test_fraction: fraction of each class's images for the test set, if there are no split folders.
        seed: seed of this split.
        ragged: treatment of branches that end above the leaf level, see `Hierarchy`; default: the tree's own, or
            `"repeat"`.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the folders do not form a tree, classes are outside it, or the split does not exist; the message
            lists all errors.

    Examples:
        >>> for name in ("round/disc", "round/ring", "edged/box"):
        ...     Path("shapes", name).mkdir(parents=True)
        ...     for number in range(5):
        ...         Image.new("RGB", (64, 48)).save(Path("shapes", name, f"{number}.png"))
        >>> dataset = create_dataset("folder", "train", root="shapes", levels=["kind", "shape"])
        >>> len(dataset), dataset.hierarchy.classes
        (12, (('edged', 'round'), ('box', 'disc', 'ring')))
    """
    return list_folder(root, hierarchy, levels, ragged).open_split(split, test_fraction, seed)


def list_folder(
    root: str | Path,
    hierarchy: str | Path | Hierarchy | None = None,
    levels: Sequence[str] | None = None,
    ragged: str | None = None,
) -> Listing:
    """Return the listing of `folder`, including errors."""
    root = expand(root)
    if not root.is_dir():
        raise FileNotFoundError(f"the folder {root} does not exist")
    listing = Listing(root)
    tree = None if hierarchy is None else open_hierarchy(hierarchy, levels, ragged)
    found = [
        (split, names, path)
        for split, folder in _split_folders(root, listing).items()
        for names, path in find_images(folder, listing.warnings)
    ]
    listing.errors[UNREADABLE] += listing.warnings.pop(UNREADABLE, [])
    folders = Counter(names for _, names, _ in found)
    if not folders:
        extensions = " ".join(sorted(image_extensions()))
        listing.errors["there are no images in folders"].append(f"images have the extensions {extensions}")
        return listing
    if tree is None:
        labels = _read_tree(listing, sorted(folders), levels, ragged)
    else:
        listing.hierarchy = tree
        labels = _match_folders(listing, tree, folders)
    no_label = (-1,) * len(listing.hierarchy.levels) if listing.hierarchy else ()
    listing.entries = [Entry(path, labels.get(names, no_label), split) for split, names, path in found]
    listing.complete_splits()
    return listing


def _split_folders(root: Path, listing: Listing) -> dict[str, Path]:
    """Return the folder of each split, or `{"": root}` if there are no split folders."""
    try:
        names, _ = list_folder_content(root, defaultdict(list))
    except OSError as error:
        raise OSError(f"cannot read the folder {root}: {error.strerror}; change its permissions") from error
    named = [name for name in names if split_of(name)]
    if not named or (len(named) == 1 and len(names) > 1):  # next to "bus", "train" is a class
        listing.warnings["folders with the name of a split, used as classes, since there are no other splits"] += named
        return {"": root}
    folders: dict[str, Path] = {}
    for name in names:
        split = split_of(name)
        if not split:
            listing.warnings["folders next to the split folders, left out"].append(name)
        elif split == UNCLEAR:
            listing.errors["folders that may be a split"].append(explain_unclear(name))
        elif split in folders:
            listing.errors["two folders for one split; remove one"].append(f"{folders[split].name} and {name}")
        else:
            folders[split] = root / name
    return folders


def find_images(top: Path, left_out: LeftOut) -> Iterator[tuple[Names, Path]]:
    """Yield the images below a folder, sorted, each with the names of its folders.

    Args:
        top: the folder.
        left_out: a `defaultdict(list)`; files and folders that are left out are added to it, see `walk_folders`.
    """
    for folders, files, is_leaf in walk_folders(top, left_out):
        names = tuple(map(normalize_name, folders))
        images = [file for file in files if is_image_name(file.name)]
        left_out[NO_IMAGES] += [str(file) for file in files if not is_image_name(file.name)]
        if not names:
            left_out["images outside class folders, left out"] += map(str, images)
            continue
        if is_leaf and not images:
            left_out["folders without an image, left out"].append(str(top.joinpath(*folders)))
        for file in images:
            yield names, file


def list_class_folders(top: Path) -> tuple[list[tuple[str, Path]], tuple[str, ...]]:
    """List the images of flat class folders.

    Returns:
        The name of the class and the path of each image, and lines on what was left out.

    Raises:
        ValueError: a folder cannot be read.
    """
    listing = Listing(top)
    found = [(names[0], path) for names, path in find_images(top, listing.warnings)]
    listing.errors[UNREADABLE] += listing.warnings.pop(UNREADABLE, [])
    listing.raise_for_errors()
    return found, listing.summary()


def _match_folders(listing: Listing, tree: Hierarchy, folders: Mapping[Names, int]) -> dict[Names, Label]:
    """Return the label of each folder by its name; add an error for each that is not in the tree."""
    labels, inexact = match_labels(folders, tree)
    listing.warnings[INEXACT] += inexact
    unknown = {names: count for names, count in folders.items() if names not in labels}
    lengths = set(map(len, unknown))
    known = ["/".join(names) for names in labels_by_suffix(tree) if len(names) in lengths]
    counts = {"/".join(names): f"{count} image{'s' * (count > 1)}" for names, count in unknown.items()}
    listing.add_unknown_classes(counts, known)
    return labels


def _read_tree(
    listing: Listing, folders: Sequence[Names], levels: Sequence[str] | None, ragged: str | None
) -> dict[Names, Label]:
    """Read the tree from the folders of the images; return the label of each folder."""
    subfolders: dict[Names, dict[str, None]] = defaultdict(dict)
    for names in folders:
        for depth in range(len(names)):
            subfolders[names[:depth]][names[depth]] = None
    heading = "split folders inside others, or with other names; name them, and their classes, train/CLASS, test/CLASS"
    listing.errors[heading] += [
        f"{'/'.join(names) or 'the top folder'} contains {', '.join(below)}"
        for names, below in subfolders.items()
        if has_several_splits(below)
    ]
    try:
        paths = [PurePath(*names, "image") for names in folders]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the listing names all of them
            listing.hierarchy = Hierarchy.from_paths(paths, levels, ragged or "repeat")
    except ValueError as error:
        heading = "the folders do not form a tree (rearrange them, or use the option 'hierarchy')"
        listing.errors[heading] += error.faults if isinstance(error, InvalidTreeError) else [str(error)]
        return {}
    _list_changes(listing, listing.hierarchy, folders)
    labels = labels_by_path(listing.hierarchy)
    assert all(names in labels for names in folders), "the tree has a class for each folder"
    return labels


def _list_changes(listing: Listing, tree: Hierarchy, folders: Sequence[Names]) -> None:
    """Add the branches that end above the leaf level, and the classes that share a name, to the warnings."""
    above = {names[:depth] for names in folders for depth in range(len(names))}
    listing.warnings[f"branches that end above {tree.finest!r}, their last class repeated down to it"] += [
        "/".join(names) for names in folders if names not in above and len(names) < len(tree.levels)
    ]
    own = {name for names in folders for name in names}
    listing.warnings["classes with the name of another class, called by their parent's name too"] += [
        f"{level} {name}"
        for level, names, repeats in zip(tree.levels, tree.classes, tree.repeats, strict=True)
        for label, name in enumerate(names)
        if name not in own and label not in repeats
    ]
