"""Figure of what each level of a model looked at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from c2f_zoo.backbones.part_rcnn import REGIONS
from c2f_zoo.config import Preprocessing, format_resolution
from c2f_zoo.data.transforms import Degrade
from c2f_zoo.evaluation.detection_plot import COLORS
from c2f_zoo.evaluation.photo_plot import shown_name
from c2f_zoo.evaluation.plots import saved_figure
from c2f_zoo.inference.heat_maps import Explanation
from c2f_zoo.inference.prediction import Box

_COLORS = "inferno"
_SUM = "all taps"
_FRAMES = dict(zip(REGIONS, COLORS, strict=True))
_OPACITY = 0.8  # of the hottest place
_SIDE = 384  # pixels of the longer side of an image in the figure


def plot_heat_maps(found: Explanation, preprocessing: Preprocessing, path: Path) -> None:
    """Plot heat maps over the image: a column for each level, a row for each tap, and one for their sum.

    Each level's image is at the level's resolution. Trusted classes are green, guesses grey. Frames are the parts of
    the image that the taps' maps cover: what the model sees, or its boxes of the object, the head and the body.

    Args:
        found: the heat maps.
        preprocessing: the model's.
        path: the PNG file.
    """
    trusted = {level for level, *_ in found.prediction.trusted_path}
    taps = list(next(iter(found.levels.values())).taps)
    rows = taps if len(taps) == 1 else [*taps, _SUM]
    aspect = found.image.height / found.image.width
    with saved_figure(path, 0.5 + 2.6 * len(found.levels), 0.6 + (2.6 * aspect + 0.1) * len(rows)) as figure:
        axes = figure.subplots(len(rows), len(found.levels), squeeze=False)
        for column, (level, heat) in enumerate(found.levels.items()):
            image = level_image(found.image, heat.resolution, preprocessing)
            for row, tap in enumerate(rows):
                shown = None if tap == _SUM else tap
                _show(axes[row, column], blend_heat(image, heat.on_image(image.size, shown)), aspect)
                _frame(axes[row, column], {one: heat.windows[one] for one in taps if shown in (one, None)})
            seen = "" if heat.resolution is None else f", {format_resolution(heat.resolution)}"
            color = "tab:green" if level in trusted else "0.45"
            title = f"{level}{seen}\n{shown_name(heat.step[1])} {100 * heat.step[2]:.0f} %"
            axes[0, column].set_title(title, fontsize=9, color=color)
        for row, tap in enumerate(rows):
            axes[row, 0].set_ylabel(tap, fontsize=8)


def level_image(image: Image.Image, resolution: int | None, preprocessing: Preprocessing) -> Image.Image:
    """Return an image as a level sees it, at a size for figures.

    Args:
        image: an image in RGB.
        resolution: the level's resolution; None is full size.
        preprocessing: the model's, whose filters shrink and enlarge.
    """
    p = preprocessing
    size = max(1, round(_SIDE * min(image.size) / max(image.size)))
    return Degrade(resolution, p.shrink_filter, size, p.interpolation, p.resolution_of)(image)


def blend_heat(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """Blend a heat map over an image.

    Only what speaks for the class is shown; the hottest place has the brightest colour.

    Args:
        image: an image in RGB.
        heat: the heat map (height, width) of the image, see `LevelHeat.on_image`.

    Returns:
        An image in RGB, of the same size.

    Examples:
        >>> blend_heat(Image.new("RGB", (2, 1), "white"), np.array([[-1.0, 2.0]])).getpixel((0, 0))
        (255, 255, 255)
    """
    hot = np.maximum(heat, 0)
    hot = hot / max(float(hot.max()), np.finfo(np.float32).tiny)
    colors = matplotlib.colormaps[_COLORS](hot)[..., :3] * 255
    opacity = _OPACITY * hot[..., None]
    return Image.fromarray((opacity * colors + (1 - opacity) * np.asarray(image)).round().astype(np.uint8))


def _show(ax: Axes, image: Image.Image, aspect: float) -> None:
    ax.imshow(image, extent=(0, 1, 1, 0), aspect=aspect)
    ax.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])


def _frame(ax: Axes, windows: Mapping[str, Box]) -> None:
    """Draw the windows of taps: those of a box in its colour, what the model sees dotted."""
    for tap, (left, top, right, bottom) in windows.items():
        style: Any = {"ec": _FRAMES[tap], "lw": 1.5} if tap in _FRAMES else {"ec": "0.9", "ls": ":", "lw": 0.8}
        ax.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, **style))
