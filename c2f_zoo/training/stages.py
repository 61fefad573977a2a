"""The training loop: stages, epochs and steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from tqdm import tqdm

from c2f_zoo.data import LabelledImages, TransformedImages, labels_of
from c2f_zoo.data.augment import create_crop
from c2f_zoo.data.views import Views
from c2f_zoo.hierarchy.escape import printable
from c2f_zoo.inference.resolutions import own_resolutions
from c2f_zoo.io.files import atomic_write, write_csv
from c2f_zoo.io.progress import ProgressLines, format_duration
from c2f_zoo.model import C2FModel
from c2f_zoo.training.batches import (
    EpochBatches,
    Step,
    create_loader,
    first_group,
    in_groups,
    seed_everything,
    seed_of,
    split_into_steps,
)
from c2f_zoo.training.checkpoint import Progress, damage, publish
from c2f_zoo.training.curves import plot_curves
from c2f_zoo.training.describe_run import describe_length
from c2f_zoo.training.memory import explain_out_of_memory
from c2f_zoo.training.mixing import mix
from c2f_zoo.training.objective import Objective, count_targets, level_targets
from c2f_zoo.training.optimizers import create_ema, create_optimizer, create_schedule
from c2f_zoo.training.options import Stage, TrainOptions
from c2f_zoo.training.round_trip import check_round_trip
from c2f_zoo.training.run_state import (
    Run,
    StageState,
    agree,
    check_losses,
    find_checkpoint,
    restore_optimizer,
    restore_run,
    save_if_due,
    save_run,
    stop,
)
from c2f_zoo.training.sampling import balanced_order
from c2f_zoo.training.setup import count_graphs, set_train_mode
from c2f_zoo.training.sharding import check_distribution
from c2f_zoo.training.start_checks import check_batch_statistics, check_disk
from c2f_zoo.training.step_log import StepLog

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

    After each epoch the model is validated and saved: `output` holds the model of the best epoch. A resumed run ends
    with the same weights and metrics, bit for bit, as one that was never interrupted (docs/how-to/resume.md).

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

    Raises:
        Stopped: a signal asked the run to stop; it has been saved.
        ValueError: a loss is not finite, batch norm has one value per channel, the model cannot be saved and loaded, or
            all checkpoints are damaged.
        OSError: a checkpoint cannot be written, or the disk has no room for the run's checkpoints.
        MemoryError: the device is out of memory.
    """
    run = set_up_run(model, dataset, indices, objective, options, output, accelerator)
    check_batch_statistics(run)
    checkpoint = find_checkpoint(output, accelerator)
    if accelerator.is_main_process:
        check_disk(model, options, output)
    if checkpoint is not None:
        restore_run(run, checkpoint)
    for line in describe_length(run):
        accelerator.print(line, flush=True)
    run.started = time.monotonic(), run.progress.epoch * run.rounds_and_steps[0] + run.progress.round
    with run.signals, explain_out_of_memory(run):
        if checkpoint is None:
            check_round_trip(model, options, output, accelerator)
        last = 0
        for number, stage in enumerate(options.stages, start=1):
            first, last = last, last + stage.epochs
            if run.progress.epoch < last:
                train_stage(run, stage, number, first, checkpoint, validate)
                checkpoint = None
    publish_best(run)
    write_metrics(run, plot_every=0)
    return run.progress


def train_stage(
    run: Run, stage: Stage, number: int, first_epoch: int, checkpoint: Path | None, validate: Validate
) -> None:
    """Train a stage, or what is left of it.

    Args:
        run: the run.
        stage: the stage.
        number: its number, from 1.
        first_epoch: number of epochs before it.
        checkpoint: the checkpoint from which the run has been restored, if this is the first stage since; or None.
        validate: see `fit`.
    """
    state = start_stage(run, stage, number, first_epoch)
    if checkpoint is None and run.progress.step == 0:
        save_run(run, state)  # a run that cannot be saved must not train
    elif checkpoint is not None and (run.progress.epoch > first_epoch or run.progress.round > 0):
        restore_optimizer(state, checkpoint)
    while run.progress.epoch < first_epoch + stage.epochs:
        train_epoch(run, state)
        finish_epoch(run, state, validate)


