"""A dry run: a few steps of every stage, with estimates of memory and time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from c2f_zoo.training.batches import in_groups, split_into_steps
from c2f_zoo.training.memory import explain_out_of_memory, peak_memory
from c2f_zoo.training.round_trip import check_round_trip
from c2f_zoo.training.run_state import Run, StageState, save_run
from c2f_zoo.training.setup import set_train_mode
from c2f_zoo.training.stages import start_stage, take_step
from c2f_zoo.training.start_checks import check_batch_statistics, format_bytes

GROUPS = 2  # steps of each level in each stage


@dataclass(frozen=True)
class StageCost:
    """What a stage costs.

    Attributes:
        stage: number of the stage, from 1.
        steps: number of steps of the whole stage.
        seconds: seconds of a step, loading included: the mean over the steps after the first group.
        memory: peak memory in bytes so far: of the GPU, or of this process on a CPU, without loader workers.
    """

    stage: int
    steps: int
    seconds: float
    memory: int

    def __str__(self) -> str:
        minutes = self.steps * self.seconds / 60
        return (
            f"stage {self.stage}: {self.steps} steps of {self.seconds:.3g} s, about {minutes:.3g} minutes without "
            f"validation; {format_bytes(self.memory)}"
        )


def try_stages(run: Run) -> Iterator[StageCost]:
    """Train on two batches of each level in every stage, save once, and yield each stage's costs.

    The model is trained, and nothing is written to the run's folder.

    Args:
        run: a run that has not started.

    Raises:
        ValueError: a loss is not finite, batch norm has one value per channel, or the model cannot be saved and loaded.
        MemoryError: the device is out of memory.
    """
    check_batch_statistics(run)
    with explain_out_of_memory(run):
        with tempfile.TemporaryDirectory() as folder:
            check_round_trip(run.model, run.options, Path(folder), run.accelerator)
        for number, stage in enumerate(run.options.stages, start=1):
            state = start_stage(run, stage, number, first_epoch=0)
            yield try_stage(run, state)
    with tempfile.TemporaryDirectory() as folder:
        run.output = Path(folder)
        run.log.path = run.output / "steps.csv"
        save_run(run, state)


def try_stage(run: Run, state: StageState) -> StageCost:
    """Train on two batches of each level, and return what the stage costs."""
    set_train_mode(state.wrapped, run.model, state.stage, run.options)
    groups = islice(in_groups(run.loader, run.options.accumulate), GROUPS)
    times = [time.perf_counter()]
    for steps in split_into_steps(run.options.objective, run.levels, groups):
        for step in steps:
            take_step(run, state, step)
            if run.accelerator.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())
    warm = min(len(times) - 2, 1)  # the first step allocates, and compiles
    seconds = (times[-1] - times[warm]) / (len(times) - 1 - warm)
    steps_of_stage = state.stage.epochs * run.rounds_and_steps[1]
    return StageCost(state.number, steps_of_stage, seconds, peak_memory(run.accelerator.device))
