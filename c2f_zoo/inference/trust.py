"""Rules that choose the level at which a prediction can be trusted.

A rule turns the probabilities of a tree's nodes into a `Chain` for each image: nodes in order of preference, each with
the largest threshold up to which it is chosen. One chain answers every threshold, so that a threshold can be calibrated
(`calibration`) and risk can be drawn against coverage without choosing again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from c2f_zoo.inference.nodes import NodeProbabilities
from c2f_zoo.registry import Registry, check_names

Rule = Callable[..., "Chain"]
RULES: Registry[Rule] = Registry("rule", "c2f_zoo.rules")
register_rule = RULES.register

OWN_THRESHOLDS = {"fixed": 1.0, "nominal": 0.0}  # of rules that are not calibrated: how they are meant to be used


@dataclass(frozen=True)
class Chain:
    """The nodes that a rule chooses for N images, as the threshold rises from -inf to inf.

    Attributes:
        nodes: numbers of nodes (N, K), see `Nodes`; the last is chosen for all larger thresholds, usually the root.
        until: float64 (N, K), rising along a row: node k is chosen for thresholds t with until[k - 1] < t <= until[k].
            The last is inf.
    """

    nodes: np.ndarray
    until: np.ndarray

    def choose(self, threshold: float | np.ndarray) -> np.ndarray:
        """Return the chosen nodes (N,) for a threshold, or one of each image (N,)."""
        at = (self.until < np.broadcast_to(threshold, len(self.until))[:, None]).sum(axis=1)
        return self.nodes[np.arange(len(self.nodes)), at]


def list_rules(pattern: str = "*") -> list[str]:
    """List the names of the registered rules, filtered by a wildcard.

    Examples:
        >>> list_rules()
        ['climb', 'darts', 'fixed', 'leaf_or_nothing', 'max_coverage', 'nominal']
    """
    return RULES.names(pattern)


def _first_above(nodes: np.ndarray, values: np.ndarray, root: int) -> Chain:
    """Return the chain that chooses the first node whose value is at least the threshold, or else the root.

    Args:
        nodes: candidates (N, K), in order of preference.
        values: their values (N, K).
        root: the root's number.
    """
    until = np.maximum.accumulate(values, axis=1)
    ends = np.full((len(nodes), 1), np.inf)
    return Chain(np.append(nodes, np.full_like(nodes[:, :1], root), axis=1), np.append(until, ends, axis=1))


@register_rule("leaf_or_nothing")
def leaf_or_nothing(p: NodeProbabilities) -> Chain:
    """Choose the predicted leaf class if its probability reaches the threshold, or else nothing.

    The reject option of flat classifiers (Chow, 1970).

    Examples:
        >>> from c2f_zoo.inference.nodes import Nodes
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> p = NodeProbabilities(Nodes(tree), (np.array([[0.9, 0.1]]), np.array([[0.6, 0.3, 0.1]])))
        >>> leaf_or_nothing(p).choose(0.8) == p.nodes.root
        array([ True])
    """
    leaf = p.best_leaf[:, None]
    return _first_above(p.nodes.offsets[-2] + leaf, np.take_along_axis(p.levels[-1], leaf, axis=1), p.nodes.root)


@register_rule("climb")
def climb(p: NodeProbabilities) -> Chain:
    """Climb from the predicted leaf class to the first ancestor whose probability reaches the threshold.

    Goren, Galil and El-Yaniv, "Hierarchical Selective Classification", NeurIPS 2024.

    Examples:
        >>> from c2f_zoo.inference.nodes import Nodes
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> p = NodeProbabilities(Nodes(tree), (np.array([[0.9, 0.1]]), np.array([[0.6, 0.3, 0.1]])))
        >>> p.nodes.paths[climb(p).choose(0.8)].tolist()  # round
        [[0, -1]]
    """
    path = p.nodes.leaf_paths[p.best_leaf][:, ::-1]
    nodes = p.nodes.offsets[:-1][::-1] + path
    return _first_above(nodes, np.take_along_axis(p.all, nodes, axis=1), p.nodes.root)


@register_rule("max_coverage")
def max_coverage(p: NodeProbabilities) -> Chain:
    """Choose the most specific node whose probability reaches the threshold; of equals the most probable.

    Valmadre, "Hierarchical classification at multiple operating points", NeurIPS 2022. Specific is coverage: a class
    with few leaf classes under it says more. With thresholds under 1/2 the node need not contain the best leaf class.
    Of equally specific and probable nodes, such as a genus and its only species, the finest is chosen.
    """
    classes = p.nodes.finest_first[:-1]
    groups = np.unique(p.nodes.coverage[classes])[::-1]
    members = [classes[p.nodes.coverage[classes] == coverage] for coverage in groups]
    best = [group[p.all[:, group].argmax(axis=1)] for group in members]
    nodes = np.stack(best, axis=1)
    return _first_above(nodes, np.take_along_axis(p.all, nodes, axis=1), p.nodes.root)


@register_rule("darts")
def darts(p: NodeProbabilities) -> Chain:
    """Choose the node with the greatest (coverage + lambda) * probability; the threshold is lambda.

    Deng, Krause, Berg and Fei-Fei, "Hedging your bets", CVPR 2012; the reward of a node is its coverage, which is their
    information gain over its largest value. The best node changes with lambda along the upper envelope of straight
    lines, which is followed exactly from lambda 0; a negative lambda counts as 0. Of equals the most probable node is
    chosen, and of these the finest.
    """
    order = p.nodes.finest_first
    slopes, rows = p.all[:, order], np.arange(len(p.levels[0]))
    values = p.nodes.coverage[order] * slopes
    chosen = [_argmax_with_ties(values, slopes)]
    until: list[np.ndarray] = []
    while True:
        here = chosen[-1]
        rise = slopes - slopes[rows, here][:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = np.where(rise > 0, (values[rows, here][:, None] - values) / rise, np.inf)
        first = crossing.min(axis=1)
        if np.isinf(first).all():
            break
        chosen.append(np.where(np.isinf(first), here, _argmax_with_ties(-crossing, slopes)))
        until.append(first)
    until.append(np.full(len(slopes), np.inf))
    # Rounding may put crossings of three lines in one point in the wrong order.
    return Chain(order[np.stack(chosen, axis=1)], np.maximum.accumulate(np.stack(until, axis=1), axis=1))


def _argmax_with_ties(values: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Return the index of each row's largest value; of equals that with the largest slope."""
    is_best = values == values.max(axis=1, keepdims=True)
    return np.where(is_best, slopes, -1.0).argmax(axis=1)


