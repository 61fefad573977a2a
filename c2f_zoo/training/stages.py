"""The training loop: stages, epochs and steps, each level at its own resolution."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from c2f_zoo.data import LabelledImages, Normalize, TransformedImages, create_views
from c2f_zoo.inference.resolutions import own_resolutions
from c2f_zoo.io.files import atomic_write, write_csv
from c2f_zoo.model import C2FModel
from c2f_zoo.training.checkpoint import Progress, latest_checkpoint, load_checkpoint, load_optimizer, save_checkpoint
from c2f_zoo.training.curves import plot_curves
from c2f_zoo.training.objective import Objective
from c2f_zoo.training.optimizers import create_optimizer, create_schedule
from c2f_zoo.training.options import Stage, TrainOptions

# A function of the model, wrapped for training; returns each level's accuracy and the indices of unreadable images.
Validate = Callable[[nn.Module], tuple[dict[str, float], list[int]]]


def fit(
    model: C2FModel,
    dataset: LabelledImages,
    indices: Sequence[int],
    objective: Objective,
    validate: Validate,
    options: TrainOptions,
    output: Path,
    accelerator: Accelerator,
) -> Progress:
    """Train a model through all stages, or resume it from its latest checkpoint.

    After each epoch the model is validated and saved: `output` holds the model of the best epoch.

    Args:
        model: the model.
        dataset: the dataset that holds the training images.
        indices: the training images' indices in the dataset.
        objective: the loss of a step.
        validate: a function of the wrapped model that returns each level's accuracy and the indices of unreadable
            images; it is called after each epoch.
        options: the options of the run.
        output: the run's folder.
        accelerator: the processes; all must call this function.
    """
    progress, checkpoint = Progress(), latest_checkpoint(output)
    if checkpoint is not None:
        progress = load_checkpoint(checkpoint, model)
        accelerator.print(f"resumed after epoch {progress.epoch}")
        if progress.best_epoch == progress.epoch and accelerator.is_main_process:
            model.save_pretrained(output)  # after a kill between the checkpoint and this save
    loader = accelerator.prepare(create_loader(model, dataset, indices, options))
    last = 0
    for number, stage in enumerate(options.stages, start=1):
        first, last = last, last + stage.epochs
        if progress.epoch >= last:
            continue
        accelerator.free_memory()
        wrapped, optimizer = accelerator.prepare(model, create_optimizer(model, stage, options))
        schedule = create_schedule(optimizer, stage, steps_per_epoch=1)
        if checkpoint is not None and progress.epoch > first:
            load_optimizer(checkpoint, optimizer, schedule)
        while progress.epoch < last:
            title = f"stage {number}, epoch {progress.epoch + 1}"
            set_seed(options.seed + progress.epoch + 1, device_specific=True)
            row = {"epoch": progress.epoch + 1, "stage": number, "lr": optimizer.param_groups[0]["lr"]}
            losses, unreadable = train_epoch(wrapped, stage, loader, objective, optimizer, title, accelerator)
            accuracy, more = validate(wrapped)
            row |= losses | {f"val_{level}": score for level, score in accuracy.items()}
            schedule.step_update(progress.epoch + 1 - first)
            progress.add_epoch(row, [*unreadable, *more])
            if accelerator.is_main_process:
                save_epoch(model, optimizer, schedule, progress, output)
    return progress


def create_loader(
    model: C2FModel, dataset: LabelledImages, indices: Sequence[int], options: TrainOptions
) -> DataLoader:
    """Create the loader of the training images, with a view for each level."""
    preprocessing, own = model.config.preprocessing, own_resolutions(model)
    resolutions = {level: own[level] for level in reversed(model.levels)}
    transform = create_views(preprocessing, resolutions, train=True, normalize=False)
    images = TransformedImages(dataset, transform, indices, options.on_error, shorter_side=preprocessing.resize)
    # A smaller last batch would give batch norm poor statistics; the next shuffle leaves out other images.
    drop_last = len(images) >= options.batch_size
    return DataLoader(images, options.batch_size, shuffle=True, drop_last=drop_last, num_workers=options.num_workers)


def train_epoch(
    model: nn.Module,
    stage: Stage,
    loader: Iterable[Any],
    objective: Objective,
    optimizer: Optimizer,
    title: str,
    accelerator: Accelerator,
) -> tuple[dict[str, float], list[int]]:
    """Train for an epoch: a step at each level's resolution for every batch.

    Args:
        model: the model, as wrapped for training.
        stage: the stage; it decides which modules are frozen.
        loader: batches of `TransformedImages`, with a view for each level.
        objective: the loss of a step.
        optimizer: the optimizer.
        title: the epoch's name, for the progress bar and messages.
        accelerator: the processes.

    Returns:
        The mean loss of each level as `loss_<level>`, and the indices of the unreadable images, over all processes.

    Raises:
        ValueError: a loss is not finite.
    """
    unwrapped: C2FModel = accelerator.unwrap_model(model)
    levels, preprocessing = unwrapped.levels[::-1], unwrapped.config.preprocessing
    set_train_mode(model, unwrapped, stage)
    normalize = Normalize(preprocessing.mean, preprocessing.std).to(accelerator.device)
    losses: dict[str, list[Tensor]] = {level: [] for level in levels}
    unreadable: list[int] = []
    # None shows the bar on a terminal only, not in a log file.
    bar = tqdm(loader, desc=title, disable=None if accelerator.is_main_process else True, leave=False)
    for level, (views, labels, index, readable) in interleave_levels(bar, levels):
        loss = objective(model, normalize(views[level]), labels, level)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses[level].append(loss.detach())
        if level == levels[0]:
            unreadable += index[~readable].tolist()
            if not bar.disable:
                bar.set_postfix(loss=f"{sum(values[-1].item() for values in losses.values() if values):.3f}")
    means = {}
    for level, values in losses.items():
        means[f"loss_{level}"] = accelerator.reduce(torch.stack(values).mean(), "mean").item()
        if not math.isfinite(means[f"loss_{level}"]):
            raise ValueError(f"the loss of {level} is {means[f'loss_{level}']} in {title}; lower the learning rate")
    return means, gather_object(unreadable)


def set_train_mode(model: nn.Module, unwrapped: C2FModel, stage: Stage) -> None:
    """Set a model to training mode, except modules that the stage freezes."""
    model.train()
    for module in unwrapped.backbone.modules():
        if stage.backbone_lr == 0 or (stage.freeze_batch_norm and isinstance(module, nn.BatchNorm2d)):
            module.eval()


def interleave_levels(batches: Iterable[Any], levels: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Pair every batch with every level, each level one batch behind the previous one.

    Consecutive steps see different images, as with a separate loader for each level. With the same images, the species
    of critters are learned far worse (docs/results.md).

    Examples:
        >>> list(interleave_levels([1, 2], ["species", "genus"]))
        [('species', 1), ('species', 2), ('genus', 1), ('genus', 2)]
    """
    recent: deque[Any] = deque(maxlen=len(levels))
    for batch in itertools.chain(batches, [None] * (len(levels) - 1)):
        recent.appendleft(batch)
        for level, waiting in zip(levels, recent, strict=False):
            if waiting is not None:
                yield level, waiting


def save_epoch(
    model: C2FModel,
    optimizer: Optimizer,
    schedule: Scheduler,
    progress: Progress,
    output: Path,
) -> None:
    """Save metrics, curves and a checkpoint after an epoch, and print a summary."""
    row = progress.rows[-1]
    write_csv(output / "metrics.csv", progress.rows)
    atomic_write(output / "curves.png", partial(plot_curves, progress.rows, model.levels))
    save_checkpoint(model, optimizer, schedule, progress, output)
    scores = "  ".join(f"{level} {row[f'val_{level}']:.3f}" for level in model.levels)
    loss = sum(row[f"loss_{level}"] for level in model.levels)
    print(f"stage {row['stage']}, epoch {row['epoch']}: loss {loss:.3f}, validation accuracy {scores}", flush=True)
