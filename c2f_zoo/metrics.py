"""Hierarchical metrics and their registry.

All are `torchmetrics.Metric`s with sums as states: they are exact for any number of processes and any batch size. A
label of -1 is unknown. The mean over no samples is nan. In a tree whose `ragged` is `"stop"`, repeats are left out: at
a level below the end of a short branch, its samples do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from c2f_zoo.decoding import DECODINGS, decode, is_path, marginalize
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.registry import Registry, check_names

Scope = Literal["level", "leaf", "path"]
Unit = Literal["fraction", "levels"]


class TreeMetric(Metric):
    """Base class of the hierarchical metrics.

    A metric is registered with `register_metric`, and is created as `metric(hierarchy)`.

    Attributes:
        scope: the inputs of `update`. `"level"`: log-probabilities (N, classes) and labels (N,) of one level; there is
            a metric for each level, with `hierarchy` truncated at it. `"leaf"`: the same, for the leaf level only.
            `"path"`: predicted and true labels (N, levels), coarse to fine.
        higher_is_better: whether a higher value is better.
        unit: `"fraction"` for values in [0, 1], or `"levels"` for heights in levels of the tree.
        outputs: names of the values, if `compute` returns a dictionary; its keys may have a level and a `/` in front.

    Args:
        hierarchy: the class tree.
    """

    full_state_update = False
    scope: Scope = "path"
    higher_is_better: bool
    unit: Unit = "fraction"
    outputs: tuple[str, ...] = ()

    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__()
        self.hierarchy = hierarchy

    def _add_counts(self, *names: str, size: tuple[int, ...] = ()) -> None:
        """Add states of int64 zeros that are summed over processes."""
        for name in names:
            self.add_state(name, torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")


def _class_of(metric: Any) -> Any:
    return metric.func if isinstance(metric, partial) else metric


def _is_metric(entry: Any) -> bool:
    cls = _class_of(entry)
    return isinstance(cls, type) and issubclass(cls, TreeMetric) and isinstance(cls.higher_is_better, bool)


METRICS: Registry[Callable[[Hierarchy], TreeMetric]] = Registry("metric", "c2f_zoo.metrics", fits=_is_metric)
register_metric = METRICS.register


def list_metrics(pattern: str = "*") -> list[str]:
    """List the names of the registered metrics, filtered by a wildcard.

    Examples:
        >>> list_metrics("hd@*")
        ['hd@1', 'hd@20', 'hd@5']
    """
    return METRICS.names(pattern)


class MetricInfo(NamedTuple):
    """Direction and unit of a metric's values; see `TreeMetric`."""

    higher_is_better: bool
    unit: Unit


def metric_info(name: str) -> MetricInfo:
    """Return the direction and unit of a value in a report.

    Args:
        name: a key of `TreeMetrics.report`, with or without a level: `"species/top1"`, `"ece"`, `"hd@5"`.

    Raises:
        ValueError: no registered metric has this name.

    Examples:
        >>> metric_info("species/top1")
        MetricInfo(higher_is_better=True, unit='fraction')
        >>> metric_info("mistake_severity")
        MetricInfo(higher_is_better=False, unit='levels')
    """
    key = name.rsplit("/", 1)[-1]
    classes: dict[str, Any] = {}
    for registered, metric in METRICS.load_all().items():
        cls = _class_of(metric)
        classes |= dict.fromkeys(cls.outputs or (registered,), cls)
    check_names("metric", [key], classes)
    return MetricInfo(classes[key].higher_is_better, classes[key].unit)


