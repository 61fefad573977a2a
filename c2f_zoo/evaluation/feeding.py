"""Rates of a training's loader and of its steps: whether the loader keeps the GPU busy."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from c2f_zoo.data import ImageFiles, LabelledImages
from c2f_zoo.evaluation.photos import draw_photos
from c2f_zoo.hierarchy import load_hierarchy
from c2f_zoo.training.batches import Batch, Step, in_groups, split_into_steps
from c2f_zoo.training.launch import create_accelerator
from c2f_zoo.training.objective import create_objective
from c2f_zoo.training.options import TrainOptions
from c2f_zoo.training.run_state import Run
from c2f_zoo.training.setup import build_model, set_train_mode
from c2f_zoo.training.stages import set_up_run, start_stage, take_step

WARM_UP = 2  # rounds before the measurement


def draw_dataset(folder: Path, size: tuple[int, int], count: int) -> ImageFiles:
    """Draw JPEGs and return them as images of birds.

    Args:
        folder: the folder to write them to.
        size: width and height in pixels.
        count: number of images.
    """
    tree = load_hierarchy("cub")
    draw_photos(folder, size, count)
    paths = sorted(folder.iterdir())
    return ImageFiles(paths, [number % len(tree.classes[-1]) for number in range(count)], tree)


def create_run(options: TrainOptions, dataset: LabelledImages, output: Path) -> Run:
    """Create a run whose epochs are long enough to be measured: images are repeated.

    Args:
        options: the options of the run; the dataset's are not used.
        dataset: the training images.
        output: a folder; nothing is written.
    """
    accelerator = create_accelerator(options)
    model = build_model(options, dataset.hierarchy)
    indices = list(range(len(dataset))) * max(1, 100_000 // len(dataset))
    return set_up_run(model, dataset, indices, create_objective(options, model), options, output, accelerator)


def measure_loader(run: Run, seconds: float) -> dict[str, Any]:
    """Measure how many images a second the loader of a run reads, without training.

    Args:
        run: the run.
        seconds: how long to measure.
    """
    batches = iter(run.loader)
    for _ in range(1 + run.options.num_workers):  # workers start, and have nothing in advance
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        next(batches)
        count += 1
    rate = count * run.batches.batch_size / (time.perf_counter() - start)
    return {"workers": run.options.num_workers, "loader_images_s": round(rate, 2)}


def measure_training(run: Run, seconds: float) -> dict[str, Any]:
    """Measure how many images a second a run trains on, with its loader and with a batch that is in memory.

    An image counts once, though there is a step for each level.

    Args:
        run: a run that has not started.
        seconds: how long to measure each.

    Returns:
        Both rates, and the fraction of time in which the loader keeps the device busy ("fed"): the ratio of the rates,
        at most 1.
    """
    state = start_stage(run, run.options.stages[0], number=1, first_epoch=0)
    set_train_mode(state.wrapped, run.model, state.stage, run.options)

    def train(rounds: Iterator[list[Step]], seconds: float = math.inf) -> float:
        """Train, and return the number of images a second."""
        start, count = time.perf_counter(), 0
        for steps in rounds:
            for step in steps:
                take_step(run, state, step)
            count += run.options.accumulate
            if time.perf_counter() > start + seconds:
                break
        if run.accelerator.device.type == "cuda":
            torch.cuda.synchronize(run.accelerator.device)
        return count * run.batches.batch_size / (time.perf_counter() - start)

    def rate_with(batches: Iterable[Batch]) -> float:
        groups = in_groups(batches, run.options.accumulate)
        rounds = split_into_steps(run.options.objective, run.levels, groups)
        train(itertools.islice(rounds, len(run.levels) + WARM_UP))  # the first rounds do not have all levels
        return train(rounds, seconds)

    with_loader = rate_with(run.loader)
    in_memory = rate_with(itertools.repeat(next(iter(run.loader))))
    return {
        "workers": run.options.num_workers,
        "images_s": round(with_loader, 2),
        "images_s_in_memory": round(in_memory, 2),
        "fed": round(min(1.0, with_loader / in_memory), 4),
    }
