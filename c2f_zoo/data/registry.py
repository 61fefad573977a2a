"""Where datasets are registered and made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from PIL import Image

from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.registry import Registry, check_options


class LabelledImages(Protocol):
    """What a dataset has: pictures, a label of the finest level for each, and the tree they belong to."""

    hierarchy: Hierarchy
    targets: list[int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...


DATASETS: Registry[Callable[..., LabelledImages]] = Registry("dataset")
register_dataset = DATASETS.register


def list_datasets(pattern: str = "*") -> list[str]:
    """Lists the names that `create_dataset` knows, filtered by a wildcard."""
    return DATASETS.names(pattern)


def create_dataset(name: str, split: str, **options: Any) -> LabelledImages:
    """Opens one split of a dataset.

    Args:
        name: one of `list_datasets()`.
        split: `"train"` or `"test"`.
        **options: what the dataset of that name takes further, e.g. `root`.

    Returns:
        A dataset whose items are (RGB picture, label at the finest level); coarse labels come from its
        `hierarchy`.

    Raises:
        ValueError: the name, the split or an option is unknown, the dataset is empty, or a label is outside the tree.

    Examples:
        >>> dataset = create_dataset("critters", "train", per_class=2)
        >>> len(dataset), dataset.hierarchy.num_classes
        (72, {'family': 4, 'genus': 12, 'species': 36})
    """
    open_split = DATASETS[name]
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; a dataset has the splits 'train' and 'test'")
    check_options(f"option of dataset {name!r}:", open_split, options)
    dataset = open_split(split=split, **options)
    if len(dataset) == 0:
        raise ValueError(f"dataset {name!r} has no {split} pictures")
    count = dataset.hierarchy.num_classes[dataset.hierarchy.finest]
    for index, label in enumerate(dataset.targets):
        if not 0 <= label < count:
            raise ValueError(
                f"{split} picture {index} of dataset {name!r} has label {label}, outside the tree's "
                f"{count} {dataset.hierarchy.finest} classes (0..{count - 1})"
            )
    return dataset
