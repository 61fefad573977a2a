"""Metrics of rules that choose the level of a prediction, and of the probabilities that they choose by.

The states are gathered over processes: the values are those of one process with all images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from c2f_zoo.evaluation.trust_curves import Curve, Steps, curve, measures
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.inference.nodes import NodeProbabilities, Nodes
from c2f_zoo.inference.trust import Rule
from c2f_zoo.metrics import CalibrationError

_STATES = {
    "node": torch.int64,
    "until": torch.float64,
    "counts": torch.int64,
    "labels": torch.int64,
    "confidence": torch.float64,
}


class TrustMetrics(Metric):
    """Risk, coverage and recall of a rule over all thresholds; see `trust_curves`.

    For each image it keeps the nodes of the rule's chain with their thresholds, but no probabilities. Images of unknown
    leaf class (-1) are left out and counted.

    Args:
        rule: the rule, e.g. `RULES["climb"]`; bind its options with `functools.partial`.
        tree: the class tree of the probabilities.

    Examples:
        >>> from c2f_zoo.inference.trust import RULES
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> metrics = TrustMetrics(RULES["climb"], tree)
        >>> p = NodeProbabilities(Nodes(tree), (np.array([[0.9, 0.1]]), np.array([[0.6, 0.3, 0.1]])))
        >>> metrics.update(p, labels=np.array([1]))
        >>> round(metrics.compute()["R@90C"], 2), metrics.curve().correct.tolist()
        (0.37, [0.0, 0.0, 1.0, 1.0, 1.0])
    """

    full_state_update = False
    unknown: Tensor

    def __init__(self, rule: Rule, tree: Hierarchy) -> None:
        super().__init__(sync_on_compute=False)  # `steps` gathers the states
        self.rule, self.nodes = rule, Nodes(tree)
        for name in _STATES:
            self.add_state(name, [], dist_reduce_fx="cat")
        self.add_state("unknown", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, p: NodeProbabilities, labels: np.ndarray) -> None:
        """Add images.

        Args:
            p: their probabilities.
            labels: leaf labels (N,); -1 for unknown.
        """
        known = labels >= 0
        self.unknown += int((~known).sum())
        p = p.take(known)
        self._append(Steps.of(self.rule(p), p, labels[known]))

    def _append(self, steps: Steps) -> None:
        for name, dtype in _STATES.items():
            getattr(self, name).append(torch.as_tensor(getattr(steps, name), dtype=dtype, device=self.device))

    def steps(self) -> Steps:
        """Return the steps of all images of all processes; all must call this method."""
        return self._gather()[0]

    def _gather(self) -> tuple[Steps, int]:
        """Return the steps, and the number of images of unknown leaf class."""
        if not self.node:  # a process without images; all must gather tensors of the same types
            none = np.zeros(0)
            self._append(Steps(self.nodes, none, none, none, none, none))
        with self.sync_context():
            states = {name: dim_zero_cat(getattr(self, name)).cpu().numpy() for name in _STATES}
            return Steps(self.nodes, **states), int(self.unknown)

    def compute(self) -> dict[str, float]:
        """Return the numbers of images of known and unknown leaf class, and `trust_curves.measures` of the former.

        They are of all images of all processes; all must call this method.
        """
        steps, unknown = self._gather()
        return {"images": len(steps.labels), "unknown": unknown, **measures(steps)}

    def curve(self) -> Curve:
        """Return the curve over all images of all processes; all must call this method."""
        return curve(self.steps())


class Reliability(CalibrationError):  # noqa: N818
    """Reliability diagram of one level: accuracy against confidence in 15 bins of equal width, and the ECE.

    The confidence is the probability of the most probable class. Samples of unknown class (-1) are ignored.

    Args:
        hierarchy: the class tree down to the level.

    Examples:
        >>> tree = Hierarchy(("kind",), (("round", "edged"),), ())
        >>> diagram = Reliability(tree)
        >>> diagram.update(torch.tensor([[0.75, 0.25], [0.25, 0.75]]).log(), torch.tensor([0, 0]))
        >>> diagram.compute()
        {'ece': 0.25, 'confidence': [0.75], 'accuracy': [0.5], 'images': [2]}
    """

    def compute(self) -> Any:
        """Return the ECE and for each bin with images its mean confidence, accuracy and number of images."""
        used = self.count > 0
        confidence, accuracy = (sums[used] / self.count[used] for sums in (self.confidence, self.correct))
        points = {"confidence": confidence, "accuracy": accuracy, "images": self.count[used]}
        return {"ece": float(super().compute()), **{name: values.tolist() for name, values in points.items()}}
