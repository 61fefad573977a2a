"""Augmentation of the full image in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from c2f_zoo.config import Preprocessing
from c2f_zoo.data.transforms import AnyImage, check_channels, has_tensor_filters, resize, to_shorter_side
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

    The crop is at full size: `Views` shrinks it to each level's resolution. All random numbers are torch's.

    Args:
        preprocessing: size of the model's input, and the filter for resizing.
        augmentation: the changes of the image.
        num_draws: number of random numbers for each image, `Views.num_draws`.

    Returns:
        A callable from an RGB PIL image to a dictionary:

        - `image`: the crop, uint8 (H, W, C), contiguous;
        - `size`: height and width of the full image before resizing, int64 (2,). For a random resized crop they are
          scaled as if the crop were a plain one: a small crop is like a close photograph;
        - `start`: the crop's first row and column in the resized full image, int64 (2,);
        - `draws`: random numbers in [0, 1), float32 (num_draws,).

    Raises:
        ValueError: the model expects neither 1 nor 3 channels.

    Examples:
        >>> crop = create_crop(Preprocessing(), Augmentation(crop_scale=0.5), num_draws=4)
        >>> {name: tuple(value.shape) for name, value in crop(Image.new("RGB", (500, 300))).items()}
        {'image': (448, 448, 3), 'size': (2,), 'start': (2,), 'draws': (4,)}
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
    if augmentation.random_erasing > 0:
        mean = [round(255 * value) for value in preprocessing.mean]  # 0 after normalization
        changes.append(v2.RandomErasing(augmentation.random_erasing, value=mean))
    return changes


def _crop(
    p: Preprocessing, crop_scale: float, changes: list[Callable[[Any], Any]], num_draws: int, image: Image.Image
) -> dict[str, Tensor]:
    draws = torch.rand(num_draws)
    x = v2.functional.pil_to_tensor(image) if has_tensor_filters(p) else image
    if p.input_size[0] == 1:
        x = v2.functional.rgb_to_grayscale(x)
    crop, size, start = _random_crop(p, x) if crop_scale == 1 else _random_resized_crop(p, x, crop_scale)
    if isinstance(crop, Image.Image):
        crop = v2.functional.pil_to_tensor(crop)
    for change in changes:
        crop = change(crop)
    pixels = crop.movedim(0, -1).contiguous()
    return {"image": pixels, "size": torch.tensor(size), "start": torch.tensor(start), "draws": draws}


def _random_crop(p: Preprocessing, image: AnyImage) -> tuple[AnyImage, tuple[int, int], tuple[int, int]]:
    """Return a crop of the resized image, and the size and start of `create_crop`."""
    height, width = v2.functional.get_size(image)
    lengths, full = p.input_size[1:], to_shorter_side(height, width, p.resize)
    if full[0] < lengths[0] or full[1] < lengths[1]:
        raise ValueError(
            f"a crop of {lengths[0]} x {lengths[1]} does not fit into an image of {height} x {width} resized to "
            f"{full[0]} x {full[1]}; choose crop_scale < 1 or a smaller crop_pct"
        )
    top, left = (int(torch.randint(whole - length + 1, ())) for whole, length in zip(full, lengths, strict=True))
    resized = resize(image, full, p.interpolation)
    return v2.functional.crop(resized, top, left, *lengths), (height, width), (top, left)


def _random_resized_crop(
    p: Preprocessing, image: AnyImage, crop_scale: float
) -> tuple[AnyImage, tuple[int, int], tuple[int, int]]:
    """Return a random resized crop, and the size and start of `create_crop`."""
    height, width = v2.functional.get_size(image)
    top, left, *region = v2.RandomResizedCrop.get_params(image, scale=[crop_scale, 1], ratio=[3 / 4, 4 / 3])
    crop = resize(v2.functional.crop(image, top, left, *region), p.input_size[1:], p.interpolation)
    pitch = min(side / length for side, length in zip(region, p.input_size[1:], strict=True))
    zoom = pitch * p.resize / min(height, width)
    size = max(round(height * zoom), 1), max(round(width * zoom), 1)
    full = to_shorter_side(*size, p.resize)
    return crop, size, ((full[0] - p.input_size[1]) // 2, (full[1] - p.input_size[2]) // 2)
