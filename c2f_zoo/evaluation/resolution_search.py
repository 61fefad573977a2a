"""The search for each level's resolution on a resolution grid.

The leaf level is seen at the first grid point, full size. The resolution of the next coarser level is the first grid
point at which the accuracy of the finer level falls below its threshold (Huo et al., SIGIR 2019, section 2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from c2f_zoo.data import LabelledImages
from c2f_zoo.evaluation.scoring import predict_labels
from c2f_zoo.model import C2FModel
from c2f_zoo.registry import check_names

THRESHOLD = 0.8  # the paper's t_med and t_low
LOWEST = 8  # pixels; the last point of the default grid


@dataclass(frozen=True)
class Measurement:
    """Predictions for validation images at one resolution, compared with their labels.

    Args:
        correct: bool (images, levels), true for correct predictions, levels from fine to coarse; false for unknown
            labels.
        known: bool (images, levels), true for known labels; the same at every resolution.
        unreadable: indices of the unreadable images in the dataset.
    """

    correct: np.ndarray
    known: np.ndarray
    unreadable: list[int]


def default_grid(side: int) -> list[int | None]:
    """Return a grid from full size down to 8 pixels, in equal ratios of about sqrt(2).

    Args:
        side: full size in pixels.

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
            f"invalid resolution grid {list(grid)}; it must decrease and end at 1 pixel or more, e.g. [null, 96, 48]"
        )
    return tuple(grid)


def fill_thresholds(thresholds: Mapping[str, float], levels: Sequence[str]) -> tuple[float, ...]:
    """Return the thresholds of all levels but the coarsest, from fine to coarse.

    The default is 0.8, as in the paper.

    Args:
        thresholds: accuracies in (0, 1], for some levels.
        levels: the predicted levels, from coarse to fine.

    Raises:
        ValueError: a level is unknown or the coarsest, or a threshold is outside (0, 1].

    Examples:
        >>> fill_thresholds({"genus": 0.7}, ["family", "genus", "species"])
        (0.8, 0.7)
    """
    check_names("level in thresholds:", thresholds, levels)
    for level, threshold in thresholds.items():
        if level == levels[0]:
            raise ValueError(f"{level} is the coarsest level, which has no threshold; remove it from thresholds")
        if not 0 < threshold <= 1:
            raise ValueError(f"the threshold of {level} is {threshold}; it must be in (0, 1]")
    return tuple(thresholds.get(level, THRESHOLD) for level in reversed(levels[1:]))


def sweep(
    grid: Sequence[int | None],
    thresholds: Sequence[float],
    full: bool,
    measure_at: Callable[[int | None], Measurement],
) -> list[Measurement]:
    """Measure grid points in order until every level has its resolution.

    Args:
        grid: resolutions in pixels, highest first; None is full size.
        thresholds: thresholds of all levels but the coarsest, from fine to coarse.
        full: measure the whole grid.
        measure_at: a function that scores the validation images at a resolution.
    """
    measurements: list[Measurement] = []
    for resolution in grid:
        measurements.append(measure_at(resolution))
        accuracy = np.stack([mean_accuracy(found.correct, found.known) for found in measurements])
        if not full and is_settled(accuracy, thresholds):
            break
    return measurements


def measure(
    model: C2FModel, dataset: LabelledImages, indices: Sequence[int], resolution: int | None, **how: Any
) -> Measurement:
    """Score validation images at one resolution.

    The rows of a measurement are in the order of the indices.

    Args:
        model: a model on the accelerator's device.
        dataset: the dataset.
        indices: the validation images' indices in it.
        resolution: the resolution in pixels; None is full size.
        **how: the other arguments of `c2f_zoo.evaluation.scoring.score_images`.

    Raises:
        ValueError: no readable image has a label at some level.
    """
    predictions = predict_labels(model, dataset, indices, {resolution: model.levels}, reduced=True, **how)
    levels = model.levels[::-1]
    predicted = torch.stack([predictions.labels[resolution][level] for level in levels], dim=1)
    truth = dataset.hierarchy.cut_repeats(predictions.truth)[:, [dataset.hierarchy.depth(level) for level in levels]]
    known = truth >= 0
    for level, count in zip(levels, known.sum(dim=0).tolist(), strict=True):
        if count == 0:
            raise ValueError(
                f"no readable validation image has a label at {level!r}; check the data with `c2f-zoo data check`"
            )
    return Measurement(((predicted == truth) & known).numpy(), known.numpy(), predictions.unreadable)


def mean_accuracy(correct: Any, known: Any) -> Any:
    """Return the accuracy (..., levels) over the images with a known label."""
    return correct.sum(-2) / known.sum(-2)


def search(accuracy: np.ndarray, thresholds: Sequence[float]) -> tuple[int | None, ...]:
    """Choose the grid point of each level, from fine to coarse.

    The leaf level gets the first grid point. A coarser level gets the first grid point, not before that of the next
    finer level, at which the finer level's accuracy is below its threshold.

    Args:
        accuracy: accuracies (grid points, levels), from the highest resolution to the lowest and from fine to coarse.
        thresholds: thresholds of all levels but the coarsest.

    Returns:
        The grid point of each level; None from the first level on for which no threshold is crossed. If the leaf level
        is below its threshold at the first grid point, all other levels have None.

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
