"""Reading picture files, with errors that name the file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image


def read_image(path: str | Path) -> Image.Image:
    """Decodes a picture file to RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded to the end; the message names it.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no picture {path}") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the picture {path}: {error}; replace it or take it off the list") from error


def check_images(paths: Iterable[Path]) -> None:
    """Opens the header of every file, decoding none, so that most bad files are known before training.

    Raises:
        ValueError: some files are missing or are no pictures; the message names the first five.
    """
    bad = []
    for path in paths:
        try:
            with Image.open(path):
                pass
        except (OSError, SyntaxError, Image.DecompressionBombError):
            bad.append(path)
    if bad:
        shown = ", ".join(str(path) for path in bad[:5]) + (", ..." if len(bad) > 5 else "")
        raise ValueError(f"{len(bad)} picture(s) missing or unreadable: {shown}")
