"""Sizes of images: when they are shrunk to a resolution and resized for a network."""

from __future__ import annotations

import math

from PIL import Image

from c2f_zoo.config import Preprocessing


def to_shorter_side(height: int, width: int, side: int) -> tuple[int, int]:
    """Return a size by its shorter side; the longer side is floored as in torchvision's `v2.Resize`."""
    return height * side // min(height, width), width * side // min(height, width)


def to_resolution(height: int, width: int, resolution: int | None, measure: str) -> tuple[int, int]:
    """Return the size of an image that is shrunk to a resolution; a smaller image keeps its size.

    Args:
        height: height in pixels.
        width: width in pixels.
        resolution: the resolution in pixels; None keeps the size.
        measure: `"side"`, the shorter side, or `"area"`, the square root of the area.

    Examples:
        >>> to_resolution(300, 500, 64, "side"), to_resolution(40, 80, 64, "side"), to_resolution(50, 200, 50, "area")
        ((64, 106), (40, 80), (25, 100))
    """
    own = min(height, width) if measure == "side" else math.sqrt(height * width)
    if resolution is None or own <= resolution:
        return height, width
    if measure == "side":
        return to_shorter_side(height, width, resolution)
    scale = resolution / own
    return max(round(height * scale), 1), max(round(width * scale), 1)


def to_input(height: int, width: int, side: int | None) -> tuple[int, int]:
    """Return the size of an image of (height, width) that is resized for a network.

    Args:
        height: height in pixels.
        width: width in pixels.
        side: the shorter side of the result in pixels; None keeps the size.

    Raises:
        ValueError: the result has more than `PIL.Image.MAX_IMAGE_PIXELS` pixels.
    """
    size = (height, width) if side is None else to_shorter_side(height, width, side)
    if Image.MAX_IMAGE_PIXELS is not None and size[0] * size[1] > max(Image.MAX_IMAGE_PIXELS, height * width):
        raise ValueError(
            f"an image of {width} x {height} pixels, resized to {size[1]} x {size[0]}, exhausts the memory; crop it"
        )
    return size


def crop_box_of(preprocessing: Preprocessing, width: int, height: int) -> tuple[float, float, float, float]:
    """Return the part of an image that is the model's input when it is not trained.

    Args:
        preprocessing: see `create_transform`.
        width: width of the image.
        height: height of the image.

    Returns:
        Left, top, right and bottom as fractions of the image's width and height.

    Examples:
        >>> crop_box_of(Preprocessing(input_size=(3, 100, 100), crop_pct=1.0), width=400, height=200)
        (0.25, 0.0, 0.75, 1.0)
    """
    rows, columns = to_shorter_side(height, width, preprocessing.resize)
    crop_rows, crop_columns = preprocessing.input_size[1:]
    top, left = round((rows - crop_rows) / 2), round((columns - crop_columns) / 2)  # as in v2.CenterCrop
    return left / columns, top / rows, (left + crop_columns) / columns, (top + crop_rows) / rows
