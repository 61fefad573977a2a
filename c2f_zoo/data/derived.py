"""Datasets derived from other datasets: joined, or with some labels hidden."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from c2f_zoo.data.registry import IndexedImages, LabelledImages, labels_of, notes_of
from c2f_zoo.data.transformed_images import load_image


class HideLabels(IndexedImages):
    """A dataset with some images labelled at coarse levels only.

    Args:
        dataset: the dataset.
        level: the finest level at which these images keep their labels.
        indices: indices of these images in the dataset.

    Raises:
        ValueError: the level is unknown, or the dataset's labels do not fit its tree.
        IndexError: an index is out of range.

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
        self.paths: list[Path] | None = getattr(dataset, "paths", None)
        self.notes = notes_of(dataset)

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        return load_image(self.dataset, index, shorter_side)


class Joined(IndexedImages):
    """A concatenation of datasets with the same tree.

    Their `paths`, `labels` and `read` are kept.

    Args:
        *datasets: the datasets.

    Raises:
        ValueError: their trees differ.
    """

    def __init__(self, *datasets: LabelledImages) -> None:
        self.datasets = datasets
        self.hierarchy = datasets[0].hierarchy
        if any(dataset.hierarchy != self.hierarchy for dataset in datasets):
            raise ValueError("the datasets have different class trees; join datasets of one tree")
        self.labels = torch.cat([labels_of(dataset) for dataset in datasets])
        self.targets: list[int] = self.labels[:, -1].tolist()
        self.notes = notes_of(*datasets)
        self._places = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
        if all(getattr(dataset, "paths", None) for dataset in datasets):
            self.paths = [path for dataset in datasets for path in dataset.paths]  # type: ignore[attr-defined]

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        return load_image(*self._places[index], shorter_side)
