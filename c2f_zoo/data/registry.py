"""The registry of datasets."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.paths import expand
from c2f_zoo.registry import Registry, check_names, check_options


class LabelledImages(Protocol):
    """A dataset: images, their leaf classes, and the class tree.

    Optional attributes and methods:

    - `labels`, if some images are labelled at coarser levels only: an int64 tensor (n, levels), coarse to fine, with
      -1 for unknown labels. If a label is known, so are the labels of its ancestors. `targets`, and the labels of the
      items, are the last column.
    - `paths`, if each image is a file: a list of n `Path`s. Error messages about an image include its path.
    - `splits`: a tuple of the splits that `create_dataset` can open; the default is `("train", "test")`. If `"val"` is
      in it, training validates on that split and trains on all of `"train"`.
    - `notes`: lines for the user on what was left out or assumed; the recipes print them.
    - `read(index, shorter_side=None)`: returns the RGB image without its label; a JPEG may be decoded at a reduced size
      of at least `shorter_side` pixels. Without this method, images are taken from the items.
    """

    hierarchy: Hierarchy
    targets: list[int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...


class IndexedImages:
    """A base class of datasets that implement `read`: the items follow from it."""

    targets: list[int]

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """Return an image in RGB; `shorter_side` as in `load_image`."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.read(index), self.targets[index]


SPLITS = ("train", "val", "test")

DATASETS: Registry[Callable[..., LabelledImages]] = Registry("dataset", "c2f_zoo.datasets")
register_dataset = DATASETS.register


def list_datasets(pattern: str = "*") -> list[str]:
    """List the names of datasets that match a wildcard."""
    return DATASETS.names(pattern)


def create_dataset(name: str, split: str, **options: Any) -> LabelledImages:
    """Open one split of a dataset.

    Args:
        name: one of `list_datasets()`. A name that ends in a slash is a reader of timm; add the dataset to read, e.g.
            `"hfds/user/birds"`.
        split: `"train"`, `"test"`, or `"val"` if the dataset has it.
        **options: additional keyword arguments of the dataset, e.g. `root`. In a path, `~` is the home folder.

    Returns:
        A dataset with items (RGB image, label of the leaf class or -1 if unknown); `labels_of` returns its labels
        at all levels.

    Raises:
        ValueError: the name, the split or an option is unknown, an option is missing, the dataset is empty, or a label
            does not fit the tree.

    Examples:
        >>> dataset = create_dataset("critters", "train", per_class=2)
        >>> len(dataset), dataset.hierarchy.num_classes
        (72, {'family': 4, 'genus': 12, 'species': 36})
    """
    prefix, slash, _ = name.partition("/")
    open_split = DATASETS[prefix + slash]
    if slash:
        open_split = partial(open_split, name)
    check_options(f"option of dataset {name!r}:", open_split, options)
    check_names("split", [split], SPLITS)
    parameters = inspect.signature(open_split).parameters.values()
    required = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    missing = [option for option in required if option != "split" and options.get(option) is None]  # ~ is null in YAML
    if missing:
        raise ValueError(f"dataset {name!r} needs the option {' and '.join(missing)}, e.g. {missing[0]}=...")
    dataset = open_split(split=split, **{key: _expand_home(value) for key, value in options.items()})
    check_split(name, split, getattr(dataset, "splits", ("train", "test")))
    if len(dataset) == 0:
        raise ValueError(f"dataset {name!r} has no {split} images")
    _check_labels(dataset, f"the {split} split of dataset {name!r}")
    return dataset


def _expand_home(value: Any) -> Any:
    """Return an option's value; a path that begins with `~` is expanded."""
    is_path = isinstance(value, (str, Path)) and re.match(r"~($|[/\\])", str(value))
    return type(value)(expand(value)) if is_path else value


