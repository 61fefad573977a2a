"""Risk, coverage and recall over thresholds: by hand, against loops over images, weighted, and over two processes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from test_trust import TREES, UNBALANCED, Image, apply, as_choice, own_sizes, own_thresholds, some_probabilities
from torchmetrics.functional.classification import multiclass_calibration_error

from c2f_zoo import Hierarchy
from c2f_zoo.evaluation.trust_curves import (
    Curve,
    Steps,
    chosen_steps,
    curve,
    mean_over_recall,
    measures,
    operating_point,
    recall_at,
    risk_coverage_area,
)
from c2f_zoo.evaluation.trust_metrics import Reliability, TrustMetrics
from c2f_zoo.inference.nodes import NodeProbabilities, Nodes, sum_over_leaves
from c2f_zoo.inference.trust import RULES, Chain, list_rules

SMALL = {name: TREES[name] for name in ("random 2", "unbalanced", "one leaf", "one root class")}


def some_labels(p: NodeProbabilities) -> np.ndarray:
    """Return true labels that the leaf probabilities often predict."""
    rng = np.random.default_rng(3)
    count = p.levels[-1].shape[1]
    return np.where(
        rng.random(len(p.levels[-1])) < 0.5, p.levels[-1].argmax(axis=1), rng.integers(0, count, len(p.all))
    )


class Judged:
    """What a choice for an image is worth, by its classes and those of the true path."""

    def __init__(self, image: Image, choice: tuple[int, int] | None, label: int) -> None:
        true = list(enumerate(image.paths[label]))
        above = next(path for path in image.paths if path[choice[0]] == choice[1]) if choice else ()
        own = list(enumerate(above))[: choice[0] + 1] if choice else []
        common = [node for node in own if node in true]
        self.right = float(common == own)
        self.coverage = image.coverage(*choice) if choice else 0.0
        self.recall = image.coverage(*common[-1]) if common else 0.0
        self.precision = self.recall / self.coverage if self.coverage else 1.0


def naive_points(p: NodeProbabilities, chain: Chain, labels: np.ndarray, repeats: np.ndarray) -> list[list[float]]:
    """Return correct, coverage, recall and precision: of the leaf classes, at every threshold, of saying nothing."""
    images, last = [Image(p, row) for row in range(len(labels))], len(p.levels) - 1
    rows = [row for row, count in enumerate(repeats) for _ in range(count)]
    choices = [[(last, image.best(last)) for image in images]]
    for t in np.unique(chain.until):
        choices.append([as_choice(node, p.nodes) for node in chain.choose(t)])
    choices.append([None] * len(images))
    points = []
    for choice in choices:
        judged = [Judged(images[row], choice[row], labels[row]) for row in rows]
        points.append(
            [
                sum(getattr(one, name) for one in judged) / len(judged)
                for name in ("right", "coverage", "recall", "precision")
            ]
        )
    return points


def naive_measures(points: list[list[float]]) -> dict[str, float]:
    """Return the measures by their definitions; the integrals over recall by a sum over a fine grid."""
    area = 0.0
    for (right, coverage, *_), (next_right, next_coverage, *_) in pairwise(points):
        area += (coverage - next_coverage) * (1 - (right + next_right) / 2)
    grid = (np.arange(4000) + 0.5) / 4000
    means = {}
    for name, column in (("AC", 0), ("AP", 3)):
        recall, values = np.array(points)[:, 2], np.array(points)[:, column]
        means[name] = float(np.where(recall >= grid[:, None], values, 0).max(axis=1).mean())
    found = {f"R@{c}C": max(recall for right, _, recall, _ in points if right >= c / 100 - 1e-9) for c in (90, 95)}
    return {"haurc": area, **means, **found}


@pytest.mark.parametrize("kind", ["sums", "levels", "ties"])
@pytest.mark.parametrize("tree", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("rule", list_rules())
def test_curves_and_measures_equal_loops_over_images(rule: str, tree: Hierarchy, kind: str) -> None:
    if rule == "fixed" and not own_thresholds(tree):
        pytest.skip("no level of this tree has a threshold")
    p = some_probabilities(tree, kind, n=12)
    chain, labels = apply(rule, p), some_labels(p)
    steps = Steps.of(chain, p, labels)
    for repeats in (np.ones(12, dtype=int), np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12))):
        points, found = naive_points(p, chain, labels, repeats), curve(steps, repeats)
        assert found.threshold.tolist() == [-np.inf, *np.unique(chain.until), np.inf]
        columns = np.stack([found.correct, found.coverage, found.recall, found.precision], axis=1)
        assert columns == pytest.approx(np.array(points))
        assert found.risk == pytest.approx(1 - columns[:, 0])
        expected, got = naive_measures(points), measures(steps, repeats)
        assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-3)
        assert got["haurc"] == pytest.approx(expected["haurc"], abs=1e-12)
        reference = naive_measures(naive_points(p, apply("leaf_or_nothing", p), labels, repeats))["haurc"]
        gain = 1 - expected["haurc"] / reference if reference > 1e-12 else math.nan
        assert got["gain"] == pytest.approx(gain, nan_ok=True)


@pytest.mark.parametrize("rule", list_rules())
def test_operating_points_equal_loops_over_images(rule: str) -> None:
    p = some_probabilities(UNBALANCED, "sums", n=30)
    chain, labels = apply(rule, p), some_labels(p)
    steps = Steps.of(chain, p, labels)
    weights = np.random.default_rng(0).integers(0, 3, 30)
    images = [Image(p, row) for row in range(30)]
    each = np.random.default_rng(1).uniform(0, 1.2, 30)
    for threshold in (-np.inf, 0.0, *np.unique(chain.until)[:5].tolist(), 0.7, np.inf, each):
        chosen = chain.choose(threshold)
        assert steps.node[chosen_steps(steps, threshold)].tolist() == chosen.tolist()
        for of_images in (None, weights):
            rows = np.repeat(np.arange(30), 1 if of_images is None else of_images)
            choices = [as_choice(chosen[row], p.nodes) for row in rows]
            judged = [Judged(images[row], choice, labels[row]) for row, choice in zip(rows, choices, strict=True)]
            found = operating_point(steps, threshold, of_images)
            assert found.accuracy == pytest.approx(np.mean([one.right for one in judged]))
            assert found.coverage == pytest.approx(np.mean([one.coverage for one in judged]))
            depths = [-1 if choice is None else choice[0] for choice in choices]
            levels = {level: depths.count(depth) / len(rows) for depth, level in enumerate(UNBALANCED.levels)}
            assert found.levels == pytest.approx(levels)
            assert found.nothing == pytest.approx(depths.count(-1) / len(rows))


class TestByHand:
    # a has 0 and 1, b has 2 and 3: coverage 1/2 for a and b.
    TREE = Hierarchy.from_rows(("A", "B"), [("a", "0"), ("a", "1"), ("b", "2"), ("b", "3")])

    def probabilities(self) -> tuple[NodeProbabilities, np.ndarray]:
        nodes = Nodes(self.TREE)
        leaf = np.array([[0.75, 0.125, 0.125, 0], [0.5, 0.375, 0, 0.125], [0.0625, 0, 0.25, 0.6875]])
        return NodeProbabilities(nodes, sum_over_leaves(leaf, nodes)), np.array([0, 1, 0])

    # climb chooses for the three images: 0 (right) up to 0.75, then a up to 0.875; 0 (wrong; a is common) up to 0.5,
    # then a up to 0.875; 3 (wrong; the root is common) up to 0.6875, then b (wrong) up to 0.9375.
    def test_climb(self) -> None:
        p, labels = self.probabilities()
        steps = Steps.of(RULES["climb"](p), p, labels)
        found = curve(steps)
        assert found.threshold.tolist() == [-np.inf, 0.5, 0.6875, 0.75, 0.875, 0.9375, np.inf, np.inf]
        assert found.correct * 3 == pytest.approx(np.array([1, 1, 2, 2, 2, 2, 3, 3]))
        assert found.coverage * 3 == pytest.approx(np.array([3, 3, 2.5, 2, 1.5, 0.5, 0, 0]))
        assert found.recall * 3 == pytest.approx(np.array([1.5, 1.5, 1.5, 1.5, 1, 0, 0, 0]))
        assert found.precision * 3 == pytest.approx(np.array([1.5, 1.5, 2, 2, 2, 2, 3, 3]))
        # From coverage 3/3 to 2.5/3 the risk falls from 2/3 to 1/3; it is 1/3 down to 0.5/3, and then falls to 0.
        # The recall is 1/2 at most, with 2/3 right; all are right at recall 0 only.
        # leaf_or_nothing says nothing of the second image first, then of the third: risk 2/3, 1/3, 0 and 0 at coverage
        # 3/3, 2/3, 1/3 and 0.
        assert measures(steps) == pytest.approx(
            {
                "haurc": (0.5 * 1.5 + 2 * 1 + 0.5 * 0.5) / 9,
                "gain": 1 - 3 / (1 * 1.5 + 1 * 0.5),
                "AC": 1 / 2 * 2 / 3,
                "AP": 1 / 2 * 2 / 3,
                "R@90C": 0,
                "R@95C": 0,
            }
        )
        assert recall_at(found, 2 / 3) == 1 / 2

    def test_area_of_given_points(self) -> None:
        correct, coverage = np.array([0.5, 0.75, 1, 1]), np.array([1, 0.5, 0.25, 0])
        none = np.zeros(4)
        assert risk_coverage_area(Curve(none, correct, coverage, none, none)) == 0.5 * 0.375 + 0.25 * 0.125

    def test_mean_over_recall_takes_the_best_at_least_at_each_recall(self) -> None:
        # 0.9 for r in (0, 0.4], 0.6 in (0.4, 0.7], 0 above; the points (0.2, 0.1) and (0.4, 0.5) are worse.
        recall, values = np.array([0.2, 0.4, 0.7, 0.4]), np.array([0.1, 0.9, 0.6, 0.5])
        assert mean_over_recall(recall, values) == pytest.approx(0.4 * 0.9 + 0.3 * 0.6)

    def test_a_rule_without_errors(self) -> None:
        nodes = Nodes(self.TREE)
        p = NodeProbabilities(nodes, sum_over_leaves(np.eye(4), nodes))
        found = measures(Steps.of(RULES["climb"](p), p, np.arange(4)))
        assert math.isnan(found.pop("gain")), "there is no risk to lower"
        assert found == {"haurc": 0, "AC": 1, "AP": 1, "R@90C": 1, "R@95C": 1}

    def test_no_images(self) -> None:
        p, labels = self.probabilities()
        with pytest.raises(ValueError, match="no images to average: 0 images with a known leaf class"):
            TrustMetrics(RULES["climb"], self.TREE).curve()
        with pytest.raises(ValueError, match="no images to average: 3 images"):
            curve(Steps.of(RULES["climb"](p), p, labels), np.zeros(3))


def create(rule: str, tree: Hierarchy) -> TrustMetrics:
    options: dict[str, Callable[[Hierarchy], dict]] = {"fixed": own_thresholds, "nominal": own_sizes}
    names = {"fixed": "thresholds", "nominal": "resolutions"}
    bound = {names[rule]: options[rule](tree)} if rule in options else {}
    return TrustMetrics(partial(RULES[rule], **bound), tree)


@pytest.mark.parametrize("rule", list_rules())
def test_uneven_batches_equal_one_batch_and_unknown_labels_do_not_count(rule: str) -> None:
    p = some_probabilities(UNBALANCED, "sums", n=30)
    labels = some_labels(p)
    whole, parts = create(rule, UNBALANCED), create(rule, UNBALANCED)
    whole.update(p, labels)
    mixed = np.repeat(np.arange(30), 2)
    of_mixed = np.where(np.arange(60) % 2, -1, labels[mixed])
    for begin, end in ((0, 1), (1, 1), (1, 8), (8, 57), (57, 60)):
        parts.update(p.take(mixed[begin:end]), of_mixed[begin:end])
    assert parts.compute() == pytest.approx({**whole.compute(), "unknown": 30}, nan_ok=True)
    direct = {"images": 30, "unknown": 0, **measures(Steps.of(apply(rule, p), p, labels))}
    assert whole.compute() == pytest.approx(direct, nan_ok=True)
    assert (parts.curve().threshold == whole.curve().threshold).all()
    if rule == "leaf_or_nothing":
        assert whole.compute()["gain"] == 0


@pytest.mark.parametrize("kind", ["levels", "ties"])
def test_reliability_equals_torchmetrics_and_a_loop(kind: str) -> None:
    p = some_probabilities(UNBALANCED, kind, n=60)
    labels = np.where(np.arange(60) % 5 == 0, -1, some_labels(p))
    known = labels >= 0
    for depth, level in enumerate(UNBALANCED.levels):
        truth = np.where(known, p.nodes.leaf_paths[labels, depth], -1)
        diagram = Reliability(UNBALANCED.truncate(level))
        for part in (slice(0, 7), slice(7, 60)):
            diagram.update(torch.from_numpy(p.levels[depth][part]).log(), torch.from_numpy(truth[part]))
        found = diagram.compute()
        of_level = torch.from_numpy(p.levels[depth][known]), torch.from_numpy(truth[known])
        expected = multiclass_calibration_error(*of_level, num_classes=p.levels[depth].shape[1], n_bins=15)
        assert found["ece"] == pytest.approx(float(expected), abs=1e-6)
        bins: dict[int, list[tuple[float, bool]]] = {}
        for row in np.flatnonzero(known):
            confidence, predicted = p.levels[depth][row].max(), p.levels[depth][row].argmax()
            bins.setdefault(math.ceil(round(confidence * 15, 6)), []).append((confidence, predicted == truth[row]))
        rows = [[*np.mean(bins[number], axis=0), len(bins[number])] for number in sorted(bins)]
        points = np.stack([found["confidence"], found["accuracy"], found["images"]], axis=1)
        assert points == pytest.approx(np.array(rows), abs=1e-6)


SHARES = ((slice(0, 17), slice(17, 20)), (slice(0, 20), slice(20, 20)), None)  # of two processes; None: no update


def run_process(rank: int, folder: str) -> None:
    """Add 17 or 3, 20 or 0 of 20 images, or call update in the first process only, and write the values over both."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", world_size=2, rank=rank)
    p = some_probabilities(UNBALANCED, "sums", n=20)
    labels = np.where(np.arange(20) >= 18, -1, some_labels(p))
    results = []
    for share in SHARES:
        metrics = create("darts", UNBALANCED)
        if share is not None or rank == 0:
            own = slice(0, 20) if share is None else share[rank]
            metrics.update(p.take(np.arange(20)[own]), labels[own])
        results.append([metrics.compute(), metrics.curve().coverage.tolist()])
        assert metrics.steps().labels.shape == (18,), "the states can be gathered again"
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(run_process, (str(tmp_path),), nprocs=2, start_method="fork")
    p = some_probabilities(UNBALANCED, "sums", n=20)
    metrics = create("darts", UNBALANCED)
    metrics.update(p, np.where(np.arange(20) >= 18, -1, some_labels(p)))
    for rank in (0, 1):
        for values, coverage in json.loads((tmp_path / f"{rank}.json").read_text()):
            assert values == pytest.approx(metrics.compute())
            assert coverage == pytest.approx(metrics.curve().coverage.tolist())
