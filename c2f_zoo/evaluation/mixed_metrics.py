"""What each rule's predictions are worth on images at mixed resolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from c2f_zoo.config import format_resolution
from c2f_zoo.data import LabelledImages
from c2f_zoo.decoding import marginalize
from c2f_zoo.evaluation.resolution_search import check_grid
from c2f_zoo.evaluation.scoring import score_images
from c2f_zoo.evaluation.trust_curves import OperatingPoint, Steps, curve, operating_point
from c2f_zoo.evaluation.trust_metrics import Reliability, TrustMetrics
from c2f_zoo.evaluation.trust_plots import plot_reliability, plot_risk_coverage
from c2f_zoo.inference.calibration import Calibration, calibrated
from c2f_zoo.inference.nodes import NodeProbabilities
from c2f_zoo.inference.resolutions import own_resolutions, rules_for
from c2f_zoo.inference.trust import OWN_THRESHOLDS
from c2f_zoo.model import C2FModel

SEED = 0


def choose_grid(model: C2FModel, grid: Sequence[int | None] | None = None) -> tuple[int | None, ...]:
    """Return the resolution grid; by default full size and the model's own resolutions.

    Raises:
        ValueError: the grid is empty, does not decrease, or has a resolution below 1 pixel.

    Examples:
        >>> choose_grid(create_model("mlph_tiny_critters", resolutions={"family": 12, "genus": 32}))
        (None, 32, 12)
    """
    if grid is None:
        grid = [None, *sorted({pixels for pixels in own_resolutions(model).values() if pixels}, reverse=True)]
    return check_grid(grid)


def draw_resolutions(grid: Sequence[int | None], images: int) -> dict[int | None, list[int]]:
    """Draw a grid point for each image, always the same; return resolution -> indices of images.

    Examples:
        >>> draw_resolutions([None, 32], images=6)
        {None: [3, 4, 5], 32: [0, 1, 2]}
    """
    drawn = np.random.default_rng(SEED).integers(len(grid), size=images)
    return {resolution: np.flatnonzero(drawn == number).tolist() for number, resolution in enumerate(grid)}


class MixedMetrics:
    """Metrics of all rules, and reliability of all levels, for a model's predictions at mixed resolutions.

    A class has the probability that the model's calibration gives it: with temperatures, by its own level or as a sum
    over its leaf classes. Without a calibration it is the sum. `nominal` prescribes the level by the drawn resolution.

    Args:
        model: the model.
        device: the device on which the states are gathered over processes.
    """

    def __init__(self, model: C2FModel, device: torch.device) -> None:
        self.tree = model.hierarchy.truncate(model.levels[-1])
        self.calibration = None if model.calibration is None else Calibration.from_dict(model.calibration)
        self.full = min(model.config.preprocessing.input_size[1:])
        self.rules = {name: TrustMetrics(rule, self.tree).to(device) for name, rule in rules_for(model).items()}
        self.reliability = {level: Reliability(self.tree.truncate(level)).to(device) for level in self.tree.levels}

    def update(self, log_probs: Mapping[str, Tensor], target: Tensor, resolution: int | None) -> None:
        """Add images at a resolution.

        Args:
            log_probs: predicted level -> log-probabilities (N, classes).
            target: labels (N, levels of the tree); -1 where unknown.
            resolution: in pixels; None is full size.
        """
        found = {level: z.cpu().double().numpy() for level, z in marginalize(log_probs, self.tree).items()}
        p = self._probabilities(found, np.full(len(target), resolution or self.full))
        for metrics in self.rules.values():
            metrics.update(p, target[:, -1].cpu().numpy())
        for level, labels, diagram in zip(p.levels, target.T, self.reliability.values(), strict=True):
            diagram.update(torch.from_numpy(level).log().to(diagram.device), labels.to(diagram.device))

    def _probabilities(self, log_probs: Mapping[str, np.ndarray], sizes: np.ndarray) -> NodeProbabilities:
        if self.calibration is None:
            return calibrated(log_probs, self.tree, "sum", {}, sizes)
        return self.calibration.probabilities_of(log_probs, self.tree, sizes)

    def points(self, steps: Mapping[str, Steps]) -> dict[str, OperatingPoint]:
        """Return operating points by name: rules as they are meant to be used, and the calibrated thresholds.

        Args:
            steps: rule -> its steps.
        """
        thresholds = {rule: (rule, threshold) for rule, threshold in OWN_THRESHOLDS.items()}
        if self.calibration is not None:
            risks = zip(self.calibration.risks, self.calibration.overall, strict=True)
            thresholds |= {f"calibrated, risk {100 * risk:g} %": (self.calibration.rule, t) for risk, t in risks}
        return {name: operating_point(steps[rule], threshold) for name, (rule, threshold) in thresholds.items()}

    def report(self, folder: Path | None) -> dict[str, Any]:
        """Compute all metrics over all processes; all must call this method.

        Args:
            folder: where to draw `risk_coverage.png` and `reliability.png`; None on all processes but the main one.
        """
        steps = {name: metrics.steps() for name, metrics in self.rules.items()}
        reliability = {level: metrics.compute() for level, metrics in self.reliability.items()}
        known = len(next(iter(steps.values())).labels)
        rules = {name: metrics.compute() for name, metrics in self.rules.items()} if known else {}
        points = self.points(steps) if known else {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            plot_reliability(reliability, folder / "reliability.png")
            if known:
                plot_risk_coverage(
                    {name: curve(one) for name, one in steps.items()}, folder / "risk_coverage.png", points
                )
        return {
            "probabilities": "sum" if self.calibration is None else self.calibration.probabilities,
            "temperatures": {} if self.calibration is None else dict(self.calibration.temperatures),
            "rules": rules,
            "operating_points": {name: asdict(point) for name, point in points.items()},
            "reliability": reliability,
        }


@torch.no_grad()
def score_mixed(
    model: C2FModel,
    dataset: LabelledImages,
    target: Tensor,
    grid: Sequence[int | None],
    accelerator: Accelerator,
    folder: Path,
    **loading: Any,
) -> dict[str, Any]:
    """Score each image at one resolution, drawn from a grid, and draw the plots.

    Args:
        model: the model, on the accelerator's device.
        dataset: the dataset.
        target: its labels (n, levels) in the model's tree; -1 for unknown labels.
        grid: the resolutions; None is full size.
        accelerator: the processes.
        folder: folder of the plots.
        **loading: batch size, number of workers and error handling, as in `score_images`.

    Returns:
        The section `mixed_resolutions` of `metrics.json`.
    """
    metrics = MixedMetrics(model, accelerator.device if accelerator.num_processes > 1 else torch.device("cpu"))
    drawn = draw_resolutions(grid, len(dataset))
    target = target[:, : len(metrics.tree.levels)]
    for resolution, indices in drawn.items():
        levels_at = {resolution: model.levels}
        for batch in score_images(model, dataset, indices, levels_at, accelerator=accelerator, **loading):
            readable = batch.readable.to(accelerator.device)
            log_probs = {level: z[readable] for level, z in model.log_probs(batch.logits[resolution]).items()}
            metrics.update(log_probs, target[batch.index[batch.readable]], resolution)
    counts = {format_resolution(resolution): len(indices) for resolution, indices in drawn.items()}
    report = metrics.report(folder if accelerator.is_main_process else None)
    return {"seed": SEED, "images_at": counts, **report}
