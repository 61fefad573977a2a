"""Figure of what each level of a model looked at."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image
from torch.nn.functional import interpolate

from c2f_zoo.config import Preprocessing, format_resolution
from c2f_zoo.data.transforms import Degrade
from c2f_zoo.evaluation.plots import saved_figure
from c2f_zoo.inference.heat_maps import Explanation

_COLORS = "inferno"
_OPACITY = 0.8  # of the hottest place
_SIDE = 384  # pixels of the longer side of an image in the figure


def plot_heat_maps(found: Explanation, preprocessing: Preprocessing, path: Path) -> None:
    """Plot heat maps over the image: a column for each level, a row for each tap, and one for their sum.

    Each level's image is at the level's resolution. Trusted classes are green, guesses grey; the frame is what the
    model sees.

    Args:
        found: the heat maps.
        preprocessing: the model's.
        path: the PNG file.
    """
    trusted = {level for level, *_ in found.prediction.trusted_path}
    taps = list(next(iter(found.levels.values())).taps)
    rows = taps if len(taps) == 1 else [*taps, "all taps"]
    aspect = found.image.height / found.image.width
    with saved_figure(path, 0.5 + 2.6 * len(found.levels), 0.6 + (2.6 * aspect + 0.1) * len(rows)) as figure:
        axes = figure.subplots(len(rows), len(found.levels), squeeze=False)
        for column, (level, heat) in enumerate(found.levels.items()):
            image = level_image(found.image, heat.resolution, preprocessing)
            for row, tap in enumerate(rows):
                values = heat.taps.get(tap, heat.total)
                _show(axes[row, column], blend_heat(image, values, found.window), found)
            seen = "" if heat.resolution is None else f", {format_resolution(heat.resolution)}"
            color = "tab:green" if level in trusted else "0.45"
            title = f"{level}{seen}\n{heat.step[1]} {100 * heat.step[2]:.0f} %"
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


def blend_heat(image: Image.Image, heat: np.ndarray, window: tuple[float, float, float, float]) -> Image.Image:
    """Blend a heat map over an image.

    Only what speaks for the class is shown; the hottest place has the brightest colour.

    Args:
        image: an image in RGB.
        heat: the heat map (H, W).
        window: the part of the image that it covers, see `Explanation`.

    Returns:
        An image in RGB, of the same size.

    Examples:
        >>> heat = np.array([[0.0, -1.0], [-1.0, -1.0]])
        >>> blend_heat(Image.new("RGB", (8, 8), "white"), heat, (0, 0, 1, 1)).getpixel((7, 7))
        (255, 255, 255)
    """
    width, height = image.size
    left, top, right, bottom = (round(at * side) for at, side in zip(window, (width, height) * 2, strict=True))
    hot = torch.from_numpy(np.maximum(heat, 0, dtype=np.float32))[None, None]
    large = interpolate(hot, (bottom - top, right - left), mode="bilinear")[0, 0].numpy()
    large = large / max(float(large.max()), np.finfo(np.float32).tiny)
    whole = np.zeros((height, width), np.float32)
    inside = (slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width)))
    whole[inside] = large[inside[0].start - top : inside[0].stop - top, inside[1].start - left : inside[1].stop - left]
    colors = matplotlib.colormaps[_COLORS](whole)[..., :3] * 255
    opacity = _OPACITY * whole[..., None]
    return Image.fromarray((opacity * colors + (1 - opacity) * np.asarray(image)).round().astype(np.uint8))


def _show(ax: Axes, image: Image.Image, found: Explanation) -> None:
    """Show an image with the frame of what the model sees."""
    left, top, right, bottom = found.window
    ax.imshow(image, extent=(0, 1, 1, 0), aspect=found.image.height / found.image.width)
    ax.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec="0.9", ls=":", lw=0.8))
    ax.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