def set_up_run(
    model: C2FModel,
    dataset: LabelledImages,
    indices: Sequence[int],
    objective: Objective,
    options: TrainOptions,
    output: Path,
    accelerator: Accelerator,
) -> Run:
    """Create the loader, the views and the average of the weights; see `fit` for the arguments."""
    check_distribution(accelerator, options)
    model.to(accelerator.device)
    preprocessing, own = model.config.preprocessing, own_resolutions(model)
    resolutions = {level: own[level] for level in reversed(model.levels)}
    views = Views(preprocessing, resolutions).to(accelerator.device)
    transform = create_crop(preprocessing, options.augmentation, views.num_draws)
    images = TransformedImages(dataset, transform, indices, options.on_error, shorter_side=preprocessing.resize)
    order = None
    if options.balanced:
        leaves = labels_of(dataset)[list(indices), model.hierarchy.depth(model.levels[-1])]
        order = partial(balanced_order, leaves)
    processes = accelerator.process_index, accelerator.num_processes
    batches = EpochBatches(len(images), options.batch_size, options.seed, order, *processes)
    loader = create_loader(images, batches, options.num_workers, pin_memory=accelerator.device.type == "cuda")
    ema, log = create_ema(model, options), StepLog(output / "steps.csv")
    return Run(model, loader, batches, views, objective, options, output, accelerator, ema, log)


def start_stage(run: Run, stage: Stage, number: int, first_epoch: int) -> StageState:
    """Create a stage's optimizer and schedule, and wrap the model."""
    run.accelerator.free_memory()  # or the wrapped models of all stages would stay
    steps = run.rounds_and_steps[1]
    optimizer = create_optimizer(run.model, stage, run.options)
    schedule = create_schedule(optimizer, stage, steps)
    wrapped, prepared = run.accelerator.prepare(run.model, optimizer)
    return StageState(stage, number, first_epoch * steps, wrapped, prepared, schedule)


def train_epoch(run: Run, state: StageState) -> None:
    """Train for an epoch, or for what is left of it.

    Raises:
        Stopped: a signal asked the run to stop; it has been saved.
    """
    progress, options, accelerator = run.progress, run.options, run.accelerator
    set_train_mode(state.wrapped, run.model, state.stage, options)
    run.batches.epoch = progress.epoch
    run.batches.first = first_group(options.objective, run.levels, progress.round) * options.accumulate
    groups = in_groups(run.loader, options.accumulate)
    # None shows the bar on a terminal only, not in a log file.
    hide_bar = None if accelerator.is_main_process else True
    title, num_rounds = f"stage {state.number}, epoch {progress.epoch + 1}", run.rounds_and_steps[0]
    with tqdm(total=num_rounds, initial=progress.round, desc=title, disable=hide_bar, leave=False) as bar:
        lines = ProgressLines(title, num_rounds, len(run.batches) * run.batches.batch_size, is_log(bar, accelerator))
        for steps in split_into_steps(options.objective, run.levels, groups, progress.round):
            seed = seed_of(options.seed, progress.epoch, progress.round, accelerator.process_index)
            seed_everything(seed, accelerator.device)
            for step in steps:
                take_step(run, state, step)
            progress.round += 1
            bar.update()
            lines.update(progress.round, describe_rest(run) if lines.is_due() else "")
            if progress.round < num_rounds:  # the last one is followed by validation and a checkpoint
                save_if_due(run, state)


def is_log(bar: Any, accelerator: Accelerator) -> bool:
    """Return whether this process prints lines instead of a progress bar."""
    return accelerator.is_main_process and bool(bar.disable)


def describe_rest(run: Run) -> str:
    """Return the mean loss of the epoch so far and the time that the run still needs, validation included."""
    loss = sum((run.sums[level] / run.counts[level]).item() for level in run.sums)
    rounds, since = run.rounds_and_steps[0], time.monotonic() - run.started[0]
    done = run.progress.epoch * rounds + run.progress.round
    total = rounds * sum(stage.epochs for stage in run.options.stages)
    left = since / max(done - run.started[1], 1) * (total - done)
    return f"; loss {loss:.3f}; the run needs about {format_duration(left)} more"