class TreeMetrics:
    """All registered metrics at once, for one tree and several decodings.

    The built-in metrics have these names in the report: for each level, `species/top1`, `species/top5`,
    `species/balanced_accuracy`, `species/ece`; for the leaf level, `hd@1`, `hd@5`, `hd@20`, `min_hd@5`, `min_hd@20`;
    for each decoding, `species/accuracy` of each level, `wap`, `species/macro_accuracy` of each level, `fpa`, `tice`,
    `hierarchical_precision`, `hierarchical_recall`, `hierarchical_f1`, `macro_hierarchical_precision`,
    `macro_hierarchical_recall`, `macro_hierarchical_f1`, `lca_distance`, `mistake_severity`.

    Args:
        hierarchy: the class tree. The model must predict its leaf level; otherwise pass `hierarchy.truncate(level)`.
        decodings: names of decodings. Default: all.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> metrics = TreeMetrics(tree, ["top_down", "joint"])
        >>> log_probs = {"kind": torch.tensor([[0.4, 0.6]]).log(), "shape": torch.tensor([[0.6, 0.3, 0.1]]).log()}
        >>> metrics.update(log_probs, target=torch.tensor([[0, 1]]))
        >>> metrics.report()["hd@1"], metrics.report("joint")["kind/accuracy"], metrics.report("top_down")["fpa"]
        (1.0, 1.0, 0.0)
    """

    def __init__(self, hierarchy: Hierarchy, decodings: Sequence[str] | None = None) -> None:
        self.hierarchy = hierarchy
        metrics = METRICS.load_all()

        def create(tree: Hierarchy, scope: Scope, prefix: str = "") -> dict[str, TreeMetric]:
            return {prefix + name: metric(tree) for name, metric in metrics.items() if _class_of(metric).scope == scope}

        # Dictionaries, since a MetricCollection sorts names, rejects a level called "a.b", and merges metrics with
        # equal values on the first batch.
        self._of_levels = {level: create(hierarchy.truncate(level), "level", f"{level}/") for level in hierarchy.levels}
        self._of_levels[hierarchy.finest] |= create(hierarchy, "leaf")
        names = DECODINGS.load_all() if decodings is None else decodings
        self._of_decodings = {name: create(hierarchy, "path") for name in names}

    def to(self, device: torch.device | str) -> TreeMetrics:
        """Move the states to the device of the batches; return `self`."""
        for metrics in (*self._of_levels.values(), *self._of_decodings.values()):
            for metric in metrics.values():
                metric.to(device)
        return self

    def update(self, log_probs: Mapping[str, Tensor], target: Tensor) -> None:
        """Add a batch.

        Args:
            log_probs: log-probabilities (N, classes) of the leaf level, and of any coarser levels; the others are
                computed by `c2f_zoo.decoding.marginalize`.
            target: int64 labels (N, levels), coarse to fine; -1 for unknown.

        Raises:
            ValueError: the leaf level is missing, or a shape does not match the tree.
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
        for decoding, of_decoding in self._of_decodings.items():
            predicted = decode(log_probs, tree, decoding)
            for metric in of_decoding.values():
                metric.update(predicted, target)

    def report(self, decoding: str | None = None) -> dict[str, float]:
        """Return the values of a decoding's metrics by name.

        Default: the metrics without decoding. All processes of a group must call this method.
        """
        chosen = self._of_levels.values() if decoding is None else [self._of_decodings[decoding]]
        values: dict[str, Tensor] = {}
        for name, metric in (item for metrics in chosen for item in metrics.items()):
            result = metric.compute()
            values |= result if isinstance(result, dict) else {name: result}
        return {name: float(value) for name, value in values.items()}


def tree_report(
    log_probs: Mapping[str, Tensor], target: Tensor, hierarchy: Hierarchy, decoding: str
) -> dict[str, float]:
    """Compute every metric of a single batch of predictions.

    Args:
        log_probs: log-probabilities (N, classes) of the leaf level and of any others.
        target: int64 labels (N, levels), coarse to fine; -1 for unknown.
        hierarchy: the class tree.
        decoding: one of `list_decodings()`.

    Returns:
        Name and value of each metric; see `TreeMetrics`.

    Raises:
        ValueError: the decoding is unknown, the leaf level is missing, or a shape does not match the tree.

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


class _Mean(TreeMetric):
    """Mean, or several means, of integers."""

    total: Tensor
    count: Tensor

    def __init__(self, hierarchy: Hierarchy, size: tuple[int, ...] = ()) -> None:
        super().__init__(hierarchy)
        self._add_counts("total", "count", size=size)

    def _add(self, values: Tensor) -> None:
        self.total += values.sum()
        self.count += values.numel()

    def compute(self) -> Any:
        return self.total / self.count


class _TopK(_Mean):
    def __init__(self, hierarchy: Hierarchy, k: int = 1) -> None:
        super().__init__(hierarchy)
        self.k = k

    def _most_probable(self, log_probs: Tensor) -> Tensor:
        """Return the k most probable classes (N, k), or all if there are fewer."""
        if self.k == 1:  # the lowest of equally probable labels, as in decoding; topk may return any of them
            return log_probs.argmax(dim=1, keepdim=True)
        return log_probs.topk(min(self.k, log_probs.shape[1]), dim=1).indices


@register_metric("top1")
class TopKAccuracy(_TopK):
    """Top-k accuracy of one level, in [0, 1]; higher is better.

    It is 1 for a level of at most k classes. Samples of unknown class (-1) are ignored.

    Args:
        hierarchy: the class tree down to the level.
        k: number of most probable classes, >= 1.
    """

    scope = "level"
    higher_is_better = True

    def update(self, log_probs: Tensor, target: Tensor) -> None:
        """Add log-probabilities, or any scores, (N, classes) and labels (N,)."""
        log_probs, target = _known(log_probs, target, self.hierarchy)
        self._add((self._most_probable(log_probs) == target[:, None]).any(dim=1))


register_metric("top5")(partial(TopKAccuracy, k=5))


@register_metric("balanced_accuracy")
class BalancedAccuracy(_Mean):
    """Balanced accuracy of one level, in [0, 1]; higher is better.

    It is the mean recall over the classes in the targets. Samples of unknown class (-1) are ignored.
    """

    scope = "level"
    higher_is_better = True

    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__(hierarchy, size=(len(hierarchy.classes[-1]),))

    def update(self, log_probs: Tensor, target: Tensor) -> None:
        """Add log-probabilities, or any scores, (N, classes) and labels (N,)."""
        log_probs, target = _known(log_probs, target, self.hierarchy)
        is_correct = log_probs.argmax(dim=1) == target
        self.total += torch.bincount(target[is_correct], minlength=len(self.total))
        self.count += torch.bincount(target, minlength=len(self.count))

    def compute(self) -> Tensor:
        return super().compute()[self.count > 0].mean()


@register_metric("ece")
class CalibrationError(TreeMetric):
    """Expected calibration error of one level, in [0, 1]; lower is better.

    Guo et al. (ICML 2017), eq. 3: `sum_b n_b / N |accuracy_b - confidence_b|` over bins of equal width. Bin m holds the
    samples with a confidence, the probability of the most probable class, in `((m - 1) / bins, m / bins]`; there are 15
    bins. Samples of unknown class (-1) are ignored.

    Args:
        hierarchy: the class tree down to the level.
    """

    scope = "level"
    higher_is_better = False
    num_bins = 15
    correct: Tensor
    confidence: Tensor
    count: Tensor

    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__(hierarchy)
        self._add_counts("correct", "count", size=(self.num_bins,))
        self.add_state("confidence", torch.zeros(self.num_bins), dist_reduce_fx="sum")

    def update(self, log_probs: Tensor, target: Tensor) -> None:
        """Add log-probabilities (N, classes) and labels (N,)."""
        log_probs, target = _known(log_probs, target, self.hierarchy)
        best, label = log_probs.max(dim=1)
        confidence = best.to(self.confidence.dtype).exp()
        bins = ((confidence * self.num_bins).ceil().long() - 1).clamp(0, self.num_bins - 1)
        self.correct += torch.bincount(bins[label == target], minlength=self.num_bins)
        self.confidence.index_add_(0, bins, confidence)
        self.count += torch.bincount(bins, minlength=self.num_bins)

    def compute(self) -> Tensor:
        return (self.correct - self.confidence).abs().sum() / self.count.sum()


@register_metric("hd@1")
class HierarchicalDistance(_TopK):
    """Hierarchical distance of a top-k prediction; lower is better.

    Bertinetto et al. (CVPR 2020): mean height of the lowest common ancestor of the true leaf class and each of the k
    most probable ones (all, if there are fewer than k), in [0, number of levels]. Samples of unknown leaf class (-1)
    are ignored.

    Args:
        hierarchy: the class tree.
        k: number of most probable classes, >= 1.
    """

    scope = "leaf"
    higher_is_better = False
    unit = "levels"

    def update(self, log_probs: Tensor, target: Tensor) -> None:
        """Add log-probabilities, or any scores, (N, leaf classes) and leaf labels (N,)."""
        log_probs, target = _known(log_probs, target)
        self._add(self._reduce(self.hierarchy.lca_height(self._most_probable(log_probs), target[:, None])))

    def _reduce(self, heights: Tensor) -> Tensor:
        """Return the heights to average, of heights (N, k)."""
        return heights


register_metric("hd@5")(partial(HierarchicalDistance, k=5))
register_metric("hd@20")(partial(HierarchicalDistance, k=20))


class MinHierarchicalDistance(HierarchicalDistance):
    """Least hierarchical distance among the k most probable classes; lower is better.

    The mean over samples of the least height of the lowest common ancestor of the true leaf class and one of the k most
    probable ones, in [0, number of levels]: 0 where the true class is among them. With k = 1 it is
    `HierarchicalDistance`. Samples of unknown leaf class (-1) are ignored.

    Args:
        hierarchy: the class tree.
        k: number of most probable classes, >= 1.
    """

    def _reduce(self, heights: Tensor) -> Tensor:
        return heights.amin(dim=1)


register_metric("min_hd@5")(partial(MinHierarchicalDistance, k=5))
register_metric("min_hd@20")(partial(MinHierarchicalDistance, k=20))


@register_metric("accuracy")
class LevelAccuracy(_Mean):
    """Accuracy of each level and their weighted mean, in [0, 1]; higher is better.

    `wap = sum_l C_l accuracy_l / sum_l C_l`, weighted by the levels' numbers of classes (as in Park et al., Visually
    Consistent Hierarchical Image Classification, ICLR 2025). At each level, samples of unknown class (-1) are ignored.
    """

    higher_is_better = True
    outputs = ("accuracy", "wap")

    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__(hierarchy, size=(len(hierarchy.levels),))

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add labels (N, levels), coarse to fine."""
        _check_labels(predicted, target, self.hierarchy)
        known = self.hierarchy.cut_repeats(target) >= 0
        self.total += ((predicted == target) & known).sum(dim=0)
        self.count += known.sum(dim=0)

    def compute(self) -> dict[str, Tensor]:
        """Return `{level}/accuracy` for each level, and `wap`."""
        accuracy = super().compute()
        tree = self.hierarchy
        counts = [len(names) - len(left_out) for names, left_out in zip(tree.classes, tree.left_out, strict=True)]
        classes = accuracy.new_tensor(counts)
        by_level = {f"{level}/accuracy": value for level, value in zip(tree.levels, accuracy, strict=True)}
        return {**by_level, "wap": (classes * accuracy).sum() / classes.sum()}


@register_metric("macro_accuracy")
class MacroAccuracy(_Mean):
    """Macro-averaged accuracy of each level, in [0, 1]; higher is better.

    The mean over the classes in the targets of the fraction of their samples that are correct (the recall): every class
    has the same weight. It is `BalancedAccuracy` of decoded labels. At each level, samples of unknown class (-1) are
    ignored.
    """

    higher_is_better = True

    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__(hierarchy, size=(sum(hierarchy.num_classes.values()),))

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add labels (N, levels), coarse to fine."""
        _check_labels(predicted, target, self.hierarchy)
        target = self.hierarchy.cut_repeats(target)
        counts = list(self.hierarchy.num_classes.values())
        for true, predicted_label, total, count in zip(
            target.T, predicted.T, self.total.split(counts), self.count.split(counts), strict=True
        ):
            total += torch.bincount(true[(true >= 0) & (predicted_label == true)], minlength=len(total))
            count += torch.bincount(true[true >= 0], minlength=len(count))

    def compute(self) -> dict[str, Tensor]:
        """Return `{level}/macro_accuracy` for each level."""
        recalls = super().compute().split(list(self.hierarchy.num_classes.values()))
        return {
            f"{level}/macro_accuracy": recall[~recall.isnan()].mean()  # nan: the class does not occur
            for level, recall in zip(self.hierarchy.levels, recalls, strict=True)
        }


