"""Linear detectors of an object and its parts, with hard negatives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from c2f_zoo.backbones.part_rcnn import REGIONS
from c2f_zoo.evaluation.probe import Standardize, minimize
from c2f_zoo.parts.cache import load_regions

POSITIVE, NEGATIVE = 0.7, 0.3  # overlap with the annotated box; not compared with the paper's text
_MAX_POSITIVES = 20  # of an image


def select_positives(overlaps: Tensor, limit: int = _MAX_POSITIVES) -> Tensor:
    """Return the numbers of the proposals that overlap by 0.7 or more, the best `limit` of them.

    Args:
        overlaps: intersection over union (k,) with the annotated box; NaN if it is unknown.
        limit: maximum number.

    Examples:
        >>> select_positives(torch.tensor([0.1, 0.7, 0.9, 0.69]))
        tensor([2, 1])
    """
    order = overlaps.nan_to_num(0.0).argsort(descending=True, stable=True)
    return order[overlaps[order] >= POSITIVE][:limit]


def select_hard_negatives(scores: Tensor, overlaps: Tensor, count: int, threshold: float = -1.0) -> Tensor:
    """Return the numbers of the proposals with the highest scores among those that overlap by 0.3 or less.

    Args:
        scores: logits (k,) of the detector.
        overlaps: intersection over union (k,) with the annotated box; NaN if it is unknown: there are no negatives.
        count: maximum number.
        threshold: proposals with this logit or less are easy and left out.

    Examples:
        >>> select_hard_negatives(torch.tensor([3.0, -2.0, 1.0, 2.0]), torch.tensor([0.8, 0.0, 0.3, 0.2]), count=5)
        tensor([3, 2])
    """
    hard = ((overlaps <= NEGATIVE) & (scores > threshold)).nonzero().flatten()
    return hard[scores[hard].argsort(descending=True, stable=True)][:count]


def fit_detectors(
    files: Sequence[Path], rounds: int = 2, count: int = 10, penalty: float = 1e-3, max_iter: int = 100, seed: int = 0
) -> nn.Linear:
    """Fit a logistic regression for each region: the object, the head and the body.

    Positives are the annotated box and the proposals that overlap it by 0.7 or more (20 of an image). Negatives overlap
    by 0.3 or less: random ones first; then, in each round, those with the highest scores.

    Args:
        files: the regions of the training images, see `load_regions`.
        rounds: number of rounds of hard negatives.
        count: number of negatives of an image in each round.
        penalty: factor of the sum of squared weights, for standardized features.
        max_iter: iterations of L-BFGS.
        seed: seed of the random negatives.

    Returns:
        A linear layer, features (D) -> logits (3).

    Raises:
        ValueError: a region has no positives or no negatives.
    """
    generator = torch.Generator().manual_seed(seed)
    positives: list[list[Tensor]] = [[] for _ in REGIONS]
    negatives: list[dict[tuple[int, int], Tensor]] = [{} for _ in REGIONS]  # by image and proposal: each once
    detectors: nn.Linear | None = None
    for _ in range(rounds + 1):
        for image, file in enumerate(files):
            truth, truth_features, proposals, features = load_regions(file)
            overlaps = box_iou(truth, proposals)
            scores = torch.rand(len(proposals), len(REGIONS), generator=generator)
            if detectors is not None:
                scores = detectors(features.float())
            for region, overlap in enumerate(overlaps):
                if detectors is None and truth[region].isfinite().all():
                    positives[region].append(truth_features[region : region + 1].clone())
                    positives[region].append(features[select_positives(overlap)])
                for number in select_hard_negatives(scores[:, region], overlap, count).tolist():
                    negatives[region].setdefault((image, number), features[number].clone())
        layers = [
            _fit_detector(
                name, torch.cat(found) if found else torch.empty(0, 0), list(others.values()), penalty, max_iter
            )
            for name, found, others in zip(REGIONS, positives, negatives, strict=True)
        ]
        detectors = nn.Linear(layers[0].in_features, len(REGIONS)).requires_grad_(False)
        detectors.weight.copy_(torch.cat([layer.weight for layer in layers]))
        detectors.bias.copy_(torch.cat([layer.bias for layer in layers]))
    assert detectors is not None, "rounds >= 0"
    return detectors


def _fit_detector(
    name: str, positives: Tensor, negatives: Sequence[Tensor], penalty: float, max_iter: int
) -> nn.Linear:
    """Fit one detector; its weights are for features that are not standardized."""
    if len(positives) == 0 or len(negatives) == 0:
        kind = (
            "negatives: no proposal overlaps by 0.3 or less"
            if len(positives)
            else "positives: it is visible in no image"
        )
        raise ValueError(f"the detector of the {name} has no {kind}")
    x = torch.cat([positives, torch.stack(list(negatives))]).float()
    y = torch.cat([torch.ones(len(positives)), torch.zeros(len(negatives))])
    standardize = Standardize(x)
    x = standardize(x)
    linear = nn.Linear(x.shape[1], 1)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    minimize(
        lambda: F.binary_cross_entropy_with_logits(linear(x)[:, 0], y) + penalty * linear.weight.square().sum(),
        list(linear.parameters()),
        max_iter,
    )
    linear.requires_grad_(False)
    linear.weight.div_(standardize.std)
    linear.bias.sub_(linear.weight @ standardize.mean)
    return linear
