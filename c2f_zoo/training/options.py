"""Options of a training run, from YAML files and the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from jsonargparse import auto_cli


@dataclass
class Stage:
    """A stage of a training run: its length and its learning rates.

    Args:
        epochs: passes over the training images, each at every level's resolution.
        lr: learning rate of pooling and head.
        backbone_lr: learning rate of the backbone; 0 freezes it, with its batch norm.
        halve_every: number of epochs between halvings of the learning rates.
        freeze_batch_norm: keep the backbone's batch norm frozen while its other weights are trained. The statistics of
            batches differ with their resolutions; those of a pretrained backbone give better results.
    """

    epochs: int
    lr: float
    backbone_lr: float = 0.0
    halve_every: int = 1000
    freeze_batch_norm: bool = False


@dataclass
class TrainOptions:
    """The options of a training run: data, model, objective, schedule and output.

    Args:
        dataset: one of `c2f-zoo list datasets`.
        model: name of a model or a method, see `c2f_zoo.create_model`; the tree is the dataset's.
        resolutions: level -> resolution in pixels. Null or missing: full size.
        stages: the stages, in order.
        dataset_options: additional keyword arguments of the dataset, e.g. `{root: /data/CUB_200_2011}`.
        model_options: additional keyword arguments of `create_model`, e.g. `{backbone: resnet50, head: marginal}`.
        loss: the loss of each level: `cross_entropy`, `soft_labels` or `hxe`, see `c2f_zoo.losses`.
        loss_options: additional keyword arguments of the loss, e.g. `{label_smoothing: 0.1}`.
        level_weights: level -> weight of its loss. Missing: 1, as in the paper.
        tree_prior: weight of `c2f_zoo.losses.tree_prior` on the leaf classifier; 0: none.
        batch_size: number of images in a batch, over all processes.
        momentum: momentum of SGD.
        weight_decay: weight decay of SGD.
        val_fraction: fraction of each class's training images that is held out to choose the best epoch; 0: the
            training images choose it. Ignored if the dataset has a validation set.
        num_workers: number of loader processes of each training process.
        cache: folder for a cache of decoded, resized images, see `c2f_zoo.data.CachedImages`; for small datasets.
        on_error: treatment of unreadable images: `raise` an error, or `skip` and list them.
        seed: seed of the weights, the split, the order of images and the augmentation.
        output: folder for the results; it must be empty or not exist. Default: `runs/<config>-<n>`.
        resume: `auto` continues after the last complete epoch of `output`, or of the config's latest run.
    """

    dataset: str
    model: str
    resolutions: dict[str, int | None]
    stages: list[Stage]
    dataset_options: dict[str, Any] = field(default_factory=dict)
    model_options: dict[str, Any] = field(default_factory=dict)
    loss: str = "cross_entropy"
    loss_options: dict[str, Any] = field(default_factory=dict)
    level_weights: dict[str, float] = field(default_factory=dict)
    tree_prior: float = 0.0
    batch_size: int = 8
    momentum: float = 0.9
    weight_decay: float = 5e-4
    val_fraction: float = 0.1
    num_workers: int = 0
    cache: str | None = None
    on_error: Literal["raise", "skip"] = "raise"
    seed: int = 0
    output: str | None = None
    resume: Literal["auto"] | None = None


Options = TypeVar("Options", bound=TrainOptions)


def parse(kind: type[Options], args: Sequence[str], default: str | Path) -> tuple[Options, str]:
    """Parse a command line of YAML files and options that override them.

    Each `--config` names a file. Later files override earlier ones; the run is named after the first.

    Args:
        kind: the dataclass of the options.
        args: the command line's arguments.
        default: the file to read without `--config`.

    Returns:
        The options and the run's name.

    Examples:
        >>> _ = Path("birds.yaml").write_text("{dataset: cub, model: mlph_vgg16_cub, resolutions: {}, stages: []}")
        >>> args = ["--config", "birds.yaml", "--batch_size", "16"]
        >>> options, name = parse(TrainOptions, args, default="critters.yaml")
        >>> options.dataset, options.batch_size, name
        ('cub', 16, 'birds')
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append")
    known, overrides = parser.parse_known_args(args)
    files = known.config or [str(default)]
    return read_options(kind, files, overrides), Path(files[0]).stem


def read_options(kind: type[Options], files: Sequence[str | Path], overrides: Sequence[str] = ()) -> Options:
    """Read options from YAML files and overriding arguments.

    Args:
        kind: the dataclass of the options.
        files: the YAML files; a later one overrides an earlier one.
        overrides: arguments as on the command line, e.g. `["--batch_size", "16"]`.
    """
    configs = [argument for file in files for argument in ("--config", str(file))]
    return auto_cli(kind, args=[*configs, *overrides], as_positional=False)
