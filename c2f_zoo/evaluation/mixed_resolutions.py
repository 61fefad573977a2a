"""Scores of images at mixed resolutions, from which a model is calibrated and its trust is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from c2f_zoo.data import LabelledImages
from c2f_zoo.data.derived import AtResolutions, ResolutionView
from c2f_zoo.data.transformed_images import load_image
from c2f_zoo.evaluation.labels import labels_in
from c2f_zoo.evaluation.scoring import score_images
from c2f_zoo.inference.detail import visible_detail
from c2f_zoo.inference.resolutions import levels_by_resolution
from c2f_zoo.model import C2FModel
from c2f_zoo.ops import widest_dtype


@dataclass(frozen=True)
class MixedScores:
    """Scores of n views of images at mixed resolutions.

    Attributes:
        own: level -> log-probabilities float64 (n, classes) at the level's own resolution.
        labels: leaf labels (n,), -1 for unknown ones.
        index: the image of each view (n,), its index in the dataset.
        resolution: the resolution of each view (n,) in pixels; 0 is full size.
        size: the shorter side of each view in pixels (n,).
        detail: its visible detail in pixels (n,).
    """

    own: dict[str, np.ndarray]
    labels: np.ndarray
    index: np.ndarray
    resolution: np.ndarray
    size: np.ndarray
    detail: np.ndarray

    def take(self, chosen: np.ndarray) -> MixedScores:
        """Return the scores of some views: a mask (n,) or indices."""
        own = {level: z[chosen] for level, z in self.own.items()}
        rest = (self.labels, self.index, self.resolution, self.size, self.detail)
        return MixedScores(own, *(column[chosen] for column in rest))


def score_views(
    model: C2FModel,
    dataset: LabelledImages,
    views: Sequence[ResolutionView],
    accelerator: Accelerator,
    levels: Sequence[str] | None = None,
    **how: Any,
) -> MixedScores:
    """Score views of a dataset's images as `Predictor` does, in one process.

    Args:
        model: the model.
        dataset: the dataset; its classes are found in the model's tree by name.
        views: the views, see `c2f_zoo.data.derived.draw_views`.
        accelerator: the device.
        levels: the predicted levels to score; default: all.
        **how: batch size and number of workers, as in `score_images`.

    Raises:
        ValueError: an image is unreadable, a class of the dataset is not in the model's tree, or the model's outputs
            are not finite.
    """
    images, levels = AtResolutions(dataset, views), model.levels if levels is None else levels
    passes = {at: [level for level in of if level in levels] for at, of in levels_by_resolution(model).items()}
    levels_at = {at: of for at, of in passes.items() if of}
    parts: dict[str, list[torch.Tensor]] = {level: [] for level in levels}
    for batch in score_images(
        model.to(accelerator.device), images, range(len(images)), levels_at, accelerator=accelerator, **how
    ):
        logits = {level: z for found in batch.logits.values() for level, z in found.items()}
        wide = {level: logits[level].to(widest_dtype(accelerator.device)) for level in levels}
        for level, z in model.log_probs(wide).items():
            parts[level].append(z.cpu().double())
    sizes, detail = zip(*(_measure(images, index, model) for index in range(len(images))), strict=True)
    return MixedScores(
        {level: torch.cat(found).numpy() for level, found in parts.items()},
        labels_in(model.hierarchy, images)[:, model.hierarchy.depth(model.levels[-1])].numpy(),
        np.array([view.index for view in views]),
        np.array([view.resolution or 0 for view in views]),
        np.array(sizes),
        np.array(detail),
    )


def _measure(images: AtResolutions, index: int, model: C2FModel) -> tuple[int, float]:
    """Return an image's shorter side and its visible detail."""
    image = load_image(images, index)
    return min(image.size), visible_detail(image, model.config.preprocessing.resize)
