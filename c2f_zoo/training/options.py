"""Options of a training run, from YAML files and the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from c2f_zoo.data.augment import Augmentation
from c2f_zoo.paths import expand


@dataclass
class Stage:
    """A stage of a training run: its length and its learning rates.

    Args:
        epochs: passes over the training images, each at every level's resolution.
        lr: learning rate of pooling and head.
        backbone_lr: learning rate of the backbone; 0 freezes it, with its batch norm.
        schedule: `step` halves the learning rates every `halve_every` epochs, `cosine` lowers them to 0 along a half
            cosine, `linear` along a line; after every step.
        halve_every: number of epochs between halvings of the learning rates.
        warmup_epochs: epochs, or a fraction of one, in which the learning rates rise linearly from 0.
        freeze_batch_norm: normalize with the fixed statistics of the backbone's batch norm; its weights are trained.
            The statistics of batches differ with their resolutions; those of a pretrained backbone are better.
    """

    epochs: int
    lr: float
    backbone_lr: float = 0.0
    schedule: Literal["step", "cosine", "linear"] = "step"
    halve_every: int = 1000
    warmup_epochs: float = 0.0
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
        objective: `in_turn` steps at one level after the other, each at its resolution (the paper's); `joint` adds the
            losses of all levels, each at its resolution, to one step (the paper's eq. 7); `any_resolution` trains all
            levels on images at random resolutions, from the coarsest of `resolutions` to full size.
        loss: the loss of each level: `cross_entropy`, `soft_labels` or `hxe`, see `c2f_zoo.losses`.
        loss_options: additional keyword arguments of the loss, e.g. `{label_smoothing: 0.1}`.
        level_weights: level -> weight of its loss. Missing: 1, as in the paper.
        tree_prior: weight of `c2f_zoo.losses.tree_prior` on the leaf classifier; 0: none.
        batch_norm: `shared` batch norm of the backbone for all resolutions, `per_level` for statistics and weights of
            its own for each level, or `frozen` for fixed statistics in all stages; its weights are trained.
        batch_size: number of images in a batch, over all processes.
        accumulate: number of batches of each step; their gradients are averaged.
        optimizer: an optimizer of timm, e.g. `sgd` or `adamw`.
        optimizer_options: additional keyword arguments of the optimizer, e.g. `{nesterov: true}`.
        momentum: momentum of SGD.
        weight_decay: weight decay.
        filter_bias_and_bn: no weight decay for biases and norms, as timm's option of this name.
        layer_decay: factor of the learning rate from each block of the backbone to the one before it; null: none.
        clip_grad: largest norm of the gradient; null: no limit.
        mixed_precision: `no`, `bf16` or `fp16`; null: as the launcher says.
        ema: decay of an exponential moving average of the weights, which is validated and saved; null: none.
        compile: compile the model with `torch.compile`.
        gradient_checkpointing: compute the backbone's activations again in the backward pass, to save memory.
        channels_last: keep maps channels-last in memory; twice as fast on a CPU.
        augmentation: changes of the full image before the views are made.
        mixup: parameter of mixup's beta distribution; 0: none.
        cutmix: parameter of cutmix's beta distribution; 0: none.
        balanced: draw images so that each leaf class is equally frequent.
        val_fraction: fraction of each class's training images that is held out to choose the best epoch; 0: the
            training images choose it. Ignored if the dataset has a validation set.
        num_workers: number of loader processes of each training process.
        cache: folder for a cache of decoded, resized images, see `c2f_zoo.data.CachedImages`; for small datasets.
        on_error: treatment of unreadable images: `raise` an error, or `skip` and list them.
        seed: seed of the weights, the split, the order of images and the augmentation.
        output: folder for the results; it must be empty or not exist. Default: `runs/<config>-<n>`.
        resume: `auto` continues from the latest checkpoint of `output`, or of the config's latest run.
        save_every: time or steps between checkpoints, e.g. `10 minutes` or `500 steps`; one follows each epoch too.
        keep: number of checkpoints to keep, besides that of the best epoch.
        log_with: trackers of Accelerate, e.g. `[tensorboard]`.
        dry_run: train on two batches of each level and stage, estimate memory and time, and exit.
    """

    dataset: str
    model: str
    resolutions: dict[str, int | None]
    stages: list[Stage]
    dataset_options: dict[str, Any] = field(default_factory=dict)
    model_options: dict[str, Any] = field(default_factory=dict)
    objective: Literal["in_turn", "joint", "any_resolution"] = "in_turn"
    loss: str = "cross_entropy"
    loss_options: dict[str, Any] = field(default_factory=dict)
    level_weights: dict[str, float] = field(default_factory=dict)
    tree_prior: float = 0.0
    batch_norm: Literal["shared", "per_level", "frozen"] = "shared"
    batch_size: int = 8
    accumulate: int = 1
    optimizer: str = "sgd"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    momentum: float = 0.9
    weight_decay: float = 5e-4
    filter_bias_and_bn: bool = False
    layer_decay: float | None = None
    clip_grad: float | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    ema: float | None = None
    compile: bool = False
    gradient_checkpointing: bool = False
    channels_last: bool = True
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixup: float = 0.0
    cutmix: float = 0.0
    balanced: bool = False
    val_fraction: float = 0.1
    num_workers: int = 0
    cache: str | None = None
    on_error: Literal["raise", "skip"] = "raise"
    seed: int = 0
    output: str | None = None
    resume: Literal["auto"] | None = None
    save_every: str = "15 minutes"
    keep: int = 2
    log_with: list[str] = field(default_factory=list)
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.output is not None:
            self.output = str(expand(self.output))
        if self.cache is not None:
            self.cache = str(expand(self.cache))


