"""Read and convert images of every kind to RGB."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, TypeGuard

import numpy as np
from PIL import ExifTags, Image, ImageOps

from c2f_zoo.images.formats import UnsupportedImageError, open_image, strip_png, supported_formats
from c2f_zoo.paths import expand

if TYPE_CHECKING:
    from torch import Tensor

ImageLike: TypeAlias = "str | os.PathLike[str] | BinaryIO | Image.Image | np.ndarray | Tensor"

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # raised by Pillow and read_image
MAX_ELONGATION = 100  # longer side over shorter; a few kB of a line of pixels, resized by its width, take gigabytes
_LOADING = [threading.Lock() for _ in range(64)]  # several, so that other images are loaded at the same time
_ROUNDING = 1e-3  # of floats from 0 to 1, less than half of one of 255 steps
_LAYOUTS = {"array": "(height, width, channels)", "tensor": "(channels, height, width)"}


def read_image(path: str | Path | BinaryIO, shorter_side: int | None = None) -> Image.Image:
    """Read an image file as RGB with 8 bits a channel, as a viewer shows it.

    Grey, palette, CMYK, 1-bit and 16-bit images are converted (16 bits are scaled, not clipped), transparent pixels are
    blended with white, and the EXIF orientation is applied. An animation yields its first frame. Colour profiles are
    not applied, as in other loaders. Metadata may be damaged or long.

    Args:
        path: the file, or an open file: AVIF, BMP, GIF, JPEG, JPEG 2000, MPO, PNG, PPM, QOI, TIFF, WebP, or with
            pillow-heif HEIC. `~` is the home folder.
        shorter_side: minimum length of the shorter side in pixels, >= 1; a larger JPEG is decoded at 1/2, 1/4 or 1/8 of
            its size if the result is long enough, which is faster. None decodes at full size.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not an image, is damaged or of another format; the range of its values is unknown
            (32-bit, float), it has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, or one side is over 100 times as long
            as the other.

    Examples:
        >>> Image.new("L", (400, 300), 77).save("grey.jpg")
        >>> read_image("grey.jpg").getpixel((0, 0))
        (77, 77, 77)
        >>> read_image("grey.jpg", shorter_side=100).size
        (200, 150)
    """
    with _translate_errors(str(path)):
        return _decode(expand(path) if isinstance(path, (str, os.PathLike)) else path, shorter_side)


def _decode(file: str | Path | BinaryIO, shorter_side: int | None) -> Image.Image:
    """Decode a file; a PNG without its metadata if that fails."""
    try:
        with open_image(file) as image:
            return to_upright_rgb(image, shorter_side)
    except (FileNotFoundError, UnsupportedImageError):
        raise
    except (OSError, SyntaxError, ValueError):
        stripped = strip_png(file)
        if stripped is None:
            raise
        with open_image(io.BytesIO(stripped)) as image:
            return to_upright_rgb(image, shorter_side)


def prepare_image(image: ImageLike) -> Image.Image:
    """Convert an image of any kind to RGB with 8 bits a channel, as `read_image` reads its file.

    Args:
        image: a path or an open file; a PIL image of any mode; an array (height, width) or (height, width, channels);
            or a tensor (height, width) or (channels, height, width). Their channels are grey, grey and alpha, RGB, or
            RGBA; their values uint8, uint16, bool, or floating in [0, 1].

    Raises:
        FileNotFoundError: the file does not exist.
        TypeError: it is of another type.
        ValueError: as in `read_image`, or an array's shape, type or range is unsupported.

    Examples:
        >>> prepare_image(torch.tensor([[[0.0, 1.0]]])).getpixel((1, 0))
        (255, 255, 255)
        >>> prepare_image(np.full((2, 3, 4), 255, dtype=np.uint8)).size
        (3, 2)
    """
    if isinstance(image, (str, os.PathLike)) or hasattr(image, "read"):
        return read_image(image)  # type: ignore[arg-type]
    if is_tensor(image):
        image = _from_array(_channels_last(image), "tensor", tuple(image.shape))
    elif isinstance(image, np.ndarray):
        image = _from_array(image, "array", image.shape)
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"an image is of type {type(image).__name__}; pass a path, a PIL image, an array {_LAYOUTS['array']} or a "
            f"tensor {_LAYOUTS['tensor']}"
        )
    name = getattr(image, "filename", "") or f"of {image.width} x {image.height} pixels and mode {image.mode}"
    with _translate_errors(str(name)):
        return to_upright_rgb(image)


@contextlib.contextmanager
def _translate_errors(name: str) -> Iterator[None]:
    """Translate the many kinds of Pillow's errors into one that names the image."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no image {name}") from None
    except UnsupportedImageError as error:
        raise ValueError(f"cannot read the image {name}: {error}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the warning, where warnings are errors
        raise ValueError(f"cannot read the image {name}: {_too_large()}") from None
    except Exception as error:  # Pillow's plugins raise errors of many kinds for a broken file
        raise ValueError(f"cannot read the image {name}: {error}; replace or remove it") from error


def to_upright_rgb(image: Image.Image, shorter_side: int | None = None) -> Image.Image:
    """Convert an image to upright RGB without metadata; it is returned itself if it is that already.

    Args:
        image: the image; it is loaded, but not changed.
        shorter_side: as in `read_image`, for a file that is not loaded yet.

    Raises:
        UnsupportedImageError: its format is not in `FORMATS`, it has too many pixels or is too long, or the range of
            its values is unknown.
    """
    problem = _unsupported_reason(image)
    if problem is not None:
        raise UnsupportedImageError(problem)
    if shorter_side is not None:
        image.draft("RGB", (shorter_side, shorter_side))
    with _LOADING[id(image) // 64 % len(_LOADING)]:  # two threads may pass one opened image
        image.load()
        orientation = _orientation_of(image)
    if type(image) is Image.Image and image.mode == "RGB" and not image.info and orientation == 1:
        return image
    upright = _to_rgb(image)
    upright.info = {}  # or it would be turned a second time
    upright.getexif()[ExifTags.Base.Orientation] = orientation
    apply_orientation(upright)
    return upright


def _orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of a loaded image; 1 is upright."""
    with contextlib.suppress(Exception):  # invalid EXIF does not affect the pixels
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    return 1


def _unsupported_reason(image: Image.Image) -> str | None:
    """Return the reason if an opened image is unsupported, or None."""
    if image.format is not None and image.format not in supported_formats():
        return f"its format {image.format} is unsupported; convert it to PNG"
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        return _too_large()
    size = f"{image.width} x {image.height}"
    if not min(image.size):
        return f"it has {size} pixels; replace or remove it"
    if max(image.size) > MAX_ELONGATION * min(image.size):
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
    """Convert a loaded image of any mode to a new one in RGB, blended with white."""
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
    values = np.asarray(image)
    grey = _scale_to_8_bits(values, 2**bits - 1)
    if white_is_zero:
        grey = 255 - grey
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _scale_to_8_bits(values: np.ndarray, largest: float) -> np.ndarray:
    return (values.astype(np.float32) * (255 / largest)).round().astype(np.uint8)


def is_tensor(image: object) -> TypeGuard[Tensor]:
    """Return whether an object is a tensor of PyTorch, which need not be installed."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(image, torch.Tensor)


def _channels_last(image: Tensor) -> np.ndarray:
    """Return a tensor ([C,] H, W) as an array (H, W[, C])."""
    image = image.detach().cpu()
    values = (image.float() if image.is_floating_point() else image).numpy()
    return np.moveaxis(values, 0, -1) if values.ndim == 3 else values


def _from_array(values: np.ndarray, kind: str, shape: tuple[int, ...]) -> Image.Image:
    """Convert an array (H, W[, C]) to an image of mode L, LA, RGB or RGBA; kind and shape are for messages."""
    pixels = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (2,), (3,), (4,)) or not pixels.size:
        hint = "; for a batch pass a list of its images" if values.ndim == 4 else ""
        raise ValueError(f"an image {kind} has the shape {shape}, expected {_LAYOUTS[kind]} with 1 to 4 channels{hint}")
    if pixels.dtype == np.bool_:
        pixels = _scale_to_8_bits(pixels, 1)
    elif np.issubdtype(pixels.dtype, np.uint16):  # of either byte order
        pixels = _scale_to_8_bits(pixels, 2**16 - 1)
    elif np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= -_ROUNDING and pixels.max() <= 1 + _ROUNDING):  # false for NaN, too
            found = f"{pixels.min():.4g} to {pixels.max():.4g}"
            raise ValueError(f"an image {kind} has values of {found}, expected 0 to 1 (not normalized), or uint8")
        pixels = _scale_to_8_bits(pixels, 1)
    elif pixels.dtype != np.uint8:
        raise ValueError(f"an image {kind} is {pixels.dtype}, expected uint8, uint16, bool, or floats from 0 to 1")
    return Image.fromarray(pixels)


def apply_orientation(image: Image.Image) -> None:
    """Turn a loaded image upright in place, by its EXIF orientation."""
    with contextlib.suppress(Exception):  # invalid EXIF does not affect the pixels
        ImageOps.exif_transpose(image, in_place=True)
