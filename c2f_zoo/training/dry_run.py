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
from c2f_zoo.training.run_state import Run, save_run
from c2f_zoo.training.stages import set_train_mode, start_stage, take_step

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
        minutes, gigabytes = self.steps * self.seconds / 60, self.memory / 2**30
        return (
            f"stage {self.stage}: {self.steps} steps of {self.seconds:.3g} s, about {minutes:.3g} minutes without "
            f"validation; {gigabytes:.3g} GiB"
        )


def try_stages(run: Run) -> Iterator[StageCost]:
    """Train on two batches of each level in every stage, save once, and yield each stage's costs.

    The model is trained, and nothing is written to the run's folder.

    Args:
        run: a run that has not started.

    Raises:
        ValueError: a loss is not finite.
    """
    for number, stage in enumerate(run.options.stages, start=1):
        state = start_stage(run, stage, number, first_epoch=0)
        set_train_mode(state.wrapped, run.model, stage, run.options)
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
        yield StageCost(number, stage.epochs * run.rounds_and_steps[1], seconds, peak_memory(run.accelerator.device))
    with tempfile.TemporaryDirectory() as folder:
        run.output = Path(folder)
        run.log.path = run.output / "steps.csv"
        save_run(run, state)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: that of a GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
