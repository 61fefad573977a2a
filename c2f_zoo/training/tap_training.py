"""Training of pooling and head on the feature maps of a frozen backbone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from c2f_zoo.inference.resolutions import levels_by_resolution
from c2f_zoo.model import C2FModel
from c2f_zoo.training.batches import EpochBatches, plan_rounds, seed_of, split_into_steps
from c2f_zoo.training.frozen_taps import FrozenTaps
from c2f_zoo.training.objective import create_objective
from c2f_zoo.training.optimizers import create_optimizer, create_schedule
from c2f_zoo.training.options import TrainOptions
from c2f_zoo.training.setup import set_train_mode

_BATCH = 64  # images that are scored at once


def train_on_taps(
    model: C2FModel,
    taps: FrozenTaps,
    train: Sequence[int],
    val: Sequence[int],
    options: TrainOptions,
) -> list[dict[str, float]]:
    """Train pooling and head for one stage, with the batches, objective and schedule of train.py.

    Each image is mirrored at random if the mirrored maps are there. With the objective `any_resolution`, each image
    has one of the resolutions of the maps, at random: a coarser choice than that of train.py.

    Args:
        model: the model; its pooling and head are trained. Its backbone is not run.
        taps: the maps of training and validation images.
        train: indices of the training images.
        val: indices of the validation images.
        options: the options of a training with one stage; `resolutions` are those that each level is trained at.

    Returns:
        level -> validation accuracy at the model's own resolution, after each epoch.

    Raises:
        ValueError: a loss is not finite.
    """
    stage, levels = options.stages[0], model.levels[::-1]
    objective, optimizer = create_objective(options, model), create_optimizer(model, stage, options)
    batches = EpochBatches(len(train), options.batch_size, options.seed)
    schedule = create_schedule(optimizer, stage, plan_rounds(options.objective, levels, len(batches))[1])
    index = torch.tensor(train)

    def forward(rows: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.mixed_precision == "bf16"):
            logits = model.forward_head(model.forward_pool(taps.read(model.backbone.taps, rows)), levels)
        return {level: z.float() for level, z in logits.items()}

    history, number = [], 0
    for epoch in range(stage.epochs):
        set_train_mode(model, model, stage, options)
        batches.epoch = epoch
        rounds = split_into_steps(options.objective, levels, ([batch] for batch in batches))
        for step in itertools.chain.from_iterable(rounds):
            schedule.step_update(number)
            for part_levels, batch in step:
                positions, seeds = zip(*batch, strict=True)
                images = index[list(positions)]
                views = torch.tensor([choose_view(taps, seed, part_levels, options) for seed in seeds])
                losses = objective(forward, torch.stack([views, images], dim=1), taps.labels[images], part_levels)
                loss = torch.stack(list(losses.values())).sum()
                if not loss.isfinite():
                    raise ValueError(f"the loss is {loss.item()} in epoch {epoch + 1}; lower the learning rate")
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            number += 1
        history.append(mean_accuracy(correct_on_taps(model, taps, val)))
    return history


def choose_view(taps: FrozenTaps, seed: int, levels: Sequence[str], options: TrainOptions) -> int:
    """Choose the number of an image's view in a step.

    Args:
        taps: the maps.
        seed: the image's seed.
        levels: the levels that the step trains.
        options: `objective` and `resolutions` are used.
    """
    resolution = options.resolutions.get(levels[0])
    if options.objective == "any_resolution":
        known = list(dict.fromkeys(resolution for resolution, _ in taps.views))
        resolution = known[seed_of(seed, 1) % len(known)]
    # Levels of a step in turn see other mirror images, as the views of train.py.
    places = [number for number, (at, _) in enumerate(taps.views) if at == resolution]
    return places[seed_of(seed, *map(ord, levels[0])) % len(places)]


@torch.no_grad()
def correct_on_taps(model: C2FModel, taps: FrozenTaps, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """Compare predictions, each level at its own resolution, with the labels.

    Args:
        model: the model, with its pooling and head.
        taps: the maps of the images.
        indices: the images' indices.

    Returns:
        level -> int8 (images,): 1 right, 0 wrong, -1 without a label.
    """
    model.eval()
    truth, tree = model.hierarchy.cut_repeats(taps.labels)[list(indices)], model.hierarchy
    found = {}
    for resolution, levels in levels_by_resolution(model).items():
        view = taps.views.index((resolution, False))
        rows = torch.tensor([(view, index) for index in indices])
        maps = (taps.read(model.backbone.taps, part) for part in rows.split(_BATCH))
        logits = [model.forward_head(model.forward_pool(x), levels) for x in maps]
        for level in levels:
            predicted = torch.cat([z[level].argmax(dim=1) for z in logits])
            found[level] = mark_correct(predicted, truth[:, tree.depth(level)])
    return {level: found[level] for level in model.levels}


def mark_correct(predicted: Tensor, labels: Tensor) -> np.ndarray:
    """Compare predicted classes with labels (images,), which are -1 where unknown.

    Returns:
        int8 (images,): 1 right, 0 wrong, -1 without a label.

    Examples:
        >>> mark_correct(torch.tensor([2, 0, 1]), torch.tensor([2, 1, -1]))
        array([ 1,  0, -1], dtype=int8)
    """
    return (predicted == labels).to(torch.int8).where(labels >= 0, -1).numpy()


def mean_accuracy(correct: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return each level's accuracy on images with a label.

    Args:
        correct: level -> (images,): 1 right, 0 wrong, -1 without a label.

    Examples:
        >>> mean_accuracy({"genus": np.array([1, 0, -1, 1, 1])})
        {'genus': 0.75}
    """
    return {level: float((found == 1).sum() / (found >= 0).sum()) for level, found in correct.items()}
