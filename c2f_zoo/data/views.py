"""A dataset as one level of the tree sees it, and the split of a dataset in two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from c2f_zoo.data.registry import LabelledImages


class LevelView(Dataset[tuple[Any, int, int]]):
    """Some of a dataset's pictures, transformed, with their labels at one level.

    Args:
        dataset: the pictures.
        level: the level whose labels to give.
        transform: from a PIL picture to what the network takes.
        indices: which pictures, by their index in the dataset; None for all.

    Each item is (transformed picture, label at `level`, index in the dataset).
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
        self.labels: list[int] = dataset.hierarchy.to_parent(torch.tensor(dataset.targets), level).tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Any, int, int]:
        index = self.indices[position]
        image, _ = self.dataset[index]
        return self.transform(image), self.labels[index], index


def stratified_split(targets: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Parts indices in two so that each class gives the same share to the second part.

    Args:
        targets: the label of each index.
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
    labels = torch.tensor(targets)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held_out: list[int] = []
    for label in labels.unique():
        members: Tensor = order[labels[order] == label]
        share = max(round(fraction * len(members)), 1) if fraction > 0 else 0
        held_out += members[: min(share, len(members) - 1)].tolist()
    return sorted(set(range(len(labels))) - set(held_out)), sorted(held_out)
