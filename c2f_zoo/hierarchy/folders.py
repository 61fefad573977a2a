"""Walking nested folders: what is visited, and what is left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# of file servers, archives and tools, in lower case; hidden ones, such as .ipynb_checkpoints, are known by their dot
SERVICE_FOLDERS = frozenset(
    {"#recycle", "#snapshot", "@eadir", "@recycle", "@recently-snapshot", "@sharebin", "@tmp", "lost+found", "__macosx"}
    | {"$recycle.bin", "recycler", "system volume information", "network trash folder", "__pycache__"}
)
SERVICE, HIDDEN = "service folders, left out", "hidden files and folders, left out"
UNREADABLE = "folders that cannot be read (change their permissions, or move them away)"

LeftOut = dict[str, list[str]]  # paths under SERVICE, HIDDEN and UNREADABLE


def walk_folders(
    top: Path, left_out: LeftOut, names: tuple[str, ...] = (), parents: frozenset[Path] = frozenset()
) -> Iterator[tuple[tuple[str, ...], list[Path], bool]]:
    """Yield the names and files of each folder below `top`, and whether it has no subfolders.

    Everything is sorted. Links are followed, except to a folder of `parents` (those above), to avoid infinite
    recursion.

    Args:
        top: the folder to begin with.
        left_out: a `defaultdict(list)`; the paths of service folders, of hidden files and folders, and of folders that
            cannot be read are added to it.
        names: names of the folders from `top` down to the current one.
        parents: resolved paths of the folders above the current one.
    """
    folder = top.joinpath(*names)
    parents = parents | {folder.resolve()}
    try:
        subfolders, files = list_folder_content(folder, left_out)
    except OSError as error:
        left_out[UNREADABLE].append(f"{folder}: {error.strerror}")
        return
    yield names, files, not subfolders
    for name in subfolders:
        if (folder / name).resolve() not in parents:
            yield from walk_folders(top, left_out, (*names, name), parents)


def list_folder_content(folder: Path, left_out: LeftOut) -> tuple[list[str], list[Path]]:
    """Return the sorted names of a folder's subfolders, and its sorted files; `left_out` as in `walk_folders`.

    Raises:
        OSError: the folder cannot be read.
    """
    subfolders, files = [], []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            is_folder = _is_folder(entry)
            if entry.name.startswith("."):
                left_out[HIDDEN].append(entry.path)
            elif is_folder and entry.name.lower() in SERVICE_FOLDERS:
                left_out[SERVICE].append(entry.path)
            elif is_folder:
                subfolders.append(entry.name)
            else:
                files.append(Path(entry.path))
    return subfolders, files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link into a folder without permission
        return False
