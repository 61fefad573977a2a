"""What a rule's choices are worth, over all thresholds: risk, coverage, recall, and the areas under their curves.

These are pure NumPy functions with a weight for each image, so that images can be drawn again (bootstrap) without
choosing again. A rule chooses a node of the tree for each image (`c2f_zoo.inference.trust`). The choice is right if the
node is the true leaf class or an ancestor of it; the root, which says nothing, always is. Its coverage is
1 - log2(leaves under it) / log2(leaves), its recall the coverage of the lowest common ancestor with the true leaf
class, and its precision recall / coverage (1 for the root).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from c2f_zoo.inference.nodes import NodeProbabilities, Nodes
from c2f_zoo.inference.trust import Chain


@dataclass(frozen=True)
class Steps:
    """The chosen nodes of N images as the threshold rises, S steps in all, image after image.

    The first step of an image is its predicted leaf class, at threshold -inf; the others are those of its chain.

    Attributes:
        nodes: the tree's nodes.
        node: number of the chosen node, int (S,).
        until: largest threshold at which it is chosen, float64 (S,), rising for each image; the last is inf.
        counts: number of steps of each image, int (N,).
        labels: true leaf labels, int (N,).
        confidence: probability of the predicted leaf class, float64 (N,).
    """

    nodes: Nodes
    node: np.ndarray
    until: np.ndarray
    counts: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray

    @classmethod
    def of(cls, chain: Chain, p: NodeProbabilities, labels: np.ndarray) -> Steps:
        """Return the steps of a rule's chain.

        Args:
            chain: what the rule returns for `p`.
            p: probabilities of N images.
            labels: true leaf labels (N,).

        Examples:
            >>> from c2f_zoo.inference.trust import climb
            >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
            >>> p = NodeProbabilities(Nodes(tree), (np.array([[0.9, 0.1]]), np.array([[0.6, 0.3, 0.1]])))
            >>> steps = Steps.of(climb(p), p, labels=np.array([1]))
            >>> steps.until.tolist(), steps.is_right.tolist()  # disc, disc, round, nothing
            ([-inf, 0.6, 0.9, inf], [False, False, True, True])
        """
        leaf = p.best_leaf[:, None]
        node = np.append(p.nodes.offsets[-2] + leaf, chain.nodes, axis=1)
        until = np.append(np.full(leaf.shape, -np.inf), chain.until, axis=1)
        is_used = np.append(np.ones(leaf.shape, dtype=bool), until[:, 1:] != until[:, :-1], axis=1)
        confidence = np.take_along_axis(p.levels[-1], leaf, axis=1)[:, 0]
        return cls(p.nodes, node[is_used], until[is_used], is_used.sum(axis=1), labels, confidence)

    @cached_property
    def leaf_or_nothing(self) -> Steps:
        """The steps of the rule `leaf_or_nothing` for the same images."""
        leaf = self.node[self.first]
        node = np.stack([leaf, leaf, np.full_like(leaf, self.nodes.root)], axis=1)
        until = np.stack([np.full(len(leaf), -np.inf), self.confidence, np.full(len(leaf), np.inf)], axis=1)
        return Steps(self.nodes, node.ravel(), until.ravel(), np.full(len(leaf), 3), self.labels, self.confidence)

    @cached_property
    def first(self) -> np.ndarray:
        """The first step of each image, int64 (N,)."""
        return np.cumsum(self.counts) - self.counts

    @cached_property
    def image(self) -> np.ndarray:
        """The image of each step, int64 (S,)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def _shared(self) -> np.ndarray:
        """The number of levels down to the lowest common ancestor with the true leaf class, int64 (S,)."""
        true = self.nodes.leaf_paths[self.labels[self.image]]
        return np.asarray((self.nodes.paths[self.node] == true).sum(axis=1))

    @property
    def is_right(self) -> np.ndarray:
        """Whether the node is the true leaf class or an ancestor, bool (S,)."""
        return self._shared == self.nodes.depths[self.node] + 1

    @property
    def coverage(self) -> np.ndarray:
        """How much the node says, float64 (S,) in [0, 1]."""
        return self.nodes.coverage[self.node]

    @property
    def recall(self) -> np.ndarray:
        """The coverage of the lowest common ancestor of the node and the true leaf class, float64 (S,) in [0, 1]."""
        root = np.full((len(self.nodes.leaf_paths), 1), self.nodes.root)
        ancestors = np.append(root, self.nodes.offsets[:-1] + self.nodes.leaf_paths, axis=1)
        return self.nodes.coverage[ancestors[self.labels[self.image], self._shared]]

    @cached_property
    def values(self) -> np.ndarray:
        """For each step is_right, coverage, recall and precision, float64 (4, S)."""
        coverage, recall = self.coverage, self.recall
        precision = np.divide(recall, coverage, out=np.ones_like(recall), where=coverage > 0)
        return np.stack([self.is_right, coverage, recall, precision])

    @cached_property
    def order(self) -> np.ndarray:
        """The steps after which another follows, sorted by the threshold at which they end."""
        followed = np.flatnonzero(self.image[:-1] == self.image[1:])
        return followed[np.argsort(self.until[followed], kind="stable")]

    @cached_property
    def changes(self) -> np.ndarray:
        """How `values` change after each step of `order`, float64 (4, steps of `order`)."""
        return self.values[:, self.order + 1] - self.values[:, self.order]


