"""Metrics that know the tree: of one level's probabilities, and of labels for all levels.

All are `torchmetrics.Metric`s whose states are sums, so that they gather over processes and do not depend on how the
samples are batched. A label of -1 is unknown. A mean over nothing is nan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from c2f_zoo.decoding import DECODINGS, decode, is_path, marginalize
from c2f_zoo.hierarchy import Hierarchy


class TreeMetrics:
    """All metrics of this module at once, for one tree and some decodings.

    Their names in the report: of a level, `species/top1`, `species/top5`, `species/balanced_accuracy`, `species/ece`;
    of the finest level, `hd@1`, `hd@5`, `hd@20`; of a decoding's labels, `species/accuracy` and so on for each level,
    `wap`, `fpa`, `tice`, `hierarchical_precision`, `hierarchical_recall`, `hierarchical_f1`, `lca_distance`,
    `mistake_severity`.

    Args:
        hierarchy: the class tree; its finest level must be among those answered (else take `truncate(level)`).
        decodings: some of `DECODINGS`.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> metrics = TreeMetrics(tree, ["top_down", "joint"])
        >>> log_probs = {"kind": torch.tensor([[0.4, 0.6]]).log(), "shape": torch.tensor([[0.6, 0.3, 0.1]]).log()}
        >>> metrics.update(log_probs, target=torch.tensor([[0, 1]]))
        >>> metrics.report()["hd@1"], metrics.report("joint")["kind/accuracy"], metrics.report("top_down")["fpa"]
        (1.0, 1.0, 0.0)
    """

    def __init__(self, hierarchy: Hierarchy, decodings: Sequence[str] = DECODINGS) -> None:
        self.hierarchy = hierarchy
        self._of_levels = {level: _level_metrics(level, hierarchy) for level in hierarchy.levels}
        self._of_labels = {how: _label_metrics(hierarchy) for how in decodings}

    def to(self, device: torch.device | str) -> TreeMetrics:
        """Moves the sums to the device of what is to be added; gives itself back."""
        for metrics in (*self._of_levels.values(), *self._of_labels.values()):
            for metric in metrics.values():
                metric.to(device)
        return self

    def update(self, log_probs: Mapping[str, Tensor], target: Tensor) -> None:
        """Adds a batch.

        Args:
            log_probs: log-probabilities (N, classes) of the finest level and of any others; a coarser level that is
                missing is summed up by `c2f_zoo.decoding.marginalize`.
            target: int64 labels (N, levels), coarse to fine; -1 for unknown.

        Raises:
            ValueError: the finest level is missing, or a shape does not fit the tree.
        """
        tree = self.hierarchy
        every = marginalize(log_probs, tree)
        if tree.finest not in every:
            coarser = list(every)[-1]
            raise ValueError(f"no log-probabilities for {tree.finest!r}; use hierarchy.truncate({coarser!r})")
        _check_labels(target, target, tree)
        for depth, (level, of_level) in enumerate(self._of_levels.items()):
            for metric in of_level.values():
                metric.update(every[level], target[:, depth])
        for how, of_labels in self._of_labels.items():
            predicted = decode(log_probs, tree, how)
            for metric in of_labels.values():
                metric.update(predicted, target)

    def report(self, decoding: str | None = None) -> dict[str, float]:
        """Names and values of the metrics of one decoding, or, for None, of those that depend on no decoding.

        In a process group all processes must call it.
        """
        chosen = self._of_levels.values() if decoding is None else [self._of_labels[decoding]]
        found: dict[str, float] = {}
        for name, metric in ((name, metric) for metrics in chosen for name, metric in metrics.items()):
            result = metric.compute()
            parts = result if isinstance(result, dict) else {name: result}
            found |= {part: float(value) for part, value in parts.items()}
        return found


def tree_report(
    log_probs: Mapping[str, Tensor], target: Tensor, hierarchy: Hierarchy, decoding: str
) -> dict[str, float]:
    """Every metric of predictions that are at hand all at once.

    Args:
        log_probs: log-probabilities (N, classes) of the finest level and of any others.
        target: int64 labels (N, levels), coarse to fine; -1 for unknown.
        hierarchy: the class tree.
        decoding: one of `DECODINGS`.

    Returns:
        Name and value of each metric; see `TreeMetrics`.

    Raises:
        ValueError: the decoding is unknown, the finest level is missing, or a shape does not fit the tree.

    Examples:
        >>> tree = load_hierarchy("fashion_mnist")
        >>> target = tree.ancestors(torch.arange(10))
        >>> report = tree_report({"article": 9 * torch.eye(10)}, target, tree, "bottom_up")
        >>> report["fpa"], report["tice"], report["article/top1"]
        (1.0, 0.0, 1.0)
    """
    metrics = TreeMetrics(hierarchy, [decoding]).to(target.device)
    metrics.update(log_probs, target)
    return metrics.report() | metrics.report(decoding)


# Dictionaries, not a MetricCollection: that sorts names, refuses a level called "a.b", and by default takes metrics for
# the same whose first batches look the same.
def _level_metrics(level: str, hierarchy: Hierarchy) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {
        f"{level}/top1": TopKAccuracy(1),
        f"{level}/top5": TopKAccuracy(5),
        f"{level}/balanced_accuracy": BalancedAccuracy(hierarchy.num_classes[level]),
        f"{level}/ece": CalibrationError(),
    }
    if level == hierarchy.finest:
        metrics |= {f"hd@{k}": HierarchicalDistance(hierarchy, k) for k in (1, 5, 20)}
    return metrics


def _label_metrics(hierarchy: Hierarchy) -> dict[str, Metric]:
    return {
        "accuracy": LevelAccuracy(hierarchy),
        "fpa": FullPathAccuracy(hierarchy),
        "tice": TreeInconsistency(hierarchy),
        "hierarchical": HierarchicalF1(hierarchy),
        "lca_distance": LCADistance(hierarchy),
        "mistake_severity": MistakeSeverity(hierarchy),
    }


class _Mean(Metric):
    """Mean of whole numbers, one a sample that counts; nan where none does."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, values: Tensor) -> None:
        self.total += values.sum()
        self.count += values.numel()

    def compute(self) -> Tensor:
        return self.total / self.count


