"""A dataset's images as a training sees them, and datasets made from datasets: parted, joined, less labelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from c2f_zoo.data.registry import LabelledImages, create_dataset, labels_of
from c2f_zoo.registry import unknown_name

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow and read_image raise


class TransformedImages(Dataset[tuple[Any, Tensor, int]]):
    """Some of a dataset's images, each decoded once and transformed, with their labels at every level.

    Args:
        dataset: the images.
        transform: from a PIL image to what the network takes: one view (`create_transform`), or one for each level
            (`create_views`).
        indices: which images, by their index in the dataset; None for all.
        on_error: what an unreadable image does: `"raise"`, or `"skip"`: a black image with unknown labels, which no
            loss and no accuracy counts, comes in its place, so that a batch keeps its size (batch norm that is being
            trained sees it).
        shorter_side: a JPEG may be decoded at a reduced size, of at least this shorter side in pixels.

    Each item is (transformed image, labels (levels,) int64, index in the dataset). An image that was skipped has the
    labels -1 and the index `-1 - index`.

    Raises:
        ValueError: the dataset's labels do not fit its tree, `on_error` is neither of the two, or an image cannot be
            read; the message names it.

    Examples:
        >>> dataset = create_dataset("critters", "train", per_class=1)
        >>> transform = create_views(Preprocessing(), {"genus": 32, "family": 12}, train=True)
        >>> views, labels, index = TransformedImages(dataset, transform, indices=[35])[0]
        >>> views["family"].shape, labels, index
        (torch.Size([3, 448, 448]), tensor([ 3, 11, 35]), 35)
    """

    def __init__(
        self,
        dataset: LabelledImages,
        transform: Callable[[Image.Image], Any],
        indices: Sequence[int] | None = None,
        on_error: str = "raise",
        shorter_side: int | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise unknown_name("on_error", on_error, ("raise", "skip"))
        self.dataset = dataset
        self.transform = transform
        self.indices = list(range(len(dataset)) if indices is None else indices)
        self.labels = labels_of(dataset)
        self.on_error = on_error
        self.shorter_side = shorter_side

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Any, Tensor, int]:
        index = self.indices[position]
        try:
            image = load_image(self.dataset, index, self.shorter_side)
        except UNREADABLE as error:
            if self.on_error == "raise":
                name = name_of(self.dataset, index)
                raise ValueError(f"{name} cannot be used: {error}; or let on_error: skip leave it out") from error
            black = Image.new("RGB", (self.shorter_side or 1, self.shorter_side or 1))
            return self.transform(black), torch.full_like(self.labels[index], -1), -1 - index
        return self.transform(image), self.labels[index], index


def load_image(dataset: LabelledImages, index: int, shorter_side: int | None = None) -> Image.Image:
    """A dataset's image, RGB; a JPEG perhaps decoded at a reduced size, of at least this shorter side in pixels."""
    read = getattr(dataset, "read", None)
    return read(index, shorter_side) if read is not None else dataset[index][0]


def read_error(dataset: LabelledImages, index: int) -> str:
    """Why an image cannot be read; "" if it can.

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
    """What to call an image in a message: its index, and its file where it has one.

    Examples:
        >>> name_of(create_dataset("critters", "train", per_class=1), 7)
        'image 7'
    """
    paths = getattr(dataset, "paths", None)
    return f"image {index}" + (f" ({paths[index]})" if paths else "")


class HideLabels:
    """A dataset of which some images are labelled down to a level only, as much real data is.

    Args:
        dataset: the images and all that is known of them.
        level: the finest level at which the images named keep their labels.
        indices: these images, by their index in the dataset.

    Raises:
        ValueError: the level is unknown, or the dataset's labels do not fit its tree.
        IndexError: there is no image of an index.

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
        if getattr(dataset, "paths", None):
            self.paths = dataset.paths  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.read(index), self.targets[index]

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """The image of an index; see `TransformedImages` for `shorter_side`."""
        return load_image(self.dataset, index, shorter_side)


class Joined:
    """Datasets of one tree, one behind the other; what each has of `paths`, `labels` and `read` is kept.

    Args:
        *datasets: the datasets.

    Raises:
        ValueError: they differ in their trees.
    """

    def __init__(self, *datasets: LabelledImages) -> None:
        self.datasets = datasets
        self.hierarchy = datasets[0].hierarchy
        if any(dataset.hierarchy != self.hierarchy for dataset in datasets):
            raise ValueError("the datasets to join differ in their class trees")
        self.labels = torch.cat([labels_of(dataset) for dataset in datasets])
        self.targets: list[int] = self.labels[:, -1].tolist()
        self._place = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
        if all(getattr(dataset, "paths", None) for dataset in datasets):
            self.paths = [path for dataset in datasets for path in dataset.paths]  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.read(index), self.targets[index]

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """The image of an index; see `TransformedImages` for `shorter_side`."""
        return load_image(*self._place[index], shorter_side)


def train_and_val(
    name: str, val_fraction: float, seed: int, **options: Any
) -> tuple[LabelledImages, list[int], list[int]]:
    """Opens a dataset's training images and says which of them train and which validate.

    Args:
        name: one of `list_datasets()`.
        val_fraction: share of each class's training images that validates, in [0, 1), where the dataset has no
            validation images of its own; 0: none.
        seed: seed of that split.
        **options: what the dataset of that name takes further.

    Returns:
        The dataset (with its own validation images at the end, where it has a split `"val"`), the indices of the
        training images, and those of the validation images.

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
