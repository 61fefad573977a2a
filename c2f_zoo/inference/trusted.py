"""The class down to which a model's prediction can be trusted, by its calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.inference.calibration import Calibration
from c2f_zoo.inference.nodes import NodeProbabilities, find_joint_leaf, restrict
from c2f_zoo.inference.trust import RULES


@dataclass(frozen=True)
class Trusted:
    """The trusted classes of N objects.

    Attributes:
        p: calibrated probabilities of all classes.
        nodes: numbers of the trusted classes (N,), see `Nodes`; the root for nothing.
        threshold: the threshold of each object (N,).
        detail: the visible detail of each object in pixels (N,).
        group: its group of visible detail (N,).
    """

    p: NodeProbabilities
    nodes: np.ndarray
    threshold: np.ndarray
    detail: np.ndarray
    group: np.ndarray


def find_trusted(
    calibration: Calibration,
    log_probs: Mapping[str, np.ndarray],
    tree: Hierarchy,
    details: Sequence[Sequence[float]],
    risk: float | None = None,
    leaves: Sequence[int] | None = None,
) -> Trusted:
    """Find the class of each object that can be trusted.

    Args:
        calibration: the model's calibration.
        log_probs: level -> log-probabilities float64 (N, classes).
        tree: the class tree, down to the finest predicted level.
        details: for each object the visible detail of its images. Of several, the one with the highest threshold
            counts.
        risk: the promised risk, one of the calibration's; None: its own.
        leaves: the labels of the possible leaf classes; None: all.

    Raises:
        ValueError: the model is not calibrated for that risk.
    """
    p = calibration.probabilities_of(log_probs, tree)
    if leaves is not None:
        own = [len(p.levels) - 1] if calibration.probabilities == "sum" else None
        levels = restrict(p.levels, leaves, p.nodes, own)
        leaf = None if p.leaf is None else find_joint_leaf(levels, p.nodes, leaves)
        p = NodeProbabilities(p.nodes, levels, p.sizes, leaf)
    groups = [calibration.group(np.asarray(own)) for own in details]
    thresholds = [calibration.threshold(group, risk) for group in groups]
    strictest = list(enumerate(int(own.argmax()) for own in thresholds))
    threshold = np.array([thresholds[number][at] for number, at in strictest])
    detail = np.array([details[number][at] for number, at in strictest])
    group = np.array([groups[number][at] for number, at in strictest])
    nodes = RULES[calibration.rule](p).choose(threshold)
    return Trusted(p, nodes, threshold, detail, group)
