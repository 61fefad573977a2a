"""From log-probabilities to predictions: the path, the restriction, and the part that can be trusted."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.inference.calibration import Calibration
from c2f_zoo.inference.nodes import Nodes, add_missing_levels, find_joint_path, mask_impossible, restrict
from c2f_zoo.inference.prediction import Prediction, Provenance, Step
from c2f_zoo.inference.restriction import find_restriction
from c2f_zoo.inference.trusted import Trusted, find_trusted

_logger = logging.getLogger(__name__)


class Interpreter:
    """A function from a model's log-probabilities to predictions.

    Args:
        tree: the class tree, down to the finest predicted level.
        predicted: the levels that the model predicts, coarse to fine.
        levels_are_marginals: see `Head`.
        calibration: the model's calibration, or None.
        risk: see `Predictor`, as the others.
        only: see `Predictor`.
        species_list: see `Predictor`.
        level: see `Predictor`.

    Raises:
        FileNotFoundError: the list does not exist.
        ValueError: a name, the level or the risk is unknown.
    """

    def __init__(
        self,
        tree: Hierarchy,
        predicted: Sequence[str],
        levels_are_marginals: bool,
        calibration: Calibration | None,
        *,
        risk: float | None = None,
        only: str | Sequence[str] | None = None,
        species_list: str | os.PathLike[str] | None = None,
        level: str | None = None,
    ) -> None:
        self.tree, self.predicted = tree, tuple(predicted)
        self.levels_are_marginals = levels_are_marginals
        depth = tree.depth(tree.finest if level is None else level)
        self.levels = tree.levels[: depth + 1]
        self.risk, self.calibration = risk, calibration
        self.restriction = find_restriction(tree, only, species_list)
        self._nodes = Nodes(tree)
        self._check_risk()
        for note in () if self.restriction is None else self.restriction.notes:
            _logger.warning("%s", note)

    def _check_risk(self) -> None:
        """Check that the model keeps the promise; a model without calibration gets a note."""
        if self.calibration is not None:
            self.calibration.threshold(np.zeros(1, dtype=np.int64), self.risk)
        elif self.risk is not None:
            raise ValueError(f"the model has no calibration and promises no risk ({self.risk:g}): c2f-zoo calibrate")
        else:
            _logger.warning(
                "the model has no calibration, so that no prediction says how far it can be trusted; run "
                "`c2f-zoo calibrate` with validation images"
            )

    def __call__(self, log_probs: Mapping[str, np.ndarray], details: Sequence[Sequence[float]]) -> list[Prediction]:
        """Return the predictions of N objects.

        Args:
            log_probs: level -> log-probabilities float64 (N, classes) of the levels that the model predicts.
            details: for each object the visible detail of its images in pixels.
        """
        arrays = add_missing_levels(log_probs, self.tree)
        p, leaves = {level: np.exp(z) for level, z in arrays.items()}, None
        possible = arrays
        if self.restriction is not None:
            leaves = self.restriction.leaves
            own = [self.tree.depth(level) for level in self.predicted[-1 if self.levels_are_marginals else 0 :]]
            p = dict(zip(p, restrict(list(p.values()), leaves, self._nodes, own), strict=True))
            possible = mask_impossible(arrays, leaves, self._nodes)
        labels = find_joint_path({level: possible[level] for level in self.predicted}, self._nodes)
        trusted = None
        if self.calibration is not None:
            trusted = find_trusted(self.calibration, arrays, self.tree, details, self.risk, leaves)
        return [
            self._prediction(number, path, {level: one[number] for level, one in p.items()}, trusted, len(own_details))
            for number, (path, own_details) in enumerate(zip(labels, details, strict=True))
        ]

    def _prediction(
        self, number: int, path: np.ndarray, p: Mapping[str, np.ndarray], trusted: Trusted | None, images: int
    ) -> Prediction:
        """Return the prediction of the object `number`."""
        restriction = None if self.restriction is None else self.restriction.text
        shown = {level: p[level] for level in self.levels}
        found = Prediction(self._steps(path, list(p.values())), tree=self.tree, probabilities=shown)
        if trusted is None or self.calibration is None:
            return replace(found, provenance=Provenance(images=images, restriction=restriction))
        calibrated = [level[number] for level in trusted.p.levels]
        steps, safe = self._steps(path, calibrated), trusted.p.nodes.paths[trusted.nodes[number]]
        trusted_path = self._steps(safe, calibrated)
        common = next((n for n, (a, b) in enumerate(zip(path, safe, strict=True)) if a != b), len(path))
        provenance = Provenance(
            rule=self.calibration.rule,
            risk=self.calibration.risk if self.risk is None else self.risk,
            threshold=float(trusted.threshold[number]),
            detail=float(trusted.detail[number]),
            group=int(trusted.group[number]),
            calibration_version=self.calibration.version,
            calibrated_on=str(self.calibration.about.get("date", "")),
            images=images,
            restriction=restriction,
        )
        return replace(found, trusted_path=trusted_path, guess=steps[common:], provenance=provenance)

    def _steps(self, path: np.ndarray, p: Sequence[np.ndarray]) -> list[Step]:
        """Return a path of labels, -1 below its end, down to the finest shown level and without repeats."""
        return [
            (level, self.tree.classes[depth][label], float(p[depth][label]))
            for depth, (level, label) in enumerate(zip(self.levels, path, strict=False))
            if label >= 0 and label not in self.tree.left_out[depth]
        ]
