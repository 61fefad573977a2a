"""Reading image files, with errors that name the file."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

_MAX_ELONGATION = 100  # longer side over shorter; a few kB of a line of pixels, resized by its width, take gigabytes

# What turns an image upright, for each orientation of EXIF's table (2.32, section 4.6.5.1).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | Path | BinaryIO, shorter_side: int | None = None) -> Image.Image:
    """Decodes an image file to the RGB that a viewer shows, 8 bits a channel.

    Grey, palette, CMYK, 1-bit and 16-bit images are converted (16 bits are scaled, not clipped), what is
    transparent is laid over white, and an image with an EXIF orientation is turned upright. Of an animation it is
    the first frame. Colour profiles are not applied, as in other loaders.

    Args:
        path: the file, or an open one, of any format that Pillow reads.
        shorter_side: pixels, >= 1, that the caller needs of the shorter side; a larger JPEG is decoded at 1/2, 1/4 or
            1/8 of its size if that leaves as many, which is faster. None decodes the whole.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded to the end, has values of no known range (32-bit, float), more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS` or one side over 100 times as long as the other; the message names it.

    Examples:
        >>> Image.new("L", (400, 300), 77).save("grey.jpg")
        >>> read_image("grey.jpg").getpixel((0, 0))
        (77, 77, 77)
        >>> read_image("grey.jpg", shorter_side=100).size
        (200, 150)
    """
    try:
        with Image.open(path) as image:
            refusal = _refusal(image)
            if refusal is None:
                if shorter_side is not None:
                    image.draft("RGB", (shorter_side, shorter_side))
                image.load()
                return _upright(image, _to_rgb(image))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no image {path}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the warning, where warnings are errors
        refusal = _too_large()
    except Exception as error:  # on a broken file Pillow's plugins raise whatever they stumble over
        raise ValueError(f"cannot read the image {path}: {error}; replace it or take it off the list") from error
    raise ValueError(f"cannot read the image {path}: {refusal}")


def _refusal(image: Image.Image) -> str | None:
    """Why an image is not decoded, from its header; None if it can be."""
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        return _too_large()
    if max(image.size) > _MAX_ELONGATION * min(image.size):
        size = f"{image.width} x {image.height}"
        return f"it is {size} pixels: resized to a network's input it would fill the memory; crop it"
    # A PNG or PGM of 16 bits has mode I in some of Pillow's versions; elsewhere I is 32 bits, or signed.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floats" if image.mode == "F" else "32-bit or signed integers"
        return f"its pixels are {kind}, of which black and white are unknown; save it with 8 or 16 bits a channel"
    return None


def _too_large() -> str:
    return (
        f"it has more than {Image.MAX_IMAGE_PIXELS} pixels, perhaps to fill the memory; shrink it or take it off the "
        "list (a program of your own can raise PIL.Image.MAX_IMAGE_PIXELS)"
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image of any mode to RGB, over white."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey_of_16_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _grey_of_16_bits(image: Image.Image) -> Image.Image:
    """Scales 16 bits to 8, which Pillow's own conversion clips."""
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


def _upright(image: Image.Image, rgb: Image.Image) -> Image.Image:
    """Turns the decoded image as the file's EXIF says."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken EXIF says nothing; the pixels are whole
        orientation = None
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb
