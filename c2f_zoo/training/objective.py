"""The training objective: the loss of a step, with labels of mixed depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from c2f_zoo.losses import LOSSES, tree_prior
from c2f_zoo.model import C2FModel
from c2f_zoo.registry import check_names, check_options
from c2f_zoo.training.mixing import Mixture
from c2f_zoo.training.options import TrainOptions

Forward = Callable[..., dict[str, Tensor]]  # the model, wrapped for training: images, levels=... -> logits

# A function of (forward, images, labels (N, levels of the tree), levels, totals, mixture); returns each level's loss.
Objective = Callable[..., dict[str, Tensor]]


def create_objective(options: TrainOptions, model: C2FModel) -> Objective:
    """Create the training objective.

    A level's loss is the mean over the images with a target (see `level_targets`), times the level's weight. The leaf
    level's includes the tree prior.

    Args:
        options: the options; `loss`, `loss_options`, `level_weights` and `tree_prior` are used.
        model: the model to train.

    Returns:
        A function of (forward, images, labels (N, levels of the tree), levels, totals=None, mixture=None) that
        returns level -> scalar loss. `totals` (levels,) are numbers to divide the sums over images by, if the images
        are part of a larger batch; by default the number of these images with a target. `mixture` is the `Mixture` of
        mixed images; the labels are those before mixing.

    Raises:
        ValueError: an option is unknown or out of range.
    """
    check_objective(options, model)
    trees = {level: model.hierarchy.truncate(level) for level in model.levels}

    def mean_loss(log_probs: Tensor, target: Tensor, at: str, mixture: Mixture | None) -> Tensor:
        loss = partial(LOSSES[options.loss], log_probs, tree=trees[at], **options.loss_options)
        if mixture is None:
            return loss(labels=target)
        return mixture.mix_losses(lambda labels: loss(labels=labels), target)

    def objective(
        forward: Forward,
        images: Tensor,
        labels: Tensor,
        levels: Sequence[str],
        totals: Tensor | None = None,
        mixture: Mixture | None = None,
    ) -> dict[str, Tensor]:
        targets = level_targets(labels, levels, model)
        counts = count_targets(targets)
        wanted = dict.fromkeys(at for chosen in targets.values() for at in chosen)
        log_probs = model.log_probs(forward(images, levels=tuple(wanted)))
        losses = {}
        for number, (level, chosen) in enumerate(targets.items()):
            total = (counts if totals is None else totals)[number].clamp(min=1)
            loss = torch.zeros((), device=images.device)
            for at, target in chosen.items():
                loss = loss + (target >= 0).sum() / total * mean_loss(log_probs[at], target, at, mixture)
            loss = options.level_weights.get(level, 1.0) * loss
            if options.tree_prior > 0 and level == model.levels[-1]:
                prior = tree_prior(model.head.get_classifier(level).weight, trees[level])
                loss = loss + options.tree_prior * (1 if totals is None else counts[number] / total) * prior
            losses[level] = loss
        return losses

    return objective


def level_targets(labels: Tensor, levels: Sequence[str], model: C2FModel) -> dict[str, dict[str, Tensor]]:
    """Return the targets of each level's loss: level -> level of the label -> labels (N,), -1 for none.

    The loss of one level alone also uses coarser labels, see `select_targets`. With several levels, each level has its
    own labels only.

    Args:
        labels: labels (N, levels of the tree); -1 where unknown.
        levels: the levels that are trained.
        model: the model.
    """
    if len(levels) == 1:
        return {levels[0]: select_targets(labels, levels[0], model)}
    return {level: {level: labels[:, model.hierarchy.depth(level)]} for level in levels}


def count_targets(targets: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    """Return the number of images with a target for each level, float32 (levels,)."""
    known = [sum((target >= 0).sum() for target in chosen.values()) for chosen in targets.values()]
    return torch.stack(known).float()  # type: ignore[arg-type]


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
