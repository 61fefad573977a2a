"""Calibration: thresholds at which the fraction of wrong predictions stays below a promised risk."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

import numpy as np

from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.inference.nodes import NodeProbabilities, Nodes, find_joint_leaf, sum_over_leaves
from c2f_zoo.inference.trust import RULES, Chain
from c2f_zoo.registry import check_names

T = TypeVar("T")

VERSION = 1
PROBABILITIES = ("sum", "levels")
NEIGHBOURS = 3  # adjacent groups of visible detail that a threshold is found on

_COLDEST, _HOTTEST = 0.05, 20.0  # temperatures


@dataclass(frozen=True)
class Calibration:
    """What makes a model's predictions trustworthy: temperatures, and thresholds for promised risks.

    The promise: of images like those of the calibration, at most the fraction `risk` is predicted wrongly, i.e. the
    chosen class is neither the true leaf class nor an ancestor of it. It holds on average over calibrations and
    images (split conformal prediction), and for every three adjacent groups of visible detail by themselves (Mondrian
    conformal prediction; Vovk et al., "Algorithmic learning in a random world", 2005). The estimate of the detail errs,
    so images of one true resolution fall into several groups. A group is in up to three such triples, and has the
    largest of their thresholds.

    Args:
        rule: the rule that the thresholds are for, one of `list_rules()`.
        probabilities: `"sum"`: a class's probability is the sum over its leaf classes, and all levels are predicted at
            the resolution of the leaf level; or `"levels"`: it is that of the model's head for the level, at the
            level's own resolution, and the predicted path is that of the decoding `joint`.
        temperatures: level -> temperature; missing levels have 1.
        risk: the promised risk by default, one of `risks`.
        risks: the risks with thresholds, in (0, 1).
        edges: bounds between the groups of visible detail in pixels, rising; none for a single group.
        thresholds: for each group, coarsest first, the threshold of each risk.
        images: the number of calibration images of each group.
        overall: the threshold of each risk without groups.
        weights: the digest of the weights that were calibrated, see `c2f_zoo.io.weights.digest_weights`.
        about: where it comes from: dataset, split, resolutions, seed, date, versions.
        reliability: level -> `{"ece": ..., "ece_before": ...}`, expected calibration errors with and without the
            temperature.
        version: the format's version.

    Raises:
        ValueError: a value is invalid.
    """

    rule: str
    probabilities: str
    temperatures: Mapping[str, float]
    risk: float
    risks: tuple[float, ...]
    edges: tuple[float, ...]
    thresholds: tuple[tuple[float, ...], ...]
    images: tuple[int, ...]
    overall: tuple[float, ...]
    weights: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    reliability: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(
                f"the calibration has version {self.version!r}, this c2f_zoo reads {VERSION}; calibrate again"
            )
        check_names("rule", [self.rule], RULES.names())
        check_names("value of probabilities:", [self.probabilities], PROBABILITIES)
        edges = (0, *self.edges, math.inf)
        faults = [
            f"{name} is {_shorten(value)}"
            for name, value, is_valid in (
                ("temperatures", self.temperatures, all(0 < t < math.inf for t in self.temperatures.values())),
                ("risks", self.risks, bool(self.risks) and all(0 < risk < 1 for risk in self.risks)),
                ("edges", self.edges, all(a < b for a, b in itertools.pairwise(edges))),
                ("images", self.images, len(self.images) == len(self.edges) + 1 and min(self.images) > 0),
                ("risk", self.risk, self.risk in self.risks),
                (
                    "thresholds",
                    self.thresholds,
                    len(self.thresholds) == len(self.edges) + 1 and all(map(self._is_valid_row, self.thresholds)),
                ),
                ("overall", self.overall, self._is_valid_row(self.overall)),
            )
            if not is_valid
        ]
        if faults:
            raise ValueError(f"invalid calibration: {'; '.join(faults)}; make one with `c2f-zoo calibrate`")

    def _is_valid_row(self, thresholds: Sequence[float]) -> bool:
        return len(thresholds) == len(self.risks) and all(0 <= t < math.inf for t in thresholds)

    def probabilities_of(
        self, log_probs: Mapping[str, np.ndarray], tree: Hierarchy, sizes: np.ndarray | None = None
    ) -> NodeProbabilities:
        """Return calibrated probabilities of all classes.

        Args:
            log_probs: level -> log-probabilities float64 (N, classes): of the leaf level at least for `"sum"`, of all
                levels for `"levels"`.
            tree: the class tree, down to the finest predicted level.
            sizes: the images' shorter sides, for the rule `nominal`.

        Raises:
            ValueError: the calibration is of other levels.
        """
        self.check_levels(tree.levels)
        return calibrated(log_probs, tree, self.probabilities, self.temperatures, sizes)

    def check_levels(self, levels: Sequence[str]) -> None:
        """Check that the calibration is of a tree with these levels.

        Raises:
            ValueError: a level with a temperature is unknown.
        """
        check_names("level in the calibration's temperatures:", self.temperatures, levels)

    def group(self, detail: np.ndarray) -> np.ndarray:
        """Return the group (N,) of each image's visible detail in pixels (N,); 0 is the coarsest."""
        return group_of(detail, self.edges)

    def threshold(self, group: np.ndarray, risk: float | None = None) -> np.ndarray:
        """Return the threshold (N,) of each image's group for a risk.

        Args:
            group: groups (N,).
            risk: the promised risk; default: the calibration's.

        Raises:
            ValueError: there are no thresholds for that risk.
        """
        risk = self.risk if risk is None else risk
        if risk not in self.risks:
            known = ", ".join(f"{one:g}" for one in self.risks)
            raise ValueError(
                f"the model is not calibrated for a risk of {risk:g}; choose one of {known}, or calibrate it"
            )
        return np.array([row[self.risks.index(risk)] for row in self.thresholds])[group]

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """Read a calibration from JSON data.

        Raises:
            ValueError: the data are not a valid calibration; the message names the value.
        """
        known = {one.name for one in fields(cls)}
        if not isinstance(data, Mapping) or not known.issuperset(data):
            raise ValueError(f"not a calibration: {_shorten(data)}; make one with `c2f-zoo calibrate`")
        try:
            rows: dict[str, Any] = {
                "rule": _of_type(data["rule"], "rule", str),
                "probabilities": _of_type(data["probabilities"], "probabilities", str),
                "temperatures": dict(
                    zip(data["temperatures"].keys(), _numbers(data["temperatures"].values()), strict=True)
                ),
                "risk": _numbers([data["risk"]])[0],
                "risks": _numbers(data["risks"]),
                "edges": _numbers(data["edges"]),
                "thresholds": tuple(map(_numbers, data["thresholds"])),
                "images": tuple(map(int, _numbers(data["images"]))),
                "overall": _numbers(data["overall"]),
                "weights": _of_type(data.get("weights", ""), "weights", str),
                "about": _of_type(data.get("about", {}), "about", dict),
                "reliability": {
                    level: dict(zip(errors, _numbers(errors.values()), strict=True))
                    for level, errors in data.get("reliability", {}).items()
                },
            }
        except (KeyError, TypeError, AttributeError, OverflowError, ValueError) as error:
            raise ValueError(f"invalid calibration: {error}; make one with `c2f-zoo calibrate`") from error
        return cls(**rows, version=data.get("version", VERSION))


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def _of_type(value: object, name: str, kind: type[T]) -> T:
    """Return a value of JSON data if it is of a type."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {_shorten(value)}")
    return value


def _numbers(values: Iterable[Any]) -> tuple[float, ...]:
    """Return numbers of JSON data as floats."""
    values = tuple(values)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{_shorten(value)!r} is not a number")
    return tuple(map(float, values))


def calibrated(
    log_probs: Mapping[str, np.ndarray],
    tree: Hierarchy,
    probabilities: str,
    temperatures: Mapping[str, float],
    sizes: np.ndarray | None = None,
) -> NodeProbabilities:
    """Return probabilities of all classes, with temperatures.

    Args:
        log_probs: see `Calibration.probabilities_of`.
        tree: the class tree.
        probabilities: `"sum"` or `"levels"`.
        temperatures: level -> temperature; missing levels have 1.
        sizes: the images' shorter sides, or None.
    """
    nodes = Nodes(tree)

    def at(level: str) -> np.ndarray:
        return np.exp(_log_softmax(log_probs[level] / temperatures.get(level, 1.0)))

    if probabilities == "sum":
        return NodeProbabilities(nodes, sum_over_leaves(at(tree.finest), nodes), sizes)
    levels = tuple(map(at, tree.levels))
    return NodeProbabilities(nodes, levels, sizes, find_joint_leaf(levels, nodes))


def _log_softmax(z: np.ndarray) -> np.ndarray:
    z = np.maximum(z, np.finfo(np.float64).min / 2)
    z = z - z.max(axis=1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))


def fit_temperature(log_probs: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature that minimizes the negative log-likelihood, in [0.05, 20].

    Guo et al., "On calibration of modern neural networks", ICML 2017. The likelihood is concave in 1 / temperature, so
    that bisection of its derivative finds the optimum.

    Args:
        log_probs: log-probabilities or logits (N, classes).
        labels: true labels (N,); -1 for unknown ones, which are left out.

    Raises:
        ValueError: no label is known.

    Examples:
        >>> z = np.log([[0.9, 0.1]] * 4)  # 0.9 is right in 3 of 4 cases
        >>> temperature = fit_temperature(z, np.array([0, 0, 0, 1]))
        >>> round(1 / (1 + 9 ** (-1 / temperature)), 3)
        0.75
    """
    known = labels >= 0
    if not known.any():
        raise ValueError("no image has a label at this level; a temperature cannot be fitted")
    z = np.maximum(log_probs[known], -1e4)
    of_truth = z[np.arange(len(z)), labels[known]].mean()
    low, high = math.log(1 / _HOTTEST), math.log(1 / _COLDEST)
    for _ in range(60):
        middle = (low + high) / 2
        expected = (np.exp(_log_softmax(math.exp(middle) * z)) * z).sum(axis=1).mean()
        low, high = (middle, high) if expected < of_truth else (low, middle)
    return math.exp(-(low + high) / 2)


