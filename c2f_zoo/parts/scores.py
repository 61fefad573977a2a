"""Scores of localized regions and of their classes, as rows of a table with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from c2f_zoo.backbones.part_rcnn import REGIONS
from c2f_zoo.evaluation.ablation_summary import estimate_accuracy
from c2f_zoo.evaluation.probe import LabelledFeatures, Probe
from c2f_zoo.parts.boxes import best_overlaps
from c2f_zoo.parts.cache import load_regions

Row = dict[str, Any]
RECALLS, PCP = (0.5, 0.7), 0.5  # overlaps


def overlaps_of(boxes: Tensor, truth: Tensor) -> Tensor:
    """Return the intersection over union of each region's box with the annotated one.

    Args:
        boxes: the localized boxes (regions, 4); NaN for a region that is not found.
        truth: the annotated boxes (regions, 4); NaN where unknown.

    Returns:
        (regions,): 0 for a region that is not found, NaN where the annotation is unknown.

    Examples:
        >>> truth = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 2.0, 2.0], [torch.nan] * 4])
        >>> found = torch.tensor([[0.0, 0.0, 4.0, 2.0], [torch.nan] * 4, [0.0, 0.0, 1.0, 1.0]])
        >>> overlaps_of(found, truth)
        tensor([0.5000, 0.0000,    nan])
    """
    overlaps = box_iou(boxes, truth).diagonal().nan_to_num(0.0)
    return overlaps.masked_fill(truth.isnan().any(dim=1), math.nan)


def mean_pcp(overlaps: Tensor) -> float:
    """Return the fraction of overlaps of 0.5 or more among those that are known.

    Examples:
        >>> mean_pcp(torch.tensor([[0.5, 0.4], [torch.nan, 0.9], [0.1, torch.nan]]))
        0.5
    """
    return (overlaps[overlaps.isfinite()] >= PCP).double().mean().item()


def recall_rows(files: Sequence[Path], bootstrap: int, seed: int) -> list[Row]:
    """Return the recall of the proposals for each region.

    Args:
        files: the regions of the images, see `c2f_zoo.parts.cache.load_regions`.
        bootstrap: number of resamples of the images.
        seed: seed of the resamples.
    """
    best = []
    for file in files:  # one at a time: the features of all images take gigabytes
        regions = load_regions(file)
        best.append(best_overlaps([regions.proposals], regions.truth[None])[0])
    return [
        row({"measure": f"recall at {least:g}", "of": region}, overlaps >= least, overlaps.isfinite(), bootstrap, seed)
        for least in RECALLS
        for region, overlaps in zip(REGIONS, torch.stack(best).unbind(dim=1), strict=True)
    ]


def pcp_rows(first: Mapping[str, Any], overlaps: Tensor, bootstrap: int, seed: int) -> list[Row]:
    """Return the fraction of correctly localized regions, those that overlap the annotated one by 0.5 or more.

    Args:
        first: the first columns.
        overlaps: (n, 3), see `overlaps_of`.
        bootstrap: number of resamples of the images.
        seed: seed of the resamples.
    """
    return [
        row({**first, "measure": "PCP", "of": region}, column >= PCP, column.isfinite(), bootstrap, seed)
        for region, column in zip(REGIONS, overlaps.unbind(dim=1), strict=True)
    ]


def accuracy_rows(
    first: Mapping[str, Any], probe: Probe, images: LabelledFeatures, bootstrap: int, seed: int
) -> list[Row]:
    """Return the accuracy of a classifier at each level; arguments as in `pcp_rows`."""
    rows = []
    for depth, (level, log_probs) in enumerate(probe.classify(images.features).items()):
        labels = images.labels[:, depth]
        named = {**first, "measure": "accuracy", "of": level}
        rows.append(row(named, log_probs.argmax(dim=1) == labels, labels >= 0, bootstrap, seed))
    return rows


def row(named: Mapping[str, Any], correct: Tensor, known: Tensor, bootstrap: int, seed: int) -> Row:
    """Return a fraction in [0, 1] with its 95 % interval; NaN if it is known for no image.

    Args:
        named: the first columns.
        correct: whether each image is correct (n,).
        known: whether that is known (n,).
        bootstrap: number of resamples of the images.
        seed: seed of the resamples.

    Examples:
        >>> row({"of": "head"}, torch.tensor([True, False]), torch.tensor([True, False]), 10, 0)["value"]
        1.0
    """
    columns = {"mode": "", "geometry": "", "alpha": "", **named}
    if not known.any():
        return {**columns, "value": math.nan, "low": math.nan, "high": math.nan, "counted": 0}
    one = estimate_accuracy(correct[known].numpy().astype(np.int64)[None], bootstrap, seed)
    return {**columns, "value": one.value, "low": one.low, "high": one.high, "counted": int(known.sum())}


def print_rows(rows: Sequence[Row]) -> None:
    """Print the rows, in %."""
    for one in rows:
        value, low, high = (100 * one[key] for key in ("value", "low", "high"))
        name = " ".join(str(one[key]) for key in ("mode", "geometry", "measure", "of") if one[key])
        print(f"{name}: {value:.1f} ({low:.1f} to {high:.1f})")
