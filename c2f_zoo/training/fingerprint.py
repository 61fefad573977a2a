"""The fingerprint of a run's data: data that moved may be resumed on, data that changed may not."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from c2f_zoo.data import LabelledImages, labels_of
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.hierarchy.names import normalize_name

# level names, treatment of short branches, the path of each leaf class, and for each split and class the number of
# images and a hash of their names
Fingerprint = dict[str, Any]

UNKNOWN = "no leaf class"  # of images that are labelled at a coarser level


def fingerprint(tree: Hierarchy, splits: Mapping[str, tuple[LabelledImages, Sequence[int]]]) -> Fingerprint:
    """Return the fingerprint of a class tree and the images of each split.

    File names count from the folder that holds all images of a dataset, so a folder may move, also to another system.
    The content of files is not read.

    Args:
        tree: the class tree.
        splits: split -> dataset and the indices of the split's images.

    Examples:
        >>> dataset = create_dataset("critters", "train", per_class=2)
        >>> found = fingerprint(dataset.hierarchy, {"training": (dataset, range(72))})
        >>> found["levels"], found["splits"]["training"]["Rotundidae > Zonula > Zonula lineata"]["images"]
        (['family', 'genus', 'species'], 2)
    """
    return {
        "levels": list(tree.levels),
        "ragged": tree.ragged,
        "classes": [" > ".join(path) for path in _leaf_paths(tree)],
        "splits": {split: _classes_of(tree, dataset, indices) for split, (dataset, indices) in splits.items()},
    }


def explain_change(before: Fingerprint, now: Fingerprint) -> str:
    """Return the first difference between two fingerprints, or `""`.

    Examples:
        >>> before = {"levels": ["species"], "classes": ["crow", "wren"], "splits": {}}
        >>> explain_change(before, {**before, "classes": ["crow", "rook", "wren"]})
        "the class 'rook' was added"
    """
    if before["levels"] != now["levels"]:
        return f"the levels were {', '.join(before['levels'])} and are {', '.join(now['levels'])}"
    old, new = (found.get("ragged", "repeat") for found in (before, now))
    if old != new:
        return f"ragged, the treatment of short branches, was {old!r} and is {new!r}"
    for added, names, others in ((False, before, now), (True, now, before)):
        if more := [name for name in names["classes"] if name not in set(others["classes"])]:
            what = f"class {more[0]!r} was" if len(more) == 1 else f"classes {more[0]!r} and {len(more) - 1} more were"
            return f"the {what} {'added' if added else 'removed or renamed'}"
    if before["classes"] != now["classes"]:
        return "the order of the classes changed"
    both = [
        (split, name, *(found["splits"].get(split, {}).get(name, {"images": 0}) for found in (before, now)))
        for split in now["splits"]
        for name in (*now["classes"], UNKNOWN)
    ]
    for split, name, old, new in both:  # first, because an added image changes the numbers of others
        if old["images"] != new["images"]:
            return f"{name!r} had {old['images']} {split} images and has {new['images']}"
    for split, name, old, new in both:
        if old != new:
            return f"the names, labels or order of the {split} images of {name!r} changed"
    return ""


def _leaf_paths(tree: Hierarchy) -> list[tuple[str, ...]]:
    return [tree.path(label) for label in range(tree.num_classes[tree.finest])]


def _classes_of(tree: Hierarchy, dataset: LabelledImages, indices: Sequence[int]) -> dict[str, dict[str, Any]]:
    labels, paths = labels_of(dataset).tolist(), getattr(dataset, "paths", None)
    root = os.path.commonpath([os.path.abspath(path) for path in paths]) if paths else ""
    leaves = [" > ".join(path) for path in _leaf_paths(tree)]
    lines: dict[str, list[str]] = defaultdict(list)
    for index in indices:
        name = normalize_name(Path(os.path.relpath(os.path.abspath(paths[index]), root)).as_posix()) if paths else ""
        row = labels[index]
        lines[leaves[row[-1]] if row[-1] >= 0 else UNKNOWN].append(f"{index} {name} {row}")
    return {name: {"images": len(found), "hash": _hash(found)} for name, found in lines.items()}


def _hash(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