@register_rule("fixed")
def fixed(p: NodeProbabilities, thresholds: float | Mapping[str, float] = 0.65) -> Chain:
    """Choose the most probable class of the finest level at which it reaches the level's threshold.

    Camera-trap practice: SpeciesNet's roll-up uses 0.65 (Gadot et al., IET Computer Vision 2024). The chain's threshold
    is a factor of all levels' thresholds: 1 takes them as they are.

    Args:
        p: the probabilities.
        thresholds: one for all levels, or level -> threshold in (0, 1]; levels without one are not chosen.

    Raises:
        ValueError: a level is unknown, no level has a threshold, or a threshold is outside (0, 1].
    """
    levels = p.nodes.tree.levels
    if isinstance(thresholds, Mapping) and not thresholds:
        raise ValueError(f"no level has a threshold; give one for some of the levels {', '.join(levels)}")
    if isinstance(thresholds, Mapping):
        check_names("level in thresholds:", thresholds, levels)
    of = dict(thresholds) if isinstance(thresholds, Mapping) else dict.fromkeys(levels, thresholds)
    for level, threshold in of.items():
        if not 0 < threshold <= 1:
            raise ValueError(f"the threshold of {level} is {threshold}; it must be above 0 and at most 1")
    depths = [depth for depth, level in reversed(list(enumerate(levels))) if level in of]
    best = [p.levels[depth].argmax(axis=1) for depth in depths]
    nodes = np.stack([p.nodes.offsets[depth] + label for depth, label in zip(depths, best, strict=True)], axis=1)
    scale = np.array([of[levels[depth]] for depth in depths])
    return _first_above(nodes, np.take_along_axis(p.all, nodes, axis=1) / scale, p.nodes.root)


@register_rule("nominal")
def nominal(p: NodeProbabilities, resolutions: Mapping[str, int] | None = None) -> Chain:
    """Choose the most probable class of the level that the image's size prescribes, whatever its probability.

    Huo et al., SIGIR 2019: the finest level whose own resolution the image has. An image smaller than all of them gets
    the coarsest level.

    Args:
        p: the probabilities, with `sizes`.
        resolutions: level -> resolution in pixels, see `own_resolutions`; for levels at full size that of the model's
            input.

    Raises:
        ValueError: the sizes, or the resolution of a level, are unknown.
    """
    if p.sizes is None or resolutions is None:
        raise ValueError("the rule 'nominal' needs the sizes of the images and the resolutions of the levels")
    for level in p.nodes.tree.levels:
        if resolutions.get(level) is None:
            raise ValueError(
                f"the rule 'nominal' needs the resolution of {level}; at full size, the model's input size"
            )
    needed = np.array([resolutions[level] for level in p.nodes.tree.levels])
    depth = np.where(p.sizes[:, None] >= needed, np.arange(len(needed)), 0).max(axis=1)
    best = np.stack([level.argmax(axis=1) for level in p.levels], axis=1)
    nodes = p.nodes.offsets[depth] + np.take_along_axis(best, depth[:, None], axis=1)[:, 0]
    return Chain(nodes[:, None], np.full((len(nodes), 1), np.inf))