@register_metric("fpa")
class FullPathAccuracy(_Mean):
    """Full-path accuracy (FPA), in [0, 1]; higher is better.

    The fraction of samples that are correct at every level, as in Park et al. (Visually Consistent Hierarchical Image
    Classification, ICLR 2025). Samples with an unknown label (-1) at any level are ignored.
    """

    higher_is_better = True

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add labels (N, levels), coarse to fine."""
        _check_labels(predicted, target, self.hierarchy)
        is_known = (target >= 0).all(dim=1)
        self._add((predicted == target)[is_known].all(dim=1))


@register_metric("tice")
class TreeInconsistency(_Mean):
    """Tree-based inconsistency error (TICE), in [0, 1]; lower is better.

    The fraction of predictions that are not a path, as in Park et al. (Visually Consistent Hierarchical Image
    Classification, ICLR 2025). It does not depend on the true labels: samples of unknown class are included.
    """

    higher_is_better = False

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add labels (N, levels), coarse to fine; `target` is checked for its shape only."""
        _check_labels(predicted, target, self.hierarchy)
        self._add(~is_path(predicted, self.hierarchy))


@register_metric("hierarchical")
class HierarchicalF1(TreeMetric):
    """Hierarchical precision, recall and F1, in [0, 1]; higher is better.

    Let P be the predicted and T the true classes of a sample, one for each level. Sums are over samples:
    `hP = sum |P & T| / sum |P|`, `hR = sum |P & T| / sum |T|`, `hF1 = 2 hP hR / (hP + hR)` (Kiritchenko et al., 2005;
    Kosmopoulos et al., Data Mining and Knowledge Discovery 2015). The macro averages are means over samples of
    `|P & T| / |P|`, `|P & T| / |T|` and `2 |P & T| / (|P| + |T|)`; a sample with an empty P has precision 0.

    If the labels are a path, P is the leaf class with its ancestors, as in the source, without the root, which is
    always correct. Labels that are not a path are used unchanged: adding the ancestors of each would reward a
    prediction of several branches. A prediction that stops early (-1) has a smaller P, so that precision and recall
    differ; otherwise all three are equal. Levels of unknown true class (-1) are ignored, and so are samples without a
    known class. If `ragged` is `"stop"`, P and T have no repeats: the set of a short branch is smaller, and a class
    predicted below its end is wrong.
    """

    higher_is_better = True
    outputs = (
        *("hierarchical_precision", "hierarchical_recall", "hierarchical_f1"),
        *("macro_hierarchical_precision", "macro_hierarchical_recall", "macro_hierarchical_f1"),
    )
    counts: Tensor

    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__(hierarchy)
        # The number of samples with each |P & T|, |P| and |T|: integers, so that no sum depends on the batches.
        self._add_counts("counts", size=(len(hierarchy.levels) + 1,) * 3)

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add labels (N, levels), coarse to fine."""
        _check_labels(predicted, target, self.hierarchy)
        known = target >= 0
        predicted, target = self.hierarchy.cut_repeats(predicted), self.hierarchy.cut_repeats(target)
        exists = target >= 0
        sizes = [found.sum(dim=1) for found in ((predicted == target) & exists, (predicted >= 0) & known, exists)]
        self.counts.index_put_(tuple(sizes), self.counts.new_ones(()), accumulate=True)

    def compute(self) -> dict[str, Tensor]:
        """Return the three values over all samples, then their macro averages."""
        counts = self.counts[..., 1:]  # without samples of no known class
        sizes = torch.arange(len(self.counts), device=counts.device)
        overlap, predicted, true = sizes[:, None, None], sizes[:, None], sizes[1:]
        fractions = [(overlap, predicted), (overlap, true), (2 * overlap, predicted + true)]
        micro = [(above * counts).sum() / (below * counts).sum() for above, below in fractions]
        macro = [(above / below.clamp(min=1) * counts).sum() / counts.sum() for above, below in fractions]
        return dict(zip(self.outputs, micro + macro, strict=True))


@register_metric("lca_distance")
class LCADistance(_Mean):
    """Mean LCA height of predicted and true leaf class; lower is better.

    The height of the lowest common ancestor (LCA) is 0 for a correct prediction, 1 for a sibling of the true class, and
    so on (see `Hierarchy.lca_height`). The mean, in [0, number of levels], is the `hd@1` of the decoded labels. Samples
    of unknown leaf class (-1) are ignored.

    A prediction that stops early (-1 below some level) is the class where it stops, or the root without any label. Its
    LCA with the true leaf class is that class itself if the class is correct: its height is the number of levels below.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> distance = LCADistance(tree)
        >>> distance.update(torch.tensor([[0, -1], [-1, -1]]), torch.tensor([[0, 1], [0, 1]]))
        >>> distance.compute()  # (1 + 2) / 2
        tensor(1.5000)
    """

    higher_is_better = False
    unit = "levels"

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add labels (N, levels), coarse to fine."""
        self._add(_heights(predicted, target, self.hierarchy))