NO_STAGES = ("--stages", "[]")  # jsonargparse would fill a stage with values of the one that it replaces
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
        overrides: arguments as on the command line, e.g. `["--batch_size", "16"]`. Stages replace all earlier ones.
    """
    from jsonargparse import auto_cli  # the options themselves do not need it

    arguments: list[str] = []
    for file in map(expand, files):
        arguments += [*(NO_STAGES if "stages" in read_yaml(file) else ()), "--config", str(file)]
    plain, nested = split_nested(overrides, [one.name for one in fields(kind)])
    for argument in plain:
        arguments += [*(NO_STAGES if argument.partition("=")[0] == "--stages" else ()), argument]
    options = auto_cli(kind, args=arguments, as_positional=False)
    for names, value in nested:
        target: Any = vars(options)
        for number, name in enumerate(names[:-1], start=1):
            target = target.setdefault(name, {})
            if not isinstance(target, dict):
                known, given = ".".join(names[:number]), ".".join(names)
                raise ValueError(f"{known} is {target!r}, which has no {names[number]!r}; do not set {given}")
        target[names[-1]] = value
    return options


def split_nested(arguments: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[tuple[list[str], Any]]]:
    """Split off the arguments that set a value within a mapping of a mapping, which jsonargparse reads as text.

    Args:
        arguments: the command line's arguments.
        names: the names of the options.

    Returns:
        The other arguments, and the names and the YAML value of each that is split off.

    Examples:
        >>> split_nested(["--seed", "1", "--model_options.pooling_options.dim", "512"], ["seed", "model_options"])
        (['--seed', '1'], [(['model_options', 'pooling_options', 'dim'], 512)])
    """
    plain: list[str] = []
    nested: list[tuple[list[str], Any]] = []
    remaining = iter(arguments)
    for argument in remaining:
        option, equals, value = argument.partition("=")
        path = option.removeprefix("--").split(".")
        if option.startswith("--") and len(path) > 2 and path[0] in names:
            text = value if equals else next(remaining, "")
            try:
                nested.append((path, yaml.safe_load(text)))
            except yaml.YAMLError as error:
                raise ValueError(f"the value of {option} is {text!r}, which is no YAML: {error}") from error
        else:
            plain.append(argument)
    return plain, nested


def read_yaml(file: str | Path) -> dict[str, Any]:
    """Read the values of a YAML or JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not YAML, or no mapping of names to values.

    Examples:
        >>> _ = Path("birds.yaml").write_text("{dataset: cub, stages: []}")
        >>> read_yaml("birds.yaml")
        {'dataset': 'cub', 'stages': []}
    """
    file = expand(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no configuration {file}")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} has no options; write 'name: value' in its lines")
    return values