class _TreeMean(_Mean):
    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__()
        self.hierarchy = hierarchy


class TopKAccuracy(_Mean):
    """Share of samples whose class is among the k most probable ones of its level.

    In [0, 1], higher is better. Where a level has no more than k classes, all are among them: it is 1. Samples of
    unknown class (-1) are left out.

    Args:
        k: how many classes, >= 1.
    """

    higher_is_better = True

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def update(self, log_probs: Tensor, target: Tensor) -> None:
        """Adds log-probabilities, or any scores, (N, classes) and labels (N,)."""
        log_probs, target = _known(log_probs, target)
        best = _most_probable(log_probs, self.k)
        self._add((best == target[:, None]).any(dim=1))


class BalancedAccuracy(Metric):
    """Mean over classes of the share of their samples that are recognised (class-balanced accuracy, mean recall).

    In [0, 1], higher is better. The mean is over the classes that occur in the targets. Samples of unknown class (-1)
    are left out.

    Args:
        num_classes: number of classes of the level.
    """

    full_state_update = False
    higher_is_better = True
    correct: Tensor
    count: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("correct", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, log_probs: Tensor, target: Tensor) -> None:
        """Adds log-probabilities, or any scores, (N, classes) and labels (N,)."""
        log_probs, target = _known(log_probs, target)
        right = log_probs.argmax(dim=1) == target
        self.correct += torch.bincount(target[right], minlength=self.num_classes)
        self.count += torch.bincount(target, minlength=self.num_classes)

    def compute(self) -> Tensor:
        occurs = self.count > 0
        return (self.correct[occurs] / self.count[occurs]).mean()


