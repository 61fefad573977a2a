"""Region proposals by selective search."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SEARCHED = 300  # pixels of the longer side: half a second on one core; at 400 the recall is the same on training birds


def selective_search(image: Image.Image, limit: int = 1000, longer_side: int = SEARCHED) -> Tensor:
    """Propose boxes of objects and parts by selective search in its fast mode.

    By Uijlings et al. (IJCV 2013), in OpenCV's implementation. OpenCV ranks the proposals with random numbers; of more
    than `limit`, the evenly spaced ones in the order of their areas are kept instead, so that the result is the same
    every time. The whole image is always among them.

    Args:
        image: an image in RGB.
        limit: maximum number of proposals, >= 1.
        longer_side: a longer image is reduced to this many pixels for the search.

    Returns:
        Distinct boxes (k, 4): left, top, right and bottom in pixels of the image, from the largest to the smallest.

    Raises:
        ImportError: OpenCV is not installed, or has no selective search.
    """
    cv2 = _import_opencv()
    scale = min(1.0, longer_side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image if size == image.size else image.resize(size, Image.Resampling.BOX)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(np.asarray(small)[:, :, ::-1]))  # BGR
    search.switchToSelectiveSearchFast()
    whole = np.array([[0, 0, *small.size]])  # x, y, width, height
    found = np.unique(np.concatenate([whole, np.reshape(search.process(), (-1, 4))]), axis=0)
    found = found[np.argsort(-found[:, 2] * found[:, 3], kind="stable")]
    if len(found) > limit:
        found = found[np.linspace(0, len(found) - 1, limit).round().astype(np.int64)]
    boxes = torch.from_numpy(np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1)).float()
    ratio = torch.tensor([image.width / small.width, image.height / small.height])
    return boxes * ratio.repeat(2)


def _import_opencv():  # type: ignore[no-untyped-def]
    """Return OpenCV with its contributed modules."""
    try:
        import cv2

        cv2.ximgproc.segmentation
    except (ImportError, AttributeError) as error:
        raise ImportError(
            "selective search needs OpenCV with its contributed modules: pip install 'c2f_zoo[parts]', or "
            "pip install opencv-contrib-python-headless"
        ) from error
    return cv2
