"""The transform without PyTorch, against the one of torchvision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from c2f_zoo.config import Preprocessing
from c2f_zoo.data import create_transform
from c2f_zoo.evaluation.photos import draw_photo
from c2f_zoo.images.array_transform import ArrayTransform

STD = 0.25
SIZES = [(170, 113), (120, 200), (31, 260), (64, 64)]  # a long one, and one smaller than the input


def preprocessing(size: tuple[int, int, int], **options: Any) -> Preprocessing:
    return Preprocessing(size, (0.5,) * size[0], (STD,) * size[0], **options)


def differences(p: Preprocessing, resolution: int | None, image: Image.Image) -> np.ndarray:
    """Return the differences of an image's pixels, in steps of 8 bits."""
    expected, found = create_transform(p, resolution, train=False)(image).numpy(), ArrayTransform(p, resolution)(image)
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    return np.abs(found - expected) * STD * 255


@pytest.mark.parametrize("size", [(3, 96, 96), (1, 96, 96), (3, 64, 150), (3, 97, 60)])
@pytest.mark.parametrize(("filter", "limit"), [("bilinear", 1), ("bicubic", 2)])
@pytest.mark.parametrize("resolution", [None, 40, 7])
def test_pixels_are_those_of_torchvision(
    size: tuple[int, int, int], filter: str, limit: int, resolution: int | None
) -> None:
    p = preprocessing(size, interpolation=filter)
    for number, of_image in enumerate(SIZES):
        found = differences(p, resolution, draw_photo(of_image, seed=number))
        assert found.max() < limit + 1e-3
        assert found.mean() < 0.1


@pytest.mark.parametrize(
    ("shrink", "interpolation"), [("box", "lanczos"), ("hamming", "nearest"), ("bicubic", "lanczos")]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_filters_that_torchvision_leaves_to_pillow_give_the_same_pixels(
    shrink: str, interpolation: str, channels: int
) -> None:
    p = preprocessing((channels, 96, 96), shrink_filter=shrink, interpolation=interpolation, resolution_of="area")
    for number, of_image in enumerate(SIZES):
        assert differences(p, 40, draw_photo(of_image, seed=number)).max() < 1e-3


def test_the_nearest_pixel_is_the_same_unless_two_are_equally_near() -> None:
    p = preprocessing((3, 63, 63), interpolation="nearest", crop_pct=1.0)  # 3 x 3 new pixels for each old one
    assert differences(p, None, draw_photo((21, 21))).max() == 0


def test_other_numbers_of_channels_and_huge_results_are_refused() -> None:
    with pytest.raises(ValueError, match="3 channels, or 1 if converted to grey; the model expects 4"):
        ArrayTransform(preprocessing((4, 96, 96)), None)
    with pytest.raises(ValueError, match=r"an image of 90000 x 1 pixels, resized to .* exhausts the memory; crop it"):
        ArrayTransform(preprocessing((3, 96, 96)), None)(Image.new("RGB", (90000, 1)))
