"""The state of a run: what its stages share, and how it is saved and restored."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from c2f_zoo.data.views import Views
from c2f_zoo.model import C2FModel
from c2f_zoo.ops import widest_dtype
from c2f_zoo.training.batches import EpochBatches, plan_rounds
from c2f_zoo.training.checkpoint import (
    PROGRESS,
    TRAINING,
    Progress,
    latest_checkpoint,
    remove_old_checkpoints,
    remove_parts,
    write_checkpoint,
)
from c2f_zoo.training.interrupt import Stopped, StopSignals
from c2f_zoo.training.objective import Objective
from c2f_zoo.training.options import Stage, TrainOptions
from c2f_zoo.training.sharding import gather, load_optimizer, load_weights
from c2f_zoo.training.step_log import StepLog


@dataclass
class Run:
    """What the stages of a run share.

    Attributes:
        model: the model, not wrapped.
        loader: the loader of the training images.
        batches: its batches.
        views: makes the model's input from the loader's crops, on the device.
        objective: the loss.
        options: the options of the run.
        output: the run's folder.
        accelerator: the processes.
        ema: the average of the weights, or None.
        log: the losses of every step.
        progress: the progress.
        sums: this process's sums of the losses of the epoch's steps: level -> scalar; on the device.
        counts: level -> number of these steps.
        unreadable: indices of this process's skipped images since the last checkpoint.
        signals: the signals that ask the run to stop.
        saved_at: time and step of the last checkpoint.
        plotted_at: time of the last plot of the curves, or of the start.
        started: time and number of rounds of the whole run when this process started to train.
    """

    model: C2FModel
    loader: DataLoader[Any]
    batches: EpochBatches
    views: Views
    objective: Objective
    options: TrainOptions
    output: Path
    accelerator: Accelerator
    ema: Any
    log: StepLog
    progress: Progress = field(default_factory=Progress)
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    unreadable: list[int] = field(default_factory=list)
    signals: StopSignals = field(default_factory=StopSignals)
    saved_at: tuple[float, int] = (0.0, 0)
    plotted_at: float = field(default_factory=time.monotonic)
    started: tuple[float, int] = (0.0, 0)

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels, finest first."""
        return self.model.levels[::-1]

    @property
    def rounds_and_steps(self) -> tuple[int, int]:
        """The numbers of rounds and of steps of an epoch."""
        num_groups = max(1, len(self.batches) // self.options.accumulate)
        return plan_rounds(self.options.objective, self.levels, num_groups)

    def add_loss(self, level: str, loss: Tensor) -> None:
        """Add a step's loss to the sums of the epoch."""
        device = self.accelerator.device
        loss = loss.to(device, widest_dtype(device))
        self.sums[level] = self.sums[level] + loss if level in self.sums else loss
        self.counts[level] = self.counts.get(level, 0) + 1


@dataclass
class StageState:
    """What a stage adds to a run.

    Attributes:
        stage: the stage.
        number: its number, from 1.
        first_step: number of steps of the optimizer before it.
        wrapped: the model, wrapped for training.
        optimizer: the optimizer, wrapped.
        schedule: the schedule of the learning rates.
    """

    stage: Stage
    number: int
    first_step: int
    wrapped: nn.Module
    optimizer: Optimizer
    schedule: Scheduler


def save_run(run: Run, state: StageState) -> None:
    """Save a checkpoint from which the run goes on exactly; all processes must call this function.

    Raises:
        ValueError: a loss is not finite.
        OSError: the checkpoint cannot be written.
    """
    accelerator, progress = run.accelerator, run.progress
    here = {level: (total.item(), run.counts[level]) for level, total in run.sums.items()}
    progress.sums = gather_object([here])
    progress.unreadable = sorted({*progress.unreadable, *gather_object(run.unreadable)})
    run.unreadable = []
    for sums in progress.sums:
        check_losses({level: total for level, (total, _) in sums.items()}, run)
    tensors = gather((run.model.state_dict(), state.optimizer.state_dict()), keep=accelerator.is_main_process)
    if accelerator.is_main_process:
        run.log.write()
        write_checkpoint(run.output, progress.step, lambda folder: _write_state(run, folder, *tensors))
        remove_old_checkpoints(run.output, run.options.keep, progress.best_checkpoint)
    run.saved_at = time.monotonic(), progress.step


def check_losses(losses: Mapping[str, float], run: Run) -> None:
    """Check that losses are finite.

    Args:
        losses: level -> loss.
        run: the run.

    Raises:
        ValueError: a loss is not finite.
    """
    for level, loss in losses.items():
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss of {level} is {loss} in epoch {run.progress.epoch + 1}, by step {run.progress.step}; start "
                f"a new run with a lower learning rate or with clip_grad. Earlier checkpoints are in {run.output}"
            )


