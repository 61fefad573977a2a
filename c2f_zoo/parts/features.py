"""Features of regions: one pass of a backbone for an image."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from c2f_zoo.backbones.box_features import box_features, num_features
from c2f_zoo.config import Preprocessing
from c2f_zoo.data import Normalize

_STRIDE = 32  # sides of the network's input are multiples of it


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

    RoIAlign averages the map in the cells of each box and in its surroundings, see
    `c2f_zoo.backbones.box_features.box_features`.

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
    features = torch.zeros(len(boxes), num_features(channels), dtype=torch.float16)
    features[known] = box_features(x, boxes[known] * per_pixel).half()
    return features