class CalibrationError(Metric):
    """Expected calibration error: how far confidence and accuracy lie apart (Guo et al., ICML 2017, eq. 3).

    `sum_b n_b / N |accuracy_b - confidence_b|` over bins of equal width, the m-th holding the samples whose confidence,
    the probability of the most probable class, lies in `((m - 1) / bins, m / bins]`. In [0, 1], lower is better.
    Samples of unknown class (-1) are left out.

    Args:
        num_bins: number of bins.
    """

    full_state_update = False
    higher_is_better = False
    correct: Tensor
    confidence: Tensor
    count: Tensor

    def __init__(self, num_bins: int = 15) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.add_state("correct", torch.zeros(num_bins, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("confidence", torch.zeros(num_bins), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(num_bins, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, log_probs: Tensor, target: Tensor) -> None:
        """Adds log-probabilities (N, classes) and labels (N,)."""
        log_probs, target = _known(log_probs, target)
        best, label = log_probs.max(dim=1)
        confidence = best.to(self.confidence.dtype).exp()
        bins = ((confidence * self.num_bins).ceil().long() - 1).clamp(0, self.num_bins - 1)
        self.correct += torch.bincount(bins[label == target], minlength=self.num_bins)
        self.confidence.index_add_(0, bins, confidence)
        self.count += torch.bincount(bins, minlength=self.num_bins)

    def compute(self) -> Tensor:
        return (self.correct - self.confidence).abs().sum() / self.count.sum()


class HierarchicalDistance(_TreeMean):
    """Mean height of the lowest common ancestor of the true class and each of the k most probable ones.

    Hierarchical distance of a top-k prediction (Bertinetto et al., CVPR 2020), on the finest level. In
    [0, number of levels], lower is better. Of fewer than k classes all are taken. Samples whose finest class is
    unknown (-1) are left out.

    Args:
        hierarchy: the class tree.
        k: how many classes, >= 1.
    """

    higher_is_better = False

    def __init__(self, hierarchy: Hierarchy, k: int) -> None:
        super().__init__(hierarchy)
        self.k = k

    def update(self, log_probs: Tensor, target: Tensor) -> None:
        """Adds log-probabilities, or any scores, (N, finest classes) and finest labels (N,)."""
        log_probs, target = _known(log_probs, target)
        best = _most_probable(log_probs, self.k)
        self._add(self.hierarchy.lca_height(best, target[:, None]))


class LevelAccuracy(Metric):
    """Share of right labels at each level, and their mean weighted by the levels' numbers of classes (wAP).

    `wap = sum_l C_l accuracy_l / sum_l C_l` (as in Park et al., Visually Consistent Hierarchical Image Classification,
    ICLR 2025). In [0, 1], higher is better. A level's samples of unknown class (-1) are left out.

    Args:
        hierarchy: the class tree.
    """

    full_state_update = False
    higher_is_better = True
    correct: Tensor
    count: Tensor

    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__()
        self.hierarchy = hierarchy
        self.add_state("correct", torch.zeros(len(hierarchy.levels), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(len(hierarchy.levels), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Adds labels (N, levels), coarse to fine."""
        _check_labels(predicted, target, self.hierarchy)
        known = target >= 0
        self.correct += ((predicted == target) & known).sum(dim=0)
        self.count += known.sum(dim=0)

    def compute(self) -> dict[str, Tensor]:
        """`{level}/accuracy` for each level, and `wap`."""
        accuracy = self.correct / self.count
        classes = accuracy.new_tensor(list(self.hierarchy.num_classes.values()))
        by_level = {f"{level}/accuracy": value for level, value in zip(self.hierarchy.levels, accuracy, strict=True)}
        return {**by_level, "wap": (classes * accuracy).sum() / classes.sum()}


class FullPathAccuracy(_TreeMean):
    """FPA: share of samples that are right at every level, an exact match of the whole path.

    As in Park et al. (Visually Consistent Hierarchical Image Classification, ICLR 2025). In [0, 1], higher is better.
    Samples of which a level is unknown (-1) are left out.

    Args:
        hierarchy: the class tree.
    """

    higher_is_better = True

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Adds labels (N, levels), coarse to fine."""
        _check_labels(predicted, target, self.hierarchy)
        is_whole = (target >= 0).all(dim=1)
        self._add((predicted == target)[is_whole].all(dim=1))


class TreeInconsistency(_TreeMean):
    """TICE, tree-based inconsistency error: share of predictions that are no path in the tree.

    One minus consistency; as in Park et al. (Visually Consistent Hierarchical Image Classification, ICLR 2025). In
    [0, 1], lower is better. The truth does not matter: samples of unknown class count, too.

    Args:
        hierarchy: the class tree.
    """

    higher_is_better = False

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Adds labels (N, levels), coarse to fine; those of `target` are not read."""
        _check_labels(predicted, target, self.hierarchy)
        self._add(~is_path(predicted, self.hierarchy))


class HierarchicalF1(Metric):
    """Hierarchical precision, recall and F1: how far predicted and true classes overlap, ancestors included.

    With P the predicted classes of a sample, one a level, T the true ones, and sums over samples:
    `hP = sum |P & T| / sum |P|`, `hR = sum |P & T| / sum |T|`, `hF1 = 2 hP hR / (hP + hR)` (Kiritchenko et al., 2005;
    Kosmopoulos et al., Data Mining and Knowledge Discovery 2015). In [0, 1], higher is better.

    Of a path, P is the finest class and all its ancestors, as in the source (without the root, which is always right).
    Labels that are no path are taken as they are: if each brought its own ancestors along, they would claim several
    branches of the tree at once, and gain recall by it. Where a prediction stops early (-1), P is smaller and precision
    may be greater than recall; else the three are one. Where the truth is unknown (-1), the prediction is left out.

    Args:
        hierarchy: the class tree.
    """

    full_state_update = False
    higher_is_better = True
    overlap: Tensor
    predicted: Tensor
    true: Tensor

    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__()
        self.hierarchy = hierarchy
        for name in ("overlap", "predicted", "true"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Adds labels (N, levels), coarse to fine."""
        _check_labels(predicted, target, self.hierarchy)
        known = target >= 0
        self.overlap += ((predicted == target) & known).sum()
        self.predicted += ((predicted >= 0) & known).sum()
        self.true += known.sum()

    def compute(self) -> dict[str, Tensor]:
        """`hierarchical_precision`, `hierarchical_recall` and `hierarchical_f1`."""
        return {
            "hierarchical_precision": self.overlap / self.predicted,
            "hierarchical_recall": self.overlap / self.true,
            "hierarchical_f1": 2 * self.overlap / (self.predicted + self.true),
        }


class LCADistance(_TreeMean):
    """Mean height of the lowest common ancestor of predicted and true finest class, over all samples.

    A right answer has the height 0, a sibling 1, and so on (see `Hierarchy.lca_height`): it is `hd@1` of the decoded
    labels. In [0, number of levels], lower is better. Samples whose finest class is unknown (-1) are left out.

    Args:
        hierarchy: the class tree.
    """

    higher_is_better = False

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Adds labels (N, levels), coarse to fine."""
        self._add(_heights(predicted, target, self.hierarchy))


class MistakeSeverity(_TreeMean):
    """Mean height of the lowest common ancestor of predicted and true finest class, over the mistakes alone.

    Bertinetto et al. (CVPR 2020). In [1, number of levels], lower is better; nan where nothing is wrong.
    Beware: a model that turns mild mistakes into right answers looks worse by it. Samples whose finest class is
    unknown (-1) are left out.

    Args:
        hierarchy: the class tree.
    """

    higher_is_better = False

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Adds labels (N, levels), coarse to fine."""
        heights = _heights(predicted, target, self.hierarchy)
        self._add(heights[heights > 0])


class LCAHeights(Metric):
    """How many samples have their predicted and true finest class meet at each height of the tree.

    Entry 0 counts the right answers, entry 1 the siblings of the truth, the last those that share no ancestor with
    it. Samples whose finest class is unknown (-1) are left out.

    Args:
        hierarchy: the class tree.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__()
        self.hierarchy = hierarchy
        self.add_state("counts", torch.zeros(len(hierarchy.levels) + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Adds labels (N, levels), coarse to fine."""
        self.counts += torch.bincount(_heights(predicted, target, self.hierarchy), minlength=len(self.counts))

    def compute(self) -> Tensor:
        """The counts (levels + 1,), int64."""
        return self.counts


def _known(log_probs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    is_known = target >= 0
    return log_probs[is_known], target[is_known]


def _most_probable(log_probs: Tensor, k: int) -> Tensor:
    """The k most probable classes (N, k), or all where there are fewer."""
    if k == 1:  # of equals the lowest label, as in decoding; topk takes any
        return log_probs.argmax(dim=1, keepdim=True)
    return log_probs.topk(min(k, log_probs.shape[1]), dim=1).indices


def _heights(predicted: Tensor, target: Tensor, hierarchy: Hierarchy) -> Tensor:
    """Heights of the common ancestors of the finest labels, of the samples for which they are known."""
    _check_labels(predicted, target, hierarchy)
    is_known = target[:, -1] >= 0
    return hierarchy.lca_height(predicted[is_known, -1], target[is_known, -1])


def _check_labels(predicted: Tensor, target: Tensor, hierarchy: Hierarchy) -> None:
    wanted = (len(target), len(hierarchy.levels))
    for name, labels in (("predicted", predicted), ("true", target)):
        if tuple(labels.shape) != wanted:
            raise ValueError(
                f"{name} labels are {wanted}, one for each of {hierarchy.levels}, not {tuple(labels.shape)}"
            )
