"""Train a coarse-to-fine model in the paper's way: every level at its own resolution, in turn.

    accelerate launch recipes/train.py                                                # the embedded dataset
    accelerate launch recipes/train.py --config recipes/configs/cub_mlph_lite0.yaml  # birds
    accelerate launch recipes/train.py --config ... --batch_size 16                   # options go over the file

Stage by stage: first pooling and head with the backbone frozen, then everything. Each step takes a batch of
the highest resolution for the finest level, then one of the next lower for the next coarser level, and so on
(Huo et al., SIGIR 2019, section 3). A picture whose label at that level is unknown is trained on by its deepest label
where the head's levels are one distribution (docs/reference/heads.md), and left out of the step otherwise. The epoch
that is best on a part of the training pictures is kept; the test pictures are scored once, at the end.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import torch
import yaml
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list, set_seed
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from c2f_zoo.data import LabelledImages, LevelView, create_dataset, create_transform, labels_of, stratified_split
from c2f_zoo.factory import create_model, load_model
from c2f_zoo.losses import LOSSES, tree_prior
from c2f_zoo.model import C2FModel
from c2f_zoo.registry import check_options, unknown_name

plt.switch_backend("agg")
FREE_TO_CHANGE = ("output", "resume", "num_workers")  # when a run goes on
DEFAULT_CONFIG = Path(__file__).parent / "configs" / "critters.yaml"

# What a step minimises: of the model as it is to be called, a batch's pictures and their indices, and the level.
Objective = Callable[[Callable[..., dict[str, Tensor]], Tensor, Tensor, str], Tensor]


@dataclass
class Stage:
    """A part of the training with one set of trained weights.

    Args:
        epochs: passes over the training pictures, each at every level's resolution.
        lr: learning rate of pooling and head.
        backbone_lr: learning rate of the backbone; 0 freezes it, its batch norm too.
        halve_every: epochs after which the learning rates are halved, again and again.
        freeze_batch_norm: keep the backbone's batch norm frozen while the rest of it is trained. Batches differ
            in resolution, and so in their statistics: a pretrained backbone is better off with its own.
    """

    epochs: int
    lr: float
    backbone_lr: float = 0.0
    halve_every: int = 1000
    freeze_batch_norm: bool = False


@dataclass
class Options:
    """What to train, on what, and how.

    Args:
        dataset: one of `c2f-zoo list datasets`.
        model: a model's or a method's name, see `c2f_zoo.create_model`; its tree is the dataset's.
        resolutions: for each level the shorter side in pixels to shrink pictures to; null or missing: none.
        stages: the stages, in order.
        dataset_options: what the dataset takes further, e.g. `{root: /data/CUB_200_2011}`.
        model_options: what `create_model` takes further, e.g. `{backbone: resnet50, head: marginal}`.
        loss: the loss of each level: `cross_entropy`, `soft_labels` or `hxe`, see `c2f_zoo.losses`.
        loss_options: what the loss takes further, e.g. `{label_smoothing: 0.1}`.
        level_weights: for each level the weight of its loss; a missing one has the paper's, 1.
        tree_prior: weight of `c2f_zoo.losses.tree_prior`, on the finest classifier; 0: none.
        batch_size: pictures in a batch, over all processes together.
        momentum: momentum of SGD.
        weight_decay: weight decay of SGD.
        val_fraction: share of each class's training pictures that chooses the best epoch; 0: they all do.
        num_workers: processes that load pictures, for each training process and level.
        seed: seed of the weights, the split, the order and the augmentation.
        output: folder for the results, which must not hold any yet; default `runs/<config>-<n>`.
        resume: `auto` goes on after the last whole epoch of `output`, or of the config's latest run.
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
    seed: int = 0
    output: str | None = None
    resume: Literal["auto"] | None = None


@dataclass
class Progress:
    """How far a run has come; saved with every checkpoint."""

    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


