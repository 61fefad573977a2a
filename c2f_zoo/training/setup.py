"""Building the model and checking the data of a training run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from c2f_zoo.backbones.batch_norm import is_batch_norm
from c2f_zoo.config import Preprocessing
from c2f_zoo.data import CachedImages, LabelledImages
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.model import C2FModel
from c2f_zoo.registry import check_options
from c2f_zoo.training.options import Stage, TrainOptions
from c2f_zoo.zoo.create import create_model


def build_model(options: TrainOptions, hierarchy: Hierarchy) -> C2FModel:
    """Build the model of a run, for the dataset's tree."""
    check_options("key in model_options:", create_model, options.model_options)
    arguments: dict[str, Any] = {"hierarchy": hierarchy, "resolutions": options.resolutions, **options.model_options}
    if options.batch_norm == "per_level":
        arguments["batch_norm"] = "per_level"
    model = create_model(options.model, **arguments)
    check_batch_norm(options.objective, model.config.batch_norm)
    prepare_for_training(model, options)
    return model


def prepare_for_training(model: C2FModel, options: TrainOptions) -> None:
    """Set a model's memory layout, gradient checkpointing and compilation, in place.

    Backbone and pooling are compiled, the head is not: their graphs are the same for every level, and the names of the
    weights stay the same.

    Args:
        model: the model.
        options: the options; `channels_last`, `gradient_checkpointing` and `compile` are used.

    Raises:
        ValueError: the backbone does not support gradient checkpointing, or it is to be compiled too.
    """
    if options.compile and options.gradient_checkpointing:
        raise ValueError("torch.compile skips layers under gradient_checkpointing; set either it or compile to false")
    if options.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.gradient_checkpointing:
        model.backbone.set_grad_checkpointing()
    if options.compile:
        # Each stage, each mode and each level's batch norm has a graph; above the limit of 8, torch compiles no more.
        torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
        model.backbone.compile()
        model.pooling.compile()


def set_train_mode(model: nn.Module, unwrapped: C2FModel, stage: Stage, options: TrainOptions) -> None:
    """Set a model to training mode, except modules that the stage or the run freezes.

    Args:
        model: the model, wrapped for training.
        unwrapped: the same model, not wrapped.
        stage: the stage; `backbone_lr` and `freeze_batch_norm` are used.
        options: the options; `batch_norm` is used.
    """
    model.train()
    freeze_batch_norm = stage.freeze_batch_norm or options.batch_norm == "frozen"
    for module in unwrapped.backbone.modules():
        if stage.backbone_lr == 0 or (freeze_batch_norm and is_batch_norm(module)):
            module.eval()


def count_graphs() -> int:
    """Count the graphs that `torch.compile` compiled in this process; it soon stops growing."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def check_batch_norm(objective: str, batch_norm: str) -> None:
    """Check that an objective's images have a level's resolution if each has a batch norm of its own.

    Raises:
        ValueError: the objective is `any_resolution`, and the model's batch norm `per_level`.
    """
    if (objective, batch_norm) == ("any_resolution", "per_level"):
        raise ValueError(
            "objective 'any_resolution' trains all levels on images of any resolution, for which batch_norm "
            "'per_level' has no statistics; use batch_norm 'shared' or 'frozen'"
        )


def cache_images(dataset: LabelledImages, folder: str | None, preprocessing: Preprocessing) -> LabelledImages:
    """Cache a dataset's decoded, resized images in a folder; None for no cache."""
    if folder is None:
        return dataset
    return CachedImages(dataset, folder, preprocessing.resize, preprocessing.interpolation)


def check_labels(labels: Tensor, model: C2FModel, split: str) -> None:
    """Check that a split has a label at every predicted level.

    Args:
        labels: labels (n, levels of the tree) of a split; -1 where unknown.
        model: the model.
        split: the split's name for the message, or which of its images these are.

    Raises:
        ValueError: a level has no label.
    """
    labels = model.hierarchy.cut_repeats(labels)
    for level in model.levels:
        if (labels[:, model.hierarchy.depth(level)] < 0).all():
            raise ValueError(
                f"no {split} image has a label at {level!r}; check the data with `c2f-zoo data check`, set "
                "model_options.levels to levels with labels, or choose another val_fraction"
            )
