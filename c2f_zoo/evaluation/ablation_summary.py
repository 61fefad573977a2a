"""Means over seeds, bootstrap intervals and paired differences of methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and images, with its bootstrap interval.

    Args:
        value: the mean.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float

    def columns(self) -> dict[str, str]:
        """Return the columns of a table, with four decimals.

        Examples:
            >>> Estimate(0.5, 0.25, 0.75).columns()
            {'value': '0.5000', 'low': '0.2500', 'high': '0.7500'}
        """
        return {name: f"{value:.4f}" for name, value in asdict(self).items()}


def estimate_accuracy(correct: np.ndarray, resamples: int, seed: int) -> Estimate:
    """Estimate an accuracy, with an interval over images and seeds.

    Args:
        correct: 1 for right and 0 for wrong predictions (seeds, images), or another score of each image.
        resamples: number of bootstrap resamples; in each, images and seeds are drawn with replacement.
        seed: seed of the resamples.

    Examples:
        >>> estimate_accuracy(np.array([[1, 1, 1, 1], [1, 1, 1, 1]]), resamples=100, seed=0)
        Estimate(value=1.0, low=1.0, high=1.0)
    """
    return _estimate([(1, correct)], resamples, seed)


def estimate_difference(first: np.ndarray, second: np.ndarray, resamples: int, seed: int) -> Estimate:
    """Estimate the difference of two methods' accuracies on the same images.

    The interval is paired: both methods are scored on the same resample of images. Their seeds are drawn separately.

    Args:
        first: 1 for right and 0 for wrong predictions (seeds, images).
        second: the same for the method to subtract, of the same images; the number of seeds may differ.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.

    Raises:
        ValueError: the numbers of images differ.

    Examples:
        >>> estimate_difference(np.array([[1, 1, 0, 1]]), np.array([[0, 1, 0, 1]]), resamples=100, seed=0).value
        0.25
    """
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"a paired difference needs the same images, not {first.shape[1]} and {second.shape[1]}")
    return _estimate([(1, first), (-1, second)], resamples, seed)


def _estimate(terms: Sequence[tuple[int, np.ndarray]], resamples: int, seed: int) -> Estimate:
    """Estimate a sum of signed mean accuracies."""
    rng = np.random.default_rng(seed)
    counts = draw_counts(rng, resamples, terms[0][1].shape[1])
    values = np.zeros(resamples)
    for sign, correct in terms:
        right = counts @ correct.T.astype(np.float64)  # (resamples, seeds); exact for zeros and ones
        values += sign * (draw_counts(rng, resamples, len(correct)) * right).sum(axis=1) / correct.size
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    mean = sum(sign * correct.mean() for sign, correct in terms)
    return Estimate(float(mean), float(low), float(high))


def draw_counts(rng: np.random.Generator, resamples: int, count: int) -> np.ndarray:
    """Draw bootstrap resamples: how often each item is drawn, int64 (resamples, count); each row sums to `count`.

    Examples:
        >>> draw_counts(np.random.default_rng(0), resamples=2, count=1)
        array([[1],
               [1]])
    """
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples)


def estimate_mean(values: np.ndarray, resamples: int, seed: int) -> Estimate:
    """Estimate the mean of one number for each image, with an interval over images.

    For a paired difference of two methods, pass the differences.

    Args:
        values: the numbers (images,).
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.

    Examples:
        >>> estimate_mean(np.array([0.25, 0.25]), resamples=100, seed=0)
        Estimate(value=0.25, low=0.25, high=0.25)
    """
    means = draw_counts(np.random.default_rng(seed), resamples, len(values)) @ values / len(values)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(values.mean()), float(low), float(high))
