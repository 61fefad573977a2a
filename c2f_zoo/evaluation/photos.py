"""Images with the statistics of photographs, for measurements and tests."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image


def draw_photo(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Draw an RGB image with the spectrum of photographs.

    Amplitudes fall as 1/frequency (Field, 1987): noise has the same contrast at every scale.

    Args:
        size: width and height in pixels.
        seed: seed of the noise.

    Examples:
        >>> draw_photo((60, 40)).size
        (60, 40)
    """
    rng = np.random.default_rng(seed)
    scene = np.zeros((size[1], size[0], 3), np.float32)
    for octave in range(1, math.ceil(math.log2(max(size))) + 1):
        noise = rng.integers(0, 256, (2**octave, 2**octave, 3), dtype=np.uint8)
        scene += np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)) - np.float32(127.5)
    return Image.fromarray((127.5 + 50 * scene / scene.std()).clip(0, 255).astype(np.uint8))


def draw_photos(folder: Path, size: tuple[int, int], count: int) -> None:
    """Draw JPEGs: shifts of one image with the spectrum of photographs.

    Args:
        folder: the folder to write them to.
        size: width and height in pixels.
        count: number of images.
    """
    pixels, rng = np.asarray(draw_photo(size)), np.random.default_rng(0)
    for number in range(count):
        shifted = np.roll(pixels, tuple(rng.integers(0, size[::-1])), axis=(0, 1))
        Image.fromarray(shifted).save(folder / f"{number:05}.jpg", quality=90)
