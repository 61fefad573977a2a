"""Intervals and paired differences against brute force, enumeration and the normal approximation."""

from __future__ import annotations

import numpy as np
import pytest

from c2f_zoo.evaluation.ablation_summary import draw_counts, estimate_accuracy, estimate_difference

RNG = np.random.default_rng(5)
FIRST, SECOND = (RNG.random((seeds, 30)) < 0.7 for seeds in (3, 2))


def mean_of_resample(correct: np.ndarray, seeds: np.ndarray, images: np.ndarray) -> float:
    """Return the mean over a resample, item by item."""
    rows = [row for row, count in enumerate(seeds) for _ in range(count)]
    columns = [column for column, count in enumerate(images) for _ in range(count)]
    return float(np.mean([[correct[row, column] for column in columns] for row in rows]))


def test_intervals_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(1)
    images, first, second = (draw_counts(rng, 200, count) for count in (30, 3, 2))
    accuracy = [mean_of_resample(FIRST, s, i) for s, i in zip(first, images, strict=True)]
    other = [mean_of_resample(SECOND, s, i) for s, i in zip(second, images, strict=True)]
    found = estimate_accuracy(FIRST, 200, seed=1)
    assert (found.low, found.high) == pytest.approx(np.quantile(accuracy, [0.025, 0.975]))
    assert found.value == pytest.approx(FIRST.mean())
    found = estimate_difference(FIRST, SECOND, 200, seed=1)
    difference = np.subtract(accuracy, other)
    assert (found.low, found.high) == pytest.approx(np.quantile(difference, [0.025, 0.975]))
    assert found.value == pytest.approx(FIRST.mean() - SECOND.mean())


def test_every_item_is_drawn_equally_often() -> None:
    counts = draw_counts(np.random.default_rng(0), 4000, 5)
    assert (counts.sum(axis=1) == 5).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(5), abs=0.1)
    # With replacement: an item is left out of a resample with probability (4 / 5)^5.
    assert (counts == 0).mean() == pytest.approx(0.8**5, abs=0.02)


def test_the_interval_of_one_seed_is_that_of_a_proportion() -> None:
    correct = np.zeros((1, 1000), bool)
    correct[0, :300] = True
    found, half = estimate_accuracy(correct, 4000, seed=0), 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert (found.low, found.high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.003)


def test_seeds_widen_the_interval() -> None:
    agree, differ = np.zeros((2, 1000), bool), np.zeros((2, 1000), bool)
    agree[:, :500] = True
    differ[0, :700], differ[1, :300] = True, True
    narrow, wide = (estimate_accuracy(correct, 2000, seed=0) for correct in (agree, differ))
    assert narrow.value == wide.value == 0.5
    # One seed is drawn twice in half of the resamples: the ends are near the seeds' own accuracies.
    assert (wide.low, wide.high) == pytest.approx((0.28, 0.72), abs=0.03)
    assert narrow.high - narrow.low < 0.08


def test_differences_are_paired() -> None:
    correct = np.arange(1000)[None] % 2 == 0
    better = correct.copy()
    better[0, 1:21:2] = True  # 10 images more
    same, gain = estimate_difference(correct, correct, 1000, 0), estimate_difference(better, correct, 1000, 0)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    # The number of those images in a resample is about Poisson with mean 10: 95 % of it is within 4 and 17.
    assert gain.value == pytest.approx(0.01)
    assert (gain.low, gain.high) == pytest.approx((0.004, 0.017), abs=0.0011)


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="the same images, not 30 and 20"):
        estimate_difference(FIRST, SECOND[:, :20], 10, 0)
