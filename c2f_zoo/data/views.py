"""Views of training images at each level's resolution, made in batches on the model's device."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from c2f_zoo.config import Preprocessing
from c2f_zoo.data.resampling import KERNELS, resample, shrinking_matrices
from c2f_zoo.data.transforms import Normalize


class Views(nn.Module):
    """Make views of a batch of crops, each at its level's resolution.

    A view at full size equals that of `create_transform` at the same place of the image exactly. An image shrunk to
    half its shorter side or less differs by at most 2/255 in the mean, and 8/255 at any pixel that is 1.5 pixels of the
    small image or more from the edge: the crop was resized before it is shrunk, and does not contain what the small
    image's outer pixels see beyond it. The tests compare both on images with the spectrum of photographs; those
    on a GPU have not been run. All filters are supported, and images are resized in float32.

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
        resolution = self.resolutions[key]
        images, start = self._flip(crop, list(self.resolutions).index(key))
        if resolution is None:
            return self.normalize(images)
        resolutions = torch.full_like(start[:, :1], resolution)
        return self.normalize(self._shrink(images, crop["size"], start, resolutions, most=resolution), inplace=True)

    def at_random(self, crop: Mapping[str, Tensor]) -> Tensor:
        """Make a view of each image at a random resolution.

        The resolution is drawn log-uniformly between the coarsest of `resolutions` and full size, by the last draw.

        Args:
            crop: see `forward`.

        Returns:
            Normalized images float32 (N, C, H, W).
        """
        images, start = self._flip(crop, 0)
        known = [resolution for resolution in self.resolutions.values() if resolution is not None]
        if not known:
            return self.normalize(images)
        size, most = crop["size"], self.preprocessing.resize
        full = _measure(size, self.preprocessing) * (most / size.amin(dim=1, keepdim=True)).clamp(max=1)
        ratio = (full / min(known)).clamp(min=1)
        resolutions = (min(known) * ratio ** crop["draws"][:, -1:]).round().long()
        return self.normalize(self._shrink(images, size, start, resolutions, most), inplace=True)

    def _flip(self, crop: Mapping[str, Tensor], draw: int) -> tuple[Tensor, Tensor]:
        """Flip images whose draw is below 1/2; return them and the places of the crops (N, 2)."""
        images, start = crop["image"], crop["start"]
        is_flipped = crop["draws"][:, draw] < 0.5
        mirrored = _to_shorter_side(crop["size"], self.preprocessing.resize)[:, 1] - images.shape[2] - start[:, 1]
        left = mirrored.where(is_flipped, start[:, 1])
        # On a CPU several times faster than torch.where.
        index = torch.arange(len(images), device=images.device) + len(images) * is_flipped
        flipped = torch.cat([images, images.flip(2)]).index_select(0, index)
        return flipped, torch.stack([start[:, 0], left], dim=1)

    def _shrink(self, images: Tensor, size: Tensor, start: Tensor, resolutions: Tensor, most: int) -> Tensor:
        """Shrink crops to the resolutions (N, 1) of whole images, at most `most`, and resize them back."""
        p = self.preprocessing
        small, full = _small_size(size, resolutions, p), _to_shorter_side(size, p.resize)
        is_shrunk = (_measure(size, p) > resolutions) & (small < full).all(dim=1, keepdim=True)
        matrices = []
        for axis, length in enumerate(images.shape[1:3]):
            count = math.ceil(length * min(most / p.resize, 1)) + 2 * KERNELS[p.interpolation][0] + 3
            along = (small[:, axis], full[:, axis], start[:, axis])
            matrices.append(shrinking_matrices(*along, length, count, p.shrink_filter, p.interpolation))
        return resample(images, is_shrunk[:, 0], *matrices)


def _measure(size: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return what a resolution measures (N, 1) of the sizes (N, 2) of images."""
    if preprocessing.resolution_of == "side":
        return size.amin(dim=1, keepdim=True)
    return size.prod(dim=1, keepdim=True).sqrt()


def _small_size(size: Tensor, resolutions: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return the sizes (N, 2) of images shrunk to the resolutions (N, 1), as `Degrade` does."""
    if preprocessing.resolution_of == "side":
        return _to_shorter_side(size, resolutions)
    return (size * (resolutions / _measure(size, preprocessing))).round().long().clamp(min=1)


def _to_shorter_side(size: Tensor, side: int | Tensor) -> Tensor:
    return size * side // size.amin(dim=1, keepdim=True)
