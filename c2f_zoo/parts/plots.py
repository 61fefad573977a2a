"""A figure of localized objects and parts, and the same as rows of a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from c2f_zoo.backbones.part_rcnn import REGIONS
from c2f_zoo.data.annotations import Annotation
from c2f_zoo.evaluation.detection_plot import COLORS
from c2f_zoo.evaluation.plots import saved_figure
from c2f_zoo.parts.boxes import PARTS


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
                for (left, top, right, bottom), color in zip(boxes.tolist(), COLORS, strict=True):
                    if not math.isnan(left):
                        size = (right - left, bottom - top)
                        ax.add_patch(Rectangle((left, top), *size, fill=False, color=color, linestyle=style))
        handles = [Rectangle((0, 0), 1, 1, fill=False, color=color) for color in COLORS]
        figure.legend(handles, [*REGIONS], loc="outside lower center", ncols=len(REGIONS), frameon=False)


def detection_rows(
    name: str, size: tuple[int, int], found: Tensor, truth: Tensor, annotation: Annotation
) -> Iterator[dict[str, Any]]:
    """Yield rows of an image for `c2f_zoo.evaluation.detection_plot.plot_boxes`.

    Args:
        name: the image's name.
        size: its width and height in pixels.
        found: the localized boxes (3, 4); NaN for none.
        truth: the annotated boxes (3, 4).
        annotation: the annotation, for the points.
    """
    first = {"image": name, "width": size[0], "height": size[1]}
    for kind, boxes in (("found", found), ("annotated", truth)):
        for region, (left, top, right, bottom) in zip(REGIONS, boxes.tolist(), strict=True):
            if not math.isnan(left):
                sides = {"left": left, "top": top, "right": right, "bottom": bottom}
                yield {**first, "kind": kind, "of": region} | {key: round(side, 1) for key, side in sides.items()}
    part_of = {point: part for part, points in PARTS.items() for point in points}
    for point, (x, y) in annotation.points.items():
        place = {"left": x, "top": y, "right": "", "bottom": ""}
        yield {**first, "kind": "point", "of": part_of.get(point, ""), **place}
