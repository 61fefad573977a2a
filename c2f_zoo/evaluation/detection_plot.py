"""A figure of detected boxes without the images: boxes and the annotated points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

COLORS = ("tab:red", "tab:blue", "gold")  # of the regions, in the order of the rows
_COLUMNS = 4


def plot_boxes(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Plot the boxes of images on a plain ground: the found ones, the annotated ones dotted, and the annotated points.

    Args:
        rows: rows with `image`, its `width` and `height` in pixels, `kind` (`found`, `annotated` or `point`), `of` (the
            region), and `left`, `top`, `right` and `bottom` in pixels; of a point `left` and `top` alone.

    Examples:
        >>> row = {"image": "7", "width": "80", "height": "60", "kind": "found", "of": "head"}
        >>> figure = plot_boxes([row | {"left": "9", "top": "9", "right": "30", "bottom": "20"}])
        >>> [patch.get_width() for patch in figure.axes[0].patches]
        [21.0]
    """
    images = list(dict.fromkeys(row["image"] for row in rows))
    regions = list(dict.fromkeys(row["of"] for row in rows if row["kind"] != "point"))
    color_of = dict(zip(regions, COLORS, strict=False))
    count = math.ceil(len(images) / _COLUMNS)
    figure = Figure(figsize=(2.2 * _COLUMNS, 1.9 * count + 0.4), layout="constrained")
    axes = list(figure.subplots(count, _COLUMNS, squeeze=False).flat)
    for ax in axes[len(images) :]:
        ax.set_axis_off()
    for ax, image in zip(axes, images, strict=False):
        own = [row for row in rows if row["image"] == image]
        ax.set(
            xlim=(0, float(own[0]["width"])), ylim=(float(own[0]["height"]), 0), aspect="equal", xticks=[], yticks=[]
        )
        ax.set_facecolor("0.95")
        for row in own:
            left, top = float(row["left"]), float(row["top"])
            color = color_of.get(row["of"], "0.6")
            if row["kind"] == "point":
                ax.plot(left, top, ".", color=color, markersize=5)
                continue
            size = (float(row["right"]) - left, float(row["bottom"]) - top)
            style = "-" if row["kind"] == "found" else ":"
            ax.add_patch(Rectangle((left, top), *size, fill=False, color=color, linestyle=style, linewidth=1.5))
    handles = [Line2D([], [], color=color, label=region) for region, color in color_of.items()]
    handles.append(Line2D([], [], color="0.3", linestyle="-", label="found"))
    handles.append(Line2D([], [], color="0.3", linestyle=":", label="annotated"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure
