"""Whether promised risks are kept: many splits of images into a calibration and a test set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from c2f_zoo.inference.calibration import group_thresholds, smallest_thresholds
from c2f_zoo.inference.nodes import Nodes
from c2f_zoo.inference.trust import Chain


@dataclass(frozen=True)
class Kept:
    """What became of a promise, over all splits.

    Attributes:
        accuracy: mean accuracy on the test sets.
        spread: standard deviation of the accuracy between splits.
        coverage: mean coverage on the test sets.
        of_image: the accuracy of each image (n,), over the splits in which it was in the test set.
        coverage_of_image: the same for its coverage.
    """

    accuracy: float
    spread: float
    coverage: float
    of_image: np.ndarray
    coverage_of_image: np.ndarray


def keep_promise(
    chain: Chain,
    nodes: Nodes,
    labels: np.ndarray,
    photos: np.ndarray,
    risk: float,
    groups: np.ndarray | None = None,
    splits: int = 100,
    seed: int = 0,
) -> Kept:
    """Calibrate the threshold of a rule for a risk on half of the photos, test it on the others, and repeat.

    Args:
        chain: the rule's choices for n images.
        nodes: the tree's nodes.
        labels: true leaf labels (n,).
        photos: the photo of each image (n,): the images of a photo are all in the same half.
        risk: the promised risk.
        groups: the group of visible detail of each image (n,), see `group_thresholds`; None: one threshold.
        splits: number of splits, the same for every rule with the same seed.
        seed: seed of the splits.

    Raises:
        ValueError: a triple of groups has too few images for the risk.
    """
    values = smallest_thresholds(chain, nodes, labels)
    groups = np.zeros(len(labels), dtype=np.int64) if groups is None else groups
    count = int(groups.max()) + 1
    rng, unique = np.random.default_rng(seed), np.unique(photos)
    sums, counts, accuracies, coverages = np.zeros((2, len(labels))), np.zeros(len(labels)), [], []
    for _ in range(splits):
        chosen = rng.permutation(unique)[: len(unique) // 2]
        is_calibration = np.isin(photos, chosen)
        thresholds = group_thresholds(values[is_calibration], groups[is_calibration], count, risk)
        node = chain.choose(np.array(thresholds)[groups])
        found = np.stack([nodes.are_right(node, labels), nodes.coverage[node]])[:, ~is_calibration]
        sums[:, ~is_calibration] += found
        counts += ~is_calibration
        accuracies.append(found[0].mean())
        coverages.append(found[1].mean())
    of_image = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return Kept(float(np.mean(accuracies)), float(np.std(accuracies)), float(np.mean(coverages)), *of_image)


def keep_accuracy(keep: Callable[[float], Kept], accuracy: float, steps: int = 10) -> tuple[float, Kept]:
    """Find the promised risk at which a rule is as often right as another one, by bisection.

    Args:
        keep: a function of the risk, see `keep_promise`.
        accuracy: the accuracy of the other rule, in (0, 1).
        steps: number of bisections.

    Returns:
        The risk, and what is kept of it.

    Raises:
        ValueError: there are too few images for a risk as small as that.
    """
    low, high = 1 - accuracy, min(4 * (1 - accuracy), 0.99)  # groups are more often right than promised
    best = low, keep(low)
    for _ in range(steps):
        risk = (low + high) / 2
        kept = keep(risk)
        low, high = (risk, high) if kept.accuracy > accuracy else (low, risk)
        best = min(best, (risk, kept), key=lambda pair: abs(pair[1].accuracy - accuracy))
    return best


def at_fixed(chain: Chain, nodes: Nodes, labels: np.ndarray, threshold: float) -> Kept:
    """Return the accuracy and coverage of a rule at a threshold that is not calibrated."""
    node = chain.choose(threshold)
    right, coverage = nodes.are_right(node, labels).astype(np.float64), nodes.coverage[node]
    return Kept(float(right.mean()), 0.0, float(coverage.mean()), right, coverage)


def bin_errors(of_image: np.ndarray, bins: Sequence[np.ndarray]) -> list[tuple[float, float]]:
    """Return the mean of each bin, and its standard error over images (by the bootstrap's formula).

    Args:
        of_image: a value of each image (n,); nan for images without one.
        bins: masks (n,), each with one image of a photo.
    """
    found = []
    for chosen in bins:
        values = of_image[chosen]
        values = values[~np.isnan(values)]
        found.append((float(values.mean()), float(values.std() / np.sqrt(len(values)))))
    return found
