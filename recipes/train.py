"""Train a coarse-to-fine model in the paper's way: every level at its own resolution, in turn.

    accelerate launch recipes/train.py                                                # the embedded dataset
    accelerate launch recipes/train.py --config recipes/configs/cub_mlph_lite0.yaml  # birds
    accelerate launch recipes/train.py --config ... --batch_size 16                   # options go over the file

Stage by stage: first pooling and head with the backbone frozen, then everything. Each batch is seen at the highest
resolution for the finest level, a batch later at the next lower one for the next coarser level, and so on: steps at all
levels in turn (Huo et al., SIGIR 2019, section 3), and an image is decoded once for all its views. An image whose
label at a level is unknown is trained on by its deepest label where the head's levels are one distribution
(docs/reference/heads.md), and left out of the step otherwise. The epoch that is best on a part of the training images
is kept; the test images are scored once, at the end.
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
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import torch
import yaml
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from c2f_zoo.data import (
    CachedImages,
    LabelledImages,
    Normalize,
    TransformedImages,
    create_dataset,
    create_transform,
    create_views,
    labels_of,
    name_of,
    read_error,
    train_and_val,
)
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.losses import LOSSES, tree_prior
from c2f_zoo.model import C2FModel
from c2f_zoo.registry import check_options, unknown_name
from c2f_zoo.zoo.create import create_model, load_model

plt.switch_backend("agg")
FREE_TO_CHANGE = ("output", "resume", "num_workers", "on_error", "cache")  # when a run goes on
DEFAULT_CONFIG = Path(__file__).parent / "configs" / "critters.yaml"

# What a step minimises: of the model as it is to be called, a batch's images and labels (N, levels), and the level.
Objective = Callable[[Callable[..., dict[str, Tensor]], Tensor, Tensor, str], Tensor]


@dataclass
class Stage:
    """A part of the training with one set of trained weights.

    Args:
        epochs: passes over the training images, each at every level's resolution.
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
        resolutions: for each level the shorter side in pixels to shrink images to; null or missing: none.
        stages: the stages, in order.
        dataset_options: what the dataset takes further, e.g. `{root: /data/CUB_200_2011}`.
        model_options: what `create_model` takes further, e.g. `{backbone: resnet50, head: marginal}`.
        loss: the loss of each level: `cross_entropy`, `soft_labels` or `hxe`, see `c2f_zoo.losses`.
        loss_options: what the loss takes further, e.g. `{label_smoothing: 0.1}`.
        level_weights: for each level the weight of its loss; a missing one has the paper's, 1.
        tree_prior: weight of `c2f_zoo.losses.tree_prior`, on the finest classifier; 0: none.
        batch_size: images in a batch, over all processes together.
        momentum: momentum of SGD.
        weight_decay: weight decay of SGD.
        val_fraction: share of each class's training images that chooses the best epoch; 0: they all do. A dataset
            with validation images of its own uses these.
        num_workers: processes that load images, for each training process.
        cache: folder to keep decoded, resized images in, see `c2f_zoo.data.CachedImages`; for small datasets.
        on_error: what an unreadable image does: `raise` ends the run, `skip` leaves it out and lists it at the end.
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
    cache: str | None = None
    on_error: Literal["raise", "skip"] = "raise"
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
    unreadable: list[int] = field(default_factory=list)  # indices of the images that were skipped


def main(options: Options, config_name: str) -> None:
    accelerator = create_accelerator()
    set_seed(options.seed)
    with accelerator.local_main_process_first():  # one process downloads
        train_set, train_indices, val_indices = train_and_val(
            options.dataset, options.val_fraction, options.seed, **options.dataset_options
        )
        test_set = create_dataset(options.dataset, "test", **options.dataset_options)
        model = build(options, train_set.hierarchy, accelerator)
        train_set, test_set = (cached(part, options, model) for part in (train_set, test_set))
    check_labels(labels_of(train_set)[train_indices], model, "training")
    check_labels(labels_of(train_set)[val_indices or train_indices], model, "validation")
    check_labels(labels_of(test_set), model, "test")
    objective = create_objective(options, model)
    output = open_output(options, config_name, accelerator)
    if (output / "test.csv").exists():
        accelerator.print("this run is finished, and its test images are scored once only: see test.csv")
        return

    progress = train(model, train_set, train_indices, val_indices, objective, options, output, accelerator)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    best = accelerator.prepare(load_model(output))
    matrix, unreadable = score_test(best, test_set, options, output, accelerator)
    if accelerator.is_main_process:
        held_out = set(val_indices).intersection(progress.unreadable)
        of_training = sorted({*progress.unreadable} - held_out)
        parts = {"training": (train_set, of_training), "validation": (train_set, sorted(held_out))}
        report_unreadable({**parts, "test": (test_set, unreadable)}, output)
        print_report(model, matrix, output)
    accelerator.end_training()


