"""The training objective: the loss of a step, with labels of mixed depth."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from c2f_zoo.losses import LOSSES, tree_prior
from c2f_zoo.model import C2FModel
from c2f_zoo.registry import check_names, check_options
from c2f_zoo.training.options import TrainOptions

# A function of the forward function, a batch's images and labels (N, levels), and the step's level; returns the loss.
Objective = Callable[[Callable[..., dict[str, Tensor]], Tensor, Tensor, str], Tensor]


def create_objective(options: TrainOptions, model: C2FModel) -> Objective:
    """Create the training objective.

    The loss is the mean over the images with a target in the step (see `select_targets`), times the level's weight.
    Steps of the leaf level add the tree prior.

    Args:
        options: the options; `loss`, `loss_options`, `level_weights` and `tree_prior` are used.
        model: the model to train.

    Returns:
        A function of (forward, images, labels (N, levels), level) that returns a scalar loss. `forward` is the model,
        wrapped for training: `forward(images, levels=...)` returns logits.

    Raises:
        ValueError: an option is unknown or out of range.
    """
    check_objective(options, model)
    trees = {level: model.hierarchy.truncate(level) for level in model.levels}

    def objective(forward: Callable[..., dict[str, Tensor]], images: Tensor, labels: Tensor, level: str) -> Tensor:
        targets = select_targets(labels, level, model)
        log_probs = model.log_probs(forward(images, levels=tuple(targets)))
        counts = {at: (target >= 0).sum() for at, target in targets.items()}
        total = sum(counts.values()).clamp(min=1)  # type: ignore[union-attr]
        loss = torch.zeros((), device=images.device)
        for at, target in targets.items():
            mean = LOSSES[options.loss](log_probs[at], target, trees[at], **options.loss_options)
            loss = loss + counts[at] / total * mean
        loss = options.level_weights.get(level, 1.0) * loss
        if options.tree_prior > 0 and level == model.levels[-1]:
            weight = model.head.get_classifier(level).weight
            loss = loss + options.tree_prior * tree_prior(weight, trees[level])
        return loss

    return objective


def check_objective(options: TrainOptions, model: C2FModel) -> None:
    """Check the options of the objective.

    Raises:
        ValueError: an option is unknown or out of range.
    """
    check_options(f"option of loss {options.loss!r}:", LOSSES[options.loss], options.loss_options)
    tree, leaf = model.hierarchy, model.levels[-1]
    uniform = torch.zeros(1, tree.num_classes[leaf]).log_softmax(dim=1)
    try:  # the loss itself checks the values of its options
        LOSSES[options.loss](uniform, torch.tensor([0]), tree.truncate(leaf), **options.loss_options)
    except TypeError as error:
        raise ValueError(f"loss_options {options.loss_options} do not fit {options.loss!r}: {error}") from error
    check_names("level in level_weights:", options.level_weights, model.levels)
    for level, weight in options.level_weights.items():
        if weight < 0:
            raise ValueError(f"the weight of {level} is {weight}; it must be 0 or more")
    if options.tree_prior < 0:
        raise ValueError(f"tree_prior is {options.tree_prior}; it must be 0 or more")
    if options.tree_prior > 0:
        model.head.get_classifier(leaf)  # raises an error if the head has no such classifier


def select_targets(labels: Tensor, level: str, model: C2FModel) -> dict[str, Tensor]:
    """Select the labels to train on in a step of `level`.

    Each image has at most one target: its deepest label at `level` or above. If the head's levels are not marginals of
    one distribution, only labels at `level` are targets, because a coarser label does not train `level` then.

    Args:
        labels: labels (N, levels of the tree); -1 where unknown.
        level: the step's level.
        model: the model.

    Returns:
        For `level` and each other level with a target, labels (N,); -1 for images without a target at that level.
    """
    depth = model.levels.index(level)
    marginals = model.head.levels_are_marginals
    targets, is_open = {}, torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    for at in reversed(model.levels[0 if marginals else depth : depth + 1]):
        here = labels[:, model.hierarchy.depth(at)]
        target = here.where(is_open, -1)
        if at == level or (target >= 0).any():
            targets[at] = target
        is_open = is_open & (here < 0)
    return targets