def check_split(name: str, split: str, splits: Iterable[str] = ("train", "test"), hint: str = "") -> None:
    """Raise a ValueError with a dataset's splits unless it has the requested one.

    Examples:
        >>> check_split("critters", "val")
        Traceback (most recent call last):
        ValueError: dataset 'critters' has no split 'val'; it has 'train' and 'test'
    """
    if split not in splits:
        known = " and ".join(map(repr, splits)) or "none"
        raise ValueError(f"dataset {name!r} has no split {split!r}; it has {known}{hint}")


def notes_of(*datasets: LabelledImages) -> list[str]:
    """Return the lines on what was left out or assumed when datasets were opened, each once.

    Examples:
        >>> for name in ("round/1.png", "round/2.png", "edged/1.png", "edged/notes.txt", "@eaDir/1.png"):
        ...     Path("forms", name).parent.mkdir(parents=True, exist_ok=True)
        ...     Path("forms", name).touch()
        >>> dataset = create_dataset("folder", "train", root="forms", levels=["form"])
        >>> print("\\n".join(notes_of(dataset)))
        forms: service folders, left out: 1 (forms/@eaDir)
        forms: files without an image extension, left out: 1 (1 .txt)
    """
    return list(dict.fromkeys(note for dataset in datasets for note in getattr(dataset, "notes", ())))


def labels_of(dataset: LabelledImages) -> Tensor:
    """Return the labels of every image at every level.

    Args:
        dataset: the dataset. Without `labels`, they are computed from `targets` and the tree.

    Returns:
        int64 tensor (n, levels), coarse to fine; -1 for unknown labels.

    Raises:
        ValueError: a label is outside the tree, its parent's label is unknown or wrong, or `targets` and `labels`
            differ; the message names the image.

    Examples:
        >>> labels_of(create_dataset("critters", "train", per_class=1))[[0, 35]]
        tensor([[ 0,  0,  0],
                [ 3, 11, 35]])
    """
    return _check_labels(dataset, "the dataset")


def _check_labels(dataset: LabelledImages, name: str) -> Tensor:
    """Return `labels_of(dataset)`; errors call the dataset `name`."""
    tree = dataset.hierarchy
    targets = torch.as_tensor(dataset.targets).long()  # small integers would compare with a large count modulo 256
    if getattr(dataset, "labels", None) is None:
        _check_range(targets, tree, tree.finest, 0, name)
        return tree.ancestors(targets)
    labels = torch.as_tensor(dataset.labels)  # type: ignore[attr-defined]
    if labels.shape != (len(dataset), len(tree.levels)) or labels.is_floating_point():
        raise ValueError(
            f"labels of {name} are {labels.dtype} of shape {tuple(labels.shape)}; its {len(dataset)} images need "
            f"integers, one for each of {', '.join(tree.levels)}"
        )
    labels = labels.long()
    for depth, level in enumerate(tree.levels):
        fine = labels[:, depth]
        _check_range(fine, tree, level, -1, name)
        if depth > 0:
            coarse, known, parent = labels[:, depth - 1], fine >= 0, tree.levels[depth - 1]
            _raise_for_first(known & (coarse < 0), f"has a label at {level} but none at {parent}", name)
            parents = tree.parent_index(level)[fine.clamp(min=0)]
            _raise_for_first(known & (parents != coarse), f"has a {level} that belongs to another {parent}", name)
    _raise_for_first(targets != labels[:, -1], f"has different labels at {tree.finest} in targets and labels", name)
    return labels


def _check_range(labels: Tensor, tree: Hierarchy, level: str, minimum: int, name: str) -> None:
    """Raise a ValueError for the first label outside minimum..(number of classes - 1)."""
    count = tree.num_classes[level]
    outside = (labels < minimum) | (labels >= count)
    if outside.any():
        unknown = "; -1: unknown" if minimum < 0 else ""
        label = int(labels[outside][0])
        problem = f"has label {label}, outside the tree's {count} {level} classes (0..{count - 1}{unknown})"
        _raise_for_first(outside, problem, name)


def _raise_for_first(wrong: Tensor, problem: str, name: str) -> None:
    if wrong.any():
        raise ValueError(f"image {int(wrong.nonzero()[0])} of {name} {problem}")
