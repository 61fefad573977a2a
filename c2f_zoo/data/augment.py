"""Augmentation of the full image in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class Augmentation:
    """Changes of the full image, before its views are made; by default the paper's, a flip and a crop.

    Args:
        crop_scale: least share of the image's area in a random resized crop, in (0, 1]; 1: a crop of the resized image
            at a random place.
        color_jitter: strength of changes of brightness, contrast and saturation, in [0, 1]; 0: none.
        auto_augment: torchvision's `RandAugment` or `TrivialAugmentWide`, with their default settings; null: none.
        random_erasing: probability of erasing a rectangle, in [0, 1].
    """

    crop_scale: float = 1.0
    color_jitter: float = 0.0
    auto_augment: Literal["randaugment", "trivialaugment"] | None = None
    random_erasing: float = 0.0
