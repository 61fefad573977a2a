"""The sizes of a dataset's images."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Sequence

from c2f_zoo.config import Preprocessing
from c2f_zoo.data.registry import LabelledImages
from c2f_zoo.data.transformed_images import load_image
from c2f_zoo.images.formats import open_image
from c2f_zoo.images.reading import UNREADABLE


def median_side(dataset: LabelledImages, indices: Sequence[int], preprocessing: Preprocessing) -> int:
    """Return the images' median resolution in pixels.

    It is the shorter side, or the square root of the area, as the preprocessing defines it. The result is at most the
    size that images are resized to, since higher resolutions remove no detail.

    Args:
        dataset: the dataset.
        indices: indices of the images; unreadable ones are ignored.
        preprocessing: the model's preprocessing.

    Raises:
        ValueError: all images are unreadable.

    Examples:
        >>> median_side(create_dataset("critters", "train", per_class=1), [0, 1], Preprocessing())
        96
    """
    sizes = []
    for index in indices:
        with contextlib.suppress(*UNREADABLE):  # unreadable images are reported when they are read
            sizes.append(_image_size(dataset, index))
    if not sizes:
        raise ValueError(f"all {len(indices)} images are unreadable; check the data with `c2f-zoo data check`")
    in_side = preprocessing.resolution_of == "side"
    median = statistics.median(min(size) if in_side else math.sqrt(math.prod(size)) for size in sizes)
    return min(round(median), preprocessing.resize)


def _image_size(dataset: LabelledImages, index: int) -> tuple[int, int]:
    paths = getattr(dataset, "paths", None)
    if not paths:
        return load_image(dataset, index).size
    with open_image(paths[index]) as image:  # reads only the header
        return image.size
