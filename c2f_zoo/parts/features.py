"""Features of regions: one pass of a backbone for an image, and a cache on disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.ops import roi_align

from c2f_zoo.config import Preprocessing
from c2f_zoo.data import Normalize
from c2f_zoo.io.files import atomic_write

MAX_FEATURES = 2048
MAX_BYTES = 10 * 10**9
CONTEXT = 0.5  # of the box's size at each side
_STRIDE = 32  # sides of the network's input are multiples of it


class Regions(NamedTuple):
    """The regions of an image.

    Attributes:
        truth: the annotated boxes (3, 4) of the object, head and body, in pixels of the image; NaN where hidden.
        truth_features: their features (3, D), float16; zeros where hidden.
        proposals: the proposed boxes (k, 4).
        features: their features (k, D), float16.
    """

    truth: Tensor
    truth_features: Tensor
    proposals: Tensor
    features: Tensor


def grid_size(channels: int) -> int:
    """Return the largest g for which g x g cells of a box and one cell of its surroundings have at most 2048 numbers.

    Raises:
        ValueError: there are too many channels for two cells.

    Examples:
        >>> grid_size(512), grid_size(112)
        (1, 4)
    """
    if 2 * channels > MAX_FEATURES:
        raise ValueError(
            f"the map has {channels} channels; two cells of a region have at most {MAX_FEATURES} numbers. Choose a tap "
            f"with {MAX_FEATURES // 2} channels or less"
        )
    return math.isqrt(MAX_FEATURES // channels - 1)


def num_features(channels: int) -> int:
    """Return the number of features of a region.

    Examples:
        >>> num_features(512), num_features(112)
        (1024, 1904)
    """
    return channels * (grid_size(channels) ** 2 + 1)


@torch.no_grad()
def region_features(
    backbone: nn.Module, image: Image.Image, boxes: Tensor, preprocessing: Preprocessing, longer_side: int
) -> Tensor:
    """Compute the features of boxes from one pass of a backbone over the whole image.

    RoIAlign averages the map in the cells of each box (`grid_size`), and in the box enlarged by half its size at each
    side. Without its surroundings, a small box in the middle of a bird would look like the bird.

    Args:
        backbone: images (1, 3, H, W) -> list of one map, e.g. a `TapBackbone` in evaluation mode.
        image: the image in RGB.
        boxes: boxes (k, 4) in its pixels; NaN: no box.
        preprocessing: the mean and standard deviation of the network's input.
        longer_side: longer side of the input in pixels; both sides are rounded to multiples of 32.

    Returns:
        Features (k, `num_features`), float16: the cells of the box, then the surroundings; zeros for no box.

    Raises:
        ValueError: the backbone returns several maps, or one with too many channels.
    """
    scale = longer_side / max(image.size)
    height, width = (max(1, round(side * scale / _STRIDE)) * _STRIDE for side in (image.height, image.width))
    pixels = torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BILINEAR)))
    maps = backbone(Normalize(preprocessing.mean, preprocessing.std)(pixels)[None])
    if len(maps) != 1:
        raise ValueError(f"regions need one map, and the backbone has {len(maps)} taps; name one")
    x, channels = maps[0].float(), maps[0].shape[1]
    per_pixel = torch.tensor([x.shape[3] / image.width, x.shape[2] / image.height]).repeat(2)
    known = boxes.isfinite().all(dim=1)
    inner = boxes[known] * per_pixel
    grown = CONTEXT * (inner[:, 2:] - inner[:, :2])
    outer = torch.cat([inner[:, :2] - grown, inner[:, 2:] + grown], dim=1)
    cells = [
        roi_align(x, [regions], output_size=size, aligned=True).flatten(start_dim=1)
        for regions, size in ((inner, grid_size(channels)), (outer, 1))
    ]
    features = torch.zeros(len(boxes), num_features(channels), dtype=torch.float16)
    features[known] = torch.cat(cells, dim=1).half()
    return features


class RegionCache:
    """A folder with the regions of images, one file for each image.

    An interrupted extraction continues where it stopped. A file is found by the content of its image, the annotated
    boxes and the settings.

    Args:
        folder: the folder; it is created if it does not exist.
        settings: all that the regions depend on, besides the image and the boxes; written as JSON.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.settings = json.dumps(settings, sort_keys=True)
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, path: Path, truth: Tensor, compute: Callable[[], tuple[Tensor, Tensor, Tensor]]) -> Path:
        """Return the file of an image's regions; compute them if it does not exist.

        Args:
            path: the image.
            truth: the annotated boxes (3, 4).
            compute: returns the annotated boxes' features, the proposals and their features.
        """
        key = hashlib.blake2b(digest_size=16)
        for content in (self.settings.encode(), path.read_bytes(), truth.numpy().tobytes()):
            key.update(hashlib.blake2b(content).digest())
        file = self.folder / f"{key.hexdigest()}.safetensors"
        if not file.exists():
            tensors = dict(zip(Regions._fields, (truth, *compute()), strict=True))
            atomic_write(file, lambda part: save_file({name: x.clone() for name, x in tensors.items()}, part))
        return file


def load_regions(file: Path) -> Regions:
    """Load a file of a `RegionCache`.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return Regions(**load_file(file))
    except (SafetensorError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}; delete it, and it is computed again") from error


def check_space(images: int, proposals: int, features: int, limit: int = MAX_BYTES) -> None:
    """Raise a ValueError if the regions of images may take more space than allowed.

    Examples:
        >>> check_space(images=2202, proposals=1000, features=2048)
        >>> check_space(images=11788, proposals=1000, features=2048)
        Traceback (most recent call last):
        ValueError: the regions of 11788 images take up to 48.4 GB, the limit is 10.0 GB; set proposals to 204 or less
    """
    bytes_each = images * 2 * features
    needed = bytes_each * (proposals + 3)
    if needed > limit:
        most = max(limit // bytes_each - 3, 0)
        raise ValueError(
            f"the regions of {images} images take up to {needed / 1e9:.1f} GB, the limit is {limit / 1e9:.1f} GB; "
            f"set proposals to {most} or less"
        )
