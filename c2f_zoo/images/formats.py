"""Formats of image files: those that are opened, their extensions, and PNG files without metadata."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import EpsImagePlugin, Image, UnidentifiedImageError

# Raster formats with a signature, decoded within the process. Others are not even tried: for an EPS, whatever its
# extension, Pillow starts Ghostscript. Pillow decodes HEIF with the plug-in pillow-heif, and AVIF from 11.3 on.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TIFF", "WEBP")
NO_IMAGES = "files without an image extension, left out"
_JPEGS = "MPO"  # of several images: Pillow opens it as a JPEG

_PNG = b"\x89PNG\r\n\x1a\n"
_KEPT = {b"tRNS", b"eXIf"}  # chunks that a decoder may ignore, but that matter for the pixels
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


class UnsupportedImageError(ValueError):
    """An image that may be whole, but is not used; the message says why, and what to do."""


@cache
def supported_formats() -> tuple[str, ...]:
    """Return the names of the formats in `FORMATS` that this installation of Pillow opens."""
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN or name == _JPEGS)


@cache
def image_extensions() -> frozenset[str]:
    """Return the extensions of the supported formats.

    Examples:
        >>> {".jpg", ".jfif", ".gif"} <= image_extensions(), ".eps" in image_extensions()
        (True, False)
    """
    formats = supported_formats()
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in formats)


def is_image_name(name: str | Path) -> bool:
    """Return whether a file's name has an extension of a supported format, in any case."""
    return os.path.splitext(name)[1].lower() in image_extensions()


def open_image(file: str | Path | BinaryIO) -> Image.Image:
    """Open an image file of a supported format, without decoding its pixels.

    No process is started, and a pipe or a device is not read.

    Raises:
        FileNotFoundError: the file does not exist.
        UnsupportedImageError: it is not a file, or has no supported format.
    """
    check_is_file(file)
    try:
        return _open(file)
    except (OSError, SyntaxError, ValueError):
        stripped = strip_png(file)
        if stripped is None:
            raise
        return _open(io.BytesIO(stripped))


def _open(file: str | Path | BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=[name for name in supported_formats() if name != _JPEGS])
    except UnidentifiedImageError:
        raise UnsupportedImageError(_explain_format(_read(file, 16))) from None


@contextlib.contextmanager
def no_ghostscript() -> Iterator[None]:
    """Keep Pillow from starting Ghostscript, where another library opens images of any format."""
    before, EpsImagePlugin.gs_binary = EpsImagePlugin.gs_binary, False
    try:
        yield
    finally:
        EpsImagePlugin.gs_binary = before


def check_is_file(file: str | Path | BinaryIO) -> None:
    """Raise an UnsupportedImageError for a folder, a pipe or a device: reading a pipe waits for its writer."""
    if isinstance(file, (str, Path)) and not stat.S_ISREG(os.stat(file).st_mode):
        raise UnsupportedImageError("it is a folder, a pipe or a device, not an image file; leave it out")


def _explain_format(start: bytes) -> str:
    """Return the reason if Pillow identifies no supported format in a file that starts with these bytes."""
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS and "HEIF" not in supported_formats():
        return "it is a HEIC image, which needs pillow-heif: pip install pillow-heif"
    if start[4:12] in (b"ftypavif", b"ftypavis"):
        return "it is damaged, or this version of Pillow reads no AVIF: pip install -U pillow"
    formats = ", ".join(supported_formats())
    return f"it is damaged, or has none of the formats {formats}; convert it to PNG, replace or remove it"


def strip_png(file: str | Path | BinaryIO) -> bytes | None:
    """Return a PNG file without its metadata; None if there is nothing to leave out, or it is no PNG.

    Pillow rejects a PNG with a long text, a large colour profile, or a wrong checksum of either. Viewers show it.
    """
    if _read(file, len(_PNG)) != _PNG:
        return None
    data = _read(file)
    kept, position = [_PNG], len(_PNG)
    with contextlib.suppress(struct.error):  # a truncated file
        while position < len(data):
            length, kind = struct.unpack_from(">I4s", data, position)
            chunk = data[position : position + length + 12]
            is_critical = not kind[0] & 32  # the letter's case tells, by PNG's specification
            if is_critical or (kind in _KEPT and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")):
                kept.append(chunk)
            position += length + 12
    stripped = b"".join(kept)
    return stripped if len(stripped) < len(data) else None


def _read(file: str | Path | BinaryIO, size: int = -1) -> bytes:
    if isinstance(file, (str, Path)):
        with open(file, "rb") as opened:
            return opened.read(size)
    file.seek(0)
    return file.read(size)
