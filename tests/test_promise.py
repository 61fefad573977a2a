"""Splits into calibration and test: a promise that is kept, and one that only groups keep."""

from __future__ import annotations

import numpy as np
import pytest

from c2f_zoo.evaluation.promise import at_fixed, bin_errors, keep_accuracy, keep_promise
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.inference.nodes import NodeProbabilities, Nodes, sum_over_leaves
from c2f_zoo.inference.trust import RULES

ROWS = [("x", "p", "1"), ("x", "p", "2"), ("x", "q", "3"), ("y", "r", "4"), ("y", "r", "5"), ("y", "r", "6")]
NODES = Nodes(Hierarchy.from_rows(("a", "b", "c"), ROWS))


def draw(count: int) -> tuple[NodeProbabilities, np.ndarray, np.ndarray]:
    """Return probabilities, labels and halves of images in pairs; those of half 0 are overconfident."""
    rng = np.random.default_rng(0)
    leaf, group = rng.dirichlet(np.full(6, 0.4), count), np.arange(count) % 2
    true = np.where(group[:, None] == 0, leaf**0.4, leaf)
    true /= true.sum(axis=1, keepdims=True)
    labels = (true.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1).clip(max=5)
    return NodeProbabilities(NODES, sum_over_leaves(leaf, NODES)), labels, group


def test_a_promise_is_kept_on_average_and_by_groups_in_each_group() -> None:
    p, labels, group = draw(4000)
    chain, photos = RULES["climb"](p), np.arange(4000) // 2
    one = keep_promise(chain, NODES, labels, photos, risk=0.1, splits=40)
    grouped = keep_promise(chain, NODES, labels, photos, risk=0.1, groups=3 * group, splits=40)
    assert one.accuracy == pytest.approx(0.9, abs=0.01)
    assert grouped.accuracy == pytest.approx(0.9, abs=0.01)
    bins = [group == 0, group == 1]
    (overconfident, error), (_, _) = bin_errors(one.of_image, bins)
    assert overconfident < 0.9 - 2 * error
    for accuracy, error in bin_errors(grouped.of_image, bins):
        assert accuracy > 0.9 - 2 * error


def test_the_images_of_a_photo_are_on_one_side() -> None:
    """With a photo in two equal images and one split, both are in the test set or neither."""
    p, labels, _ = draw(400)
    twice = np.repeat(np.arange(400), 2)
    chain, photos = RULES["climb"](p.take(twice)), np.repeat(np.arange(400), 2)
    kept = keep_promise(chain, NODES, labels[twice], photos, risk=0.2, splits=1)
    in_test = ~np.isnan(kept.of_image)
    assert in_test.sum() == 400
    assert np.array_equal(in_test[::2], in_test[1::2])


def test_means_of_images_agree_with_those_of_splits() -> None:
    p, labels, _ = draw(60)
    chain = RULES["max_coverage"](p)
    kept = keep_promise(chain, NODES, labels, np.arange(60), risk=0.2, splits=1)
    assert np.nanmean(kept.of_image) == pytest.approx(kept.accuracy)
    assert np.nanmean(kept.coverage_of_image) == pytest.approx(kept.coverage)


def test_a_rule_with_thresholds_of_its_own() -> None:
    p, labels, _ = draw(100)
    fixed = at_fixed(RULES["fixed"](p), NODES, labels, 1.0)
    expected = []
    for image in range(100):
        node = NODES.root
        for depth in (0, 1, 2):  # the finest that reaches 0.65
            best = p.levels[depth][image].argmax()
            node = NODES.offsets[depth] + best if p.levels[depth][image, best] >= 0.65 else node
        path = NODES.paths[node]
        expected.append(all(at in (-1, true) for at, true in zip(path, NODES.leaf_paths[labels[image]], strict=True)))
    assert fixed.of_image.astype(bool).tolist() == expected


def test_too_few_images_of_a_group_are_an_error() -> None:
    p, labels, _ = draw(20)
    with pytest.raises(ValueError, match="needs 99 calibration images"):
        keep_promise(RULES["climb"](p), NODES, labels, np.arange(20), risk=0.01, splits=1)


def test_a_risk_is_found_for_an_accuracy() -> None:
    """Of a rule that is more often right than promised: of a risk of 30 %, 20 % are wrong."""
    p, labels, _ = draw(4000)
    chain, photos = RULES["climb"](p), np.arange(4000) // 2
    risk, kept = keep_accuracy(lambda risk: keep_promise(chain, NODES, labels, photos, risk / 1.5, splits=10), 0.8)
    assert kept.accuracy == pytest.approx(0.8, abs=0.005)
    assert risk == pytest.approx(0.3, abs=0.02)


def test_no_risk_cannot_be_promised() -> None:
    p, labels, _ = draw(20)
    with pytest.raises(ValueError, match="a risk of 0 cannot be promised"):
        keep_promise(RULES["climb"](p), NODES, labels, np.arange(20), risk=0.0, splits=1)
