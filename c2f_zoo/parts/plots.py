"""A figure of localized objects and parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from c2f_zoo.backbones.part_rcnn import REGIONS
from c2f_zoo.evaluation.plots import saved_figure

_COLORS = ("tab:red", "tab:blue", "gold")


def plot_detections(
    images: Sequence[Image.Image], found: Sequence[Tensor], truth: Sequence[Tensor], path: Path, columns: int = 4
) -> None:
    """Plot images with the localized boxes, and the annotated ones dashed.

    Args:
        images: the images, one or more.
        found: boxes (3, 4) of the regions in pixels, NaN for none, of each image.
        truth: the annotated boxes.
        path: the PNG file.
        columns: number of images in a row.
    """
    rows = math.ceil(len(images) / columns)
    with saved_figure(path, 2.6 * columns, 2.3 * rows + 0.4) as figure:
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax in axes:
            ax.set_axis_off()
        for ax, image, *both in zip(axes, images, found, truth, strict=False):
            ax.imshow(image)
            for boxes, style in zip(both, ("-", ":"), strict=True):
                for (left, top, right, bottom), color in zip(boxes.tolist(), _COLORS, strict=True):
                    if not math.isnan(left):
                        size = (right - left, bottom - top)
                        ax.add_patch(Rectangle((left, top), *size, fill=False, color=color, linestyle=style))
        handles = [Rectangle((0, 0), 1, 1, fill=False, color=color) for color in _COLORS]
        figure.legend(handles, [*REGIONS], loc="outside lower center", ncols=len(REGIONS), frameon=False)
