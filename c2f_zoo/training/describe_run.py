"""The first lines of a run: its data, its model and its length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from c2f_zoo.config import format_resolution
from c2f_zoo.data import Joined, LabelledImages
from c2f_zoo.hierarchy.escape import printable
from c2f_zoo.inference.resolutions import own_resolutions
from c2f_zoo.model import C2FModel
from c2f_zoo.training.options import TrainOptions
from c2f_zoo.training.run_state import Run


def describe_data(
    options: TrainOptions, dataset: LabelledImages, train: Sequence[int], val: Sequence[int], num_test: int | None
) -> str:
    """Describe a dataset and its splits in a line.

    Args:
        options: the options; those of the dataset are used.
        dataset: the dataset of training and validation images.
        train: the indices of the training images.
        val: the indices of the validation images.
        num_test: number of test images; None if they are not opened.

    Examples:
        >>> options = TrainOptions("critters", "mlph_tiny_critters", {}, [])
        >>> dataset = create_dataset("critters", "train", per_class=2)
        >>> print(describe_data(options, dataset, range(36), range(36, 72), num_test=None))
        data: critters, 36 training and 36 validation images (val_fraction 0.1, seed 0); 4 family, 12 genus, 36 species
    """
    test = "" if num_test is None else f", {num_test} test images"
    validation = f"{len(val)} validation images ({describe_split(options, dataset)})"
    images = f"{len(train)} training and {validation}" if val else f"{len(train)} training images (val_fraction 0)"
    classes = ", ".join(f"{count} {level}" for level, count in dataset.hierarchy.num_classes.items())
    return printable(f"data: {options.dataset}, {images}{test}; {classes}")


def describe_split(options: TrainOptions, dataset: LabelledImages) -> str:
    """Say where the validation images come from."""
    has_split = isinstance(getattr(dataset, "dataset", dataset), Joined)  # it may be cached
    return "the dataset's own" if has_split else f"val_fraction {options.val_fraction}, seed {options.seed}"


def describe_model(options: TrainOptions, model: C2FModel) -> str:
    """Describe a model's parts, sizes and resolutions in a line."""
    sizes = ", ".join(
        f"{part} {name} {_count(model.get_submodule(part)):.3g} M"
        for part, name in (
            ("backbone", model.config.backbone),
            ("pooling", model.config.pooling),
            ("head", model.config.head),
        )
    )
    own = own_resolutions(model)
    seen = ", ".join(f"{level} at {format_resolution(own[level])}" for level in reversed(model.levels))
    side = "x".join(map(str, model.config.preprocessing.input_size[1:]))
    return printable(f"model: {options.model} ({sizes} weights), input {side}; {seen}")


def describe_length(run: Run) -> Iterator[str]:
    """Describe how long a run trains, and on what, in a line for each stage."""
    options, accelerator, steps = run.options, run.accelerator, run.rounds_and_steps[1]
    threads = f", {torch.get_num_threads()} threads each" if accelerator.device.type == "cpu" else ""
    yield (
        f"device: {accelerator.device}, number of processes: {accelerator.num_processes}{threads}, num_workers "
        f"{options.num_workers}, mixed precision {accelerator.mixed_precision}"
    )
    for number, stage in enumerate(options.stages, start=1):
        what = "pooling and head" if stage.backbone_lr == 0 else "all weights"
        yield (
            f"stage {number}: {stage.epochs} epochs of {steps} steps, {options.optimizer} on {what}, lr {stage.lr:g}, "
            f"batches of {run.batches.batch_size}"
        )


def _count(module: nn.Module) -> float:
    return sum(weight.numel() for weight in module.parameters()) / 1e6
