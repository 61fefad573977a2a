"""A dataset as one level of the tree sees it, and the split of a dataset in two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from c2f_zoo.data.registry import LabelledImages, labels_of


class LevelView(Dataset[tuple[Any, int, int]]):
    """Some of a dataset's pictures, transformed, with their labels at one level.

    Args:
        dataset: the pictures.
        level: the level whose labels to give.
        transform: from a PIL picture to what the network takes.
        indices: which pictures, by their index in the dataset; None for all.

    Each item is (transformed picture, label at `level` or -1 where it is unknown, index in the dataset).

    Raises:
        ValueError: the level is unknown, or the dataset's labels do not fit its tree.
    """

    def __init__(
        self,
        dataset: LabelledImages,
        level: str,
        transform: Callable[..., Any],
        indices: Sequence[int] | None = None,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.indices = list(range(len(dataset)) if indices is None else indices)
        self.labels: list[int] = labels_of(dataset)[:, dataset.hierarchy.depth(level)].tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Any, int, int]:
        index = self.indices[position]
        image, _ = self.dataset[index]
        return self.transform(image), self.labels[index], index


class HideLabels:
    """A dataset of which some pictures are labelled down to a level only, as much real data is.

    Args:
        dataset: the pictures and all that is known of them.
        level: the finest level at which the pictures named keep their labels.
        indices: these pictures, by their index in the dataset.

    Raises:
        ValueError: the level is unknown, or the dataset's labels do not fit its tree.
        IndexError: there is no picture of an index.

    Examples:
        >>> dataset = HideLabels(create_dataset("critters", "train", per_class=1), "genus", indices=[35])
        >>> labels_of(dataset)[34:], dataset.targets[34:]
        (tensor([[ 3, 11, 34],
                [ 3, 11, -1]]), [34, -1])
    """

    def __init__(self, dataset: LabelledImages, level: str, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.hierarchy = dataset.hierarchy
        self.labels = labels_of(dataset).clone()
        self.labels[torch.tensor(indices, dtype=torch.long), dataset.hierarchy.depth(level) + 1 :] = -1
        self.targets: list[int] = self.labels[:, -1].tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.dataset[index][0], self.targets[index]


def stratified_split(targets: Sequence[int] | Tensor, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Parts indices in two so that each class gives the same share to the second part.

    Args:
        targets: the label of each index, (n,); or its labels at every level (n, levels), as `labels_of` gives them:
            then those whose deepest known label is the same are a class.
        fraction: share of each class for the second part, in [0, 1), rounded; unless it is 0, a class of two or
            more has at least one in each part, and a class of one has it in the first.
        seed: decides which; the same seed gives the same split on every machine.

    Returns:
        The sorted indices of the first and of the second part.

    Raises:
        ValueError: the fraction is outside [0, 1).

    Examples:
        >>> first, second = stratified_split([0] * 8 + [1] * 4, fraction=0.25, seed=0)
        >>> len(first), len(second)
        (9, 3)
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the fraction held out is in [0, 1), not {fraction}")
    labels = torch.as_tensor(targets)
    if labels.ndim == 2:
        labels = labels.unique(dim=0, return_inverse=True)[1]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held_out: list[int] = []
    for label in labels.unique():
        members: Tensor = order[labels[order] == label]
        share = max(round(fraction * len(members)), 1) if fraction > 0 else 0
        held_out += members[: min(share, len(members) - 1)].tolist()
    return sorted(set(range(len(labels))) - set(held_out)), sorted(held_out)