@register_metric("mistake_severity")
class MistakeSeverity(_Mean):
    """Mean LCA height over the mistakes; lower is better.

    Bertinetto et al. (CVPR 2020). In [1, number of levels]; nan without a mistake. A model that corrects only mild
    mistakes scores worse, so compare `lca_distance` too. A prediction that stops early (-1) is a mistake, with
    the height that it has in `LCADistance`. Samples of unknown leaf class (-1) are ignored.
    """

    higher_is_better = False
    unit = "levels"

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add labels (N, levels), coarse to fine."""
        heights = _heights(predicted, target, self.hierarchy)
        self._add(heights[heights > 0])


class LCAHeights(TreeMetric):
    """Histogram of the LCA heights of predicted and true leaf class.

    Entry 0 counts the correct predictions, entry 1 the siblings of the true class, the last entry the predictions
    without a common ancestor. A prediction that stops early (-1) has the height that it has in `LCADistance`. Samples
    of unknown leaf class (-1) are ignored.
    """

    counts: Tensor

    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__(hierarchy)
        self._add_counts("counts", size=(len(hierarchy.levels) + 1,))

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add labels (N, levels), coarse to fine."""
        self.counts += torch.bincount(_heights(predicted, target, self.hierarchy), minlength=len(self.counts))

    def compute(self) -> Tensor:
        """Return the counts (levels + 1,), int64."""
        return self.counts


def _known(log_probs: Tensor, target: Tensor, hierarchy: Hierarchy | None = None) -> tuple[Tensor, Tensor]:
    """Return the samples of known class; of a tree, if given, without those that end above its leaf level."""
    is_known = target >= 0
    if hierarchy is not None and hierarchy.left_out[-1]:
        is_known &= ~torch.isin(target, target.new_tensor(sorted(hierarchy.left_out[-1])))
    return log_probs[is_known], target[is_known]


def _heights(predicted: Tensor, target: Tensor, hierarchy: Hierarchy) -> Tensor:
    """Return the LCA heights of the samples of known leaf class.

    The prediction is its finest label that is not -1, with the ancestors of that class.
    """
    _check_labels(predicted, target, hierarchy)
    is_known = target[:, -1] >= 0
    predicted, path = predicted[is_known], hierarchy.ancestors(target[is_known, -1])
    shared = torch.zeros_like(path[:, 0])
    is_open = torch.ones_like(shared, dtype=torch.bool)
    for depth in reversed(range(len(hierarchy.levels))):
        stops = is_open & (predicted[:, depth] >= 0)
        ancestors = hierarchy.truncate(hierarchy.levels[depth]).ancestors(predicted[stops, depth])
        shared[stops] = (ancestors == path[stops, : depth + 1]).sum(dim=1)
        is_open &= ~stops
    return len(hierarchy.levels) - shared


def _check_labels(predicted: Tensor, target: Tensor, hierarchy: Hierarchy) -> None:
    wanted = (len(target), len(hierarchy.levels))
    for name, labels in (("predicted", predicted), ("true", target)):
        if tuple(labels.shape) != wanted:
            raise ValueError(
                f"the shape of {name} labels is {tuple(labels.shape)}, expected {wanted} for {hierarchy.levels}"
            )
