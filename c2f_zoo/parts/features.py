"""Features of regions: one pass of a backbone for an image."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import roi_align

from c2f_zoo.config import Preprocessing
from c2f_zoo.data import Normalize

MAX_FEATURES = 2048
CONTEXT = 0.5  # of the box's size at each side
_STRIDE = 32  # sides of the network's input are multiples of it


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
    backbone: nn.Module,
    image: Image.Image,
    boxes: Tensor,
    preprocessing: Preprocessing,
    longer_side: int,
    bf16: bool = False,
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
        bf16: compute the map under autocast to bfloat16.

    Returns:
        Features (k, `num_features`), float16: the cells of the box, then the surroundings; zeros for no box.

    Raises:
        ValueError: the backbone returns several maps, or one with too many channels.
    """
    scale = longer_side / max(image.size)
    height, width = (max(1, round(side * scale / _STRIDE)) * _STRIDE for side in (image.height, image.width))
    pixels = torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BILINEAR)))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
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
