"""Compare methods on backbones: one table, made by one command that may be killed at any time.

    python recipes/ablation.py --config recipes/configs/ablation_critters.yaml
    python recipes/ablation.py --config recipes/configs/ablation_cub100_lite0.yaml --dataset_options.root FOLDER \
        --checkpoints.lite0 FILE

For each backbone and method, each learning rate and weight decay of a grid is tried with the first seed and scored on
validation images. The best pair is trained with every seed, and each of these models is scored on the test images once.
All methods have the same grid, epochs and images.

Pooling and head are trained on the maps of the frozen backbone, which are computed once and kept on disk. With the
option `train`, each cell is a run of train.py instead, which trains all weights. The CSV file has a row for each cell
and level; a finished cell is never run again. OUTPUT-summary.csv has means over the seeds, 95 % intervals, and paired
differences.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: waiting threads sleep, they do not spin

import numpy as np
import torch
from jsonargparse import auto_cli
from safetensors.torch import save
from torch import nn

from c2f_zoo.data import create_dataset, labels_of, notes_of, train_and_val
from c2f_zoo.evaluation.ablation_report import summary_rows, summary_tables, tested_cells
from c2f_zoo.evaluation.ablation_table import (
    Cell,
    Table,
    TableOptions,
    check_table,
    describe_left,
    grid_cells,
    open_table,
    result_rows,
    save_correct,
    train_options,
)
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.evaluation.report import print_tables
from c2f_zoo.heads import create_head
from c2f_zoo.io.files import atomic_write, read_csv, write_csv
from c2f_zoo.io.freed_memory import keep_freed_memory
from c2f_zoo.io.progress import format_duration
from c2f_zoo.io.weights import load_weights
from c2f_zoo.model import C2FModel
from c2f_zoo.paths import expand
from c2f_zoo.pooling import create_pooling
from c2f_zoo.training.frozen_taps import FrozenTaps, open_taps
from c2f_zoo.training.launch import recipe_errors
from c2f_zoo.training.setup import check_labels
from c2f_zoo.training.start_checks import check_output
from c2f_zoo.training.tap_training import correct_on_taps, mean_accuracy, train_on_taps
from c2f_zoo.zoo.create import create_model

OF_WEIGHTS = ("backbone_checkpoint", "pretrained_backbone")  # arguments of `create_model`

Correct = dict[str, np.ndarray]  # level -> int8 (images,): 1 right, 0 wrong, -1 without a label
Train = Callable[
    [Cell], tuple[list[dict[str, float]], float]
]  # each epoch's validation accuracy of each level, seconds
Score = Callable[[Cell], Correct]  # on the test images


@dataclass(frozen=True)
class FrozenData:
    """The maps of a frozen backbone.

    Args:
        models: method -> a model, for its backbone and configuration.
        known: the maps of training and validation images.
        train: indices of the training images in them.
        val: indices of the validation images in them.
        test: the maps of the test images.
    """

    models: dict[str, C2FModel]
    known: FrozenTaps
    train: list[int]
    val: list[int]
    test: FrozenTaps


def main(options: TableOptions) -> None:
    """Fill in the table and summarize it.

    Args:
        options: the options of the table.
    """
    check_table(options)
    output = expand(options.output)
    folder, summary = output.with_suffix(""), output.with_name(f"{output.stem}-summary.csv")
    check_output(str(output.parent))
    open_table(options, folder)
    keep_freed_memory()
    table = Table(output)
    print(describe_left(options, table), flush=True)
    for backbone in options.backbones:
        tested = {method: tested_cells(options, table, backbone, method) for method in options.methods}
        unfinished = [method for method, cells in tested.items() if len(cells) < len(options.seeds)]
        if not unfinished:
            continue
        train: Train = partial(train_all, options=options, folder=folder)
        score: Score = partial(score_all, folder=folder)
        if options.train is None:
            data = open_frozen(options, backbone, folder)
            train = partial(train_frozen, options=options, folder=folder, data=data)
            score = partial(score_frozen, folder=folder, data=data)
        for method in unfinished:
            fill_in(options, backbone, method, table, folder, train, score)
            write_csv(summary, summary_rows(options, table, folder))
    print_tables(*summary_tables(summary_rows(options, table, folder)))
    print(f"the table is {output}, its summary {summary}")


def fill_in(
    options: TableOptions, backbone: str, method: str, table: Table, folder: Path, train: Train, score: Score
) -> None:
    """Train the cells of a method that are not in the table, and score the chosen ones on the test images.

    Args:
        options: the options of the table.
        backbone: name of the backbone.
        method: name of the method.
        table: the table.
        folder: the folder of the table's runs.
        train: a function that trains a cell.
        score: a function that scores a trained cell on the test images.
    """
    grid = grid_cells(options, backbone, method)
    for cell in grid:
        train_once(cell, options, table, train)
    best = table.choose(grid)
    for seed in options.seeds:
        cell = replace(best, seed=seed)
        train_once(cell, options, table, train)
        if not table.is_tested(cell):
            correct = score(cell)
            save_correct(folder / f"{cell.name}.npz", correct)
            table.set_test(cell, mean_accuracy(correct))
        weights_of(cell, folder).unlink(missing_ok=True)
    for cell in grid:
        weights_of(cell, folder).unlink(missing_ok=True)


def train_once(cell: Cell, options: TableOptions, table: Table, train: Train) -> None:
    """Train a cell that is not in the table, add its rows, and print how many cells are left."""
    if table.rows_of(cell):
        return
    history, seconds = train(cell)
    source = {"seconds": round(seconds, 1), "command": shlex.join(["python", *sys.argv]), **describe_machine()}
    rows = [{"dataset": options.dataset, **row, **source} for row in result_rows(history, options.resolutions)]
    table.add(cell, rows)
    scores = "  ".join(f"{level} {score:.3f}" for level, score in history[-1].items())
    print(f"{cell.name}: validation accuracy {scores}, {format_duration(seconds)}", flush=True)
    print(describe_left(options, table), flush=True)


def open_frozen(options: TableOptions, backbone: str, folder: Path) -> FrozenData:
    """Open the maps of a frozen backbone at all taps of the methods."""
    seed = options.seeds[0]
    dataset, train, val = train_and_val(options.dataset, options.val_fraction, seed, **options.dataset_options)
    test_set = create_dataset(options.dataset, "test", **options.dataset_options)
    if not val:
        raise ValueError("val_fraction is 0: there are no validation images to choose on; set it above 0")
    for line in notes_of(dataset, test_set):
        print(line)
    tree, models = dataset.hierarchy, dict[str, C2FModel]()
    resolutions = [options.resolutions.get(level) for level in tree.levels]
    for cell in (grid_cells(options, backbone, method)[0] for method in options.methods):
        recipe = train_options(options, cell, folder)
        own = {key: value for key, value in recipe.model_options.items() if key not in OF_WEIGHTS}
        model = create_model(recipe.model, hierarchy=tree, resolutions=options.resolutions, **own)
        for split, labels in {"training": labels_of(dataset)[train], "validation": labels_of(dataset)[val]}.items():
            check_labels(labels, model, split)
        resolutions += options.methods[cell.method].get("trained_at", {}).values()
        models[cell.method] = model
    taps = list(dict.fromkeys(tap for model in models.values() for tap in model.backbone.taps))
    arguments = {**options.backbones[backbone], "pooling": "avg", "taps": taps, "hierarchy": tree}
    torch.manual_seed(seed)  # a backbone without given weights
    model = create_model("mlph", backbone_checkpoint=options.checkpoints.get(backbone), **arguments)
    print(
        f"{backbone}: taps {', '.join(taps)}; {len(train)} training, {len(val)} validation, {len(test_set)} test images"
    )
    bf16 = options.mixed_precision == "bf16"
    known = open_taps(model, dataset, resolutions, options.mirror, options.taps_folder, bf16)
    test = open_taps(model, test_set, resolutions, False, options.taps_folder, bf16)
    return FrozenData(models, known, train, val, test)


def build(cell: Cell, data: FrozenData) -> C2FModel:
    """Build the model of a cell, with a new pooling and head; its backbone is not run and has random weights."""
    backbone, config = data.models[cell.method].backbone, data.models[cell.method].config
    torch.manual_seed(cell.seed)
    pooling = create_pooling(config.pooling, backbone.out_channels, **config.pooling_options)
    head = create_head(config.head, pooling.out_features, config.hierarchy, config.levels, **config.head_options)
    return C2FModel(backbone, pooling, head, config)


def trained_parts(model: C2FModel) -> nn.ModuleDict:
    """Return the pooling and the head of a model."""
    return nn.ModuleDict({"pooling": model.pooling, "head": model.head})


def weights_of(cell: Cell, folder: Path) -> Path:
    """Return the file of a cell's weights, which is deleted when the method is tested."""
    return folder / f"{cell.name}.safetensors"