def take_step(run: Run, state: StageState, step: Step) -> None:
    """Add the gradients of a step's parts, update the weights, and note the losses."""
    accelerator, options, progress = run.accelerator, run.options, run.progress
    state.schedule.step_update(progress.step - state.first_step)
    totals = count_step(run, step)
    losses: dict[str, Tensor] = {}
    for number, (levels, (crop, labels, index, readable)) in enumerate(step, start=1):
        crop, labels = send_to_device((crop, labels), accelerator.device)
        at_random = options.objective == "any_resolution"
        images = run.views.at_random(crop) if at_random else run.views(crop, levels[0])
        mixture = mix(images, options.mixup, options.cutmix) if options.mixup or options.cutmix else None
        total = torch.stack([totals[level] for level in levels]) if totals else None
        with accelerator.no_sync(state.wrapped) if number < len(step) else nullcontext():
            images = images if mixture is None else mixture.images
            images = images if options.channels_last else images.contiguous()
            found = run.objective(state.wrapped, images, labels, levels, total, mixture)
            accelerator.backward(sum(found.values()))
        for level, loss in found.items():
            losses[level] = losses[level] + loss.detach() if level in losses else loss.detach()
        if levels[0] == run.levels[0]:  # once for each image
            run.unreadable += index[~readable].tolist()
    if options.clip_grad is not None:
        accelerator.clip_grad_norm_(state.wrapped.parameters(), options.clip_grad)
    state.optimizer.step()
    state.optimizer.zero_grad()
    progress.step += 1
    if run.ema is not None:
        run.ema.update(run.model, step=progress.step)
    for level, loss in losses.items():
        run.add_loss(level, loss)
        place = {"step": progress.step, "epoch": progress.epoch + 1, "stage": state.number, "level": level}
        if accelerator.is_main_process:
            run.log.add({**place, "lr": state.optimizer.param_groups[0]["lr"]}, loss)


def count_step(run: Run, step: Step) -> dict[str, Tensor] | None:
    """Count the images with a target at each level in a step, over all its parts and all processes.

    Returns:
        level -> the number that sums over images are divided by, so that the mean of the processes' gradients is the
        gradient of the mean over all images. None if the step is one part of one process, which counts for itself.
    """
    processes = run.accelerator.num_processes
    if len(step) == 1 and processes == 1:
        return None
    counts: dict[str, Tensor] = {}
    for levels, (_, labels, _, _) in step:
        for level, count in zip(levels, count_targets(level_targets(labels, levels, run.model)), strict=True):
            counts[level] = counts.get(level, torch.zeros(())) + count
    total = torch.stack(list(counts.values())).to(run.accelerator.device)
    if processes > 1:
        total = run.accelerator.reduce(total, "sum") / processes
    return dict(zip(counts, total, strict=True))


def finish_epoch(run: Run, state: StageState, validate: Validate) -> None:
    """Validate the model, save a checkpoint, metrics and curves, and print a summary.

    Raises:
        ValueError: a loss is not finite.
        Stopped: a signal asked the run to stop; it has been saved.
    """
    progress, accelerator = run.progress, run.accelerator
    means = {level: accelerator.reduce(run.sums[level] / run.counts[level], "mean").item() for level in run.levels}
    check_losses(means, run)
    accuracy, unreadable = validate(state.wrapped if run.ema is None else run.ema.module)
    row = {"epoch": progress.epoch + 1, "stage": state.number, "lr": state.optimizer.param_groups[0]["lr"]}
    row |= {f"loss_{level}": loss for level, loss in means.items()}
    row |= {f"val_{level}": score for level, score in accuracy.items()}
    run.sums, run.counts = {}, {}
    progress.add_epoch(row, unreadable)
    save_run(run, state)
    if progress.best_epoch == progress.epoch:
        publish_best(run)
    write_metrics(run)
    accelerator.log(row, step=progress.step)
    if accelerator.is_main_process:
        scores = "  ".join(f"{printable(level)} {row[f'val_{level}']:.3f}" for level in run.model.levels)
        loss = sum(means.values())
        graphs = f"  ({count_graphs()} graphs compiled)" if run.options.compile else ""
        print(
            f"stage {row['stage']}, epoch {row['epoch']}: loss {loss:.3f}, validation accuracy {scores}{graphs}",
            flush=True,
        )
    if agree(run, bool(run.signals.received))[0]:
        stop(run)


def publish_best(run: Run) -> None:
    """Write the best epoch's model to the run's folder, unless it is there or its checkpoint is damaged."""
    checkpoint = run.output / run.progress.best_checkpoint
    if run.accelerator.is_main_process and checkpoint.exists() and not damage(checkpoint):
        publish(checkpoint if run.ema is None else checkpoint / "ema", run.output)


def write_metrics(run: Run, plot_every: float = 60) -> None:
    """Write `metrics.csv` and `curves.png`.

    Args:
        run: the run.
        plot_every: seconds between two plots of the curves, which take half a second.
    """
    if run.accelerator.is_main_process:
        write_csv(run.output / "metrics.csv", run.progress.rows)
        if time.monotonic() - run.plotted_at >= plot_every:
            atomic_write(run.output / "curves.png", partial(plot_curves, run.progress.rows, run.model.levels))
            run.plotted_at = time.monotonic()
