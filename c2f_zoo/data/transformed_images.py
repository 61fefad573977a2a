"""A dataset's images, decoded and transformed for a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from c2f_zoo.data.registry import LabelledImages, labels_of
from c2f_zoo.images.reading import UNREADABLE, prepare_image
from c2f_zoo.registry import check_names


class TransformedImages(Dataset[tuple[Any, Tensor, int, bool]]):
    """Images of a dataset, decoded and transformed, with labels at every level.

    Args:
        dataset: the images.
        transform: a function from a PIL image to the network's input: one view (`create_transform`) or a dictionary of
            views (`create_views`).
        indices: the images' indices in the dataset; None for all.
        on_error: treatment of unreadable images: `"raise"` an error, or `"skip"` and replace them with black images of
            unknown label. Losses and metrics ignore these; batch norm in training mode does not.
        shorter_side: a JPEG may be decoded at a reduced size, of at least this shorter side in pixels.

    Each item is (transformed image, labels (levels,) int64, index in the dataset, readable). Labels of an unreadable
    image are -1.

    Raises:
        ValueError: the dataset's labels do not fit its tree, `on_error` is unknown, or an image is unreadable; the
            message names it.

    Examples:
        >>> dataset = create_dataset("critters", "train", per_class=1)
        >>> transform = create_views(Preprocessing(), {"genus": 32, "family": 12}, train=True)
        >>> views, labels, index, readable = TransformedImages(dataset, transform, indices=[35])[0]
        >>> views["family"].shape, labels, index, readable
        (torch.Size([3, 448, 448]), tensor([ 3, 11, 35]), 35, True)
    """

    def __init__(
        self,
        dataset: LabelledImages,
        transform: Callable[[Image.Image], Any],
        indices: Sequence[int] | None = None,
        on_error: str = "raise",
        shorter_side: int | None = None,
    ) -> None:
        check_names("on_error", [on_error], ("raise", "skip"))
        self.dataset = dataset
        self.transform = transform
        self.indices = list(range(len(dataset)) if indices is None else indices)
        self.labels = labels_of(dataset)
        self.on_error = on_error
        self.shorter_side = shorter_side

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Any, Tensor, int, bool]:
        index = self.indices[position]
        try:
            image = load_image(self.dataset, index, self.shorter_side)
        except UNREADABLE as error:
            if self.on_error == "raise":
                name = name_of(self.dataset, index)
                raise ValueError(f"{name} cannot be used: {error}; to leave it out, set on_error: skip") from error
            black = Image.new("RGB", (self.shorter_side or 1, self.shorter_side or 1))
            return self.transform(black), torch.full_like(self.labels[index], -1), index, False
        return self.transform(image), self.labels[index], index, True


def load_image(dataset: LabelledImages, index: int, shorter_side: int | None = None) -> Image.Image:
    """Load an image of a dataset as RGB.

    `prepare_image` converts what the dataset returns, unless it is RGB and upright.

    Args:
        dataset: the dataset.
        index: the image's index in it.
        shorter_side: a JPEG may be decoded at a reduced size, of at least this shorter side in pixels.
    """
    read = getattr(dataset, "read", None)
    return prepare_image(dataset[index][0] if read is None else read(index, shorter_side))


def read_error(dataset: LabelledImages, index: int) -> str:
    """Return the reason if an image is unreadable, or `""`.

    Examples:
        >>> read_error(create_dataset("critters", "train", per_class=1), 7)
        ''
    """
    try:
        load_image(dataset, index)
    except UNREADABLE as error:
        return str(error)
    return ""


def name_of(dataset: LabelledImages, index: int) -> str:
    """Return an image's name for messages: its index, and its file if it has one.

    Examples:
        >>> name_of(create_dataset("critters", "train", per_class=1), 7)
        'image 7'
    """
    paths = getattr(dataset, "paths", None)
    return f"image {index}" + (f" ({paths[index]})" if paths else "")