def train_frozen(
    cell: Cell, options: TableOptions, folder: Path, data: FrozenData
) -> tuple[list[dict[str, float]], float]:
    """Train a cell on the maps of the frozen backbone, and save its weights.

    Returns:
        The validation accuracy of each level after each epoch, and the seconds of processor time, which a pause of the
        process does not lengthen.
    """
    start = time.process_time()
    model = build(cell, data)
    history = train_on_taps(model, data.known, data.train, data.val, train_options(options, cell, folder))
    content = save(trained_parts(model).state_dict())
    atomic_write(weights_of(cell, folder), lambda part: part.write_bytes(content))
    return history, time.process_time() - start


def score_frozen(cell: Cell, folder: Path, data: FrozenData) -> Correct:
    """Score a trained cell on the maps of the test images."""
    model = build(cell, data)
    load_weights(trained_parts(model), [weights_of(cell, folder)])
    return correct_on_taps(model, data.test, range(len(data.test.labels)))


def train_all(cell: Cell, options: TableOptions, folder: Path) -> tuple[list[dict[str, float]], float]:
    """Train all weights of a cell in a process of train.py; a killed one goes on.

    Returns:
        The validation accuracy of each level after each epoch up to the best one, whose weights are kept, and the
        seconds that the process took.
    """
    config, start = folder / f"{cell.name}.json", time.monotonic()
    values = {**asdict(train_options(options, cell, folder)), "resume": "auto"}
    atomic_write(config, lambda part: part.write_text(json.dumps(values, indent=2), encoding="utf-8"))
    code = subprocess.run([sys.executable, Path(__file__).with_name("train.py"), "--config", config]).returncode
    if code:
        raise ChildProcessError(f"train.py ended with exit code {code}; its options are in {config}")
    rows = read_csv(folder / cell.name / "metrics.csv")
    keys = [key for key in rows[0] if key.startswith("val_")]
    history = [{key.removeprefix("val_"): float(row[key]) for key in keys} for row in rows]
    best = max(range(len(history)), key=lambda epoch: sum(history[epoch].values()))
    return history[: best + 1], time.monotonic() - start


def score_all(cell: Cell, folder: Path) -> Correct:
    """Read the test predictions of a run of train.py."""
    rows = read_csv(folder / cell.name / "test_predictions.csv")
    levels = [key.removeprefix("predicted_") for key in rows[0] if key.startswith("predicted_")]
    truth = {level: [row[level] for row in rows] for level in levels}
    predicted = {level: [row[f"predicted_{level}"] for row in rows] for level in levels}
    return {
        level: np.array([-1 if not a else a == b for a, b in zip(truth[level], predicted[level], strict=True)], np.int8)
        for level in levels
    }


if __name__ == "__main__":
    with recipe_errors("ablation.py"):
        main(auto_cli(TableOptions, as_positional=False))