def _write_state(run: Run, folder: Path, weights: Mapping[str, Tensor], optimizer: Mapping[str, Any]) -> None:
    run.model.save_pretrained(folder, state_dict=weights)
    if run.ema is not None:
        run.ema.module.save_pretrained(folder / "ema")
    scaler = run.accelerator.scaler
    training = {"optimizer": optimizer, "scaler": scaler.state_dict() if scaler else None}
    torch.save(training, folder / TRAINING)
    (folder / PROGRESS).write_text(json.dumps(asdict(run.progress)), encoding="utf-8")


def find_checkpoint(output: Path, accelerator: Accelerator) -> Path | None:
    """Return the latest checkpoint that is whole, the same for all processes; None if there is none.

    What killed processes left unfinished is removed.
    """
    found: list[Path | None] = [None]
    if accelerator.is_main_process:
        remove_parts(output)
        found = [latest_checkpoint(output)]
    return broadcast_object_list(found)[0]  # type: ignore[arg-type]


def restore_run(run: Run, checkpoint: Path) -> None:
    """Restore a run from a checkpoint, but for the optimizer's state."""
    load_weights(run.model, C2FModel.from_pretrained(checkpoint).state_dict())
    if run.ema is not None:
        run.ema.module.load_state_dict(C2FModel.from_pretrained(checkpoint / "ema").state_dict())
    progress = Progress(**json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8")))
    process, processes = run.accelerator.process_index, run.accelerator.num_processes
    if progress.sums and len(progress.sums) != processes:
        run.accelerator.print(f"the run had {len(progress.sums)} processes and goes on with {processes}")
        progress.sums = [_mean_of_sums(progress.sums)] * processes
    for level, (total, count) in (progress.sums[process] if progress.sums else {}).items():
        run.add_loss(level, torch.tensor(total, dtype=torch.float64))
        run.counts[level] = count
    run.progress, run.saved_at = progress, (time.monotonic(), progress.step)
    if run.accelerator.is_main_process:
        run.log.forget_after(progress.step)
    scaler = _load_training(checkpoint)["scaler"]
    if run.accelerator.scaler is not None and scaler is not None:
        run.accelerator.scaler.load_state_dict(scaler)
    run.accelerator.print(
        f"resumed from {checkpoint.name}, after {progress.epoch} epochs and {progress.round} of "
        f"{run.rounds_and_steps[0]} rounds"
    )


def _mean_of_sums(sums: Sequence[Mapping[str, tuple[float, int]]]) -> dict[str, tuple[float, int]]:
    """Return the mean of the processes' sums of losses; they have the same numbers of steps."""
    return {level: (sum(other[level][0] for other in sums) / len(sums), sums[0][level][1]) for level in sums[0]}


def restore_optimizer(state: StageState, checkpoint: Path) -> None:
    """Restore the state of a stage's optimizer from a checkpoint of the same stage."""
    load_optimizer(state.optimizer, _load_training(checkpoint)["optimizer"])


def _load_training(checkpoint: Path) -> dict[str, Any]:
    # On the CPU, since the GPU that saved may be another one; mapped, so that only what is used is read.
    return torch.load(checkpoint / TRAINING, map_location="cpu", mmap=True, weights_only=True)


def save_if_due(run: Run, state: StageState) -> None:
    """Save a checkpoint between two steps, if it is time or a signal asks the run to stop.

    Raises:
        Stopped: a signal asked the run to stop; the checkpoint is saved.
    """
    amount, is_time = parse_save_every(run.options.save_every)
    since = time.monotonic() - run.saved_at[0] if is_time else run.progress.step - run.saved_at[1]
    is_due, is_stopped = agree(run, since >= amount, bool(run.signals.received))
    if is_due or is_stopped:
        save_run(run, state)
    if is_stopped:
        stop(run)


def agree(run: Run, *wishes: bool) -> list[bool]:
    """Return for each wish whether any process has it; all processes must call this function."""
    if run.accelerator.num_processes == 1:
        return list(wishes)
    found = torch.tensor(wishes, dtype=torch.float32, device=run.accelerator.device)
    return (run.accelerator.reduce(found, "sum") > 0).tolist()


def stop(run: Run) -> None:
    """Stop a run that has been saved.

    Raises:
        Stopped: always.
    """
    name = run.signals.received or "a signal to another process"
    raise Stopped(f"stopped by {name} after step {run.progress.step}; continue with --resume auto")


def parse_save_every(text: str) -> tuple[float, bool]:
    """Parse the time or number of steps between checkpoints.

    Returns:
        Seconds and True, or steps and False.

    Raises:
        ValueError: the text is neither.

    Examples:
        >>> parse_save_every("1.5 minutes"), parse_save_every("200 steps")
        ((90.0, True), (200.0, False))
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *(minutes?|steps?)", text.strip())
    if not match or float(match[1]) <= 0:
        raise ValueError(f"save_every is a time or a number of steps, e.g. '15 minutes' or '500 steps', not {text!r}")
    is_time = match[2].startswith("minute")
    return float(match[1]) * (60 if is_time else 1), is_time
