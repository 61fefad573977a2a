"""The image files that a user names: files, and folders with all that is in them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from c2f_zoo.hierarchy.folders import UNREADABLE, LeftOut, walk_folders
from c2f_zoo.images.formats import NO_IMAGES, image_extensions, is_image_name
from c2f_zoo.paths import expand


@dataclass(frozen=True)
class FoundImages:
    """The image files under some paths.

    Attributes:
        files: the files, each once; those of a folder are sorted.
        notes: lines on what was left out, with counts.
        unreadable: lines on folders that cannot be read.
    """

    files: list[Path]
    notes: tuple[str, ...]
    unreadable: tuple[str, ...]


def list_image_files(paths: Sequence[str | os.PathLike[str]]) -> FoundImages:
    """List the image files of paths, folders with their subfolders.

    A path that is not a folder is taken as it is. In folders, files without an image extension, hidden ones and service
    folders such as `@eaDir` are left out. A file that is named twice counts once.

    Args:
        paths: files and folders.

    Raises:
        FileNotFoundError: there are no images in the folders.

    Examples:
        >>> Path("birds/@eaDir").mkdir(parents=True)
        >>> for name in ("birds/2.png", "birds/1.jpg", "birds/notes.txt", "birds/@eaDir/1.jpg"):
        ...     _ = Path(name).write_bytes(b"")
        >>> found = list_image_files(["birds"])
        >>> [file.name for file in found.files], found.notes
        (['1.jpg', '2.png'], ('service folders, left out: 1', 'files without an image extension, left out: 1'))
    """
    left_out: LeftOut = defaultdict(list)
    found: list[Path] = []
    for path in map(expand, paths):
        found += _list_folder(path, left_out) if path.is_dir() else [path]
    if not found and not left_out[UNREADABLE]:
        folders = ", ".join(str(path) for path in paths)
        raise FileNotFoundError(
            f"no images in {folders}; images have the extensions {' '.join(sorted(image_extensions()))}"
        )
    files = list(dict.fromkeys(found))
    if len(files) < len(found):
        left_out["files named twice, predicted once"] += ["" for _ in range(len(found) - len(files))]
    unreadable = tuple(f"{line}: the folder cannot be read" for line in left_out.pop(UNREADABLE, []))
    notes = tuple(f"{heading}: {len(items)}" for heading, items in left_out.items() if items)
    return FoundImages(files, notes, unreadable)


def _list_folder(folder: Path, left_out: LeftOut) -> list[Path]:
    images = []
    for _, files, _ in walk_folders(folder, left_out):
        images += [file for file in files if is_image_name(file)]
        left_out[NO_IMAGES] += [str(file) for file in files if not is_image_name(file)]
    return images
