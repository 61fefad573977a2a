"""Training and validation images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from c2f_zoo.data.derived import Joined
from c2f_zoo.data.registry import LabelledImages, create_dataset, labels_of


def train_and_val(
    name: str, val_fraction: float, seed: int, **options: Any
) -> tuple[LabelledImages, list[int], list[int]]:
    """Open a dataset's training images and choose the validation images among them.

    A dataset with a split `"val"` keeps that split: its images follow the training images.

    Args:
        name: one of `list_datasets()`.
        val_fraction: fraction of each class's training images to validate on, in [0, 1); 0: none. Ignored if the
            dataset has a split `"val"`.
        seed: seed of the split.
        **options: additional keyword arguments of the dataset.

    Returns:
        The dataset, the indices of the training images, and those of the validation images.

    Examples:
        >>> dataset, train, val = train_and_val("critters", 0.25, seed=0, per_class=4)
        >>> len(dataset), len(train), len(val)
        (144, 108, 36)
    """
    dataset = create_dataset(name, "train", **options)
    if "val" in getattr(dataset, "splits", ()):
        joined, count = Joined(dataset, create_dataset(name, "val", **options)), len(dataset)
        return joined, list(range(count)), list(range(count, len(joined)))
    return dataset, *stratified_split(labels_of(dataset), val_fraction, seed)


def stratified_split(targets: Sequence[int] | Tensor, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split indices in two, with the same fraction of each class in the second set.

    Args:
        targets: the label of each index, (n,); or its labels at every level, (n, levels), as returned by `labels_of`:
            then indices with the same deepest known label form a class.
        fraction: fraction of each class in the second set, in [0, 1), rounded. Unless it is 0, a class of two or more
            has at least one index in each set, and a class of one is in the first.
        seed: seed of the split; the same seed gives the same split on every machine.

    Returns:
        The sorted indices of the first and of the second set.

    Raises:
        ValueError: the fraction is outside [0, 1).

    Examples:
        >>> first, second = stratified_split([0] * 8 + [1] * 4, fraction=0.25, seed=0)
        >>> len(first), len(second)
        (9, 3)
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the fraction to hold out must be in [0, 1), not {fraction}")
    labels = torch.as_tensor(targets)
    if labels.ndim == 2:
        labels = labels.unique(dim=0, return_inverse=True)[1]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held_out: list[int] = []
    for label in labels.unique():
        members: Tensor = order[labels[order] == label]
        count = max(round(fraction * len(members)), 1) if fraction > 0 else 0
        held_out += members[: min(count, len(members) - 1)].tolist()
    return sorted(set(range(len(labels))) - set(held_out)), sorted(held_out)
