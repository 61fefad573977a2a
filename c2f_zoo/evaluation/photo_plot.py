"""Figure of one photo at several resolutions, with what is predicted of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from c2f_zoo.evaluation.plots import saved_figure
from c2f_zoo.inference import Prediction


def plot_predictions(images: Mapping[str, Image.Image], predictions: Sequence[Prediction], path: Path) -> None:
    """Plot images side by side, each with the trusted classes in green and guesses in grey.

    Args:
        images: title -> image.
        predictions: the prediction of each image.
        path: the PNG file.
    """
    with saved_figure(path, 2.5 * len(images), 3.5) as figure:
        pictures, texts = figure.subplots(2, len(images), squeeze=False, height_ratios=[3, 1])
        for ax, below, title, prediction in zip(pictures, texts, images, predictions, strict=True):
            ax.imshow(images[title], interpolation="nearest")
            ax.set_title(title, fontsize=9)
            lines = [(f"{name} {100 * p:.0f} %", "tab:green") for _, name, p in prediction.trusted_path]
            lines = lines or [("nothing is trusted", "tab:red")]
            lines += [(f"{name}? {100 * p:.0f} %", "0.55") for _, name, p in prediction.guess]
            for number, (text, color) in enumerate(lines):
                at: Any = {"ha": "center", "va": "top", "fontsize": 8, "parse_math": False}
                below.text(0.5, 1 - 0.28 * number, text, color=color, transform=below.transAxes, **at)
            for one in (ax, below):
                one.set_axis_off()
