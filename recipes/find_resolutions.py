"""Find each level's resolution by validation accuracy, as in the paper.

    python recipes/find_resolutions.py runs/birds-1                         # test_only: one model is tested lower
    python recipes/find_resolutions.py --config recipes/configs/X.yaml      # retrain: one model for each grid point
    accelerate launch recipes/find_resolutions.py runs/birds-1 --thresholds.species 0.7 --full

The leaf level is seen at full size. On a grid of decreasing resolutions, the first grid point at which its accuracy
falls below its threshold is the resolution of the next coarser level. From there on that level's accuracy decides, and
so on (Huo et al., SIGIR 2019, section 2). Test images are never opened. The first argument is a run of train.py, or
`--config` names a recipe for train.py. All options of train.py may follow. The result is OUTPUT/resolutions.yaml:

    accelerate launch recipes/train.py --config recipes/configs/X.yaml --config OUTPUT/resolutions.yaml
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: waiting threads sleep, they do not spin

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from c2f_zoo.config import format_resolution
from c2f_zoo.data import LabelledImages, labels_of, notes_of, train_and_val
from c2f_zoo.data.image_sizes import median_side
from c2f_zoo.evaluation.plots import plot_resolution_curves
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.evaluation.report import print_tables
from c2f_zoo.evaluation.resolution_curves import Curves, analyze
from c2f_zoo.evaluation.resolution_report import (
    chosen_rows,
    curve_rows,
    curves_table,
    findings,
    resolutions_yaml,
    warn_trained_below_full_size,
)
from c2f_zoo.evaluation.resolution_search import (
    Measurement,
    check_grid,
    default_grid,
    fill_thresholds,
    mean_accuracy,
    measure,
    sweep,
)
from c2f_zoo.evaluation.scoring import scoring_options, validate
from c2f_zoo.hierarchy.escape import printable
from c2f_zoo.io.files import atomic_write, write_csv
from c2f_zoo.model import C2FModel, load_model
from c2f_zoo.paths import expand
from c2f_zoo.training.advice import advise
from c2f_zoo.training.describe_run import describe_data, describe_split
from c2f_zoo.training.fingerprint import fingerprint
from c2f_zoo.training.launch import adopt_launcher, create_accelerator, recipe_errors
from c2f_zoo.training.objective import create_objective
from c2f_zoo.training.option_checks import check_values
from c2f_zoo.training.options import TrainOptions, read_options
from c2f_zoo.training.run_folder import open_run_folder
from c2f_zoo.training.setup import build_model, cache_images, check_labels
from c2f_zoo.training.stages import fit
from c2f_zoo.training.start_checks import check_output
from c2f_zoo.training.unreadable import list_unreadable

MODES = {
    "test_only": "one trained model is tested at each grid point",
    "retrain": "a model is trained at each grid point, every level at that resolution",
}
FREE_TO_CHANGE = ("dataset_options", "batch_size", "num_workers", "cache", "on_error", "output")  # when a run is tested


@dataclass
class SearchOptions(TrainOptions):
    """A recipe for train.py, with the options of the search.

    With a run's folder instead of `--config`, that run is tested.

    Args:
        grid: the resolutions to try in pixels, highest first; null is full size. Default: from full size (the median
            shorter side of the validation images, at most the size that they are resized to) down to 8, in ratios of
            about the square root of 2.
        thresholds: level -> accuracy below which the next coarser level takes over, for all levels but the coarsest.
            Missing: 0.8, as in the paper.
        full: measure the whole grid, instead of stopping when every level has its resolution.
        bootstrap: number of resamples of the validation images for the 95 % intervals.
        output: folder for the results. Default: `RUN/find_resolutions`, or `runs/<config>-resolutions`.
    """

    grid: list[int | None] | None = None
    thresholds: dict[str, float] = field(default_factory=dict)
    full: bool = False
    bootstrap: int = 1000


@dataclass(frozen=True)
class Data:
    """A dataset with the indices of its training and validation images."""

    images: LabelledImages
    train: list[int]
    val: list[int]


def main(options: SearchOptions, run: Path | None, name: str) -> bool:
    """Search, and return whether every level has its resolution.

    Args:
        options: the options of the search.
        run: the folder of the run to test; None: train a model at each grid point.
        name: the name of the recipe, for the output folder.
    """
    mode = "test_only" if run else "retrain"
    output = expand(options.output or (run / "find_resolutions" if run else f"runs/{name}-resolutions"))
    check_output(str(output))
    options = adopt_launcher(options)
    accelerator = create_accelerator(options)
    set_seed(options.seed)
    data, model, side = set_up(options, run, accelerator)
    thresholds = fill_thresholds(options.thresholds, model.levels)
    grid = check_grid(default_grid(side) if options.grid is None else options.grid)

    accelerator.print(f"mode {mode}: {MODES[mode]}", flush=True)

    def measure_at(resolution: int | None) -> Measurement:
        tested = model if run else train_at(resolution, data, options, output / "grid", accelerator)
        return test_at(resolution, tested, data, options, accelerator)

    measurements = sweep(grid, thresholds, options.full, measure_at)
    curves = analyze(model.levels[::-1], thresholds, grid, side, measurements, options.bootstrap, options.seed)
    if accelerator.is_main_process:
        warnings = warn_trained_below_full_size(model) if run else []
        write(curves, mode, warnings, data, options, output)
        report(curves, mode, warnings, output)
        list_unreadable({"validation": (data.images, measurements[0].unreadable)}, output)
    accelerator.end_training()
    return not curves.missing


def set_up(options: SearchOptions, run: Path | None, accelerator: Accelerator) -> tuple[Data, C2FModel, int]:
    """Open the dataset, load or build the model, and check both.

    Returns:
        The data, the model, and the images' median size in pixels.
    """
    check_values(options, accelerator.num_processes)
    if options.dry_run or options.log_with:
        raise ValueError("dry_run and log_with are options of train.py; leave them out of a search")
    if options.bootstrap < 1:
        raise ValueError(f"bootstrap is {options.bootstrap}; it must be 1 or more")
    with accelerator.local_main_process_first():  # one process downloads
        images, train_indices, val_indices = train_and_val(
            options.dataset, options.val_fraction, options.seed, **options.dataset_options
        )
        model = load_model(run) if run else build_model(options, images.hierarchy)
        if model.hierarchy != images.hierarchy:
            raise ValueError("the dataset's class tree differs from the run's; set dataset_options to the run's data")
        if not val_indices:
            raise ValueError("val_fraction is 0: there are no validation images to search on; set it above 0")
        check_labels(labels_of(images)[train_indices], model, "training")
        check_labels(labels_of(images)[val_indices], model, "validation")
        accelerator.print(describe_data(options, images, train_indices, val_indices, None), flush=True)
        advice = [] if run else [f"advice: {line}" for line in advise(options, model, images, train_indices)]
        for line in [*notes_of(images), *advice]:
            accelerator.print(line)
        side = median_side(images, val_indices, model.config.preprocessing)
        images = cache_images(images, options.cache, model.config.preprocessing)
    return Data(images, train_indices, val_indices), model, side


def train_at(
    resolution: int | None, data: Data, options: SearchOptions, folder: Path, accelerator: Accelerator
) -> C2FModel:
    """Train with all levels at one resolution, and return the best epoch's model.

    A run of this grid point in `folder` is resumed; a finished run is not trained again.
    """
    output = folder / ("full" if resolution is None else f"{resolution}px")
    recipe = TrainOptions(**{spec.name: getattr(options, spec.name) for spec in fields(TrainOptions)})
    at_one: dict[str, int | None] = dict.fromkeys(reversed(data.images.hierarchy.levels), resolution)
    recipe = replace(recipe, resolutions=at_one, output=str(output), resume="auto")
    set_seed(options.seed)
    model = build_model(recipe, data.images.hierarchy)
    objective = create_objective(recipe, model)
    validate_epoch = partial(validate, dataset=data.images, indices=data.val, **scoring_options(options, accelerator))
    splits = {"training": (data.images, data.train), "validation": (data.images, data.val)}
    with open_run_folder(recipe, "", fingerprint(data.images.hierarchy, splits), accelerator):
        progress = fit(model, data.images, data.train, objective, validate_epoch, recipe, output, accelerator)
        accelerator.wait_for_everyone()  # the main process saves the best epoch's model
        accelerator.free_memory()
        if accelerator.is_main_process:
            list_unreadable({"training": (data.images, progress.unreadable)}, output)
    return load_model(output)


def test_at(
    resolution: int | None, model: C2FModel, data: Data, options: SearchOptions, accelerator: Accelerator
) -> Measurement:
    """Test a model on the validation images at one resolution."""
    model = model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = measure(model, data.images, data.val, resolution, **scoring_options(options, accelerator))
    accuracy = zip(model.levels[::-1], mean_accuracy(found.correct, found.known), strict=True)
    scores = "  ".join(f"{printable(level)} {score:.3f}" for level, score in accuracy)
    accelerator.print(f"{format_resolution(resolution)}: validation accuracy {scores}", flush=True)
    return found


def write(curves: Curves, mode: str, warnings: Sequence[str], data: Data, options: SearchOptions, output: Path) -> None:
    """Write resolutions.yaml, curve.csv, chosen.csv and curve.png, each atomically."""
    output.mkdir(parents=True, exist_ok=True)
    write_csv(output / "curve.csv", curve_rows(curves, mode))
    write_csv(output / "chosen.csv", chosen_rows(curves, mode))
    plot_resolution_curves(curves, f"{mode}: {MODES[mode]}", output / "curve.png")
    source = [
        f"command: {shlex.join(['python', *sys.argv])}",
        f"date: {describe_machine()['date']}",
        f"data: {options.dataset} {options.dataset_options}, {len(data.val)} validation images "
        f"({describe_split(options, data.images)})",
    ]
    title = f"Found by recipes/find_resolutions.py, mode {mode}: {MODES[mode]}."
    text = resolutions_yaml(curves, title, [*source, *warnings, *findings(curves)])
    atomic_write(output / "resolutions.yaml", lambda part: part.write_text(text, encoding="utf-8"))


def report(curves: Curves, mode: str, warnings: Sequence[str], output: Path) -> None:
    """Print the table, the findings and the names of the files."""
    print_tables(curves_table(curves, f"{mode}: validation accuracy in %, with 95 % intervals"))
    print("\n".join(["", *warnings, *findings(curves)]))
    print(f"\nresolutions.yaml, curve.csv, chosen.csv and curve.png are in {output}")


def parse(args: list[str]) -> tuple[SearchOptions, Path | None, str]:
    """Parse a run's folder or a recipe's YAML files, and overriding options.

    Returns:
        The options, the folder of the run or None, and the name of the recipe.

    Raises:
        ValueError: there is no recipe, or two, or an option of the run may not be changed.
        FileNotFoundError: the folder is not a run of train.py.
    """
    run = expand(args[0]) if args and not args[0].startswith("-") else None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--full", nargs="?", const="true")  # a flag, where jsonargparse expects a value
    known, overrides = parser.parse_known_args(args[1:] if run else args)
    overrides += ["--full", known.full] if known.full else []
    if run is None:
        if not known.config and not {"-h", "--help"} & set(overrides):
            raise ValueError("name a run's folder, or a recipe: --config FILE")
        return read_options(SearchOptions, known.config, overrides), None, Path(known.config[0]).stem
    if known.config:
        raise ValueError(f"{run} has its own recipe; name a run or a recipe, not both")
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{run} is not a run of train.py: it has no config.yaml")
    before, options = (read_options(SearchOptions, [run / "config.yaml"], more) for more in ([], overrides))
    for name in (spec.name for spec in fields(TrainOptions) if spec.name not in FREE_TO_CHANGE):
        if getattr(before, name) != getattr(options, name):
            raise ValueError(f"{name} cannot be changed: the run was trained with {getattr(before, name)}")
    return options, run, ""


if __name__ == "__main__":
    with recipe_errors("find_resolutions.py"):
        complete = main(*parse(sys.argv[1:]))
    raise SystemExit(0 if complete else 1)