def main(options: Options, config_name: str) -> None:
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # or torchrun's processes would not find each other
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        # In a step only one level's classifier is used.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if accelerator.device.type == "cpu" and torch.get_num_threads() == 1:  # as accelerate launch sets it
        torch.set_num_threads(max(1, usable_cores() // accelerator.num_processes))
    set_seed(options.seed)
    if options.batch_size % accelerator.num_processes:
        raise ValueError(f"batch_size {options.batch_size} cannot be shared by {accelerator.num_processes} processes")
    check_options("key in model_options:", create_model, options.model_options)
    with accelerator.local_main_process_first():  # one process downloads
        train_set = create_dataset(options.dataset, "train", **options.dataset_options)
        test_set = create_dataset(options.dataset, "test", **options.dataset_options)
        model = create_model(
            options.model, hierarchy=train_set.hierarchy, resolutions=options.resolutions, **options.model_options
        )
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU
    labels = labels_of(train_set)
    train_indices, val_indices = stratified_split(labels, options.val_fraction, options.seed)
    check_labels(labels[train_indices], model, "training")
    check_labels(labels[val_indices or train_indices], model, "validation")
    check_labels(labels_of(test_set), model, "test")
    objective = create_objective(options, model, labels.to(accelerator.device))
    output = open_output(options, config_name, accelerator)
    if (output / "test.csv").exists():
        accelerator.print("this run is finished, and its test pictures are scored once only: see test.csv")
        return

    train(model, train_set, train_indices, val_indices, objective, options, output, accelerator)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    best = accelerator.prepare(load_model(output))
    matrix = score_test(best, test_set, options, output, accelerator)
    if accelerator.is_main_process:
        print_report(model, matrix, output)
    accelerator.end_training()


def usable_cores() -> int:
    # taskset, Slurm and containers allow fewer cores than the machine has; macOS and Windows cannot tell.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_labels(labels: Tensor, model: C2FModel, part: str) -> None:
    for level in model.levels:
        if (labels[:, model.hierarchy.levels.index(level)] < 0).all():
            raise ValueError(
                f"no {part} picture has a label at {level!r}; name the levels that have some in model_options.levels, "
                "or choose another val_fraction"
            )


def create_objective(options: Options, model: C2FModel, labels: Tensor) -> Objective:
    """What a step minimises, as the options say; labels (n, levels) are those of the whole dataset."""
    check_objective(options, model)
    trees = {level: model.hierarchy.collapse(level) for level in model.levels}

    def objective(call: Callable[..., dict[str, Tensor]], pictures: Tensor, index: Tensor, level: str) -> Tensor:
        targets = targets_of(labels[index], level, model)
        log_probs = model.log_probs(call(pictures, levels=tuple(targets)))
        counts = {at: (target >= 0).sum() for at, target in targets.items()}
        total = sum(counts.values()).clamp(min=1)  # type: ignore[union-attr]
        loss = torch.zeros((), device=pictures.device)
        for at, target in targets.items():
            mean = LOSSES[options.loss](log_probs[at], target, trees[at], **options.loss_options)
            loss = loss + counts[at] / total * mean
        loss = options.level_weights.get(level, 1.0) * loss
        if options.tree_prior > 0 and level == model.levels[-1]:
            weight: Tensor = model.head.get_classifier(level).weight  # type: ignore[operator]
            loss = loss + options.tree_prior * tree_prior(weight, trees[level])
        return loss

    return objective


def check_objective(options: Options, model: C2FModel) -> None:
    if options.loss not in LOSSES:
        raise unknown_name("loss", options.loss, LOSSES)
    check_options(f"option of loss {options.loss!r}:", LOSSES[options.loss], options.loss_options)
    tree, finest = model.hierarchy, model.levels[-1]
    uniform = torch.zeros(1, tree.num_classes[finest]).log_softmax(dim=1)
    try:  # a bad value fails here, and not after the first pictures
        LOSSES[options.loss](uniform, torch.tensor([0]), tree.collapse(finest), **options.loss_options)
    except TypeError as error:
        raise ValueError(f"loss_options {options.loss_options} do not fit {options.loss!r}: {error}") from error
    for level, weight in options.level_weights.items():
        if level not in model.levels:
            raise unknown_name("level in level_weights:", level, model.levels)
        if weight < 0:
            raise ValueError(f"the weight of {level} is {weight}; a level's weight is 0 or more")
    if options.tree_prior < 0:
        raise ValueError(f"tree_prior is a weight of 0 or more, not {options.tree_prior}")
    if options.tree_prior > 0:
        model.head.get_classifier(finest)  # type: ignore[operator]  # or says that there is none


def targets_of(labels: Tensor, level: str, model: C2FModel) -> dict[str, Tensor]:
    """The labels (N,) to train on in a step of `level`, for each level that is needed for it; -1 where there is none.

    Each picture has one target: its deepest label, at `level` or above it. A head whose levels do not agree learns
    nothing of `level` from a label above it, and has none of these.
    """
    depth = model.levels.index(level)
    marginalises = getattr(model.head, "is_distribution", False)
    targets, is_open = {}, torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    for at in reversed(model.levels[0 if marginalises else depth : depth + 1]):
        here = labels[:, model.hierarchy.levels.index(at)]
        target = here.where(is_open, -1)
        if at == level or (target >= 0).any():
            targets[at] = target
        is_open = is_open & (here < 0)
    return targets


def train(
    model: C2FModel,
    dataset: LabelledImages,
    train_indices: list[int],
    val_indices: list[int],
    objective: Objective,
    options: Options,
    output: Path,
    accelerator: Accelerator,
) -> Progress:
    """Trains through all stages, keeping the best epoch's model in `output`."""
    progress, resumed = Progress(), latest_checkpoint(output)
    if resumed is not None:
        progress = Progress(**json.loads((resumed / "progress.json").read_text()))
        model.load_state_dict(load_model(resumed).state_dict())
        accelerator.print(f"resumed after epoch {progress.epoch}")
        if progress.best_epoch == progress.epoch and accelerator.is_main_process:
            model.save_pretrained(output)  # a kill may have come between the checkpoint and this
    # Fine levels first: high, medium, low resolution in turn.
    loaders = {
        level: accelerator.prepare(train_loader(model, dataset, train_indices, level, options))
        for level in reversed(model.levels)
    }
    last = 0
    for number, stage in enumerate(options.stages, start=1):
        first, last = last, last + stage.epochs
        if progress.epoch >= last:
            continue
        wrapped, optimizer, schedule = start_stage(model, stage, options, accelerator)
        if resumed is not None and progress.epoch > first:
            state = torch.load(resumed / "optimizer.pt", weights_only=True)
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
        while progress.epoch < last:
            title = f"stage {number}, epoch {progress.epoch + 1}"
            set_seed(options.seed + progress.epoch + 1, device_specific=True)
            row = {"epoch": progress.epoch + 1, "stage": number, "lr": schedule.get_last_lr()[0]}
            row |= train_epoch(wrapped, stage, loaders, objective, optimizer, title, accelerator)
            row |= validate(wrapped, dataset, val_indices or train_indices, options, accelerator)
            schedule.step()
            progress.epoch += 1
            progress.rows.append(row)
            finish_epoch(model, optimizer, schedule, progress, output, accelerator)
    return progress


def train_loader(
    model: C2FModel, dataset: LabelledImages, indices: list[int], level: str, options: Options
) -> DataLoader:
    transform = create_transform(model.config.preprocessing, options.resolutions.get(level), train=True)
    view = LevelView(dataset, level, transform, indices)
    # A last, smaller batch would give batch norm poor statistics; another shuffle leaves out other pictures.
    drop_last = len(view) >= options.batch_size
    return DataLoader(view, options.batch_size, shuffle=True, drop_last=drop_last, num_workers=options.num_workers)


def start_stage(
    model: C2FModel, stage: Stage, options: Options, accelerator: Accelerator
) -> tuple[torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Says which weights are trained, and makes the optimizer for them."""
    accelerator.free_memory()
    model.backbone.requires_grad_(stage.backbone_lr > 0)
    groups = [{"params": [*model.pooling.parameters(), *model.head.parameters()], "lr": stage.lr}]
    if stage.backbone_lr > 0:
        groups.append({"params": list(model.backbone.parameters()), "lr": stage.backbone_lr})
    sgd = torch.optim.SGD(groups, momentum=options.momentum, weight_decay=options.weight_decay)
    wrapped, optimizer = accelerator.prepare(model, sgd)
    return wrapped, optimizer, torch.optim.lr_scheduler.StepLR(sgd, stage.halve_every, gamma=0.5)


def train_epoch(
    model: torch.nn.Module,
    stage: Stage,
    loaders: dict[str, DataLoader],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    title: str,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Takes a batch of each level in turn until the pictures are used up; gives the mean loss of each level."""
    model.train()
    backbone = accelerator.unwrap_model(model).backbone
    for module in backbone.modules():
        if stage.backbone_lr == 0 or (stage.freeze_batch_norm and isinstance(module, torch.nn.BatchNorm2d)):
            module.eval()
    losses: dict[str, list[Tensor]] = {level: [] for level in loaders}
    steps = len(next(iter(loaders.values())))
    # None: a bar on a terminal, none in a log file.
    hidden = None if accelerator.is_main_process else True
    bar = tqdm(zip(*loaders.values(), strict=True), total=steps, desc=title, disable=hidden, leave=False)
    for batches in bar:
        for level, (pictures, _, index) in zip(loaders, batches, strict=True):
            loss = objective(model, pictures, index, level)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses[level].append(loss.detach())
        if not bar.disable:
            bar.set_postfix(loss=f"{sum(values[-1].item() for values in losses.values()):.3f}")
    means = {}
    for level, values in losses.items():
        means[f"loss_{level}"] = accelerator.reduce(torch.stack(values).mean(), "mean").item()
        if not math.isfinite(means[f"loss_{level}"]):
            raise SystemExit(f"the loss of {level} is {means[f'loss_{level}']} in {title}; lower the learning rate")
    return means


@torch.no_grad()
def predict_all(
    model: torch.nn.Module,
    dataset: LabelledImages,
    indices: list[int],
    resolution: int | None,
    levels: tuple[str, ...],
    options: Options,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """Predicts at one resolution: for each level the labels, and the "index" of each picture.

    Every picture is counted exactly once, on however many processes.
    """
    model.eval()
    config = accelerator.unwrap_model(model).config
    transform = create_transform(config.preprocessing, resolution, train=False)
    view = LevelView(dataset, dataset.hierarchy.finest, transform, indices)
    loader = accelerator.prepare(DataLoader(view, 4 * options.batch_size, num_workers=options.num_workers))
    columns: list[list[Tensor]] = []
    for pictures, _, index in loader:
        logits = model(pictures, levels=levels)
        batch = (index, *(logits[level].argmax(dim=1) for level in levels))
        columns.append([column.cpu() for column in accelerator.gather_for_metrics(batch)])
    index, *labels = (torch.cat(column) for column in zip(*columns, strict=True))
    if sorted(index.tolist()) != sorted(indices):
        raise RuntimeError(f"{len(indices)} pictures were to be scored once, but {len(index)} came back")
    return {"index": index, **dict(zip(levels, labels, strict=True))}


def truth_of(scored: dict[str, Tensor], level: str, dataset: LabelledImages) -> Tensor:
    """The labels of the pictures scored at one level, -1 where it is unknown."""
    return labels_of(dataset)[scored["index"], dataset.hierarchy.levels.index(level)]


def accuracy_of(scored: dict[str, Tensor], level: str, dataset: LabelledImages) -> tuple[float, int]:
    """The accuracy over the pictures whose label at a level is known, and how many they are."""
    truth = truth_of(scored, level, dataset)
    known = truth >= 0
    return (scored[level][known] == truth[known]).double().mean().item(), int(known.sum())


def validate(
    model: torch.nn.Module, dataset: LabelledImages, indices: list[int], options: Options, accelerator: Accelerator
) -> dict[str, float]:
    """Accuracy of every level at its own resolution."""
    accuracy = {}
    for level in accelerator.unwrap_model(model).levels:
        resolution = options.resolutions.get(level)
        scored = predict_all(model, dataset, indices, resolution, (level,), options, accelerator)
        accuracy[f"val_{level}"], _ = accuracy_of(scored, level, dataset)
    return accuracy


def finish_epoch(
    model: C2FModel,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    progress: Progress,
    output: Path,
    accelerator: Accelerator,
) -> None:
    """Keeps the model if it is the best so far; writes checkpoint, metrics and curves."""
    row = progress.rows[-1]
    scores = [row[f"val_{level}"] for level in model.levels]
    if sum(scores) / len(scores) > progress.best:
        progress.best, progress.best_epoch = sum(scores) / len(scores), progress.epoch
    if not accelerator.is_main_process:
        return
    write_csv(output / "metrics.csv", progress.rows)
    plot_curves(progress.rows, model.levels, output / "curves.png")
    part, final = output / "checkpoint.part", output / f"checkpoint-{progress.epoch:04d}"
    model.save_pretrained(part)
    torch.save({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, part / "optimizer.pt")
    (part / "progress.json").write_text(json.dumps(asdict(progress)))
    os.rename(part, final)  # a kill before this line leaves the checkpoint of the epoch before
    if progress.best_epoch == progress.epoch:
        model.save_pretrained(output)
    for old in sorted(output.glob("checkpoint-*"))[:-1]:
        shutil.rmtree(old)
    shown = "  ".join(f"{level} {score:.3f}" for level, score in zip(model.levels, scores, strict=True))
    loss = sum(row[f"loss_{level}"] for level in model.levels)
    print(f"stage {row['stage']}, epoch {row['epoch']}: loss {loss:.3f}, validation accuracy {shown}", flush=True)


def score_test(
    model: torch.nn.Module, dataset: LabelledImages, options: Options, output: Path, accelerator: Accelerator
) -> list[dict[str, Any]]:
    """Scores the test pictures once: every level at every level's resolution."""
    levels = accelerator.unwrap_model(model).levels
    rows, predictions = [], {}
    everything = list(range(len(dataset)))
    for resolution in dict.fromkeys(options.resolutions.get(level) for level in reversed(levels)):
        scored = predict_all(model, dataset, everything, resolution, levels, options, accelerator)
        for level in levels:
            is_own = options.resolutions.get(level) == resolution
            accuracy, pictures = accuracy_of(scored, level, dataset)
            row = {"level": level, "resolution": resolution, "own": is_own, "accuracy": accuracy}
            rows.append({**row, "pictures": pictures})
            if is_own:
                predictions[level] = scored
    if accelerator.is_main_process:
        write_csv(output / "test.csv", rows)
        write_csv(output / "test_predictions.csv", list(prediction_rows(predictions, dataset)))
    return rows


def prediction_rows(predictions: dict[str, dict[str, Tensor]], dataset: LabelledImages) -> Iterator[dict[str, Any]]:
    """For each test picture the true (empty: unknown) and the predicted class of every level at its own resolution."""
    order = {level: scored["index"].argsort() for level, scored in predictions.items()}
    truth = {level: truth_of(scored, level, dataset) for level, scored in predictions.items()}
    for position in range(len(dataset)):
        row: dict[str, Any] = {"index": position}
        for level, scored in predictions.items():
            at = order[level][position]
            names = dataset.hierarchy.class_names(level)
            row["index"] = int(scored["index"][at])
            row[level] = names[truth[level][at]] if truth[level][at] >= 0 else ""
            row[f"predicted_{level}"] = names[int(scored[level][at])]
        yield row


def open_output(options: Options, config_name: str, accelerator: Accelerator) -> Path:
    """Chooses the folder of the results, makes it and writes the options into it."""
    chosen: list[str | None] = [None]
    if accelerator.is_main_process:
        chosen = [str(choose_output(options, config_name))]
    output = Path(broadcast_object_list(chosen)[0])  # type: ignore[arg-type]
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        kept = {key: value for key, value in asdict(options).items() if key not in ("output", "resume")}
        text = yaml.safe_dump(kept, sort_keys=False)
        (output / "config.yaml").write_text(text, encoding="utf-8")
        print(f"writing to {output}", flush=True)
    accelerator.wait_for_everyone()
    return output


def choose_output(options: Options, config_name: str) -> Path:
    runs = Path("runs")
    found = [re.fullmatch(rf"{re.escape(config_name)}-(\d+)", path.name) for path in runs.glob("*")]
    numbers = [int(match[1]) for match in found if match]
    if options.output is not None:
        output = Path(options.output)
    elif options.resume and numbers:
        output = runs / f"{config_name}-{max(numbers)}"
    else:
        output = runs / f"{config_name}-{max(numbers, default=0) + 1}"
    is_run = (output / "config.yaml").exists()
    if output.exists() and any(output.iterdir()) and not (options.resume and is_run):
        raise SystemExit(f"{output} is not empty; choose another --output, or go on with a run by --resume auto")
    if is_run:
        before, now = yaml.safe_load((output / "config.yaml").read_text()), asdict(options)
        changed = [key for key in now if key not in FREE_TO_CHANGE and before.get(key) != now[key]]
        if changed:
            raise SystemExit(f"{output} was started with other options: {', '.join(changed)}; it cannot be resumed")
    return output


def latest_checkpoint(output: Path) -> Path | None:
    return max(output.glob("checkpoint-*"), default=None)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    part = path.with_name(path.name + ".part")
    with open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, path)


def plot_curves(rows: list[dict[str, Any]], levels: tuple[str, ...], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for level in levels:
        axes[0].plot(epochs, [row[f"loss_{level}"] for row in rows], marker=".", label=level)
        axes[1].plot(epochs, [row[f"val_{level}"] for row in rows], marker=".", label=level)
    for ax, title in zip(axes, ("training loss", "validation accuracy, own resolution"), strict=True):
        starts = [
            after["epoch"] - 0.5 for before, after in itertools.pairwise(rows) if after["stage"] != before["stage"]
        ]
        for start in starts:
            ax.axvline(start, color="grey", linestyle=":", linewidth=1)
        ax.set(title=title, xlabel="epoch")
        ax.grid(alpha=0.3)
    axes[1].set_ylim(0, 1)
    axes[1].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def print_report(model: C2FModel, matrix: list[dict[str, Any]], output: Path) -> None:
    """Prints accuracy by level and resolution; a level's own resolution stands in brackets."""
    resolutions = list(dict.fromkeys(row["resolution"] for row in matrix))
    cells = {(row["level"], row["resolution"]): row for row in matrix}
    pictures = max(row["pictures"] for row in matrix)
    table = Table(title=f"Accuracy in % on {pictures} test pictures; in brackets: own resolution")
    table.add_column("level")
    table.add_column("classes", justify="right")
    for resolution in resolutions:
        table.add_column("full size" if resolution is None else f"{resolution} px", justify="right")
    for level in model.levels:
        row = [level, str(model.hierarchy.num_classes[level])]
        for resolution in resolutions:
            cell = cells[level, resolution]
            text = f"{100 * cell['accuracy']:.1f}"
            row.append(f"[bold]\\[{text}][/bold]" if cell["own"] else f"{text} ")
        table.add_row(*row)
    Console().print(table)
    print(f"\nmodel, metrics.csv, test.csv, test_predictions.csv and curves.png are in {output}")
    print(f"try: c2f-zoo predict {output} PICTURE")


def parse(args: list[str]) -> tuple[Options, str]:
    """Reads a YAML file and the options that go over it; without --config the embedded dataset's."""
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", default=str(DEFAULT_CONFIG))
    known, rest = config_parser.parse_known_args(args)
    options = auto_cli(Options, args=["--config", known.config, *rest], as_positional=False)
    return options, Path(known.config).stem


if __name__ == "__main__":
    try:
        main(*parse(sys.argv[1:]))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"train.py: {error}") from error
