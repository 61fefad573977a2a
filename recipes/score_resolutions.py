"""Score finished models and a linear probe at every resolution of a grid, with intervals.

    python recipes/score_resolutions.py --config recipes/configs/resolutions_cub100.yaml --dataset_options.root FOLDER \
        --probe.backbone_checkpoint FILE
    ... --split test                   # once, when everything is chosen

At each grid point a model predicts all levels of the same images. The linear probe is a logistic regression for each
level and grid point on frozen, pooled features of images at that resolution; its penalties are chosen on the validation
images. The CSV file has a row for each model, grid point and level, and one for each difference from the probe. Scores
are kept beside it in a folder of the same name, so that a killed command goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: waiting threads sleep, they do not spin

import numpy as np
import torch
from jsonargparse import auto_cli
from rich.markup import escape
from rich.table import Table

from c2f_zoo.data import LabelledImages, create_dataset, notes_of, train_and_val
from c2f_zoo.evaluation.ablation_table import save_correct
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.evaluation.report import print_tables
from c2f_zoo.evaluation.resolution_scores import Correct, correct_at, probe_at, resolution_rows
from c2f_zoo.evaluation.resolution_search import check_grid
from c2f_zoo.inference.predictor import load_trained
from c2f_zoo.io.files import write_csv
from c2f_zoo.io.weights import digest_weights
from c2f_zoo.model import C2FModel
from c2f_zoo.paths import expand
from c2f_zoo.training.fingerprint import fingerprint
from c2f_zoo.training.launch import create_accelerator, recipe_errors
from c2f_zoo.training.run_folder import read_config
from c2f_zoo.training.start_checks import check_output
from c2f_zoo.zoo.create import create_model

LINEAR_PROBE = "linear_probe"
Row = dict[str, Any]


@dataclass
class GridOptions:
    """The options.

    Args:
        dataset: one of `c2f-zoo list datasets`.
        models: name -> folders of runs of train.py, or names of trained weights. Several are runs of one model.
        grid: the resolutions in pixels, highest first.
        dataset_options: additional keyword arguments of the dataset.
        probe: arguments of `create_model` for the backbone of the linear probe: `backbone`, `taps`, `input_size`, ...
            Null: no probe.
        penalties: l2 penalties on the probe's weights to choose from.
        max_iter: iterations of L-BFGS.
        split: the images to score: the validation images, or the test images.
        val_fraction: fraction of each class's training images to validate on, as in the training of the models.
        seed: seed of the split, as in the training of the models, and of the resamples.
        bootstrap: number of resamples for the 95 % intervals.
        batch_size: number of images in a batch.
        num_workers: number of processes that load images.
        output: the CSV file to write. A folder of the same name has the scores.
    """

    dataset: str
    models: dict[str, list[str]]
    grid: list[int]
    dataset_options: dict[str, Any] = field(default_factory=dict)
    probe: dict[str, Any] | None = None
    penalties: list[float] = field(default_factory=lambda: [1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    max_iter: int = 200
    split: Literal["val", "test"] = "val"
    val_fraction: float = 0.1
    seed: int = 0
    bootstrap: int = 2000
    batch_size: int = 32
    num_workers: int = 0
    output: str = "runs/resolutions.csv"


@dataclass(frozen=True)
class Data:
    """A dataset with the indices of its training and validation images, and the test images if they are scored."""

    known: LabelledImages
    train: list[int]
    val: list[int]
    test: LabelledImages | None

    @property
    def scored(self) -> tuple[LabelledImages, list[int]]:
        """The images to score: their dataset and indices."""
        return (self.known, self.val) if self.test is None else (self.test, list(range(len(self.test))))


def main(options: GridOptions) -> None:
    """Score every model at every grid point, and write the table.

    Args:
        options: the options.
    """
    check_options(options)
    output = expand(options.output)
    folder = output.with_suffix("")
    check_output(str(output.parent))
    data = open_data(options)
    folder.mkdir(parents=True, exist_ok=True)
    correct: dict[str, dict[int, list[Correct]]] = {}
    for name, key, score in scorers(options, data):
        for resolution in options.grid:
            found = load_or_score(folder / f"{name}-{resolution}px-{key}.npz", partial(score, resolution))
            correct.setdefault(name, {}).setdefault(resolution, []).append(found)
            accuracy = (f"{level} {found[level][found[level] >= 0].mean():.3f}" for level in found)
            print(f"{name}, {resolution} px: accuracy {'  '.join(accuracy)}", flush=True)
    about = {"split": options.split, "dataset": options.dataset, "command": shlex.join(["python", *sys.argv])}
    about |= describe_machine()
    minus = None if options.probe is None else LINEAR_PROBE
    rows = list(resolution_rows(correct, minus, options.bootstrap, options.seed))
    write_csv(output, [{**row, **about} for row in rows])
    print_tables(*tables(rows, options.split))
    print(f"the table is {output}")


def check_options(options: GridOptions) -> None:
    """Check names, the grid and, on validation images, the split of the models' runs.

    Raises:
        ValueError: a name is taken, the grid does not decrease, or a run was trained with another split.
    """
    check_grid(options.grid)
    if LINEAR_PROBE in options.models:
        raise ValueError(f"a model is called {LINEAR_PROBE}, which is the probe's name; choose another")
    own = (options.val_fraction, options.seed)
    for run in (expand(run) for runs in options.models.values() for run in runs):
        if options.split == "val" and (run / "config.yaml").is_file():
            config = read_config(run / "config.yaml")
            if (config["val_fraction"], config["seed"]) != own:
                raise ValueError(
                    f"{run} was trained with val_fraction {config['val_fraction']} and seed {config['seed']}, not "
                    f"{own[0]} and {own[1]}: some of the images to score are its training images; use its values"
                )


def open_data(options: GridOptions) -> Data:
    """Open the images; test images only if they are scored."""
    known, train, val = train_and_val(options.dataset, options.val_fraction, options.seed, **options.dataset_options)
    if not val:
        raise ValueError("val_fraction is 0: there are no validation images; set it to that of the models' training")
    test = create_dataset(options.dataset, "test", **options.dataset_options) if options.split == "test" else None
    for line in notes_of(known, *([] if test is None else [test])):
        print(line)
    data = Data(known, train, val, test)
    print(f"{len(data.scored[1])} {options.split} images at {', '.join(map(str, options.grid))} px", flush=True)
    return data


def scorers(options: GridOptions, data: Data) -> Iterator[tuple[str, str, Callable[[int], Correct]]]:
    """Yield a name, a hash of everything that its scores depend on, and a function that scores at a resolution."""
    dataset, indices = data.scored
    accelerator = create_accelerator()
    how = {"batch_size": options.batch_size, "num_workers": options.num_workers, "accelerator": accelerator}
    for name, runs in options.models.items():
        for run in runs:
            model = load_trained(run)
            model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            yield name, key_of(model, data), partial(score_model, model, dataset, indices, how)
    if options.probe is not None:
        torch.manual_seed(options.seed)  # a backbone without given weights
        model = create_model("mlph", hierarchy=data.known.hierarchy, pooling="avg", **options.probe).eval()
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        key = key_of(model, data, options.penalties, options.max_iter)
        yield LINEAR_PROBE, key, partial(score_probe, model, data, options.penalties, options.max_iter)


def key_of(model: C2FModel, data: Data, *settings: Any) -> str:
    """Return a hash of a model, the images and settings; the head of a probe's model does not count."""
    splits = {"train": (data.known, data.train), "val": (data.known, data.val), "scored": data.scored}
    weights = digest_weights((model.backbone if settings else model).state_dict())
    content = [weights, asdict(model.config.preprocessing), fingerprint(data.known.hierarchy, splits), settings]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]


