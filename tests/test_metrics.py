"""Metrics by hand on a small tree, against naive loops, in uneven batches and over two processes."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from test_decoding import TREE, TREES, random_log_probs
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error, multiclass_recall

from c2f_zoo import Hierarchy
from c2f_zoo.decoding import DECODINGS, decode, list_decodings, marginalize, register_decoding
from c2f_zoo.metrics import (
    METRICS,
    BalancedAccuracy,
    CalibrationError,
    FullPathAccuracy,
    HierarchicalDistance,
    HierarchicalF1,
    LCADistance,
    LCAHeights,
    LevelAccuracy,
    MacroAccuracy,
    MinHierarchicalDistance,
    MistakeSeverity,
    TopKAccuracy,
    TreeInconsistency,
    TreeMetrics,
    list_metrics,
    metric_info,
    register_metric,
    tree_report,
)

# TREE: a has p and q, b has r; p has the species 0 and 1, q 2, r 3. Levels A, B, C.
# Correct; a sibling; the other genus of the family; another family; the right species in the wrong family (not a path).
PREDICTED = torch.tensor([[0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 0, 0]])
TRUE = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [0, 0, 0]])
# True labels known down to the genus, down to the family, and unknown.
PREDICTED_DEEPER = torch.tensor([[0, 1, 2], [0, 0, 0], [1, 0, 0]])
TRUE_SHALLOW = torch.tensor([[0, 0, -1], [1, -1, -1], [-1, -1, -1]])

PROBABILITIES = torch.tensor(
    [
        [0.70, 0.15, 0.10, 0.05],
        [0.62, 0.30, 0.05, 0.03],
        [0.42, 0.30, 0.20, 0.08],
        [0.05, 0.10, 0.15, 0.70],
        [0.30, 0.42, 0.20, 0.08],
    ]
)


def value(metric: Metric, *batch: Tensor) -> float | dict[str, float]:
    metric.update(*batch)
    found = metric.compute()
    return {key: float(v) for key, v in found.items()} if isinstance(found, dict) else float(found)


class OneBin(CalibrationError):  # noqa: N818
    num_bins = 1


class TestByHand:
    def test_top_k(self) -> None:
        # Most probable: 0, 0, 0, 3, 1 for 0, 1, 2, 3, 0: the first and the fourth are right. Of two: all but the third.
        of_level = (PROBABILITIES.log(), TRUE[:, -1])
        assert value(TopKAccuracy(TREE), *of_level) == pytest.approx(2 / 5)
        assert value(TopKAccuracy(TREE, 2), *of_level) == pytest.approx(4 / 5)
        assert value(TopKAccuracy(TREE, 5), *of_level) == 1, "a level of four classes"

    def test_balanced_accuracy(self) -> None:
        # Class 0: one of two; 1: none of one; 2: none of one; 3: one of one: (1/2 + 0 + 0 + 1) / 4.
        assert value(BalancedAccuracy(TREE), PROBABILITIES.log(), TRUE[:, -1]) == pytest.approx(1.5 / 4)
        # Without the third sample class 2 does not occur, and does not count: (1/2 + 0 + 1) / 3.
        kept = torch.tensor([0, 1, 3, 4])
        assert value(BalancedAccuracy(TREE), PROBABILITIES[kept].log(), TRUE[kept, -1]) == pytest.approx(1.5 / 3)

    def test_calibration_error(self) -> None:
        # Confidences .70 (right), .62, .42, .70 (right), .42 lie in three bins of width 1/15:
        # 2/5 |1 - .70| + 1/5 |0 - .62| + 2/5 |0 - .42| = .120 + .124 + .168.
        assert value(CalibrationError(TREE), PROBABILITIES.log(), TRUE[:, -1]) == pytest.approx(0.412)
        # In one bin: accuracy 2/5, mean confidence 2.86 / 5.
        assert value(OneBin(TREE), PROBABILITIES.log(), TRUE[:, -1]) == pytest.approx(0.86 / 5)

    def test_probabilities_below_one_are_confidences(self) -> None:
        # An image may stop above this level: a low confidence and a wrong class are well calibrated.
        log_probs = torch.tensor([[0.0, 0.0, 0.1, 0.0]]).log()
        assert value(CalibrationError(TREE), log_probs, torch.tensor([3])) == pytest.approx(0.1)

    def test_confidence_is_not_rounded_to_half_precision(self) -> None:
        # exp(-1/1024) is 1 in bfloat16.
        log_probs = torch.tensor([[-1 / 1024, -7.0]], dtype=torch.bfloat16)
        assert value(CalibrationError(TREE), log_probs, torch.tensor([0])) == pytest.approx(1 - math.exp(-1 / 1024))

    def test_lowest_label_wins_among_equals(self) -> None:
        for count in (4, 5, 200):
            assert value(TopKAccuracy(TREE), torch.zeros(1, count), torch.tensor([0])) == 1, count
        assert value(HierarchicalDistance(TREE, 1), torch.zeros(1, 4), torch.tensor([0])) == 0

    def test_hierarchical_distance(self) -> None:
        # Heights above the species of the true class: 0-0 0, 0-1 1, 0-2 2, 0-3 3, 2-3 3.
        # k = 1: 0 for 0, 0 for 1, 0 for 2, 3 for 3, 1 for 0: (0 + 1 + 2 + 0 + 1) / 5.
        of_level = (PROBABILITIES.log(), TRUE[:, -1])
        assert value(HierarchicalDistance(TREE, 1), *of_level) == pytest.approx(4 / 5)
        # k = 2: {0, 1} for 0; {0, 1} for 1; {0, 1} for 2; {3, 2} for 3; {1, 0} for 0: (1 + 1 + 4 + 3 + 1) / 10.
        assert value(HierarchicalDistance(TREE, 2), *of_level) == pytest.approx(10 / 10)
        # All four, from 0 6, from 1 6, from 2 2 + 2 + 3 = 7, from 3 9: (6 + 6 + 7 + 9 + 6) / 20.
        assert value(HierarchicalDistance(TREE, 20), *of_level) == pytest.approx(34 / 20)

    def test_least_hierarchical_distance(self) -> None:
        of_level = (PROBABILITIES.log(), TRUE[:, -1])
        assert value(MinHierarchicalDistance(TREE, 1), *of_level) == value(HierarchicalDistance(TREE, 1), *of_level)
        # k = 2: the true class is among them, but for the third sample, where {0, 1} are both 2 from class 2.
        assert value(MinHierarchicalDistance(TREE, 2), *of_level) == pytest.approx(2 / 5)
        assert value(MinHierarchicalDistance(TREE, 20), *of_level) == 0, "all classes"

    def test_macro_accuracy(self) -> None:
        # A: of a 3 of 4, of b 0 of 1. B: of p 3 of 3, of q 0 of 1, of r 0 of 1. C: of 0 2 of 2; 1, 2 and 3 0 of 1.
        assert value(MacroAccuracy(TREE), PREDICTED, TRUE) == pytest.approx(
            {"A/macro_accuracy": (3 / 4) / 2, "B/macro_accuracy": 1 / 3, "C/macro_accuracy": 1 / 4}
        )
        # Unknown labels and absent classes do not count. A: a 1 of 1, b 0 of 1; B: p 0 of 1; C: no sample.
        found = value(MacroAccuracy(TREE), PREDICTED_DEEPER, TRUE_SHALLOW)
        assert isinstance(found, dict)
        assert (found["A/macro_accuracy"], found["B/macro_accuracy"]) == (0.5, 0.0)
        assert math.isnan(found["C/macro_accuracy"])
        # A prediction that stops is wrong below. A: a 2 of 2; B: q 0 of 1, p 1 of 1; C: 2 0 of 1, 0 1 of 1.
        stops = torch.tensor([[0, -1, -1], [0, 0, 0]])
        assert value(MacroAccuracy(TREE), stops, TRUE[[2, 0]]) == pytest.approx(
            {"A/macro_accuracy": 1, "B/macro_accuracy": 1 / 2, "C/macro_accuracy": 1 / 2}
        )

    def test_level_accuracy_and_wap(self) -> None:
        # A: the first three; B: the first two and the last; C: the first and the last. wAP weighs them by 2, 3, 4.
        assert value(LevelAccuracy(TREE), PREDICTED, TRUE) == pytest.approx(
            {"A/accuracy": 3 / 5, "B/accuracy": 3 / 5, "C/accuracy": 2 / 5, "wap": (2 * 0.6 + 3 * 0.6 + 4 * 0.4) / 9}
        )

    def test_full_path_accuracy(self) -> None:
        assert value(FullPathAccuracy(TREE), PREDICTED, TRUE) == pytest.approx(1 / 5)

    def test_tree_inconsistency(self) -> None:
        assert value(TreeInconsistency(TREE), PREDICTED, TRUE) == pytest.approx(1 / 5)

    def test_hierarchical_f1(self) -> None:
        # Overlaps 3, 2, 1, 0 and, of {b, p, 0} with {a, p, 0}, 2; predicted and true 3 each.
        assert value(HierarchicalF1(TREE), PREDICTED, TRUE) == pytest.approx(
            dict.fromkeys(HierarchicalF1.outputs, 8 / 15)
        )
        # Predictions that stop: {a} for {a, p, 0} and {b, r} for {a, p, 1}: 1 of 3 predicted and 6 true. Of the two
        # samples, precision is 1 and 0, recall 1/3 and 0, F1 2/4 and 0.
        predicted = torch.tensor([[0, -1, -1], [1, 2, -1]])
        assert value(HierarchicalF1(TREE), predicted, TRUE[:2]) == pytest.approx(
            {
                "hierarchical_precision": 1 / 3,
                "hierarchical_recall": 1 / 6,
                "hierarchical_f1": 2 / 9,
                "macro_hierarchical_precision": 1 / 2,
                "macro_hierarchical_recall": 1 / 6,
                "macro_hierarchical_f1": 1 / 4,
            }
        )
        # A sample without a prediction has no precision, and counts as 0 in its macro average.
        predicted = torch.tensor([[0, 0, 0], [-1, -1, -1]])
        assert value(HierarchicalF1(TREE), predicted, TRUE[:2]) == pytest.approx(
            {
                "hierarchical_precision": 1,
                "hierarchical_recall": 1 / 2,
                "hierarchical_f1": 2 / 3,
                "macro_hierarchical_precision": 1 / 2,
                "macro_hierarchical_recall": 1 / 2,
                "macro_hierarchical_f1": 1 / 2,
            }
        )

    def test_lca_distance_and_severity(self) -> None:
        # Heights 0, 1, 2, 3, 0.
        assert value(LCADistance(TREE), PREDICTED, TRUE) == pytest.approx(6 / 5)
        assert value(MistakeSeverity(TREE), PREDICTED, TRUE) == pytest.approx(6 / 3)
        heights = LCAHeights(TREE)
        heights.update(PREDICTED, TRUE)
        assert heights.compute().tolist() == [2, 1, 1, 1]

    def test_distance_of_a_prediction_that_stops_early(self) -> None:
        # For species 0 of genus p of family a: the right genus is 1 above it, the right family 2, the root 3. Another
        # genus of the family has family a as the common ancestor, 2; another family the root, 3.
        predicted = torch.tensor([[0, 0, 0], [0, 0, -1], [0, -1, -1], [-1, -1, -1], [0, 1, -1], [1, -1, -1]])
        true = TRUE[:1].expand(6, 3)
        assert [value(LCADistance(TREE), predicted[[i]], true[[i]]) for i in range(6)] == [0, 1, 2, 3, 2, 3]
        assert value(LCADistance(TREE), predicted, true) == pytest.approx(11 / 6)
        assert value(MistakeSeverity(TREE), predicted, true) == pytest.approx(11 / 5)
        heights = LCAHeights(TREE)
        heights.update(predicted, true)
        assert heights.compute().tolist() == [1, 1, 2, 2]

    def test_distance_uses_the_finest_label_only(self) -> None:
        # Not paths: species 0 below family b; genus p below family b.
        predicted, true = torch.tensor([[1, 2, 0], [1, 0, -1]]), TRUE[:1].expand(2, 3)
        assert [value(LCADistance(TREE), predicted[[i]], true[[i]]) for i in range(2)] == [0, 1]


OF_A_LEVEL = {
    "top1": lambda: TopKAccuracy(TREE),
    "balanced_accuracy": lambda: BalancedAccuracy(TREE),
    "ece": lambda: CalibrationError(TREE),
    "hd@2": lambda: HierarchicalDistance(TREE, 2),
    "min_hd@2": lambda: MinHierarchicalDistance(TREE, 2),
}
OF_LABELS = [
    LevelAccuracy,
    MacroAccuracy,
    FullPathAccuracy,
    TreeInconsistency,
    HierarchicalF1,
    LCADistance,
    MistakeSeverity,
]


class TestLabelsOfMixedDepth:
    @pytest.mark.parametrize("name", OF_A_LEVEL)
    def test_unknown_classes_do_not_count(self, name: str) -> None:
        known = (PROBABILITIES.log(), TRUE[:, -1])
        log_probs = torch.cat([PROBABILITIES.flip(0), PROBABILITIES]).log()
        target = torch.cat([torch.full((5,), -1), TRUE[:, -1]])
        assert value(OF_A_LEVEL[name](), log_probs, target) == value(OF_A_LEVEL[name](), *known)

    def test_each_level_is_counted_separately(self) -> None:
        # A: the first of two; B: none of one; C: no sample, so that the weighted mean is undefined.
        found = value(LevelAccuracy(TREE), PREDICTED_DEEPER, TRUE_SHALLOW)
        assert isinstance(found, dict)
        assert (found["A/accuracy"], found["B/accuracy"]) == (0.5, 0.0)
        assert math.isnan(found["C/accuracy"]) and math.isnan(found["wap"])

    def test_only_known_paths_count_for_path_metrics(self) -> None:
        predicted, true = torch.cat([PREDICTED, PREDICTED_DEEPER]), torch.cat([TRUE, TRUE_SHALLOW])
        assert value(FullPathAccuracy(TREE), predicted, true) == pytest.approx(1 / 5)
        assert value(LCADistance(TREE), predicted, true) == pytest.approx(6 / 5)
        assert value(MistakeSeverity(TREE), predicted, true) == pytest.approx(6 / 3)

    def test_inconsistency_does_not_use_the_true_labels(self) -> None:
        # The last of the three is not a path.
        assert value(TreeInconsistency(TREE), PREDICTED_DEEPER, TRUE_SHALLOW) == pytest.approx(1 / 3)

    def test_predictions_below_the_known_level_do_not_count(self) -> None:
        # {a, q} for {a, p}: 1 of 2 and 2; {a} for {b}: 0 of 1 and 1; nothing for nothing.
        # Of the two samples with a known class, 1/2 and 0.
        assert value(HierarchicalF1(TREE), PREDICTED_DEEPER, TRUE_SHALLOW) == pytest.approx(
            dict.fromkeys(HierarchicalF1.outputs[:3], 1 / 3) | dict.fromkeys(HierarchicalF1.outputs[3:], 1 / 4)
        )


def some_batch(tree: Hierarchy, n: int, seed: int, mixed: bool = True) -> tuple[dict[str, Tensor], Tensor]:
    """Return log-probabilities that are often correct, and labels, some of them of partial depth."""
    generator = torch.Generator().manual_seed(seed)
    target = tree.ancestors(torch.randint(tree.num_classes[tree.finest], (n,), generator=generator))
    log_probs = random_log_probs(tree, n, seed)
    for depth, level in enumerate(tree.levels):
        log_probs[level][torch.arange(n), target[:, depth]] += 2
        log_probs[level] = log_probs[level].log_softmax(dim=1)
    if mixed:
        depths = torch.randint(0, 2 * len(tree.levels), (n, 1), generator=generator)
        target = target.where(torch.arange(len(tree.levels)) < depths, -1)
    return log_probs, target


def ancestors_of(tree: Hierarchy, depth: int, label: int) -> list[tuple[int, int]]:
    """Return a class and its ancestors as (depth, label)."""
    found = [(depth, label)]
    for above in reversed(range(depth)):
        label = tree.parents[above][label]
        found.append((above, label))
    return found


def height(tree: Hierarchy, a: int, b: int) -> int:
    last = len(tree.levels) - 1
    return len(tree.levels) - len(set(ancestors_of(tree, last, a)) & set(ancestors_of(tree, last, b)))


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def naive_report(log_probs: dict[str, Tensor], target: Tensor, tree: Hierarchy, how: str) -> dict[str, float]:
    """Compute the metrics by their definitions, sample by sample."""
    predicted, true, levels = decode(log_probs, tree, how).tolist(), target.tolist(), tree.levels
    found: dict[str, float] = {}
    for d, level in enumerate(levels):
        ranked = [row.argsort(descending=True).tolist() for row in log_probs[level]]
        known = [i for i in range(len(true)) if true[i][d] >= 0]
        found[f"{level}/top1"] = mean([ranked[i][0] == true[i][d] for i in known])
        found[f"{level}/top5"] = mean([true[i][d] in ranked[i][:5] for i in known])
        recalls = [mean([ranked[i][0] == c for i in known if true[i][d] == c]) for c in {true[i][d] for i in known}]
        found[f"{level}/balanced_accuracy"] = mean(recalls)
        found[f"{level}/accuracy"] = mean([predicted[i][d] == true[i][d] for i in known])
        of_classes = [[i for i in known if true[i][d] == c] for c in range(len(tree.classes[d]))]
        found[f"{level}/macro_accuracy"] = mean(
            [mean([predicted[i][d] == true[i][d] for i in samples]) for samples in of_classes if samples]
        )
        probabilities, labels = log_probs[level][known].exp(), target[known, d]
        count = max(2, probabilities.shape[1])  # torchmetrics needs at least two classes
        padded = torch.zeros(len(known), count, dtype=probabilities.dtype)
        padded[:, : probabilities.shape[1]] = probabilities
        found[f"{level}/ece"] = float(multiclass_calibration_error(padded, labels, num_classes=count, n_bins=15))
    ranked = [row.argsort(descending=True).tolist() for row in log_probs[tree.finest]]
    whole = [i for i in range(len(true)) if true[i][-1] >= 0]
    for k in (1, 5, 20):
        heights_of_k = [[height(tree, c, true[i][-1]) for c in ranked[i][:k]] for i in whole]
        found[f"hd@{k}"] = mean([mean(values) for values in heights_of_k])
        if k > 1:
            found[f"min_hd@{k}"] = mean([min(values) for values in heights_of_k])
    counts = [len(names) for names in tree.classes]
    found["wap"] = sum(c * found[f"{level}/accuracy"] for c, level in zip(counts, levels, strict=True)) / sum(counts)
    found["fpa"] = mean([predicted[i] == true[i] for i in whole])
    paths = {tuple(row) for row in tree.ancestors(torch.arange(counts[-1])).tolist()}
    found["tice"] = mean([tuple(row) not in paths for row in predicted])
    heights = [height(tree, predicted[i][-1], true[i][-1]) for i in whole]
    found["lca_distance"] = mean(heights)
    found["mistake_severity"] = mean([h for h in heights if h > 0])
    overlap = count_p = count_t = 0
    of_samples: list[tuple[float, float, float]] = []
    for p, t in zip(predicted, true, strict=True):
        p_set, t_set = ({(d, label) for d, label in enumerate(labels) if t[d] >= 0 and label >= 0} for labels in (p, t))
        overlap, count_p, count_t = (
            overlap + len(p_set & t_set),
            count_p + len(p_set),
            count_t + len(t_set),
        )
        if t_set:
            common = len(p_set & t_set)
            of_samples.append((common / len(p_set), common / len(t_set), 2 * common / (len(p_set) + len(t_set))))
    precision, recall = overlap / count_p, overlap / count_t
    found["hierarchical_precision"], found["hierarchical_recall"] = precision, recall
    found["hierarchical_f1"] = 2 * precision * recall / (precision + recall)
    for name, values in zip(("precision", "recall", "f1"), zip(*of_samples, strict=True), strict=True):
        found[f"macro_hierarchical_{name}"] = mean(list(values))
    return found


@pytest.mark.parametrize("how", list_decodings())
@pytest.mark.parametrize("tree", [TREE, *TREES], ids=lambda tree: str(list(tree.num_classes.values())))
def test_all_metrics_equal_naive_loops(tree: Hierarchy, how: str) -> None:
    log_probs, target = some_batch(tree, 60, seed=3)
    report, naive = tree_report(log_probs, target, tree, how), naive_report(log_probs, target, tree, how)
    assert set(report) == set(naive)
    for name, expected in naive.items():
        assert report[name] == pytest.approx(expected, abs=1e-6, nan_ok=True), name


def test_order_of_names_and_a_level_with_a_dot() -> None:
    tree = Hierarchy(("a.b", "items"), (("x",), ("y", "z")), ((0, 0),))
    metrics = TreeMetrics(tree, ["joint"])
    metrics.update({"items": torch.zeros(2, 2)}, torch.tensor([[0, 0], [0, 1]]))
    of_levels = [f"{level}/{name}" for level in tree.levels for name in ("top1", "top5", "balanced_accuracy", "ece")]
    assert list(metrics.report()) == [*of_levels, "hd@1", "hd@5", "hd@20", "min_hd@5", "min_hd@20"]
    of_labels = ["a.b/accuracy", "items/accuracy", "wap", "a.b/macro_accuracy", "items/macro_accuracy", "fpa", "tice"]
    of_labels += [*HierarchicalF1.outputs, "lca_distance", "mistake_severity"]
    assert list(metrics.report("joint")) == of_labels


def test_metric_info_of_every_name_in_a_report() -> None:
    metrics = TreeMetrics(Hierarchy(("a/b", "items"), (("x",), ("y", "z")), ((0, 0),)), ["joint"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # compute before update
        names = [*metrics.report(), *metrics.report("joint")]
    info = {name: metric_info(name) for name in names}
    in_levels = {"hd@1", "hd@5", "hd@20", "min_hd@5", "min_hd@20", "lca_distance", "mistake_severity"}
    assert {name for name in names if info[name].unit == "levels"} == in_levels
    assert {info[name].unit for name in set(names) - in_levels} == {"fraction"}
    lower = {name for name in names if not info[name].higher_is_better}
    assert lower == in_levels | {"a/b/ece", "items/ece", "tice"}
    assert metric_info("ece") == metric_info("species/ece")
    with pytest.raises(ValueError, match="unknown metric 'wab'; did you mean 'wap'"):
        metric_info("wab")


def test_macro_accuracy_equals_torchmetrics() -> None:
    log_probs, target = some_batch(TREES[7], 200, seed=6, mixed=False)
    predicted = decode(log_probs, TREES[7], "top_down")
    found = value(MacroAccuracy(TREES[7]), predicted, target)
    assert isinstance(found, dict)
    for depth, (level, count) in enumerate(TREES[7].num_classes.items()):
        labels = predicted[:, depth], target[:, depth]
        occurs = labels[1].bincount(minlength=count) > 0
        recall = multiclass_recall(*labels, num_classes=count, average=None)[occurs].mean()
        assert found[f"{level}/macro_accuracy"] == pytest.approx(float(recall))
        if occurs.all():  # otherwise torchmetrics counts 0 for a class that is predicted but does not occur
            expected = multiclass_accuracy(*labels, num_classes=count, average="macro")
            assert found[f"{level}/macro_accuracy"] == pytest.approx(float(expected))


def test_decoding_that_stops_early_has_all_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DECODINGS, "_entries", dict(DECODINGS._entries))

    @register_decoding("confident")
    def confident(log_probs: Mapping[str, Tensor], hierarchy: Hierarchy) -> Tensor:
        """Return the path of the most probable leaf, down to the last level of a probability above 0.6."""
        best = log_probs[hierarchy.finest].argmax(dim=1)
        path = hierarchy.ancestors(best)
        marginals = marginalize({hierarchy.finest: log_probs[hierarchy.finest]}, hierarchy)
        p = torch.stack([z.gather(1, path[:, [d]])[:, 0].exp() for d, z in enumerate(marginals.values())], dim=1)
        return path.where(p > 0.6, -1)

    # The paths (p of A, B, C): a p 0 (.95 .85 .70), a p 0 (.97 .92 .62), a p - (.92 .72 .42), b r 3 (.70 .70 .70),
    # a p - (.92 .72 .42), for the species 0, 1, 2, 3, 0: heights 0, 1, 2, 0, 1.
    report = tree_report({"C": PROBABILITIES.log()}, TRUE, TREE, "confident")
    assert decode({"C": PROBABILITIES.log()}, TREE, "confident")[:, 2].tolist() == [0, 0, -1, 3, -1]
    assert report["lca_distance"] == pytest.approx(4 / 5)
    assert report["mistake_severity"] == pytest.approx(4 / 3)
    assert report["C/accuracy"] == pytest.approx(2 / 5)
    assert report["tice"] == 0
    # Predicted 3, 3, 2, 3, 2 classes, of which correct 3, 2, 1, 3, 2.
    assert report["hierarchical_precision"] == pytest.approx(11 / 13)
    assert report["hierarchical_recall"] == pytest.approx(11 / 15)


def test_registered_metric_is_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))

    @register_metric("error")
    class Error(TopKAccuracy):
        higher_is_better = False

        def compute(self) -> Tensor:
            return 1 - super().compute()

    assert "error" in list_metrics()
    report = tree_report({"C": PROBABILITIES.log()}, TRUE, TREE, "joint")
    assert report["C/error"] == pytest.approx(1 - report["C/top1"])
    assert report["A/error"] == pytest.approx(1 - report["A/top1"])
    assert metric_info("C/error") == (False, "fraction")


def test_uneven_batches_equal_one_batch() -> None:
    log_probs, target = some_batch(TREES[7], 60, seed=5)
    # The first batch is one sample that is correct at every level: all fractions are equal.
    for depth, level in enumerate(TREES[7].levels):
        target[0, depth] = 0
        log_probs[level][0] = torch.tensor([1.0] + [-50.0] * (log_probs[level].shape[1] - 1)).log_softmax(dim=0)
    whole, parts = TreeMetrics(TREES[7]), TreeMetrics(TREES[7])
    whole.update(log_probs, target)
    for begin, end in ((0, 1), (1, 4), (4, 4), (4, 37), (37, 60)):
        parts.update({level: z[begin:end] for level, z in log_probs.items()}, target[begin:end])
    for how in (None, *list_decodings()):
        assert parts.report(how) == pytest.approx(whole.report(how))


def test_missing_coarse_level_is_marginalized() -> None:
    log_probs, target = some_batch(TREE, 40, seed=1)
    coarse = torch.stack([log_probs["C"][:, :3].exp().sum(dim=1), log_probs["C"][:, 3].exp()], dim=1)
    report = tree_report({"C": log_probs["C"]}, target, TREE, "joint")
    known = target[:, 0] >= 0
    assert report["A/top1"] == pytest.approx(float((coarse.argmax(dim=1) == target[:, 0])[known].double().mean()))


def test_mean_over_no_samples_is_nan() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for metric in (OF_A_LEVEL["top1"](), OF_A_LEVEL["balanced_accuracy"](), OF_A_LEVEL["ece"](), LCADistance(TREE)):
            assert math.isnan(float(metric.compute()))
        assert all(math.isnan(float(v)) for v in HierarchicalF1(TREE).compute().values())
    assert any("was called before the ``update`` method" in str(warning.message) for warning in caught)
    right = tree_report({"C": 9 * torch.eye(4)}, TREE.ancestors(torch.arange(4)), TREE, "joint")
    assert right["fpa"] == 1 and math.isnan(right["mistake_severity"]), "there are no mistakes"


@pytest.mark.parametrize("metric", OF_LABELS)
def test_labels_of_unexpected_shape(metric: type[Metric]) -> None:
    with pytest.raises(ValueError, match=r"the shape of predicted labels is \(5, 2\), expected \(5, 3\) for "):
        metric(TREE).update(PREDICTED[:, :2], TRUE)
    with pytest.raises(ValueError, match=r"the shape of true labels is \(5,\), expected \(5, 3\) for "):
        metric(TREE).update(PREDICTED, TRUE[:, 0])


def test_invalid_arguments() -> None:
    with pytest.raises(ValueError, match=r"no log-probabilities for 'C'; use hierarchy.truncate\('B'\)"):
        tree_report({"B": torch.zeros(5, 3)}, TRUE, TREE, "joint")
    with pytest.raises(ValueError, match="unknown decoding 'jiont'; did you mean 'joint'"):
        tree_report({"C": torch.zeros(5, 4)}, TRUE, TREE, "jiont")


def run_process(rank: int, folder: str) -> None:
    """Add 18 or 2 of 20 samples to all metrics, and write the values over both processes."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", world_size=2, rank=rank)
    log_probs, target = some_batch(TREE, 20, seed=2)
    own = slice(0, 18) if rank == 0 else slice(18, 20)
    metrics = TreeMetrics(TREE)
    metrics.update({level: z[own] for level, z in log_probs.items()}, target[own])
    reports = [metrics.report(how) for how in (None, *list_decodings())]
    Path(folder, f"{rank}.json").write_text(json.dumps(reports))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(run_process, (str(tmp_path),), nprocs=2, start_method="fork")
    metrics = TreeMetrics(TREE)
    metrics.update(*some_batch(TREE, 20, seed=2))
    for position, how in enumerate((None, *list_decodings())):
        for rank in (0, 1):
            report = json.loads((tmp_path / f"{rank}.json").read_text())[position]
            assert report == pytest.approx(metrics.report(how))
