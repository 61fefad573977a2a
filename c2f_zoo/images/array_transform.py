"""The transform from an image to a network's input, by Pillow and NumPy alone."""

from __future__ import annotations

import numpy as np
from PIL import Image

from c2f_zoo.config import Preprocessing
from c2f_zoo.images.sizes import to_input, to_resolution

TENSOR_FILTERS = {"bilinear", "bicubic", "nearest"}


class ArrayTransform:
    """The transform of `c2f_zoo.data.create_transform` for evaluation, without PyTorch.

    It shrinks the image to the resolution, resizes it to the network's input, crops the centre and normalizes. Pillow
    resizes the image, so that before normalization a pixel differs from that of `create_transform` by at most 1/255
    with the bilinear and 2/255 with the bicubic filter, and by less than 0.1/255 in the mean. `"nearest"` chooses the
    same pixel, unless two are equally near. With `"box"`, `"hamming"` and `"lanczos"`, for which `create_transform`
    uses Pillow too, the pixels are the same.

    Args:
        preprocessing: size, mean and std of the network's input, and the filters.
        resolution: the resolution to shrink to; None keeps that of the image.

    Raises:
        ValueError: the network expects neither 1 nor 3 channels.

    Examples:
        >>> x = ArrayTransform(Preprocessing(), resolution=64)(Image.new("RGB", (500, 300)))
        >>> x.shape, x.dtype
        ((3, 448, 448), dtype('float32'))
    """

    def __init__(self, preprocessing: Preprocessing, resolution: int | None) -> None:
        check_channels(preprocessing)
        self.preprocessing, self.resolution = preprocessing, resolution
        mean, std = (np.asarray(one, np.float32) for one in (preprocessing.mean, preprocessing.std))
        self._mean, self._std = (np.float32(255) * one[:, None, None] for one in (mean, std))

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return the input float32 (channels, height, width) of an RGB image."""
        p = self.preprocessing
        is_grey = p.input_size[0] == 1
        if is_grey and has_tensor_filters(p):  # the order of create_transform
            image = Image.fromarray(_to_grey(np.asarray(image)))
        small = to_resolution(image.height, image.width, self.resolution, p.resolution_of)
        size = to_input(image.height, image.width, p.resize)
        image = _resize(_resize(image, small, p.shrink_filter), size, p.interpolation)
        if is_grey:
            image = image.convert("L")
        pixels = np.asarray(_crop_centre(image, p.input_size[1], p.input_size[2]))
        channels = pixels[None] if is_grey else np.moveaxis(pixels, -1, 0)
        return np.ascontiguousarray((channels - self._mean) / self._std)


def check_channels(preprocessing: Preprocessing) -> None:
    """Check that images can be converted to the network's number of channels.

    Raises:
        ValueError: the network expects neither 1 nor 3 channels.
    """
    expected = preprocessing.input_size[0]
    if expected not in (1, 3):
        raise ValueError(f"an image has 3 channels, or 1 if converted to grey; the model expects {expected}")


def has_tensor_filters(preprocessing: Preprocessing) -> bool:
    """Return whether torchvision resizes tensors with both filters."""
    return {preprocessing.shrink_filter, preprocessing.interpolation} <= TENSOR_FILTERS


def _to_grey(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 (H, W) of RGB uint8 (H, W, 3), not rounded but truncated, as torchvision does."""
    red, green, blue = np.moveaxis(pixels.astype(np.float32), -1, 0)
    return (np.float32(0.2989) * red + np.float32(0.587) * green + np.float32(0.114) * blue).astype(np.uint8)


def _resize(image: Image.Image, size: tuple[int, int], filter: str) -> Image.Image:
    """Resize an image to (height, width)."""
    return image.resize(size[::-1], Image.Resampling[filter.upper()])


def _crop_centre(image: Image.Image, height: int, width: int) -> Image.Image:
    """Crop the centre as torchvision's `v2.CenterCrop`; where the image is smaller, it is padded with black first."""
    rows, columns = max(height - image.height, 0), max(width - image.width, 0)
    top = -(rows // 2) if rows else round((image.height - height) / 2)
    left = -(columns // 2) if columns else round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))