def score_model(
    model: C2FModel, dataset: LabelledImages, indices: list[int], how: dict[str, Any], resolution: int
) -> Correct:
    """Score a model at a resolution."""
    return correct_at(model, dataset, indices, resolution, **how)


def score_probe(model: C2FModel, data: Data, penalties: list[float], max_iter: int, resolution: int) -> Correct:
    """Fit and score the linear probe at a resolution."""
    return probe_at(model, data.known, data.train, data.val, data.test, resolution, penalties, max_iter)


def load_or_score(file: Path, score: Callable[[], Correct]) -> Correct:
    """Return what a file has, or else score, and write it."""
    if not file.exists():
        save_correct(file, score())
    with np.load(file) as arrays:
        return {level: arrays[level] for level in arrays.files}


def tables(rows: list[Row], split: str) -> Iterator[Table]:
    """Yield a table for each model, and for each difference from the probe, in % with 95 % intervals."""
    for model, minus in dict.fromkeys((row["model"], row["minus"]) for row in rows):
        own = [row for row in rows if (row["model"], row["minus"]) == (model, minus)]
        levels = list(dict.fromkeys(row["level"] for row in own))
        title = f"{model} - {minus}: difference in points" if minus else f"{model}: accuracy in %"
        table = Table("resolution", *map(escape, levels), title=escape(f"{title}, {own[0]['images']} {split} images"))
        cells = {(row["resolution"], row["level"]): format_cell(row) for row in own}
        for resolution in dict.fromkeys(row["resolution"] for row in own):
            table.add_row(str(resolution), *(cells[resolution, level] for level in levels))
        yield table


def format_cell(row: Row) -> str:
    number = "{:+.1f}" if row["minus"] else "{:.1f}"
    value, low, high = (number.format(100 * float(row[key])) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


if __name__ == "__main__":
    with recipe_errors("score_resolutions.py"):
        main(auto_cli(GridOptions, as_positional=False))
