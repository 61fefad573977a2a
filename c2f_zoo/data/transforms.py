"""From a picture to the network's input, with no more detail than a resolution allows."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import nn
from torchvision.transforms import InterpolationMode, v2

from c2f_zoo.config import Preprocessing


class Shrink(nn.Module):
    """Shrinks a picture until its shorter side has `resolution` pixels; a smaller picture stays as it is.

    Antialiased, bilinear. The paper does not say how it shrinks, nor whether a resolution is the shorter
    side; it is here.

    Args:
        resolution: length in pixels of the shorter side, >= 1; None lets every picture through.

    Raises:
        ValueError: the resolution is less than 1.
    """

    def __init__(self, resolution: int | None) -> None:
        super().__init__()
        if resolution is not None and resolution < 1:
            raise ValueError(f"a resolution is 1 pixel or more, not {resolution}")
        self.resolution = resolution

    def forward(self, image: Image.Image) -> Image.Image:
        if self.resolution is None or min(image.size) <= self.resolution:
            return image
        return v2.functional.resize(image, [self.resolution], InterpolationMode.BILINEAR, antialias=True)


def create_transform(preprocessing: Preprocessing, resolution: int | None, train: bool) -> v2.Transform:
    """Shrinks to a resolution, resizes up to the network's input, crops, flips, normalises.

    Args:
        preprocessing: size, mean and std of the network's input.
        resolution: the shorter side in pixels that detail is cut down to; None keeps the picture's own.
        train: crop at a random place and flip at random, instead of cropping the centre.

    Returns:
        A callable from a PIL picture to a float32 tensor (channels, height, width).

    Examples:
        >>> transform = create_transform(Preprocessing(), resolution=64, train=False)
        >>> transform(Image.new("RGB", (500, 300))).shape
        torch.Size([3, 448, 448])
    """
    size = preprocessing.input_size[1:]
    crop: list[Any] = [v2.RandomCrop(size), v2.RandomHorizontalFlip()] if train else [v2.CenterCrop(size)]
    return v2.Compose(
        [
            Shrink(resolution),
            v2.Resize(preprocessing.resize, InterpolationMode(preprocessing.interpolation), antialias=True),
            *crop,
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
