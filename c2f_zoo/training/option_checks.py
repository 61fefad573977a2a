"""Checks of a training's options before its data are read, and of options without an effect."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from timm.optim import get_optimizer_info

from c2f_zoo.backbones.batch_norm import is_batch_norm
from c2f_zoo.losses import LOSSES
from c2f_zoo.model import C2FModel
from c2f_zoo.training.mixing import check_alphas
from c2f_zoo.training.optimizers import check_optimizer
from c2f_zoo.training.options import Stage, TrainOptions
from c2f_zoo.training.run_state import parse_save_every
from c2f_zoo.training.setup import check_batch_norm

# Conditions are false for NaN.
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "accumulate": (lambda value: value >= 1, "a number of batches, 1 or more"),
    "keep": (lambda value: value >= 1, "a number of checkpoints, 1 or more"),
    "num_workers": (lambda value: value >= 0, "a number of processes, 0 or more"),
    "seed": (lambda value: 0 <= value < 2**32, "a number from 0 to 4294967295"),
    "momentum": (lambda value: 0 <= value < 1, "0 or more and below 1"),
    "weight_decay": (lambda value: 0 <= value < math.inf, "0 or more"),
    "tree_prior": (lambda value: 0 <= value < math.inf, "0 or more"),
    "layer_decay": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "clip_grad": (lambda value: value > 0, "above 0, or null for no limit"),
    "ema": (lambda value: 0 <= value < 1, "0 or more and below 1, or null for none"),
    "val_fraction": (lambda value: 0 <= value < 1, "0 or more and below 1"),
}
_STAGE_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "epochs": (lambda value: value >= 0, "a number of epochs, 0 or more"),
    "lr": (lambda value: 0 < value < math.inf, "above 0"),
    "backbone_lr": (lambda value: 0 <= value < math.inf, "0 or more; 0 freezes the backbone"),
    "halve_every": (lambda value: value >= 1, "a number of epochs, 1 or more"),
}
_PLAIN = TrainOptions("", "", {}, [])  # the default of each option


def check_values(options: TrainOptions, num_processes: int) -> None:
    """Check the values of a training's options that need neither data nor model.

    Args:
        options: the options.
        num_processes: number of processes that share each batch.

    Raises:
        ValueError: a value is out of range or unknown.

    Examples:
        >>> check_values(TrainOptions("critters", "mlph_tiny_critters", {}, [Stage(1, lr=0.1)], ema=1.0), 1)
        Traceback (most recent call last):
        ValueError: ema is 1.0; it must be 0 or more and below 1, or null for none
    """
    check_batch_size(options.batch_size, num_processes)
    check_stages(options.stages)
    _check_ranges(options, _RANGES)
    for kind, values in (("resolution", options.resolutions), ("weight", options.level_weights)):
        lowest = 1 if kind == "resolution" else 0
        for level, value in values.items():  # type: ignore[attr-defined]
            if value is not None and not value >= lowest:
                raise ValueError(f"the {kind} of {level} is {value}; it must be {lowest} or more")
    check_alphas(options.mixup, options.cutmix)
    parse_save_every(options.save_every)
    LOSSES[options.loss]  # raises an error that suggests names
    check_batch_norm(options.objective, options.batch_norm)
    check_optimizer(options)


def check_batch_size(batch_size: int, num_processes: int) -> None:
    """Check that a batch can be split evenly between processes.

    Examples:
        >>> check_batch_size(3, num_processes=2)
        Traceback (most recent call last):
        ValueError: batch_size 3 cannot be split between 2 processes; choose a multiple of 2
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be a number of images, 1 or more")
    if batch_size % num_processes:
        raise ValueError(
            f"batch_size {batch_size} cannot be split between {num_processes} processes; choose a multiple of "
            f"{num_processes}"
        )


def check_stages(stages: Sequence[Stage]) -> None:
    """Check that a run has an epoch, and the values of its stages.

    Examples:
        >>> check_stages([])
        Traceback (most recent call last):
        ValueError: the stages have no epoch; add one, e.g. --stages '[{epochs: 1, lr: 0.1}]'
    """
    for number, stage in enumerate(stages, start=1):
        _check_ranges(stage, _STAGE_RANGES, f" of stage {number}")
        if stage.warmup_epochs and not 0 < stage.warmup_epochs < stage.epochs:
            raise ValueError(
                f"warmup_epochs is {stage.warmup_epochs}; it must be 0 or more and less than the stage's "
                f"{stage.epochs} epochs"
            )
    if sum(stage.epochs for stage in stages) < 1:
        raise ValueError("the stages have no epoch; add one, e.g. --stages '[{epochs: 1, lr: 0.1}]'")


def _check_ranges(values: object, ranges: dict[str, tuple[Callable[[float], bool], str]], place: str = "") -> None:
    for name, (is_valid, text) in ranges.items():
        value = getattr(values, name)
        if value is not None and not is_valid(value):
            raise ValueError(f"{name}{place} is {value}; it must be {text}")


def find_overridden(options: TrainOptions, model: C2FModel, num_images: int, num_processes: int) -> Iterator[str]:
    """Yield a line for each option that is overridden or has no effect together with the others.

    Args:
        options: the options.
        model: the model.
        num_images: number of training images.
        num_processes: number of processes.

    Raises:
        ValueError: there are fewer images than processes.
    """
    batch = min(options.batch_size, num_images // num_processes * num_processes)
    if batch == 0:
        raise ValueError(
            f"{num_images} training images are too few for {num_processes} processes: each needs one in every batch; "
            "start fewer processes, or check the dataset's options"
        )
    if batch < options.batch_size:
        yield f"batch_size {options.batch_size} is more than the {num_images} training images: each batch has {batch}"
    batches = num_images // batch
    if batches < options.accumulate:
        yield f"accumulate {options.accumulate} is more than an epoch's {batches} batches: each epoch is one group"
    if batch == num_processes and (options.mixup or options.cutmix):
        yield "mixup and cutmix have no effect: a process's batch has one image, which has no partner"
    yield from _without_effect_on_backbone(options, model)
    info = get_optimizer_info(options.optimizer.lower())
    if options.momentum != _PLAIN.momentum and not info.has_momentum:
        yield f"momentum has no effect: the optimizer {info.name!r} has none"
    if options.filter_bias_and_bn and options.weight_decay == 0:
        yield "filter_bias_and_bn has no effect: weight_decay is 0"
    for number, stage in enumerate(options.stages, start=1):
        if stage.halve_every != Stage.halve_every and stage.schedule != "step":
            yield f"halve_every of stage {number} has no effect: its schedule is {stage.schedule!r}"


def _without_effect_on_backbone(options: TrainOptions, model: C2FModel) -> Iterator[str]:
    if not any(is_batch_norm(module) for module in model.backbone.modules()):
        if options.batch_norm == "frozen":
            yield "batch_norm 'frozen' has no effect: the backbone has no batch norm"
        for number, stage in enumerate(options.stages, start=1):
            if stage.freeze_batch_norm:
                yield f"freeze_batch_norm of stage {number} has no effect: the backbone has no batch norm"
    if all(stage.backbone_lr == 0 for stage in options.stages):
        for name in ("layer_decay", "gradient_checkpointing"):
            if getattr(options, name):
                yield f"{name} has no effect: no stage trains the backbone (backbone_lr is 0)"