@dataclass(frozen=True)
class Curve:
    """Weighted means over images, exact at every threshold at which a choice changes, T points.

    Point k holds for thresholds t with threshold[k - 1] < t <= threshold[k]. The first point is the most probable leaf
    class of every image (threshold -inf), the last says nothing (inf); a rule that does not reach them is thus
    compared over the same range as the others.

    Attributes:
        threshold: float64 (T,), rising.
        correct: fraction of right choices, float64 (T,); 1 - risk.
        coverage: float64 (T,).
        recall: float64 (T,).
        precision: float64 (T,).
    """

    threshold: np.ndarray
    correct: np.ndarray
    coverage: np.ndarray
    recall: np.ndarray
    precision: np.ndarray

    @property
    def risk(self) -> np.ndarray:
        """The fraction of wrong choices, float64 (T,)."""
        return 1 - self.correct


def curve(steps: Steps, weights: np.ndarray | None = None) -> Curve:
    """Return the means over images at all thresholds.

    Args:
        steps: the steps of N images.
        weights: weight of each image (N,), e.g. how often a bootstrap sample has it; default: 1.

    Raises:
        ValueError: there are no images, or all weights are 0.

    Examples:
        >>> from c2f_zoo.inference.trust import climb
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> p = NodeProbabilities(Nodes(tree), (np.array([[0.9, 0.1]]), np.array([[0.6, 0.3, 0.1]])))
        >>> found = curve(Steps.of(climb(p), p, labels=np.array([1])))
        >>> found.threshold.tolist(), found.risk.tolist(), found.coverage.round(2).tolist()
        ([-inf, 0.6, 0.9, inf, inf], [1.0, 1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.37, 0.0, 0.0])
    """
    weights = np.ones(len(steps.counts)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not weights.sum() > 0:
        raise ValueError(
            f"no images to average: {len(weights)} images with a known leaf class, their weights' sum is 0"
        )
    changes = steps.changes * weights[steps.image[steps.order]]
    start = (steps.values[:, steps.first] @ weights)[:, None]
    sums = np.append(start, start + np.cumsum(changes, axis=1), axis=1)
    thresholds = steps.until[steps.order]
    is_last = np.append(thresholds[1:] != thresholds[:-1], True)  # of the steps that end at the same threshold
    nothing = np.array([[1.0], [0.0], [0.0], [1.0]])
    points = np.append(sums[:, np.append(True, is_last)] / weights.sum(), nothing, axis=1)
    return Curve(np.concatenate([thresholds[is_last], [np.inf, np.inf]]), *points)


def risk_coverage_area(found: Curve) -> float:
    """Return the area under mean risk against mean coverage, hAURC, in [0, 1]; lower is better.

    Goren, Galil and El-Yaniv, "Hierarchical Selective Classification", NeurIPS 2024: risk and coverage are means over
    all images, the images of which nothing is said included, and the area is that of the trapezoids between the points
    of all thresholds. Every curve begins at coverage 1 with the most probable leaf classes and ends at coverage 0 and
    risk 0, see `Curve`. Trapezoids are added in the order of the thresholds.
    """
    return float(((found.coverage[:-1] - found.coverage[1:]) * (found.risk[:-1] + found.risk[1:])).sum() / 2)


def mean_over_recall(recall: np.ndarray, values: np.ndarray) -> float:
    """Return the area under the greatest value that is reached at each recall or a larger one, in [0, 1].

    It is the integral over r from 0 to 1 of the greatest value of thresholds with a recall >= r, 0 if none has: a step
    function, without interpolation. For the fraction of right choices it is the average correct (AC), for precision the
    average precision (AP) of Valmadre, "Hierarchical classification at multiple operating points", NeurIPS 2022.

    Args:
        recall: (T,).
        values: (T,).

    Examples:
        >>> mean_over_recall(np.array([0.8, 0.5, 0.2]), np.array([0.6, 0.9, 0.7]))  # 0.3 * 0.6 + 0.5 * 0.9
        0.63
    """
    order = np.argsort(-recall, kind="stable")
    widths = -np.diff(recall[order], append=0.0)
    return float(widths @ np.maximum.accumulate(values[order]))


def recall_at(found: Curve, correct: float) -> float:
    """Return the greatest recall of thresholds at which at least this fraction of choices is right (R@90C: 0.9)."""
    return float(found.recall[found.correct >= correct].max())


def measures(steps: Steps, weights: np.ndarray | None = None) -> dict[str, float]:
    """Return the measures over all thresholds.

    Args:
        steps: the steps of N images.
        weights: weight of each image (N,); default: 1.

    Returns:
        `haurc`, lower is better; higher is better for `gain`, the fraction by which haurc is smaller than that of the
        rule `leaf_or_nothing` (nan if that is 0), and for `AC`, `AP`, `R@90C` and `R@95C`.
    """
    found = curve(steps, weights)
    area, reference = risk_coverage_area(found), risk_coverage_area(curve(steps.leaf_or_nothing, weights))
    return {
        "haurc": area,
        "gain": 1 - area / reference if reference > 0 else float("nan"),
        "AC": mean_over_recall(found.recall, found.correct),
        "AP": mean_over_recall(found.recall, found.precision),
        "R@90C": recall_at(found, 0.9),
        "R@95C": recall_at(found, 0.95),
    }


@dataclass(frozen=True)
class OperatingPoint:
    """Means over images at a given threshold.

    Attributes:
        accuracy: fraction of right choices; 1 - risk.
        coverage: mean coverage.
        levels: level -> fraction of images of which a class of it is chosen.
        nothing: fraction of images of which nothing is said.
    """

    accuracy: float
    coverage: float
    levels: dict[str, float]
    nothing: float


def chosen_steps(steps: Steps, threshold: float | np.ndarray) -> np.ndarray:
    """Return the step of each image (N,) at a threshold, or one of each image (N,)."""
    t = np.broadcast_to(threshold, len(steps.counts))[steps.image]
    before = np.append(-np.inf, steps.until[:-1])
    is_begun = (before < t) | np.isneginf(before)
    return np.flatnonzero(is_begun & (t <= steps.until) & ~np.isneginf(steps.until))


def operating_point(steps: Steps, threshold: float | np.ndarray, weights: np.ndarray | None = None) -> OperatingPoint:
    """Return the means over images at a threshold.

    Args:
        steps: the steps of N images.
        threshold: the threshold, or one of each image (N,).
        weights: weight of each image (N,); default: 1.

    Examples:
        >>> from c2f_zoo.inference.trust import climb
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> p = NodeProbabilities(Nodes(tree), (np.array([[0.9, 0.1]]), np.array([[0.6, 0.3, 0.1]])))
        >>> operating_point(Steps.of(climb(p), p, labels=np.array([1])), 0.8).levels
        {'kind': 1.0, 'shape': 0.0}
    """
    weights = np.ones(len(steps.counts)) if weights is None else np.asarray(weights, dtype=np.float64)
    at = chosen_steps(steps, threshold)
    depths = steps.nodes.depths[steps.node[at]]
    means = steps.values[:2, at] @ weights / weights.sum()
    fractions = np.bincount(depths + 1, weights, minlength=len(steps.nodes.tree.levels) + 1) / weights.sum()
    levels = dict(zip(steps.nodes.tree.levels, fractions[1:].tolist(), strict=True))
    return OperatingPoint(float(means[0]), float(means[1]), levels, float(fractions[0]))
