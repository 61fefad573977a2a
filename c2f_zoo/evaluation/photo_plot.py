"""Figures of one photo at several resolutions, with what is predicted and trusted at each."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from c2f_zoo.evaluation.plots import saved_figure
from c2f_zoo.hierarchy.escape import printable
from c2f_zoo.inference.prediction import Prediction
from c2f_zoo.io.files import atomic_write

_COLUMN, _NAMES, _ROW, _TITLE, _NOTE = 2.2, 0.95, 0.62, 0.4, 0.3  # inches
_GAP = 0.08  # inches between columns and between rows
_ASPECTS = 0.75, 1.8  # width to height; a photo beyond is shown smaller
_LINE_CHARACTERS = 16  # of a class name in a column
_COLORS = {"trusted": ("#d5efd8", "#14602a"), "guess": ("#f2f2f2", "#7a7a7a"), "path": ("#dde8f5", "#234a75")}
_FRAME_MS, _LAST_FRAME_MS = 900, 2500
_FRAME_DPI = 180  # of an animation, whose frames have one column


def plot_predictions(
    images: Mapping[str, Image.Image], predictions: Sequence[Prediction], path: Path, note: str = ""
) -> None:
    """Plot images side by side, with the class of each level: green where it is trusted, grey where it is a guess.

    A model without calibration trusts nothing; its classes are blue.

    Args:
        images: title -> image, of about equal shape.
        predictions: the prediction of each image, by one model.
        path: the PNG file.
        note: a line below.
    """
    with saved_figure(path, *_size(images, predictions, note)) as figure:
        draw_predictions(figure, images, predictions, note)


def animate_predictions(
    images: Mapping[str, Image.Image], predictions: Sequence[Prediction], path: Path, note: str = ""
) -> None:
    """Save an animated GIF with an image and its prediction in each frame; it repeats forever.

    Args:
        images: title -> image, see `plot_predictions`.
        predictions: the prediction of each image.
        path: the GIF file.
        note: a line below.
    """
    frames = []
    for (title, image), prediction in zip(images.items(), predictions, strict=True):
        one = {title: image}
        with matplotlib.rc_context({"text.parse_math": False}):
            figure = Figure(figsize=_size(one, [prediction], note))
            draw_predictions(figure, one, [prediction], note)
            frames.append(_render(figure))
    durations = [_FRAME_MS] * (len(frames) - 1) + [_LAST_FRAME_MS]
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0}
    atomic_write(path, partial(frames[0].save, format="GIF", **options))


def draw_predictions(
    figure: Figure, images: Mapping[str, Image.Image], predictions: Sequence[Prediction], note: str = ""
) -> None:
    """Draw what `plot_predictions` plots.

    Args:
        figure: the figure, of the size of `plot_predictions`.
        images: title -> image.
        predictions: the prediction of each image.
        note: a line below.
    """
    figure.set_layout_engine("none")
    levels = list(predictions[0].probabilities)
    width, height = figure.get_size_inches()
    top = height - _TITLE - _photo_height(images)

    def axes(left: float, bottom: float, wide: float, high: float) -> Axes:
        made = figure.add_axes((left / width, bottom / height, wide / width, high / height))
        made.set(xlim=(0, 1), ylim=(0, 1))
        made.set_axis_off()
        return made

    for row, level in enumerate(levels):
        cell = axes(0, top - (row + 1) * _ROW, _NAMES, _ROW)
        cell.text(0.93, 0.5, printable(level), ha="right", va="center", fontsize=13, color="0.3")
    for number, ((title, image), prediction) in enumerate(zip(images.items(), predictions, strict=True)):
        left = _NAMES + number * _COLUMN
        _draw_photo(axes(left + _GAP / 2, top, _COLUMN - _GAP, _photo_height(images)), title, image)
        for row, level in enumerate(levels):
            _draw_class(axes(left, top - (row + 1) * _ROW, _COLUMN, _ROW), level, prediction)
    if note:
        left, size = (_NAMES, 11) if len(images) > 1 else (0.1, 9)
        axes(left, 0, width - left, _NOTE).text(0.005, 0.4, note, va="center", fontsize=size, color="0.4")


def _draw_photo(ax: Axes, title: str, image: Image.Image) -> None:
    ax.set(xlim=(0, image.width), ylim=(image.height, 0))
    ax.imshow(image, interpolation="nearest", aspect="equal", extent=(0, image.width, image.height, 0))
    ax.set_title(printable(title), fontsize=14, pad=5)


def _draw_class(ax: Axes, level: str, prediction: Prediction) -> None:
    """Draw the class of a level as a box; nothing if the predicted path ends above it."""
    kind, step = _class_at(level, prediction)
    if step is None:
        return
    box, ink = _COLORS[kind]
    edges = _GAP / 2 / _COLUMN, _GAP / 2 / _ROW
    frame = (edges[0], edges[1]), 1 - 2 * edges[0], 1 - 2 * edges[1]
    ax.add_patch(
        FancyBboxPatch(*frame, boxstyle="round,pad=0,rounding_size=0.04", fc=box, ec="none", mutation_aspect=3)
    )
    text = f"{shown_name(step[1])}{'?' if kind == 'guess' else ''} {100 * step[2]:.0f}\u00a0%"
    lines = textwrap.wrap(text, _LINE_CHARACTERS)
    size = 14 if len(lines) < 3 else 10
    weight = "bold" if kind == "trusted" else "normal"
    ax.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", fontsize=size, weight=weight, color=ink)


def _class_at(level: str, prediction: Prediction) -> tuple[str, tuple[str, str, float] | None]:
    """Return the kind of the class that is shown at a level, and its step: trusted before guessed."""
    parts = {"trusted": prediction.trusted_path, "guess": prediction.guess}
    if prediction.provenance.rule is None:
        parts = {"path": prediction.path}
    found = [(kind, step) for kind, steps in parts.items() for step in steps if step[0] == level]
    return found[0] if found else ("path", None)


def shown_name(name: str) -> str:
    """Return a class name as a reader writes it: without the number and the underscores of CUB-200-2011's names.

    Examples:
        >>> shown_name("009.Brewer_Blackbird")
        'Brewer Blackbird'
    """
    return printable(re.sub(r"^\d+\.", "", name).replace("_", " "))


def _size(images: Mapping[str, Image.Image], predictions: Sequence[Prediction], note: str) -> tuple[float, float]:
    """Return the width and height of the figure in inches."""
    height = _TITLE + _photo_height(images) + _ROW * len(predictions[0].probabilities) + (_NOTE if note else 0)
    return _NAMES + _COLUMN * len(images), height


def _render(figure: Figure) -> Image.Image:
    """Return a figure as an image with a palette."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=_FRAME_DPI, format="png")
    return Image.open(buffer).convert("RGB").quantize(256)


def _photo_height(images: Mapping[str, Image.Image]) -> float:
    """Return the height of the images in inches."""
    first = next(iter(images.values()))
    return _COLUMN / min(max(first.width / first.height, _ASPECTS[0]), _ASPECTS[1])
