"""The search for each level's resolution: accuracy down a grid of resolutions, and the decisions that follow from it.

The leaf level is seen at the first grid point, full size. The resolution of each next coarser level is the first grid
point at which the accuracy of the level before falls below its threshold (Huo et al., SIGIR 2019, section 2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from c2f_zoo.registry import unknown_name

THRESHOLD = 0.8  # the paper's t_med and t_low
LOWEST = 8  # pixels; the last point of the default grid


@dataclass(frozen=True)
class Measurement:
    """Predictions for validation images at one resolution, compared with their labels.

    Args:
        correct: whether each prediction is correct, bool (images, levels), from the leaf level up; false where the
            label is unknown.
        known: whether each label is known, bool (images, levels); the same at every resolution.
        unreadable: indices of the unreadable images in the dataset.
    """

    correct: np.ndarray
    known: np.ndarray
    unreadable: list[int]


@dataclass(frozen=True)
class Curves:
    """Accuracy against resolution, and the resolutions found; levels are in order from fine to coarse.

    Args:
        levels: names of the levels, L of them.
        thresholds: thresholds of all levels but the coarsest, L - 1.
        grid: the R resolutions that were measured, in pixels, highest first; None is full size.
        side: the images' median size in pixels, at which full size is plotted.
        accuracy: accuracies in [0, 1], (R, L).
        low: lower ends of the 95 % intervals, (R, L).
        high: upper ends of the 95 % intervals, (R, L).
        images: number of images with a known label, (L,).
        points: for each level the index in `grid` of its resolution, or None.
        fractions: for each level the fraction of resamples that choose each grid point, and last the fraction that
            choose none of them, (L, R + 1).
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
        """The resolutions found, from fine to coarse; levels without one are missing."""
        found = zip(self.levels, self.points, strict=True)
        return {level: self.grid[point] for level, point in found if point is not None}

    @property
    def missing(self) -> list[str]:
        """The levels for which no resolution was found."""
        return [level for level, point in zip(self.levels, self.points, strict=True) if point is None]


def default_grid(side: int) -> list[int | None]:
    """Build a grid from full size down to 8 pixels, in equal ratios of about sqrt(2).

    Args:
        side: the size in pixels that full size stands for.

    Examples:
        >>> default_grid(96)
        [None, 67, 47, 33, 23, 16, 11, 8]
    """
    steps = round(2 * math.log2(max(side, LOWEST) / LOWEST))
    return [None, *(round(side * (LOWEST / side) ** (step / steps)) for step in range(1, steps + 1))]


def check_grid(grid: Sequence[int | None]) -> tuple[int | None, ...]:
    """Return a grid as a tuple.

    Raises:
        ValueError: the grid is empty, does not decrease, or has a resolution below 1 pixel.
    """
    pixels = [math.inf if resolution is None else resolution for resolution in grid]
    if not pixels or min(pixels) < 1 or any(a <= b for a, b in itertools.pairwise(pixels)):
        raise ValueError(
            f"a resolution grid decreases and ends at 1 pixel or more, e.g. [null, 96, 48], not {list(grid)}"
        )
    return tuple(grid)


def fill_thresholds(thresholds: Mapping[str, float], levels: Sequence[str]) -> tuple[float, ...]:
    """Return the thresholds of all levels but the coarsest, from fine to coarse; the default is the paper's, 0.8.

    Args:
        thresholds: accuracies in (0, 1], for some levels.
        levels: the levels that the model predicts, from coarse to fine.

    Raises:
        ValueError: a level is unknown or the coarsest, or a threshold is outside (0, 1].

    Examples:
        >>> fill_thresholds({"genus": 0.7}, ["family", "genus", "species"])
        (0.8, 0.7)
    """
    for level, threshold in thresholds.items():
        if level not in levels:
            raise unknown_name("level in thresholds:", level, levels)
        if level == levels[0]:
            raise ValueError(f"{level} is the coarsest level and has no threshold: no coarser level follows from it")
        if not 0 < threshold <= 1:
            raise ValueError(f"the threshold of {level} is an accuracy in (0, 1], not {threshold}")
    return tuple(thresholds.get(level, THRESHOLD) for level in reversed(levels[1:]))


def sweep(
    grid: Sequence[int | None],
    thresholds: Sequence[float],
    full: bool,
    measure: Callable[[int | None], Measurement],
) -> list[Measurement]:
    """Measure grid point by grid point, until every level has its resolution or, if `full`, to the end.

    Args:
        grid: resolutions in pixels, highest first; None is full size.
        thresholds: thresholds of all levels but the coarsest, from fine to coarse.
        full: whether to measure the whole grid.
        measure: scores the validation images at a resolution.
    """
    measurements: list[Measurement] = []
    for resolution in grid:
        measurements.append(measure(resolution))
        accuracy = np.stack([mean_accuracy(found.correct, found.known) for found in measurements])
        if not full and is_settled(accuracy, thresholds):
            break
    return measurements


def mean_accuracy(correct: Any, known: Any) -> Any:
    """Average correctness (..., images, levels) over the images with a known label: accuracy (..., levels)."""
    return correct.sum(-2) / known.sum(-2)


def search(accuracy: np.ndarray, thresholds: Sequence[float]) -> tuple[int | None, ...]:
    """Choose the grid point of each level, from fine to coarse.

    The leaf level's is the first one. Each further level's is the first one, from the grid point of the level before
    on, at which the accuracy of the level before is below its threshold.

    Args:
        accuracy: accuracies (grid points, levels), from the highest resolution down and from the leaf level up.
        thresholds: thresholds of all levels but the coarsest.

    Returns:
        A grid point for each level; None where a threshold is not reached, and for all coarser levels. A leaf level
        that is below its threshold at the first grid point decides nothing: all other levels have None.

    Examples:
        >>> accuracy = np.array([[0.95, 0.99, 1.00], [0.75, 0.90, 0.99], [0.30, 0.70, 0.95]])
        >>> search(accuracy, [0.8, 0.8])
        (0, 1, 2)
        >>> search(accuracy, [0.8, 0.6])
        (0, 1, None)
    """
    if starts_below(accuracy, thresholds):
        return (0, *[None] * len(thresholds))
    points: list[int | None] = [0]
    for column, threshold in enumerate(thresholds):
        start = points[-1]
        below = accuracy[start:, column] < threshold
        points.append(None if start is None or not below.any() else start + int(below.argmax()))
    return tuple(points)


def is_settled(accuracy: np.ndarray, thresholds: Sequence[float]) -> bool:
    """Return whether no lower grid point can change the result of the search."""
    return None not in search(accuracy, thresholds) or starts_below(accuracy, thresholds)


def starts_below(accuracy: np.ndarray, thresholds: Sequence[float]) -> bool:
    """Return whether the leaf level is below its threshold at the first grid point."""
    return len(thresholds) > 0 and bool(accuracy[0, 0] < thresholds[0])


def bootstrap(correct: np.ndarray, known: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Compute accuracies of resamples of the images, each the same for all grid points and levels.

    Args:
        correct: whether predictions are correct, bool (grid points, images, levels).
        known: whether labels are known, bool (images, levels).
        resamples: number of resamples, drawn with replacement.
        seed: seed of the draws.

    Returns:
        float64 (resamples, grid points, levels); nan where a resample has no image with a known label.
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
    """Compute the fraction of resamples that choose each grid point, or none, for each level.

    Args:
        samples: accuracies (resamples, grid points, levels).
        thresholds: thresholds of all levels but the coarsest.

    Returns:
        float64 (levels, grid points + 1).
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
        grid: the resolutions that were measured, or more.
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
