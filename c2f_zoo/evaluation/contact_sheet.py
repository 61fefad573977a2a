"""A contact sheet: a photo and the images most similar to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from c2f_zoo.evaluation.plots import saved_figure
from c2f_zoo.hierarchy.escape import printable
from c2f_zoo.images.reading import read_image

_COLUMNS, _SIDE = 5, 1.8  # inches
_SHOWN = 400  # pixels that a JPEG is decoded to at least
_LENGTH = 30  # characters of a file's name


def plot_contact_sheet(photo: Path, found: Sequence[tuple[Path, float]], path: Path) -> None:
    """Plot a photo and similar images, each with the end of its name and its similarity.

    Args:
        photo: the photo's file.
        found: file and similarity of each image, most similar first.
        path: the PNG file to write.

    Raises:
        FileNotFoundError: an image does not exist.
        ValueError: an image is unreadable.
    """
    files = [(photo, "the photo"), *((file, f"{similarity:.2f}  {_shorten(file)}") for file, similarity in found)]
    columns = min(_COLUMNS, len(files))
    rows = math.ceil(len(files) / columns)
    with saved_figure(path, _SIDE * columns, (_SIDE + 0.2) * rows) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax in axes:
            ax.set_axis_off()
        for number, (ax, (file, title)) in enumerate(zip(axes, files, strict=False)):
            ax.imshow(_read_small(file))
            ax.set_title(title, fontsize=7, weight="normal" if number else "bold", pad=3)


def _read_small(file: Path) -> Image.Image:
    """Read an image for a small place on the sheet."""
    image = read_image(file, shorter_side=_SHOWN)
    image.thumbnail((_SHOWN, _SHOWN))
    return image


def _shorten(file: Path) -> str:
    """Return the end of a file's folder and name."""
    text = printable(Path(file.parent.name, file.name).as_posix())
    return text if len(text) <= _LENGTH else "…" + text[1 - _LENGTH :]
