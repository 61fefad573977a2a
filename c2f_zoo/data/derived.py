"""Datasets derived from other datasets: joined, at other resolutions, or with some labels hidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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


@dataclass(frozen=True)
class ResolutionView:
    """An image of a dataset at a resolution.

    Attributes:
        index: the image's index in the dataset.
        resolution: the shorter side in pixels that it is shrunk to; None is full size. Smaller images stay as they are.
        is_enlarged: whether it is enlarged to its own size again, so that its size says nothing about its detail.
    """

    index: int
    resolution: int | None
    is_enlarged: bool


def draw_views(indices: Sequence[int], resolutions: Sequence[int | None], seed: int) -> list[ResolutionView]:
    """Draw views of images at each resolution, half of the shrunk ones enlarged again.

    Args:
        indices: the images' indices in a dataset.
        resolutions: the resolution grid; None is full size.
        seed: the seed.

    Examples:
        >>> [view.resolution for view in draw_views([5, 7], [None, 20], seed=0)]
        [None, 20, None, 20]
    """
    rng = np.random.default_rng(seed)
    return [
        ResolutionView(index, resolution, resolution is not None and bool(rng.integers(2)))
        for index in indices
        for resolution in resolutions
    ]


def shrink(image: Image.Image, side: int, enlarged_to: int | None = None) -> Image.Image:
    """Shrink an image to a shorter side in pixels, and enlarge it to another if one is given.

    Args:
        image: the image.
        side: the shorter side in pixels; pixels are means of areas.
        enlarged_to: the shorter side to enlarge it to, bicubic.

    Examples:
        >>> shrink(Image.new("RGB", (300, 200)), 40).size, shrink(Image.new("RGB", (300, 200)), 40, 500).size
        ((60, 40), (750, 500))
    """
    small = image.resize(_size_at(image, side), Image.Resampling.BOX)
    return small if enlarged_to is None else small.resize(_size_at(image, enlarged_to), Image.Resampling.BICUBIC)


def _size_at(image: Image.Image, side: int) -> tuple[int, int]:
    """Return an image's size if its shorter side were `side` pixels."""
    width, height = (max(side, round(length * (side / min(image.size)))) for length in image.size)
    return width, height


class AtResolutions(IndexedImages):
    """The images of a dataset at other resolutions, as small files or enlarged thumbnails.

    Args:
        dataset: the dataset.
        views: the images, see `draw_views`.

    Examples:
        >>> dataset = create_dataset("critters", "test", per_class=1)
        >>> views = AtResolutions(dataset, [ResolutionView(7, 20, False), ResolutionView(7, 20, True)])
        >>> views[0][0].size, views[1][0].size, views.targets == [dataset.targets[7]] * 2
        ((20, 20), (96, 96), True)
    """

    def __init__(self, dataset: LabelledImages, views: Sequence[ResolutionView]) -> None:
        self.dataset = dataset
        self.views = list(views)
        self.hierarchy = dataset.hierarchy
        self.labels = labels_of(dataset)[[view.index for view in views]]
        self.targets: list[int] = self.labels[:, -1].tolist()
        self.notes = notes_of(dataset)
        if paths := getattr(dataset, "paths", None):
            self.paths = [paths[view.index] for view in views]

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        view = self.views[index]
        image = load_image(self.dataset, view.index, shorter_side if view.resolution is None else None)
        if view.resolution is None or min(image.size) <= view.resolution:
            return image
        return shrink(image, view.resolution, min(image.size) if view.is_enlarged else None)