def create_accelerator() -> Accelerator:
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # or torchrun's processes would not find each other
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        # In a step only one level's classifier is used.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if accelerator.device.type == "cpu" and torch.get_num_threads() == 1:  # as accelerate launch sets it
        torch.set_num_threads(max(1, usable_cores() // accelerator.num_processes))
    return accelerator


def build(options: Options, hierarchy: Hierarchy, accelerator: Accelerator) -> C2FModel:
    """The model that the options name, for a dataset's tree."""
    if options.batch_size % accelerator.num_processes:
        raise ValueError(f"batch_size {options.batch_size} cannot be shared by {accelerator.num_processes} processes")
    check_options("key in model_options:", create_model, options.model_options)
    model = create_model(options.model, hierarchy=hierarchy, resolutions=options.resolutions, **options.model_options)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU


def usable_cores() -> int:
    # taskset, Slurm and containers allow fewer cores than the machine has; macOS and Windows cannot tell.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cached(dataset: LabelledImages, options: Options, model: C2FModel) -> LabelledImages:
    """The dataset, with its images in a cache where one is asked for."""
    if options.cache is None:
        return dataset
    preprocessing = model.config.preprocessing
    return CachedImages(dataset, options.cache, preprocessing.resize, preprocessing.interpolation)


def check_labels(labels: Tensor, model: C2FModel, part: str) -> None:
    for level in model.levels:
        if (labels[:, model.hierarchy.levels.index(level)] < 0).all():
            raise ValueError(
                f"no {part} image has a label at {level!r}; name the levels that have some in model_options.levels, "
                "or choose another val_fraction"
            )


def create_objective(options: Options, model: C2FModel) -> Objective:
    """What a step minimises, as the options say."""
    check_objective(options, model)
    trees = {level: model.hierarchy.truncate(level) for level in model.levels}

    def objective(call: Callable[..., dict[str, Tensor]], images: Tensor, labels: Tensor, level: str) -> Tensor:
        targets = targets_of(labels, level, model)
        log_probs = model.log_probs(call(images, levels=tuple(targets)))
        counts = {at: (target >= 0).sum() for at, target in targets.items()}
        total = sum(counts.values()).clamp(min=1)  # type: ignore[union-attr]
        loss = torch.zeros((), device=images.device)
        for at, target in targets.items():
            mean = LOSSES[options.loss](log_probs[at], target, trees[at], **options.loss_options)
            loss = loss + counts[at] / total * mean
        loss = options.level_weights.get(level, 1.0) * loss
        if options.tree_prior > 0 and level == model.levels[-1]:
            weight: Tensor = model.head.get_classifier(level).weight
            loss = loss + options.tree_prior * tree_prior(weight, trees[level])
        return loss

    return objective


def check_objective(options: Options, model: C2FModel) -> None:
    check_options(f"option of loss {options.loss!r}:", LOSSES[options.loss], options.loss_options)
    tree, finest = model.hierarchy, model.levels[-1]
    uniform = torch.zeros(1, tree.num_classes[finest]).log_softmax(dim=1)
    try:  # a bad value fails here, and not after the first images
        LOSSES[options.loss](uniform, torch.tensor([0]), tree.truncate(finest), **options.loss_options)
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
        model.head.get_classifier(finest)  # or says that there is none


def targets_of(labels: Tensor, level: str, model: C2FModel) -> dict[str, Tensor]:
    """The labels (N,) to train on in a step of `level`, for each level that is needed for it; -1 where there is none.

    Each image has one target: its deepest label, at `level` or above it. A head whose levels do not agree learns
    nothing of `level` from a label above it, and has none of these.
    """
    depth = model.levels.index(level)
    marginalises = model.head.levels_are_marginals
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
    loader = accelerator.prepare(train_loader(model, dataset, train_indices, options))
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
            losses, unreadable = train_epoch(wrapped, stage, loader, objective, optimizer, title, accelerator)
            scores, more = validate(wrapped, dataset, val_indices or train_indices, options, accelerator)
            row |= losses | scores
            progress.unreadable = sorted({*progress.unreadable, *unreadable, *more})
            schedule.step()
            progress.epoch += 1
            progress.rows.append(row)
            finish_epoch(model, optimizer, schedule, progress, output, accelerator)
    return progress


def train_loader(model: C2FModel, dataset: LabelledImages, indices: list[int], options: Options) -> DataLoader:
    preprocessing = model.config.preprocessing
    # Fine levels first: high, medium, low resolution in turn.
    resolutions = {level: options.resolutions.get(level) for level in reversed(model.levels)}
    transform = create_views(preprocessing, resolutions, train=True, normalize=False)
    views = TransformedImages(dataset, transform, indices, options.on_error, shorter_side=preprocessing.resize)
    # A last, smaller batch would give batch norm poor statistics; another shuffle leaves out other images.
    drop_last = len(views) >= options.batch_size
    return DataLoader(views, options.batch_size, shuffle=True, drop_last=drop_last, num_workers=options.num_workers)


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


def normalizer(model: torch.nn.Module, accelerator: Accelerator) -> Normalize:
    """What turns a batch of 8-bit images, as loaders hand them over, into the network's input."""
    preprocessing = accelerator.unwrap_model(model).config.preprocessing
    return Normalize(preprocessing.mean, preprocessing.std).to(accelerator.device)


def train_epoch(
    model: torch.nn.Module,
    stage: Stage,
    loader: DataLoader,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    title: str,
    accelerator: Accelerator,
) -> tuple[dict[str, float], list[int]]:
    """Takes a step at each level's resolution for every batch of images, a coarser level's a batch later.

    Gives the mean loss of each level, and the indices of the images that were skipped.
    """
    model.train()
    backbone = accelerator.unwrap_model(model).backbone
    for module in backbone.modules():
        if stage.backbone_lr == 0 or (stage.freeze_batch_norm and isinstance(module, torch.nn.BatchNorm2d)):
            module.eval()
    normalize = normalizer(model, accelerator)
    losses: dict[str, list[Tensor]] = {}
    unreadable: list[int] = []
    # None: a bar on a terminal, none in a log file.
    hidden = None if accelerator.is_main_process else True
    bar = tqdm(loader, desc=title, disable=hidden, leave=False)
    levels = accelerator.unwrap_model(model).levels[::-1]
    # Steps that follow one another see other images, as they would if each level had a loader of its own. On the same
    # ones the critters' species were learnt far worse (docs/results.md).
    recent: deque[Any] = deque(maxlen=len(levels))
    for batch in itertools.chain(bar, [None] * (len(levels) - 1)):
        recent.appendleft(batch)
        if batch is not None:
            unreadable += batch[2][~batch[3]].tolist()
        for level, waiting in zip(levels, recent, strict=False):
            if waiting is None:
                continue
            views, labels, *_ = waiting
            loss = objective(model, normalize(views[level]), labels, level)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.setdefault(level, []).append(loss.detach())
        if batch is not None and not bar.disable:
            bar.set_postfix(loss=f"{sum(values[-1].item() for values in losses.values()):.3f}")
    means = {}
    for level, values in losses.items():
        means[f"loss_{level}"] = accelerator.reduce(torch.stack(values).mean(), "mean").item()
        if not math.isfinite(means[f"loss_{level}"]):
            raise SystemExit(f"the loss of {level} is {means[f'loss_{level}']} in {title}; lower the learning rate")
    return means, gather_object(unreadable)


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
    """Predicts at one resolution, every image exactly once, on however many processes.

    Gives for each level the labels (n,), the "truth" (n, levels of the tree), and the "index" of each image. A
    image that was skipped has the truth -1, and is False in "readable".
    """
    model.eval()
    preprocessing = accelerator.unwrap_model(model).config.preprocessing
    transform = create_transform(preprocessing, resolution, train=False, normalize=False)
    normalize = normalizer(model, accelerator)
    views = TransformedImages(dataset, transform, indices, options.on_error, shorter_side=preprocessing.resize)
    loader = accelerator.prepare(DataLoader(views, 4 * options.batch_size, num_workers=options.num_workers))
    columns: list[list[Tensor]] = []
    for images, truth, index, readable in loader:
        logits = model(normalize(images), levels=levels)
        batch = (index, readable, truth, *(logits[level].argmax(dim=1) for level in levels))
        columns.append([column.cpu() for column in accelerator.gather_for_metrics(batch)])
    index, readable, truth, *labels = (torch.cat(column) for column in zip(*columns, strict=True))
    if sorted(index.tolist()) != sorted(indices):
        raise RuntimeError(f"{len(indices)} images were to be scored once, but {len(index)} came back")
    return {"index": index, "readable": readable, "truth": truth, **dict(zip(levels, labels, strict=True))}


def unreadable_in(scored: dict[str, Tensor]) -> list[int]:
    return scored["index"][~scored["readable"]].tolist()


def accuracy_of(scored: dict[str, Tensor], level: str, tree: Hierarchy) -> tuple[float, int]:
    """The accuracy over the images whose label at a level is known, and how many they are."""
    truth = scored["truth"][:, tree.depth(level)]
    known = truth >= 0
    return (scored[level][known] == truth[known]).double().mean().item(), int(known.sum())


def validate(
    model: torch.nn.Module, dataset: LabelledImages, indices: list[int], options: Options, accelerator: Accelerator
) -> tuple[dict[str, float], list[int]]:
    """Accuracy of every level at its own resolution, and the indices of the images that were skipped."""
    levels: tuple[str, ...] = accelerator.unwrap_model(model).levels
    own = {level: options.resolutions.get(level) for level in levels}
    at = {
        resolution: predict_all(
            model, dataset, indices, resolution, tuple(x for x in levels if own[x] == resolution), options, accelerator
        )
        for resolution in dict.fromkeys(own.values())
    }
    accuracy = {}
    for level in levels:
        accuracy[f"val_{level}"], count = accuracy_of(at[own[level]], level, dataset.hierarchy)
        if count == 0:
            raise ValueError(
                f"no validation image with a label at {level!r} can be read; look with `c2f-zoo data check`, "
                "or choose another val_fraction"
            )
    return accuracy, unreadable_in(at[own[levels[0]]])


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
    each = "  ".join(f"{level} {score:.3f}" for level, score in zip(model.levels, scores, strict=True))
    loss = sum(row[f"loss_{level}"] for level in model.levels)
    print(f"stage {row['stage']}, epoch {row['epoch']}: loss {loss:.3f}, validation accuracy {each}", flush=True)


def score_test(
    model: torch.nn.Module, dataset: LabelledImages, options: Options, output: Path, accelerator: Accelerator
) -> tuple[list[dict[str, Any]], list[int]]:
    """Scores the test images once: every level at every level's resolution; also says which could not be read."""
    levels = accelerator.unwrap_model(model).levels
    rows, predictions, unreadable = [], {}, []
    everything = list(range(len(dataset)))
    for resolution in dict.fromkeys(options.resolutions.get(level) for level in reversed(levels)):
        scored = predict_all(model, dataset, everything, resolution, levels, options, accelerator)
        unreadable = unreadable_in(scored)
        for level in levels:
            is_own = options.resolutions.get(level) == resolution
            accuracy, images = accuracy_of(scored, level, dataset.hierarchy)
            row = {"level": level, "resolution": resolution, "own": is_own, "accuracy": accuracy}
            rows.append({**row, "images": images})
            if is_own:
                predictions[level] = scored
    if accelerator.is_main_process:
        write_csv(output / "test.csv", rows)
        write_csv(output / "test_predictions.csv", list(prediction_rows(predictions, dataset.hierarchy)))
    return rows, unreadable


def prediction_rows(predictions: dict[str, dict[str, Tensor]], tree: Hierarchy) -> Iterator[dict[str, Any]]:
    """For each test image the true (empty: unknown) and the predicted class of every level at its own resolution.

    Images that were skipped are left out.
    """
    place = {
        level: {index: at for at, index in enumerate(scored["index"].tolist())} for level, scored in predictions.items()
    }
    first = next(iter(predictions.values()))
    for index in sorted(first["index"][first["readable"]].tolist()):
        row: dict[str, Any] = {"index": index}
        for level, scored in predictions.items():
            at = place[level][index]
            names, truth = tree.class_names(level), int(scored["truth"][at, tree.depth(level)])
            row[level] = names[truth] if truth >= 0 else ""
            row[f"predicted_{level}"] = names[int(scored[level][at])]
        yield row


def report_unreadable(parts: dict[str, tuple[LabelledImages, list[int]]], output: Path) -> None:
    """Lists the images that were skipped, with the reason, on the terminal and in a file."""
    rows = []
    for part, (dataset, indices) in parts.items():
        for index in indices:
            reason = read_error(dataset, index) or "it can be read now"
            rows.append({"part": part, "index": index, "name": name_of(dataset, index), "reason": reason})
    if rows:
        write_csv(output / "unreadable.csv", rows)
        print(f"\n{len(rows)} image(s) could not be read and were skipped; all are in {output / 'unreadable.csv'}:")
        for row in rows[:10]:
            print(f"  {row['part']} {row['name']}: {row['reason']}")


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


def atomically(path: Path, write_to: Callable[[Path], object]) -> None:
    """Writes under another name and renames, so that a kill leaves the old file or the new one."""
    part = path.with_name(path.name + ".part")
    write_to(part)
    os.replace(part, path)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    def write_to(part: Path) -> None:
        with open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    atomically(path, write_to)


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


def shown(resolution: int | None) -> str:
    return "full size" if resolution is None else f"{resolution} px"


def print_report(model: C2FModel, matrix: list[dict[str, Any]], output: Path) -> None:
    """Prints accuracy by level and resolution; a level's own resolution stands in brackets."""
    resolutions = list(dict.fromkeys(row["resolution"] for row in matrix))
    cells = {(row["level"], row["resolution"]): row for row in matrix}
    images = max(row["images"] for row in matrix)
    table = Table(title=f"Accuracy in % on {images} test images; in brackets: own resolution")
    table.add_column("level")
    table.add_column("classes", justify="right")
    for resolution in resolutions:
        table.add_column(shown(resolution), justify="right")
    for level in model.levels:
        row = [level, str(model.hierarchy.num_classes[level])]
        for resolution in resolutions:
            cell = cells[level, resolution]
            text = f"{100 * cell['accuracy']:.1f}"
            row.append(f"[bold]\\[{text}][/bold]" if cell["own"] else f"{text} ")
        table.add_row(*row)
    Console().print(table)
    print(f"\nmodel, metrics.csv, test.csv, test_predictions.csv and curves.png are in {output}")
    print(f"try: c2f-zoo predict {output} IMAGE")


def parse(args: list[str]) -> tuple[Options, str]:
    """Reads YAML files and the options that go over them; without --config the embedded dataset's.

    A later file goes over an earlier one, as find_resolutions.py's resolutions.yaml over a recipe; the first names the
    run.
    """
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", action="append")
    known, rest = config_parser.parse_known_args(args)
    configs = known.config or [str(DEFAULT_CONFIG)]
    files = [argument for config in configs for argument in ("--config", config)]
    return auto_cli(Options, args=[*files, *rest], as_positional=False), Path(configs[0]).stem


def complaint(error: Exception) -> str:
    """What an error says; of one from a loader's worker, whose message is its traceback, the last line."""
    text = str(error).strip()
    return text.splitlines()[-1] if text.startswith("Caught ") else text


if __name__ == "__main__":
    try:
        main(*parse(sys.argv[1:]))
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"train.py: {complaint(error)}") from error
