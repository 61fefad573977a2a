"""Where datasets are registered and made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.registry import Registry, check_options


class LabelledImages(Protocol):
    """What a dataset has: images, a label of the finest level for each, and the tree they belong to.

    It may have more, each of which is looked for and none of which is needed:

    - `labels`, where some images are labelled at coarser levels only: an int64 tensor (n, levels), coarse to fine,
      with -1 for what is not known; a label that is known has all those above it. `targets`, and the labels of the
      items, are then the last column.
    - `paths`, where each image is a file: a list of n `Path`s. Messages about an image name it.
    - `splits`: a tuple of the splits that `create_dataset` can open; `("train", "test")` where it is absent. With
      `"val"` in it, a training validates on that split and trains on all of `"train"`.
    - `read(index, shorter_side=None)`: the RGB image alone; a JPEG may come smaller than it is, its shorter side
      still as long as `shorter_side`. Without it the images come from the items.
    """

    hierarchy: Hierarchy
    targets: list[int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...


SPLITS = ("train", "val", "test")

DATASETS: Registry[Callable[..., LabelledImages]] = Registry("dataset", "c2f_zoo.datasets")
register_dataset = DATASETS.register


def list_datasets(pattern: str = "*") -> list[str]:
    """Lists the names that `create_dataset` knows, filtered by a wildcard."""
    return DATASETS.names(pattern)


def create_dataset(name: str, split: str, **options: Any) -> LabelledImages:
    """Opens one split of a dataset.

    Args:
        name: one of `list_datasets()`. A name that ends in a slash there is one of timm's readers and goes on with what
            it is to read, e.g. `"hfds/user/birds"`.
        split: `"train"`, `"test"`, or, where the dataset has one, `"val"`.
        **options: what the dataset of that name takes further, e.g. `root`.

    Returns:
        A dataset whose items are (RGB image, label at the finest level, -1 where that is unknown); `labels_of`
        gives its labels at all levels.

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
    if split not in SPLITS:
        raise unknown_split(name, split, SPLITS)
    parameters = inspect.signature(open_split).parameters.values()
    required = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    lacking = [option for option in required if option not in ("split", *options)]
    if lacking:
        raise ValueError(f"dataset {name!r} needs the option {' and '.join(lacking)}, e.g. {lacking[0]}=...")
    dataset = open_split(split=split, **options)
    splits = getattr(dataset, "splits", ("train", "test"))
    if split not in splits:
        raise unknown_split(name, split, splits)
    if len(dataset) == 0:
        raise ValueError(f"dataset {name!r} has no {split} images")
    try:
        _checked_labels(dataset, f"dataset {name!r}")
    except ValueError as error:
        raise ValueError(f"{split} {error}") from error
    return dataset


def unknown_split(name: str, split: str, splits: Iterable[str]) -> ValueError:
    """Builds the error for a split that a dataset does not have; it names those that it has.

    Examples:
        >>> unknown_split("critters", "val", ("train", "test"))
        ValueError("dataset 'critters' has no split 'val'; it has 'train' and 'test'")
    """
    has = " and ".join(repr(known) for known in splits) or "none"
    return ValueError(f"dataset {name!r} has no split {split!r}; it has {has}")


def labels_of(dataset: LabelledImages) -> Tensor:
    """The labels of every image at every level.

    Args:
        dataset: a dataset whose labels are its `labels`, or else come from its `targets` through its tree.

    Returns:
        int64 tensor (n, levels), coarse to fine; -1 for what is not known, below what is.

    Raises:
        ValueError: a label is outside the tree, stands below an unknown one or under another parent than its own,
            or `targets` say something else; the message names the image.

    Examples:
        >>> labels_of(create_dataset("critters", "train", per_class=1))[[0, 35]]
        tensor([[ 0,  0,  0],
                [ 3, 11, 35]])
    """
    return _checked_labels(dataset, "the dataset")


def _checked_labels(dataset: LabelledImages, what: str) -> Tensor:
    """`labels_of`, with a name for the dataset in its errors."""
    tree = dataset.hierarchy
    targets = torch.as_tensor(dataset.targets).long()  # small integers would compare with a large count modulo 256
    if getattr(dataset, "labels", None) is None:
        _refuse(*_outside(targets, tree, tree.finest, 0), what)
        return tree.ancestors(targets)
    labels = torch.as_tensor(dataset.labels)  # type: ignore[attr-defined]
    if labels.shape != (len(dataset), len(tree.levels)) or labels.is_floating_point():
        raise ValueError(
            f"labels of {what} are {labels.dtype} of shape {tuple(labels.shape)}; its {len(dataset)} images need "
            f"whole numbers, one for each of {', '.join(tree.levels)}"
        )
    labels = labels.long()
    for depth, level in enumerate(tree.levels):
        here = labels[:, depth]
        _refuse(*_outside(here, tree, level, -1), what)
        if depth > 0:
            above, known, coarse = labels[:, depth - 1], here >= 0, tree.levels[depth - 1]
            _refuse(known & (above < 0), f"has a label at {level} but none at {coarse}", what)
            parents = tree.parent_index(level)[here.clamp(min=0)]
            _refuse(known & (parents != above), f"has a {level} that lies under another {coarse} than it has", what)
    _refuse(targets != labels[:, -1], f"has another label in targets than in labels at {tree.finest}", what)
    return labels


def _outside(labels: Tensor, tree: Hierarchy, level: str, least: int) -> tuple[Tensor, str]:
    """Which labels are outside the tree, and the complaint about the first of them."""
    count = tree.num_classes[level]
    outside = (labels < least) | (labels >= count)
    first = int(labels[outside][0]) if outside.any() else None
    unknown = "; -1: unknown" if least < 0 else ""
    return outside, f"has label {first}, outside the tree's {count} {level} classes (0..{count - 1}{unknown})"


def _refuse(bad: Tensor, complaint: str, what: str) -> None:
    if bad.any():
        raise ValueError(f"image {int(bad.nonzero()[0])} of {what} {complaint}")
