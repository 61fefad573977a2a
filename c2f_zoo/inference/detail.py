"""The detail that an image really shows, estimated from its pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image

# Fraction of the gradient's energy that lies below the cut-off.
_ENERGY_FRACTION = 0.9


def visible_detail(image: Image.Image, size: int) -> float:
    """Estimate the effective resolution of an image from its pixels.

    A thumbnail of 40 pixels enlarged to 500 shows 40 pixels of detail, whatever its size says. Two signs of it are
    measured on the central square. Smooth enlarging leaves no energy in high frequencies: in photos, whose power
    falls as 1/f^2 (Field, 1987), the energy of the gradient is spread evenly over frequencies up to the cut-off.
    Enlarging by repeated pixels leaves most columns equal to their neighbours.

    Args:
        image: RGB image.
        size: shorter side in pixels at which a model sees the image; a larger image is shrunk to it.

    Returns:
        The effective shorter side in pixels, from 1 to the lesser of `size` and the image's shorter side. It ranks
        images; its units are approximate.

    Raises:
        ValueError: the size is not positive.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> small = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        >>> visible_detail(small.resize((500, 500), Image.Resampling.NEAREST), 224)
        40.0
    """
    if size < 1:
        raise ValueError(f"size is {size}; it must be positive")
    grey = _central_square(image).convert("L")
    blocks = grey.width / _repeat_pitch(np.asarray(grey))
    if grey.width > size:
        grey = grey.resize((size, size), Image.Resampling.BOX)
    cutoff = 2 * grey.width * _cutoff_frequency(np.asarray(grey))
    return float(max(1.0, min(cutoff, blocks, grey.width)))


def _central_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _cutoff_frequency(pixels: np.ndarray) -> float:
    """Return the frequency, in cycles per pixel, below which most of the gradient's energy lies.

    Args:
        pixels: grey values uint8 (N, N).
    """
    side = len(pixels)
    window = np.hanning(side + 1)[:side]
    values = pixels.astype(np.float32)
    values = ((values - values.mean()) * window[:, None] * window).astype(np.float32)
    power = np.abs(np.fft.rfft2(values)) ** 2 / max((window**2).sum() ** 2, 1e-9)
    rings = np.rint(np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) * side).astype(int)
    density = np.bincount(rings.ravel(), power.ravel()) / np.maximum(np.bincount(rings.ravel()), 1)
    last = side // 2
    # White noise has the same density at all frequencies, and beyond the last ring, in the corners, little else is.
    noise = np.median(density[last + 1 :]) if len(density) > last + 1 else 0.0
    noise = min(noise, 0.05 * density.max())  # an image that is all noise keeps its detail
    ring = np.arange(last + 1)
    # A ring's energy of the gradient: f^2, times its density, times its length, in proportion to f.
    energy = ring**3.0 * np.maximum(density[: last + 1] - noise - 1.0, 0)
    total = np.cumsum(energy)
    if total[-1] == 0:
        return 0.0
    at = int(np.searchsorted(total, _ENERGY_FRACTION * total[-1]))
    below = total[at] - energy[at]
    return float(at - 0.5 + (_ENERGY_FRACTION * total[-1] - below) / energy[at]) / side


def _repeat_pitch(pixels: np.ndarray) -> float:
    """Return the number of times that each pixel is repeated along an axis, 1 in a photo.

    Args:
        pixels: grey values uint8 (N, N).
    """
    step = -(-len(pixels) // 256)  # some 256 rows are enough
    return min(_pitch_of(pixels[::step]), _pitch_of(pixels.T[::step]))


def _pitch_of(rows: np.ndarray) -> float:
    """Return the mean distance between columns that differ from their left neighbours."""
    change = (np.diff(rows.astype(np.float32), axis=1) ** 2).mean(axis=0)
    reach = len(change) // 16  # pixels repeated more often than this are not recognized
    if reach == 0:
        return 1.0
    padded = np.pad(change, reach, mode="edge")
    nearby = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).max(axis=1)
    gaps = np.sort(np.diff(np.flatnonzero(change > 0.1 * nearby)))
    trim = len(gaps) // 10  # a few wide gaps lie between weak edges or in a plain border
    return float(gaps[trim : len(gaps) - trim].mean()) if len(gaps) else 1.0
