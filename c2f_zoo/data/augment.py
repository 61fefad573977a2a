"""Augmentation of the full image in training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from c2f_zoo.config import Preprocessing
from c2f_zoo.data.resampling import KERNELS
from c2f_zoo.data.transforms import resize
from c2f_zoo.images.array_transform import check_channels, has_tensor_filters
from c2f_zoo.images.sizes import to_shorter_side
from c2f_zoo.registry import check_names


@dataclass
class Augmentation:
    """Changes of the full image, before its views are made; by default the paper's, a flip and a crop.

    Args:
        crop_scale: least fraction of the image's area in a random resized crop, in (0, 1]; 1: a crop of the resized
            image at a random place.
        color_jitter: strength of changes of brightness, contrast and saturation, in [0, 1]; 0: none.
        auto_augment: torchvision's `RandAugment` or `TrivialAugmentWide`, with their default settings; null: none.
        random_erasing: probability of erasing a rectangle, in [0, 1].

    Raises:
        ValueError: a value is out of range or unknown.
    """

    crop_scale: float = 1.0
    color_jitter: float = 0.0
    auto_augment: Literal["randaugment", "trivialaugment"] | None = None
    random_erasing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale <= 1:
            raise ValueError(f"crop_scale is a fraction of the image's area in (0, 1], not {self.crop_scale}")
        for name in ("color_jitter", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], not {getattr(self, name)}; 0 turns it off")
        if self.auto_augment is not None:
            check_names("auto_augment", [self.auto_augment], _AUTO_AUGMENT)


_AUTO_AUGMENT = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}


def create_crop(
    preprocessing: Preprocessing, augmentation: Augmentation, num_draws: int
) -> Callable[[Image.Image], dict[str, Tensor]]:
    """Create the transform of a training image to a crop for `Views`.

    It is neither shrunk to a level's resolution nor enlarged: `Views` does both. All random numbers are torch's.

    Args:
        preprocessing: size of the model's input, and the filter for resizing.
        augmentation: the changes of the image.
        num_draws: number of random numbers for each image, `Views.num_draws`.

    Returns:
        A callable from an RGB PIL image to a dictionary:

        - `image`: the crop's pixels, uint8 (H, W, C), contiguous, and a margin for the filter, in the top left corner;
          images larger than the model's are shrunk to its size;
        - `frame`: float32 (2, 5), for rows and columns: the number of pixels of the full image; the first pixel of the
          crop in the resized full image; the first pixel, and the number of pixels, of the crop in `image`; pixels of
          `image` for each of the crop. For a random resized crop they are those of a plain crop of the same scale: a
          small crop is like a photograph from nearby;
        - `draws`: random numbers in [0, 1), float32 (num_draws,).

    Raises:
        ValueError: the model expects neither 1 nor 3 channels.

    Examples:
        >>> crop = create_crop(Preprocessing(), Augmentation(crop_scale=0.5), num_draws=4)
        >>> {name: tuple(value.shape) for name, value in crop(Image.new("RGB", (500, 300))).items()}
        {'image': (452, 452, 3), 'frame': (2, 5), 'draws': (4,)}
    """
    check_channels(preprocessing)
    return partial(
        _crop, preprocessing, augmentation.crop_scale, _create_changes(augmentation, preprocessing), num_draws
    )


def _create_changes(augmentation: Augmentation, preprocessing: Preprocessing) -> list[Callable[[Any], Any]]:
    """Return the changes of the crop, a uint8 tensor (C, H, W)."""
    strength, changes = augmentation.color_jitter, []
    if augmentation.auto_augment is not None:
        changes.append(_AUTO_AUGMENT[augmentation.auto_augment]())
    if strength > 0:
        changes.append(v2.ColorJitter(strength, strength, strength))
    if changes:  # several times faster with Pillow
        changes = [v2.ToPILImage(), *changes, v2.PILToTensor()]
    if preprocessing.input_size[0] == 1:
        changes.insert(0, v2.Grayscale())
    if augmentation.random_erasing > 0:
        mean = [round(255 * value) for value in preprocessing.mean]  # 0 after normalization
        changes.append(v2.RandomErasing(augmentation.random_erasing, value=mean))
    return changes


# Pixels, the crop's top, left, height and width in them, and the full image's size and the crop's start in `frame`.
Place = tuple[Any, tuple[float, float, float, float], tuple[int, int], tuple[int, int]]


def _crop(
    p: Preprocessing, crop_scale: float, changes: list[Callable[[Any], Any]], num_draws: int, image: Image.Image
) -> dict[str, Tensor]:
    draws = torch.rand(num_draws)
    pixels, region, size, start = _random_crop(p, image) if crop_scale == 1 else _resized_crop(p, image, crop_scale)
    margin, frame, slices = KERNELS[p.interpolation][0], [], []
    for axis, (length, whole) in enumerate(zip(p.input_size[1:], v2.functional.get_size(pixels), strict=True)):
        low, extent = region[axis], region[2 + axis]
        first = max(math.floor(low) - margin, 0)
        count = min(math.ceil(low + extent) + margin, whole) - first
        unit = extent / length
        frame.append((size[axis], start[axis], start[axis] * unit + first - low, count, unit))
        slices.append((first, count))
    (top, height), (left, width) = slices
    x = v2.functional.crop(pixels, top, left, height, width)
    x = x if isinstance(x, Tensor) else v2.functional.pil_to_tensor(x)
    for change in changes:
        x = change(x)
    buffer = torch.zeros(*(length + 2 * margin + 2 for length in p.input_size[1:]), len(x), dtype=torch.uint8)
    buffer[:height, :width] = x.movedim(0, -1)
    return {"image": buffer, "frame": torch.tensor(frame), "draws": draws}


def _random_crop(p: Preprocessing, image: Image.Image) -> Place:
    """Choose a crop at a random place of the resized image; resize the image if it becomes smaller."""
    size, lengths = (image.height, image.width), p.input_size[1:]
    full = to_shorter_side(*size, p.resize)
    if full[0] < lengths[0] or full[1] < lengths[1]:
        raise ValueError(
            f"a crop of {lengths[0]} x {lengths[1]} does not fit into an image of {size[0]} x {size[1]} resized to "
            f"{full[0]} x {full[1]}; choose crop_scale < 1 or a smaller crop_pct"
        )
    start = int(torch.randint(full[0] - lengths[0] + 1, ())), int(torch.randint(full[1] - lengths[1] + 1, ()))
    if min(size) > p.resize:
        return _resize(p, image, full), (*start, *lengths), size, start
    units = size[0] / full[0], size[1] / full[1]
    region = (start[0] * units[0], start[1] * units[1], lengths[0] * units[0], lengths[1] * units[1])
    return image, region, size, start


def _resized_crop(p: Preprocessing, image: Image.Image, crop_scale: float) -> Place:
    """Choose a random resized crop; resize it if it becomes smaller."""
    top, left, height, width = v2.RandomResizedCrop.get_params(image, scale=[crop_scale, 1], ratio=[3 / 4, 4 / 3])
    _, *lengths = p.input_size
    zoom = min(height / lengths[0], width / lengths[1]) * p.resize / min(image.size)
    size = max(round(image.height * zoom), 1), max(round(image.width * zoom), 1)
    full = to_shorter_side(*size, p.resize)
    start = (full[0] - lengths[0]) // 2, (full[1] - lengths[1]) // 2
    if height <= lengths[0] and width <= lengths[1]:
        return image, (top, left, height, width), size, start
    region = image.crop((left, top, left + width, top + height))
    return _resize(p, region, (lengths[0], lengths[1])), (0, 0, lengths[0], lengths[1]), size, start


def _resize(p: Preprocessing, image: Image.Image, size: tuple[int, int]) -> Any:
    x = v2.functional.pil_to_tensor(image) if has_tensor_filters(p) else image
    return resize(x, size, p.interpolation)