def smallest_thresholds(chain: Chain, nodes: Nodes, labels: np.ndarray) -> np.ndarray:
    """Return for each image the value above which every threshold makes the rule right.

    Args:
        chain: the rule's choices for N images.
        nodes: the tree's nodes.
        labels: true leaf labels (N,).

    Returns:
        float64 (N,): -inf if it is right at every threshold, inf if at none.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> p = NodeProbabilities(Nodes(tree), (np.array([[0.9, 0.1]]), np.array([[0.6, 0.3, 0.1]])))
        >>> [smallest_thresholds(RULES["climb"](p), p.nodes, np.array([leaf])).item() for leaf in range(3)]
        [-inf, 0.6, 0.9]
    """
    before = np.append(np.full((len(chain.until), 1), -np.inf), chain.until[:, :-1], axis=1)
    is_wrong = (chain.until > before) & ~nodes.are_right(chain.nodes, labels)
    return np.where(is_wrong, chain.until, -np.inf).max(axis=1)


def images_needed(risk: float) -> int:
    """Return the smallest number of calibration images for a risk in (0, 1).

    Examples:
        >>> images_needed(0.1), images_needed(0.01)
        (9, 99)
    """
    return math.ceil(round(1 / risk, 9)) - 1


def conformal_threshold(values: np.ndarray, risk: float) -> float:
    """Return the threshold that keeps a promised risk: split conformal prediction.

    It lies just above the ceil((n + 1)(1 - risk))-th smallest value. Of an image that is exchangeable with these n, the
    prediction is then wrong with a probability of at most `risk`.

    Args:
        values: the results (n,) of `smallest_thresholds`.
        risk: the promised risk, in (0, 1).

    Raises:
        ValueError: the risk is not above 0, there are too few images for it, or the rule is wrong at every threshold
            for too many.

    Examples:
        >>> conformal_threshold(np.arange(9) / 10, risk=0.5) > 0.4  # the fifth of nine
        True
    """
    if risk <= 0:
        raise ValueError(f"a risk of {risk:g} cannot be promised; it must be above 0")
    needed = images_needed(risk)
    if len(values) < needed:
        raise ValueError(f"a risk of {risk:g} needs {needed} calibration images or more; there are {len(values)}")
    rank = math.ceil(round((len(values) + 1) * (1 - risk), 9))
    value = float(np.sort(values)[rank - 1])
    if value == math.inf:
        raise ValueError(f"the rule is wrong at every threshold for more than {risk:g} of the images")
    return max(float(np.nextafter(value, math.inf)), 0.0)


