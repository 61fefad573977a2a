"""Read image files of any format as RGB."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

_MAX_ELONGATION = 100  # longer side over shorter; a few kB of a line of pixels, resized by its width, take gigabytes


def read_image(path: str | Path | BinaryIO, shorter_side: int | None = None) -> Image.Image:
    """Read an image file as RGB with 8 bits a channel, as a viewer shows it.

    Grey, palette, CMYK, 1-bit and 16-bit images are converted (16 bits are scaled, not clipped), transparent pixels are
    blended with white, and the EXIF orientation is applied. An animation yields its first frame. Colour profiles are
    not applied, as in other loaders.

    Args:
        path: the file, or an open file, in any format that Pillow reads.
        shorter_side: minimum length of the shorter side in pixels, >= 1; a larger JPEG is decoded at 1/2, 1/4 or 1/8 of
            its size if the result is long enough, which is faster. None decodes at full size.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not an image or is damaged, the range of its values is unknown (32-bit, float), it has
            more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, or one side is over 100 times as long as the other.

    Examples:
        >>> Image.new("L", (400, 300), 77).save("grey.jpg")
        >>> read_image("grey.jpg").getpixel((0, 0))
        (77, 77, 77)
        >>> read_image("grey.jpg", shorter_side=100).size
        (200, 150)
    """
    try:
        with Image.open(path) as image:
            problem = _unsupported_reason(image)
            if problem is None:
                if shorter_side is not None:
                    image.draft("RGB", (shorter_side, shorter_side))
                image.load()
                apply_orientation(image)
                return _to_rgb(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no image {path}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the warning, where warnings are errors
        problem = _too_large()
    except Exception as error:  # Pillow's plugins raise errors of many kinds for a broken file
        raise ValueError(f"cannot read the image {path}: {error}; replace or remove it") from error
    raise ValueError(f"cannot read the image {path}: {problem}")


def _unsupported_reason(image: Image.Image) -> str | None:
    """Return the reason if an opened image is unsupported, or None."""
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        return _too_large()
    if max(image.size) > _MAX_ELONGATION * min(image.size):
        size = f"{image.width} x {image.height}"
        return f"it has {size} pixels: resized to a model's input it would exhaust the memory; crop it"
    # A 16-bit PNG or PGM has mode I in some versions of Pillow; otherwise I is 32-bit or signed.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floats" if image.mode == "F" else "32-bit or signed integers"
        return f"its pixels are {kind} of unknown range; save it with 8 or 16 bits a channel"
    return None


def _too_large() -> str:
    return (
        f"it has more than {Image.MAX_IMAGE_PIXELS} pixels and could exhaust the memory; resize or remove it "
        "(your own program can raise PIL.Image.MAX_IMAGE_PIXELS)"
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image of any mode to RGB, blended with white."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _convert_16_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _convert_16_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits; Pillow would clip it."""
    bits, white_is_zero = 16, False
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits, white_is_zero = tags[258][0], tags.get(262) == 0  # BitsPerSample, PhotometricInterpretation
    values = np.asarray(image).astype(np.float32)
    grey = (values * (255 / (2**bits - 1))).round().astype(np.uint8)
    if white_is_zero:
        grey = 255 - grey
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def apply_orientation(image: Image.Image) -> None:
    """Turn a loaded image upright in place, by its EXIF orientation."""
    with contextlib.suppress(Exception):  # invalid EXIF does not affect the pixels
        ImageOps.exif_transpose(image, in_place=True)
