"""Curves of accuracy against resolution, and the resolutions' uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from c2f_zoo.evaluation.resolution_search import Measurement, mean_accuracy, search


@dataclass(frozen=True)
class Curves:
    """Accuracy against resolution, and the chosen resolutions.

    Levels are in order from fine to coarse.

    Args:
        levels: names of the levels, L of them.
        thresholds: thresholds of all levels but the coarsest, L - 1.
        grid: the R measured resolutions in pixels, highest first; None is full size.
        side: the images' median size in pixels, at which full size is plotted.
        accuracy: accuracies in [0, 1], (R, L).
        low: lower ends of the 95 % intervals, (R, L).
        high: upper ends of the 95 % intervals, (R, L).
        images: number of images with a known label, (L,).
        points: the index in `grid` of each level's resolution, or None, (L,).
        fractions: the fraction of resamples that choose each grid point, and last the fraction that choose none of
            them, (L, R + 1).
    """

    levels: tuple[str, ...]
    thresholds: tuple[float, ...]
    grid: tuple[int | None, ...]
    side: int
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    images: np.ndarray
    points: tuple[int | None, ...]
    fractions: np.ndarray

    @property
    def resolutions(self) -> dict[str, int | None]:
        """level -> chosen resolution, fine to coarse; levels without one are left out."""
        found = zip(self.levels, self.points, strict=True)
        return {level: self.grid[point] for level, point in found if point is not None}

    @property
    def missing(self) -> list[str]:
        """The levels without a chosen resolution."""
        return [level for level, point in zip(self.levels, self.points, strict=True) if point is None]


def bootstrap(correct: np.ndarray, known: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Compute the accuracies of bootstrap resamples of the images.

    A resample has the same images at all grid points and levels.

    Args:
        correct: bool (grid points, images, levels), true for correct predictions.
        known: bool (images, levels), true for known labels.
        resamples: number of resamples, drawn with replacement.
        seed: seed of the draws.

    Returns:
        float64 (resamples, grid points, levels); nan if a resample has no image with a known label.
    """
    rng = np.random.default_rng(seed)
    images, levels = known.shape
    hits = (correct & known).swapaxes(0, 1).reshape(images, -1).astype(np.float64)
    samples = np.empty((resamples, len(correct), levels))
    with np.errstate(invalid="ignore"):
        for sample in samples:
            counts = np.bincount(rng.integers(images, size=images), minlength=images).astype(np.float64)
            sample[:] = (counts @ hits).reshape(-1, levels) / (counts @ known)
    return samples


def chosen_fractions(samples: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Compute the fraction of resamples that choose each grid point, for each level.

    Args:
        samples: accuracies (resamples, grid points, levels).
        thresholds: thresholds of all levels but the coarsest.

    Returns:
        float64 (levels, grid points + 1); the last column is the fraction that choose none.
    """
    _, points, levels = samples.shape
    counts = np.zeros((levels, points + 1))
    for accuracy in samples:
        for level, point in enumerate(search(accuracy, thresholds)):
            counts[level, points if point is None else point] += 1
    return counts / len(samples)


def analyze(
    levels: Sequence[str],
    thresholds: Sequence[float],
    grid: Sequence[int | None],
    side: int,
    measurements: Sequence[Measurement],
    resamples: int,
    seed: int,
) -> Curves:
    """Search for the resolutions and bootstrap their uncertainty.

    Args:
        levels: names of the levels, from fine to coarse.
        thresholds: thresholds of all levels but the coarsest.
        grid: the resolution grid; the search may have ended before its last point.
        side: the size in pixels at which full size is plotted.
        measurements: the measurement at each grid point.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.
    """
    correct, known = np.stack([found.correct for found in measurements]), measurements[0].known
    accuracy = mean_accuracy(correct, known)
    samples = bootstrap(correct, known, resamples, seed)
    low, high = np.nanquantile(samples, (0.025, 0.975), axis=0)
    return Curves(
        levels=tuple(levels),
        thresholds=tuple(thresholds),
        grid=tuple(grid[: len(correct)]),
        side=side,
        accuracy=accuracy,
        low=low,
        high=high,
        images=known.sum(axis=0),
        points=search(accuracy, thresholds),
        fractions=chosen_fractions(samples, thresholds),
    )