def group_of(detail: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """Return the group (N,) of each image's visible detail in pixels (N,); 0 is the coarsest.

    Examples:
        >>> group_of(np.array([20.0, 30.0, 80.0]), edges=[30, 60]).tolist()
        [0, 1, 2]
    """
    return np.searchsorted(np.asarray(edges), detail, side="right")


def group_edges(detail: np.ndarray, groups: int) -> tuple[float, ...]:
    """Return the bounds of groups of similar visible detail, each with about as many images.

    Args:
        detail: the visible detail of images in pixels (n,).
        groups: the number of groups. There are fewer where many images have the same detail: they stay together.

    Returns:
        The inner bounds, rising.

    Examples:
        >>> group_edges(np.array([10.0, 12, 20, 30, 60, 90]), groups=3)
        (20.0, 60.0)
    """
    ordered = np.sort(detail)
    edges = np.unique([ordered[len(ordered) * number // groups] for number in range(1, groups)])
    return tuple(map(float, edges[edges > ordered[0]]))


def calibrate(
    rule: Callable[[NodeProbabilities], Chain],
    p: NodeProbabilities,
    labels: np.ndarray,
    detail: np.ndarray,
    risks: Sequence[float],
    edges: Sequence[float],
) -> tuple[tuple[tuple[float, ...], ...], tuple[int, ...], tuple[float, ...]]:
    """Find the thresholds of each group of visible detail, and those without groups.

    Args:
        rule: the rule.
        p: calibrated probabilities of n calibration images.
        labels: true leaf labels (n,).
        detail: the visible detail in pixels (n,).
        risks: the promised risks.
        edges: the bounds of the groups.

    Returns:
        The thresholds (groups, risks), the number of images of each group, and the thresholds (risks,) without groups.

    Raises:
        ValueError: a group has too few images for a risk.
    """
    values, groups = smallest_thresholds(rule(p), p.nodes, labels), group_of(detail, edges)
    count = len(edges) + 1
    columns = [group_thresholds(values, groups, count, risk) for risk in risks]
    overall = tuple(conformal_threshold(values, risk) for risk in risks)
    return tuple(zip(*columns, strict=True)), tuple(np.bincount(groups, minlength=count).tolist()), overall


def group_thresholds(values: np.ndarray, groups: np.ndarray, count: int, risk: float) -> list[float]:
    """Return the threshold of each group: the largest of those of the triples of adjacent groups that it is in.

    Args:
        values: the results (n,) of `smallest_thresholds`.
        groups: the images' groups of visible detail (n,), 0 to `count - 1`.
        count: the number of groups.
        risk: the promised risk, in (0, 1).

    Raises:
        ValueError: a triple has too few images for the risk.

    Examples:
        >>> values, groups = np.array([0.1, 0.2, 0.3, 0.4, 0.9]), np.arange(5)
        >>> np.round(group_thresholds(values, groups, 5, risk=0.25), 3).tolist()  # the largest of three values
        [0.3, 0.4, 0.9, 0.9, 0.9]
    """
    of_triples = [conformal_threshold(values[chosen], risk) for chosen in triples_of(groups, count)]
    return [max(of_triples[max(0, group - NEIGHBOURS + 1) : group + 1]) for group in range(count)]


def triples_of(groups: np.ndarray, count: int) -> list[np.ndarray]:
    """Return for each three adjacent groups, or all if there are fewer, whether images are in them: masks (n,)."""
    starts = range(max(count - NEIGHBOURS, 0) + 1)
    return [(groups >= start) & (groups < start + NEIGHBOURS) for start in starts]
