"""Right and wrong predictions of models and of a linear probe at given resolutions, and their rows in a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from c2f_zoo.data import LabelledImages, labels_of
from c2f_zoo.decoding import marginalize
from c2f_zoo.evaluation.ablation_summary import Estimate, estimate_accuracy, estimate_difference
from c2f_zoo.evaluation.labels import labels_in
from c2f_zoo.evaluation.probe import LabelledFeatures, extract_features, probe_linear
from c2f_zoo.evaluation.scoring import score_images
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.model import C2FModel
from c2f_zoo.training.tap_training import mark_correct

Correct = Mapping[str, np.ndarray]  # level -> int8 (images,): 1 right, 0 wrong, -1 without a label


def correct_at(
    model: C2FModel, dataset: LabelledImages, indices: Sequence[int], resolution: int, **how: Any
) -> dict[str, np.ndarray]:
    """Compare a model's predictions at one resolution with the labels, in one process.

    Levels that the model does not predict are marginalized.

    Args:
        model: the model.
        dataset: the dataset; its classes are found in the model's tree by name.
        indices: the images' indices.
        resolution: the resolution in pixels.
        **how: the other arguments of `c2f_zoo.evaluation.scoring.score_images`.

    Returns:
        level -> int8 (images,): 1 right, 0 wrong, -1 without a label.

    Raises:
        ValueError: a class of the dataset is not in the model's tree.
    """
    target = labels_in(model.hierarchy, dataset)[list(indices)]
    parts: dict[str, list[Tensor]] = {}
    for batch in score_images(model, dataset, indices, {resolution: model.levels}, **how):
        log_probs = marginalize(model.log_probs(batch.logits[resolution]), model.hierarchy)
        for level, z in log_probs.items():
            parts.setdefault(level, []).append(z.argmax(dim=1).cpu())
    return _compare({level: torch.cat(found) for level, found in parts.items()}, target, model.hierarchy)


def probe_at(
    model: C2FModel,
    dataset: LabelledImages,
    train: Sequence[int],
    val: Sequence[int],
    test: LabelledImages | None,
    resolution: int,
    penalties: Sequence[float],
    max_iter: int,
) -> dict[str, np.ndarray]:
    """Fit a logistic regression for each level on features at one resolution, and compare it with the labels.

    Args:
        model: a model, of which backbone and pooling are used, in evaluation mode.
        dataset: the dataset of the training and validation images.
        train: indices of the training images.
        val: indices of the validation images, which choose each level's penalty.
        test: the images to score; None: the validation images.
        resolution: the resolution in pixels of all images.
        penalties: the penalties to choose from.
        max_iter: iterations of L-BFGS.

    Returns:
        level -> int8 (images,): 1 right, 0 wrong, -1 without a label.
    """
    at = dict.fromkeys(model.levels, resolution)
    known = LabelledFeatures(extract_features(model, dataset, at), labels_of(dataset))
    held_out = known.select(val)
    probe = probe_linear(known.select(train), held_out, dataset.hierarchy, penalties, max_iter)
    images = held_out if test is None else LabelledFeatures(extract_features(model, test, at), labels_of(test))
    predicted = {level: z.argmax(dim=1) for level, z in probe.classify(images.features).items()}
    return _compare(predicted, images.labels, dataset.hierarchy)


def _compare(predicted: Mapping[str, Tensor], labels: Tensor, tree: Hierarchy) -> dict[str, np.ndarray]:
    truth = tree.cut_repeats(labels)
    return {level: mark_correct(found, truth[:, tree.depth(level)]) for level, found in predicted.items()}


def resolution_rows(
    correct: Mapping[str, Mapping[int, Sequence[Correct]]], minus: str | None, resamples: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield a row for each model, resolution and level, and then for each difference from one of the models.

    Intervals are of 95 %, by the bootstrap over images and runs. Those of differences are paired.

    Args:
        correct: model -> resolution -> what each of its runs predicts right.
        minus: the model to subtract from the others; None: no differences.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.

    Examples:
        >>> right = {"genus": np.array([1, 1, 1, 0])}
        >>> rows = resolution_rows({"mlph": {24: [right]}}, None, resamples=100, seed=0)
        >>> [(row["resolution"], row["value"], row["images"]) for row in rows]
        [(24, '0.7500', 4)]
    """
    stacked = {
        (model, resolution, level): np.stack([run[level] for run in runs])
        for model, of_model in correct.items()
        for resolution, runs in of_model.items()
        for level in runs[0]
    }
    labelled = {key: found[:, found[0] >= 0] for key, found in stacked.items()}
    for (model, resolution, level), found in labelled.items():
        names = {"model": model, "minus": "", "resolution": resolution, "level": level}
        yield names | _numbers(found, estimate_accuracy(found, resamples, seed))
    for (model, resolution, level), found in labelled.items():
        other = labelled.get((minus or "", resolution, level))
        if other is not None and model != minus:
            names = {"model": model, "minus": minus, "resolution": resolution, "level": level}
            yield names | _numbers(found, estimate_difference(found, other, resamples, seed))


def _numbers(found: np.ndarray, estimate: Estimate) -> dict[str, Any]:
    runs, images = found.shape
    return {**estimate.columns(), "runs": runs, "images": images}
