"""Views of training images at each level's resolution, made in batches on the model's device."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from c2f_zoo.config import Preprocessing
from c2f_zoo.data.resampling import KERNELS, resample, resampling_weights
from c2f_zoo.data.transforms import Normalize


class Views(nn.Module):
    """Make views of a batch of crops, each at its level's resolution.

    A view equals that of `create_transform` at the same place of the image within 3/255 with bilinear filters, 6/255
    with others, and 0.5/255 in the mean, at pixels that are 1.5 pixels of the small image or more from the edge. Nearer
    to it they may differ by more, because the small image's outer pixels see what is beyond the crop; so they may if
    the image is larger than the model's and shrunk by less than 4, or two pixels are equally near (`"nearest"`). A view
    at full size is equal exactly if the image is not enlarged. The tests compare both on images with the spectrum of
    photographs; those on a GPU have not been run. All filters are supported, and images are resized in float32.

    All views of an image show the same crop; each is flipped independently.

    Args:
        preprocessing: size, mean and std of the model's input, and the filters.
        resolutions: key, e.g. a level -> resolution of the view, see `Degrade`; None does not shrink.

    Raises:
        ValueError: a resolution is less than 1.

    Examples:
        >>> crop = create_crop(Preprocessing(), Augmentation(), num_draws=3)(Image.new("RGB", (500, 300)))
        >>> batch = {name: value[None] for name, value in crop.items()}
        >>> views = Views(Preprocessing(), {"species": None, "genus": 96})
        >>> views(batch, "genus").shape, views.at_random(batch).shape
        (torch.Size([1, 3, 448, 448]), torch.Size([1, 3, 448, 448]))
    """

    def __init__(self, preprocessing: Preprocessing, resolutions: Mapping[str, int | None]) -> None:
        super().__init__()
        for key, resolution in resolutions.items():
            if resolution is not None and resolution < 1:
                raise ValueError(f"the resolution of {key} must be 1 pixel or more, not {resolution}")
        self.preprocessing = preprocessing
        self.resolutions = dict(resolutions)
        self.normalize = Normalize(preprocessing.mean, preprocessing.std)

    @property
    def num_draws(self) -> int:
        """Number of random numbers for an image: for the flip of each view, and a resolution."""
        return len(self.resolutions) + 1

    def forward(self, crop: Mapping[str, Tensor], key: str) -> Tensor:
        """Make the views at the resolution of a key.

        Args:
            crop: a batch of the crops of `create_crop`, with at least `num_draws` draws.
            key: one of `resolutions`.

        Returns:
            Normalized images float32 (N, C, H, W).
        """
        draw, resolution = list(self.resolutions).index(key), self.resolutions[key]
        if resolution is None:
            return self._make(crop, draw)
        return self._make(crop, draw, torch.full_like(crop["frame"][:, 0, :1], resolution), most=resolution)

    def at_random(self, crop: Mapping[str, Tensor]) -> Tensor:
        """Make a view of each image at a random resolution.

        The resolution is drawn log-uniformly between the coarsest of `resolutions` and full size, by the last draw.

        Args:
            crop: see `forward`.

        Returns:
            Normalized images float32 (N, C, H, W).
        """
        known = [resolution for resolution in self.resolutions.values() if resolution is not None]
        if not known:
            return self._make(crop, 0)
        size, most = crop["frame"][:, :, 0], self.preprocessing.resize
        full = _measure(size, self.preprocessing) * (most / size.amin(dim=1, keepdim=True)).clamp(max=1)
        ratio = (full / min(known)).clamp(min=1)
        return self._make(crop, 0, (min(known) * ratio ** crop["draws"][:, -1:]).round(), most)

    def _make(self, crop: Mapping[str, Tensor], draw: int, resolutions: Tensor | None = None, most: int = 0) -> Tensor:
        """Make views at the resolutions (N, 1), at most `most`, or at full size, and flip some."""
        small = None if resolutions is None else _small_size(crop["frame"][:, :, 0], resolutions, self.preprocessing)
        vertical, horizontal = (self._matrices(crop, axis, small, most) for axis in (0, 1))
        is_flipped = crop["draws"][:, draw, None, None] < 0.5
        horizontal[-1] = horizontal[-1].flip(1).where(is_flipped, horizontal[-1])
        return self.normalize(resample(crop["image"], vertical, horizontal), inplace=True)

    def _matrices(self, crop: Mapping[str, Tensor], axis: int, small: Tensor | None, most: int) -> list[Tensor]:
        """Return the matrices from the pixels of the crop's image to the view, along one axis.

        Args:
            crop: the crops.
            axis: 0 for rows, 1 for columns.
            small: sizes (N, 2) to shrink the full images to; None does not shrink.
            most: an upper bound of the resolutions.
        """
        p, indices = self.preprocessing, torch.arange(crop["image"].shape[1 + axis], device=crop["image"].device)
        length = p.input_size[1 + axis]
        start, first, count, unit = crop["frame"][:, axis, 1:, None].unbind(1)
        points = start + 0.5 + indices[:length]  # of the view, in pixels of the resized full image
        pixels, exist = first + 0.5 + indices, indices < count
        if small is None:
            return [resampling_weights(points * unit, pixels, exist, 1.0, p.interpolation)]
        radius = KERNELS[p.interpolation][0]
        cell = _to_shorter_side(crop["frame"][:, :, 0], p.resize)[:, axis, None] / small[:, axis, None]
        num_cells = math.ceil(length * min(most / p.resize, 1)) + 2 * radius + 3
        cells = (points[:, :1] / cell - 0.5 - radius).floor() + torch.arange(num_cells, device=cell.device) + 0.5
        # The small image's pixels beyond the pixels at hand get the value at their edge.
        centres = (cells * cell * unit).clamp(first, first + count)
        down = resampling_weights(centres, pixels, exist, (cell * unit).clamp(min=1), p.shrink_filter)
        are_inside = (cells > 0) & (cells < small[:, axis, None])
        return [down, resampling_weights(points / cell, cells, are_inside, 1.0, p.interpolation)]


def _measure(size: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return what a resolution measures (N, 1) of the sizes (N, 2) of images."""
    if preprocessing.resolution_of == "side":
        return size.amin(dim=1, keepdim=True)
    return size.prod(dim=1, keepdim=True).sqrt()


def _small_size(size: Tensor, resolutions: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return the sizes (N, 2) of images shrunk to the resolutions (N, 1) as `Degrade` does, but not enlarged."""
    own = _measure(size, preprocessing)
    if preprocessing.resolution_of == "side":
        small = _to_shorter_side(size, resolutions)
    else:
        small = (size * (resolutions / own)).round().clamp(min=1)
    return small.where(own > resolutions, size).minimum(_to_shorter_side(size, preprocessing.resize))


def _to_shorter_side(size: Tensor, side: int | Tensor) -> Tensor:
    return (size.long() * side).div(size.amin(dim=1, keepdim=True), rounding_mode="floor")
