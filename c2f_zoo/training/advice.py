"""Advice on a first guess: learning rates, sizes and lengths that rarely fit a model and its data."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from c2f_zoo.backbones import pretrained_cfg
from c2f_zoo.data import LabelledImages
from c2f_zoo.data.image_sizes import median_side
from c2f_zoo.model import C2FModel
from c2f_zoo.pooling import POOLINGS, Pooling
from c2f_zoo.training.optimizers import create_from_groups
from c2f_zoo.training.options import TrainOptions
from c2f_zoo.zoo import MODELS

LARGEST_STEP = 0.02  # of a weight; with optimizers whose steps do not depend on the gradient's size
UNNORMALIZED_LR, NORMALIZED_LR = 0.5, 0.02  # above, below: not for plain SGD on such vectors
LARGEST_RATIO = 2  # weights of pooling and head to those of the backbone
SAMPLE = 64  # images whose size is read
LEAST_RISE = 0.01  # of the validation accuracy, in the last fifth of the epochs


def advise(options: TrainOptions, model: C2FModel, dataset: LabelledImages, indices: Sequence[int]) -> Iterator[str]:
    """Yield a line for each value that rarely fits the model and the data, with the option to change.

    Args:
        options: the options.
        model: the model, on the CPU.
        dataset: the dataset that holds the training images.
        indices: the training images' indices in the dataset.
    """
    yield from _advise_lr(options, model)
    yield from _advise_input_size(options, model, dataset, indices)
    yield from _advise_dim(options, model)


def _advise_lr(options: TrainOptions, model: C2FModel) -> Iterator[str]:
    normalized = is_normalized(model.pooling)
    for number, stage in enumerate(options.stages, start=1):
        try:
            step, depends_on_gradient = measure_step(options, stage.lr)
        except RuntimeError:  # of an optimizer for GPUs only
            return
        lr = f"lr of stage {number} is {stage.lr}"
        if not depends_on_gradient:
            if step > LARGEST_STEP:
                yield (
                    f"{lr}: {options.optimizer} changes a weight by about {step:.2g} in a step, however small its "
                    f"gradient is; an lr of {stage.lr * 1e-3 / step:.1g} is usual, for steps of 0.001"
                )
        elif normalized is False and stage.lr >= UNNORMALIZED_LR:
            yield (
                f"{lr}, which suits poolings that normalize their vector; {model.config.pooling} does not: if the loss "
                "rises, try 0.1 or less"
            )
        elif normalized and number == 1 and stage.lr < NORMALIZED_LR:
            yield (
                f"{lr}, but {model.config.pooling} normalizes its vector, so that the head's gradients are small: with "
                f"{options.optimizer} 0.1 to 1 is usual"
            )


def measure_step(options: TrainOptions, lr: float) -> tuple[float, bool]:
    """Measure the mean change of a weight in an optimizer's first steps.

    Args:
        options: the options; those of the optimizer are used.
        lr: the learning rate.

    Returns:
        The root mean square change in a step, for gradients of 1 on average; and whether it depends on their size.

    Examples:
        >>> options = TrainOptions("critters", "mlph_tiny_critters", {}, [], optimizer="adamw")
        >>> step, depends_on_gradient = measure_step(options, lr=0.5)
        >>> round(step, 3), depends_on_gradient
        (0.5, False)
    """
    steps = 10
    options = replace(options, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    start, gradient = (torch.randn(64, 64, generator=generator) for _ in range(2))

    def change(scale: float) -> float:
        weight = nn.Parameter(start.clone())
        optimizer = create_from_groups([{"params": [weight]}], lr, options)
        for _ in range(steps):
            weight.grad = scale * gradient
            optimizer.step()
        return ((weight.detach() - start) / steps).square().mean().sqrt().item()

    at_one, at_ten = change(1.0), change(10.0)
    return at_one, at_ten > 2 * at_one


@torch.no_grad()
def is_normalized(pooling: Pooling) -> bool | None:
    """Return whether the length of a pooling's vector does not follow that of its maps; None if that is unknown.

    Examples:
        >>> from c2f_zoo import create_pooling
        >>> is_normalized(create_pooling("mlp", [8, 8, 8])), is_normalized(create_pooling("avg", [8]))
        (True, False)
    """
    generator = torch.Generator().manual_seed(0)
    dtype = next((weight.dtype for weight in pooling.parameters()), torch.float32)
    maps = [torch.rand(1, channels, 2, 2, generator=generator).to(dtype) for channels in pooling.in_channels]
    try:
        frozen = copy.deepcopy(pooling).eval()  # batch norm's statistics do not change
        once, larger = (_length(frozen([scale * x for x in maps])) for scale in (1.0, 4.0))
    except Exception:  # of a plug-in: it needs larger maps, or cannot be copied
        return None
    return larger < 2 * once


def _length(x: Tensor) -> float:
    return x.float().norm().item()


def _advise_input_size(
    options: TrainOptions, model: C2FModel, dataset: LabelledImages, indices: Sequence[int]
) -> Iterator[str]:
    if "input_size" in options.model_options or options.model in MODELS:  # chosen, or the paper's
        return
    preprocessing, backbone = model.config.preprocessing, model.config.backbone
    size, own = preprocessing.input_size[-1], pretrained_cfg(backbone).get("input_size", (0,))[-1]
    if not 0 < own < size:
        return
    few = list(indices)[:: max(1, len(indices) // SAMPLE)]
    side = median_side(dataset, few, preprocessing)
    yield (
        f"input_size is {size}, the paper's; {backbone} was pretrained at {own} pixels, and {len(few)} training images "
        f"have a median size of {side}. --model_options.input_size {own} needs about {own**2 / size**2:.2g} of the time"
    )


def _advise_dim(options: TrainOptions, model: C2FModel) -> Iterator[str]:
    parameters = inspect.signature(POOLINGS[model.config.pooling]).parameters
    if "dim" not in parameters or "dim" in model.config.pooling_options:
        return
    backbone, rest = (_count(model.backbone), _count(model.pooling) + _count(model.head))
    smaller = json.dumps({**model.config.pooling_options, "dim": 1024})
    if rest > LARGEST_RATIO * backbone:
        yield (
            f"pooling and head have {rest / 1e6:.3g} M weights, the backbone {backbone / 1e6:.3g} M: dim is "
            f"{parameters['dim'].default}, the paper's for larger backbones; --model_options.pooling_options "
            f"'{smaller}' trains faster"
        )


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def note_rising(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say whether the validation accuracy was still rising when the run ended, or return `""`.

    Args:
        rows: the rows of `metrics.csv`.

    Examples:
        >>> note_rising([{"epoch": epoch, "val_species": 0.1 * epoch} for epoch in range(1, 6)])
        'the mean validation accuracy still rose from 0.400 to 0.500 in the last of 5 epochs; train longer for more'
    """
    scores = []
    for row in rows:
        found = [float(value) for key, value in row.items() if key.startswith("val_")]
        scores.append(sum(found) / len(found))
    last = max(1, round(len(scores) / 5))
    if len(scores) <= last or max(scores[-last:]) - max(scores[:-last]) < LEAST_RISE:
        return ""
    if max(scores) > 1 - LEAST_RISE:  # longer training could not add as much again
        return ""
    return (
        f"the mean validation accuracy still rose from {max(scores[:-last]):.3f} to {max(scores[-last:]):.3f} in the "
        f"last {f'{last} ' if last > 1 else ''}of {len(scores)} epochs; train longer for more"
    )
