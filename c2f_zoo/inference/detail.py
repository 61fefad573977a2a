"""The detail that an image really shows, estimated from its pixels."""

from __future__ import annotations

import functools
import sys

import numpy as np
from PIL import Image

# Chosen by rank correlation with the true size on 40 training photos of CUB-200-2011 (the last one on 60), at 8 sizes,
# enlarged in 9 ways; checked on 40 others, and on 300 by recipes/benchmarks/detail.py: docs/results/detail.csv.
_ENERGY_FRACTION = 0.8  # of the gradient's energy, below the frequency that is taken for the cut-off
_SCALE = 1.2  # that frequency to the size that photos have in truth, in the median of all sizes
_NOISE_MARGIN = 1.5  # a frequency counts where its power is so many times that of the noise
_LEAST_NOISE = 1.0  # variance of the noise, in grey values of 0 to 255, that rounding and JPEG compression leave
_SMALL_CHANGE = 0.15  # between equal columns, as a fraction of the largest change nearby


def visible_detail(image: Image.Image, size: int) -> float:
    """Estimate the effective resolution of an image from its pixels.

    A thumbnail of 40 pixels enlarged to 500 shows 40 pixels of detail, whatever its size says. Two signs of it are
    measured on the central square. Smooth enlarging leaves no power in high frequencies. In photos, whose power falls
    as 1/f^2 (Field, J. Opt. Soc. Am. A 4, 1987), the energy of the gradient is spread evenly over the frequencies up
    to the cut-off, so that most of it lies near the cut-off, and blurred backgrounds hardly count. Enlarging by
    repeated pixels leaves most columns equal to their neighbours.

    Args:
        image: RGB image.
        size: shorter side in pixels at which a model sees the image; a larger image is shrunk to it.

    Returns:
        The effective shorter side in pixels, from 1 to the lesser of `size` and the image's shorter side. It orders
        images by detail; the unit is approximate, and a photo out of focus has less than its size. An image without
        contrast has 1.

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
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    grey = image.crop((left, top, left + side, top + side)).convert("L")
    blocks = side / _repeats(np.asarray(grey))
    if side > size:
        grey = grey.resize((size, size), Image.Resampling.BOX)
    cutoff = _SCALE * 2 * _cutoff_cycles(np.asarray(grey))
    return float(max(1.0, min(cutoff, blocks, size, side)))


@functools.lru_cache(maxsize=32)
def _spectrum_grid(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a window (N, N) of mean square 1, the ring of each frequency in cycles, and the rings' lengths."""
    line = np.hanning(side + 1)[:side]
    line = line / max(np.sqrt(np.mean(line**2)), 1e-9)
    cycles = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) * side
    rings = np.rint(cycles).astype(np.intp).ravel()
    return np.outer(line, line).astype(np.float32), rings, np.bincount(rings)


def _cutoff_cycles(pixels: np.ndarray) -> float:
    """Return the frequency, in cycles per side, below which most of the gradient's energy lies.

    Args:
        pixels: grey values uint8 (N, N).
    """
    side = len(pixels)
    window, rings, lengths = _spectrum_grid(side)
    spectrum = _power_spectrum((pixels - pixels.mean(dtype=np.float32)) * window)
    power = np.bincount(rings, spectrum.ravel()) / np.maximum(lengths, 1) / side**2
    last = side // 2
    # The corners of the spectrum hold little but noise, which has the same power everywhere. The limit is for images
    # that are all noise, where it is detail.
    corners = power[last + 1 :]
    noise = max(min(np.median(corners), 0.05 * power.max()) if len(corners) else 0.0, _LEAST_NOISE)
    signal = np.where(power > _NOISE_MARGIN * noise, power - noise, 0)[: last + 1]
    # A ring's energy of the gradient: power times f^2, times the ring's length, which grows as f.
    energy = np.cumsum(np.arange(last + 1) ** 3.0 * signal)
    if energy[-1] == 0:
        return 0.0
    ring = int(np.searchsorted(energy, _ENERGY_FRACTION * energy[-1]))
    return float(np.interp(_ENERGY_FRACTION * energy[-1], energy[ring - 1 : ring + 1], [ring - 0.5, ring + 0.5]))


def _power_spectrum(values: np.ndarray) -> np.ndarray:
    """Return the squared amplitudes of float32 (N, N) at the frequencies of a real FFT, float32 (N, N // 2 + 1)."""
    torch = sys.modules.get("torch")
    if torch is not None:  # the same up to rounding; where a side is prime, several times as fast
        return np.asarray(torch.fft.rfft2(torch.from_numpy(values)).abs().square().numpy())
    spectrum = np.fft.rfft2(values)
    return (spectrum.real**2 + spectrum.imag**2).astype(np.float32)


def _repeats(pixels: np.ndarray) -> float:
    """Return how often each pixel is repeated along an axis; 1 in a photo.

    Args:
        pixels: grey values uint8 (N, N).
    """
    step = -(-len(pixels) // 256)  # some 200 rows are enough
    return min(_gap_between_changes(pixels[::step]), _gap_between_changes(pixels.T[::step]))


def _gap_between_changes(rows: np.ndarray) -> float:
    """Return the mean distance between columns that differ from their left neighbours."""
    change = np.square(np.diff(rows.astype(np.float32), axis=1)).mean(axis=0)
    reach = len(change) // 16
    if reach == 0:
        return 1.0
    nearby = np.lib.stride_tricks.sliding_window_view(np.pad(change, reach, mode="edge"), 2 * reach + 1).max(axis=1)
    gaps = np.sort(np.diff(np.flatnonzero(change > _SMALL_CHANGE * nearby)))
    trim = len(gaps) // 10  # wide gaps lie between weak edges and in plain borders
    return float(gaps[trim : len(gaps) - trim].mean()) if len(gaps) else 1.0
