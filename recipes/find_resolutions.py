"""Find each level's resolution as the paper does: lower it until accuracy on validation images falls.

    python recipes/find_resolutions.py runs/birds-1                         # test_only: a trained model, tested lower
    python recipes/find_resolutions.py --config recipes/configs/X.yaml      # retrain: trained anew at each rung
    accelerate launch recipes/find_resolutions.py runs/birds-1 --thresholds.species 0.7 --full

The finest level is seen at full size. Down a ladder of resolutions, the first rung at which its accuracy is under its
threshold is the next coarser level's resolution; from there on that level's accuracy decides, and so on (Huo et al.,
SIGIR 2019, section 2). The test images are never touched. A run is a folder of train.py and comes first; a recipe
is a file for train.py, whose options may all follow. What is found goes into resolutions.yaml:

    accelerate launch recipes/train.py --config recipes/configs/X.yaml --config OUTPUT/resolutions.yaml
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import math
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from jsonargparse import auto_cli
from matplotlib.ticker import NullLocator
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from train import (
    Options,
    atomically,
    build,
    cached,
    check_labels,
    complaint,
    create_accelerator,
    create_objective,
    open_output,
    predict_all,
    report_unreadable,
    shown,
    train,
    unreadable_in,
    write_csv,
)

from c2f_zoo.config import Preprocessing
from c2f_zoo.data import LabelledImages, labels_of, load_image, train_and_val
from c2f_zoo.data.transformed_images import UNREADABLE
from c2f_zoo.model import C2FModel
from c2f_zoo.registry import unknown_name
from c2f_zoo.zoo.create import load_model

plt.rcParams["text.parse_math"] = False  # names may hold dollar signs
MODES = {
    "test_only": "one trained model is tested at each rung",
    "retrain": "a model is trained anew at each rung, every level at that resolution",
}
THRESHOLD = 0.8  # the paper's t_med and t_low
LOWEST = 8  # pixels; the last rung of the ladder that is made from the images' size
FREE_TO_CHANGE = ("dataset_options", "batch_size", "num_workers", "cache", "on_error", "output")  # when a run is tested

# Which answers are right (images, levels), which labels are known, and the indices of the unreadable images.
Measured = tuple[np.ndarray, np.ndarray, list[int]]


@dataclass
class Search(Options):
    """A recipe as train.py takes it, and how to search; a run's folder in place of --config is tested as it is.

    Args:
        ladder: the resolutions to try in pixels, highest first; null is full size. Default: full size, then down from
            the median shorter side of the validation images, or what they are resized to if that is less, to 8 by
            about the square root of 2.
        thresholds: for each level but the coarsest the accuracy under which it hands over to the next coarser one;
            a missing one is the paper's, 0.8.
        full: measure the whole ladder, instead of stopping once every level has its resolution.
        bootstrap: resamples of the validation images for the 95 % intervals, drawn with `seed`.
        output: folder for the results; default `RUN/find_resolutions`, or `runs/<config>-resolutions`.
    """

    ladder: list[int | None] | None = None
    thresholds: dict[str, float] = field(default_factory=dict)
    full: bool = False
    bootstrap: int = 1000


@dataclass(frozen=True)
class Curves:
    """Accuracy against resolution, and what follows from it; levels are in order from fine to coarse.

    Args:
        levels: names, L of them.
        thresholds: of all levels but the coarsest, L - 1.
        ladder: the rungs that were measured, R of them.
        side: the images' median resolution in pixels, which stands for full size.
        accuracy: (R, L).
        low: lower ends of the 95 % intervals, (R, L).
        high: upper ends.
        images: how many have a known label, (L,).
        rungs: for each level the rung of its resolution, or None.
        shares: for each level the share of resamples that choose each rung, and at last none of them, (L, R + 1).
    """

    levels: tuple[str, ...]
    thresholds: tuple[float, ...]
    ladder: tuple[int | None, ...]
    side: int
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    images: np.ndarray
    rungs: tuple[int | None, ...]
    shares: np.ndarray


def main(options: Search, run: Path | None, config_name: str) -> bool:
    """Searches, and gives whether every level has its resolution."""
    mode = "test_only" if run else "retrain"
    output = Path(options.output or (run / "find_resolutions" if run else f"runs/{config_name}-resolutions"))
    accelerator = create_accelerator()
    set_seed(options.seed)
    with accelerator.local_main_process_first():  # one process downloads
        dataset, train_indices, val_indices = train_and_val(
            options.dataset, options.val_fraction, options.seed, **options.dataset_options
        )
        model = load_model(run) if run else build(options, dataset.hierarchy, accelerator)
        check_data(model, dataset, train_indices, val_indices)
        side = median_side(dataset, val_indices, model.config.preprocessing)
        dataset = cached(dataset, options, model)
    thresholds = chosen_thresholds(options.thresholds, model.levels)
    ladder = checked_ladder(default_ladder(side) if options.ladder is None else options.ladder)
    if options.bootstrap < 1:
        raise ValueError(f"bootstrap is a number of resamples, 1 or more, not {options.bootstrap}")

    accelerator.print(f"mode {mode}: {MODES[mode]}", flush=True)
    trained_at = partial(train_rung, options, output / "rungs", dataset, train_indices, val_indices, accelerator)

    def measure_at(resolution: int | None) -> Measured:
        tested = model if run else trained_at(resolution)
        return measure(tested, dataset, val_indices, resolution, options, accelerator)

    right, known, unreadable = walk(ladder, thresholds, options.full, measure_at)
    curves = analyse(model.levels[::-1], thresholds, ladder[: len(right)], side, right, known, options)
    if accelerator.is_main_process:
        notes = [*trained_lower(model, mode), *findings(curves)]
        write(output, curves, mode, notes, source_of(options, len(val_indices)))
        print_table(curves, mode)
        print("\n".join(["", *notes, "", f"resolutions.yaml, curve.csv, curve.png and chosen.csv are in {output}"]))
        report_unreadable({"validation": (dataset, unreadable)}, output)
    accelerator.end_training()
    return None not in curves.rungs


def check_data(
    model: C2FModel, dataset: LabelledImages, train_indices: Sequence[int], val_indices: Sequence[int]
) -> None:
    if model.hierarchy != dataset.hierarchy:
        raise ValueError("the dataset's class tree is not the one that the run was trained with")
    if not val_indices:
        raise ValueError("val_fraction is 0: there are no validation images to search on; hold some out")
    check_labels(labels_of(dataset)[train_indices], model, "training")
    check_labels(labels_of(dataset)[val_indices], model, "validation")


def chosen_thresholds(given: Mapping[str, float], levels: Sequence[str]) -> tuple[float, ...]:
    """Those of all levels but the coarsest, from fine to coarse."""
    for level, threshold in given.items():
        if level not in levels:
            raise unknown_name("level in thresholds:", level, levels)
        if level == levels[0]:
            raise ValueError(f"{level} is the coarsest level; its threshold would decide about none")
        if not 0 < threshold <= 1:
            raise ValueError(f"the threshold of {level} is an accuracy in (0, 1], not {threshold}")
    return tuple(given.get(level, THRESHOLD) for level in reversed(levels[1:]))


def median_side(dataset: LabelledImages, indices: Sequence[int], preprocessing: Preprocessing) -> int:
    """The median of what a resolution is the length of: the shorter side, or the square root of the area.

    At most what images are resized to: above that, no resolution leaves less detail.
    """
    sizes = []
    for index in indices:
        with contextlib.suppress(*UNREADABLE):  # such an image is named when it is scored
            sizes.append(size_of(dataset, index))
    if not sizes:
        raise ValueError("none of the validation images can be read")
    in_side = preprocessing.resolution_of == "side"
    median = statistics.median(min(size) if in_side else math.sqrt(math.prod(size)) for size in sizes)
    return min(round(median), preprocessing.resize)


def size_of(dataset: LabelledImages, index: int) -> tuple[int, int]:
    paths = getattr(dataset, "paths", None)
    if not paths:
        return load_image(dataset, index).size
    with Image.open(paths[index]) as image:  # reads the header alone
        return image.size


def default_ladder(side: int) -> list[int | None]:
    """Full size, then equal ratios of nearly sqrt(2) down to the lowest rung."""
    steps = round(2 * math.log2(max(side, LOWEST) / LOWEST))
    return [None, *(round(side * (LOWEST / side) ** (step / steps)) for step in range(1, steps + 1))]


def checked_ladder(ladder: Sequence[int | None]) -> tuple[int | None, ...]:
    pixels = [math.inf if resolution is None else resolution for resolution in ladder]
    if not pixels or min(pixels) < 1 or any(a <= b for a, b in itertools.pairwise(pixels)):
        raise ValueError(f"a ladder goes down, e.g. [null, 96, 48], to 1 pixel at least; not {list(ladder)}")
    return tuple(ladder)


def train_rung(
    options: Search,
    folder: Path,
    dataset: LabelledImages,
    train_indices: list[int],
    val_indices: list[int],
    accelerator: Accelerator,
    resolution: int | None,
) -> C2FModel:
    """The best epoch's model of the recipe, every level at one resolution; goes on where a killed search stopped."""
    recipe = Options(**{spec.name: getattr(options, spec.name) for spec in fields(Options)})
    output = folder / ("full" if resolution is None else f"{resolution}px")
    at_one: dict[str, int | None] = dict.fromkeys(reversed(dataset.hierarchy.levels), resolution)
    recipe = replace(recipe, resolutions=at_one, output=str(output), resume="auto")
    set_seed(options.seed)
    model = build(recipe, dataset.hierarchy, accelerator)
    objective = create_objective(recipe, model)
    open_output(recipe, "", accelerator)
    progress = train(model, dataset, train_indices, val_indices, objective, recipe, output, accelerator)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    if accelerator.is_main_process:
        report_unreadable({"training": (dataset, progress.unreadable)}, output)
    return load_model(output)


def measure(
    model: C2FModel,
    dataset: LabelledImages,
    indices: list[int],
    resolution: int | None,
    options: Options,
    accelerator: Accelerator,
) -> Measured:
    """Which answers are right and which labels known, bool (images, levels), fine to coarse; and what is unreadable.

    Images are in the order of their indices, so that those of two rungs are in the same order.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU
    prepared = accelerator.prepare(model)
    scored = predict_all(prepared, dataset, indices, resolution, model.levels, options, accelerator)
    accelerator.free_memory()
    index = scored["index"]
    order = index.argsort()
    levels = model.levels[::-1]
    truth = scored["truth"][order][:, [dataset.hierarchy.depth(level) for level in levels]]
    answers = torch.stack([scored[level][order] for level in levels], dim=1)
    known = truth >= 0
    for level, count in zip(levels, known.sum(dim=0).tolist(), strict=True):
        if count == 0:
            raise ValueError(f"no validation image with a label at {level!r} can be read; try `c2f-zoo data check`")
    right = (answers == truth) & known
    scores = [f"{level} {score:.3f}" for level, score in zip(levels, mean_of(right, known), strict=True)]
    accelerator.print(f"{shown(resolution)}: validation accuracy {'  '.join(scores)}", flush=True)
    return right.numpy(), known.numpy(), unreadable_in(scored)


def walk(
    ladder: Sequence[int | None],
    thresholds: Sequence[float],
    full: bool,
    measure_at: Callable[[int | None], Measured],
) -> Measured:
    """Measures rung by rung, until all is settled or, if `full`, to the end.

    Gives which answers are right, (rungs, images, levels), and what is the same at every rung: which labels are
    known, (images, levels), and which images are unreadable.
    """
    rungs: list[np.ndarray] = []
    for resolution in ladder:
        right, known, unreadable = measure_at(resolution)
        rungs.append(right)
        if not full and is_settled(mean_of(np.stack(rungs), known), thresholds):
            break
    return np.stack(rungs), known, unreadable


def mean_of(right: Any, known: Any) -> Any:
    """Accuracy (..., levels) over images (..., images, levels) whose label is known."""
    return right.sum(-2) / known.sum(-2)


def search(accuracy: np.ndarray, thresholds: Sequence[float]) -> tuple[int | None, ...]:
    """The protocol: for each level, fine to coarse, the rung that is its resolution.

    The finest level's is the first rung. Each further level's is the first rung, from the level before's on, at which
    the accuracy of the level before is under its threshold (Huo et al., SIGIR 2019, section 2).

    Args:
        accuracy: (rungs, levels), from the highest resolution down, from the finest level on.
        thresholds: of all levels but the coarsest.

    Returns:
        A rung for each level; None where a threshold is not reached, and for all coarser levels. A finest level that
        is under its threshold at the first rung already tells nothing about the others: they all have None.

    Examples:
        >>> accuracy = np.array([[0.95, 0.99, 1.00], [0.75, 0.90, 0.99], [0.30, 0.70, 0.95]])
        >>> search(accuracy, [0.8, 0.8])
        (0, 1, 2)
        >>> search(accuracy, [0.8, 0.6])
        (0, 1, None)
    """
    if starts_under(accuracy, thresholds):
        return (0, *[None] * len(thresholds))
    rungs: list[int | None] = [0]
    for column, threshold in enumerate(thresholds):
        start = rungs[-1]
        under = accuracy[start:, column] < threshold
        rungs.append(None if start is None or not under.any() else start + int(under.argmax()))
    return tuple(rungs)


def is_settled(accuracy: np.ndarray, thresholds: Sequence[float]) -> bool:
    """Whether no lower rung can change what the search gives."""
    return None not in search(accuracy, thresholds) or starts_under(accuracy, thresholds)


def starts_under(accuracy: np.ndarray, thresholds: Sequence[float]) -> bool:
    return len(thresholds) > 0 and bool(accuracy[0, 0] < thresholds[0])


def bootstrap(right: np.ndarray, known: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Accuracies of samples drawn with replacement from the images, each for all rungs and levels alike.

    Args:
        right: which answers are right, bool (rungs, images, levels).
        known: which labels are known, bool (images, levels).
        resamples: how many samples to draw.
        seed: seed of the draws.

    Returns:
        float64 (resamples, rungs, levels); nan where a sample has no image whose label is known.
    """
    rng = np.random.default_rng(seed)
    images, levels = known.shape
    hits = (right & known).swapaxes(0, 1).reshape(images, -1).astype(np.float64)
    samples = np.empty((resamples, len(right), levels))
    with np.errstate(invalid="ignore"):
        for sample in samples:
            counts = np.bincount(rng.integers(images, size=images), minlength=images).astype(np.float64)
            sample[:] = (counts @ hits).reshape(-1, levels) / (counts @ known)
    return samples


def shares_of(samples: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """The share of samples (n, rungs, levels) that choose each rung, or none, for each level: (levels, rungs + 1)."""
    _, rungs, levels = samples.shape
    counts = np.zeros((levels, rungs + 1))
    for accuracy in samples:
        for level, rung in enumerate(search(accuracy, thresholds)):
            counts[level, rungs if rung is None else rung] += 1
    return counts / len(samples)


def analyse(
    levels: tuple[str, ...],
    thresholds: tuple[float, ...],
    ladder: tuple[int | None, ...],
    side: int,
    right: np.ndarray,
    known: np.ndarray,
    options: Search,
) -> Curves:
    accuracy = mean_of(right, known)
    samples = bootstrap(right, known, options.bootstrap, options.seed)
    low, high = np.nanquantile(samples, (0.025, 0.975), axis=0)
    rungs, shares = search(accuracy, thresholds), shares_of(samples, thresholds)
    return Curves(levels, thresholds, ladder, side, accuracy, low, high, known.sum(axis=0), rungs, shares)


def findings(curves: Curves) -> list[str]:
    """What the curves say, a sentence for each level but the finest, and what else is to be known about them."""
    levels, thresholds, accuracy, rungs = curves.levels, curves.thresholds, curves.accuracy, curves.rungs
    first, last = shown(curves.ladder[0]), shown(curves.ladder[-1])
    if len(levels) == 1:
        return [f"{levels[0]} is the only level and is seen at {first}: there is nothing to find"]
    coarser = ", ".join(levels[1:])
    if starts_under(accuracy, thresholds):
        reason = f"{levels[0]} is under {thresholds[0]} at {first} already ({accuracy[0, 0]:.3f})"
        return [f"{reason}: no resolution of {coarser} follows. Find a better model, or lower its threshold."]
    sentences = []
    for above, (level, threshold, rung) in enumerate(zip(levels[1:], thresholds, rungs[1:], strict=True)):
        finer = levels[above]
        if rung is None:
            reason = f"{finer} stays at {threshold} or more down to {last} ({accuracy[-1, above]:.3f})"
            rest = ", ".join(levels[above + 1 :])
            sentences.append(f"{reason}: no resolution of {rest} follows. Lengthen the ladder, or raise its threshold.")
            break
        value, low, high = (table[rung, above] for table in (accuracy, curves.low, curves.high))
        figures = f"{value:.3f}, 95 % interval {low:.3f} to {high:.3f}"
        sentences.append(f"{level}: {shown(curves.ladder[rung])}, where {finer} falls under {threshold} ({figures})")
        if above > 0 and rung == rungs[above]:
            sentences[-1] += f"; that is {finer}'s own resolution: {finer} is under its threshold there already"
        sentences[-1] += f"; {choices(curves, above + 1)}"
    return sentences + rises(curves)


def choices(curves: Curves, level: int) -> str:
    """The share of resamples that choose each rung for a level."""
    names = [*(shown(resolution) for resolution in curves.ladder), "none of these"]
    chosen = [f"{name} {100 * share:.1f} %" for name, share in zip(names, curves.shares[level], strict=True) if share]
    return f"resamples choose {', '.join(chosen)}"


def rises(curves: Curves) -> list[str]:
    """A sentence for each level that is under its threshold and, at a lower rung, not."""
    sentences = []
    for column, (level, threshold) in enumerate(zip(curves.levels, curves.thresholds, strict=False)):
        under = curves.accuracy[:, column] < threshold
        again = [rung for rung in np.flatnonzero(~under) if under[:rung].any()]
        if again:
            places = ", ".join(shown(curves.ladder[rung]) for rung in again)
            first = shown(curves.ladder[int(under.argmax())])
            sentences.append(
                f"{level} is not monotone: under {threshold} at {first}, but not at {places}; the first rung counts"
            )
    return sentences


def trained_lower(model: C2FModel, mode: str) -> list[str]:
    """A warning about a model that was not trained on full-size images alone."""
    own = {level: model.config.resolutions.get(level) for level in reversed(model.levels)}
    if mode == "retrain" or not any(own.values()):
        return []
    trained = ", ".join(f"{level} at {shown(resolution)}" for level, resolution in own.items())
    return [f"The run was trained with {trained}: these are not the curves of a model trained at full size."]


def source_of(options: Options, images: int) -> list[str]:
    split = f"val_fraction {options.val_fraction}, seed {options.seed}"
    return [
        f"command: {shlex.join(['python', *sys.argv])}",
        f"date: {datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')}",
        f"data: {options.dataset} {options.dataset_options}, {images} validation images ({split})",
    ]


def write(folder: Path, curves: Curves, mode: str, notes: Sequence[str], source: Sequence[str]) -> None:
    """Writes all files; each under another name first, so that a kill leaves the old one or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["full" if resolution is None else resolution for resolution in curves.ladder]
    columns = ("mode", "resolution", "level", "accuracy", "low", "high", "images")
    measured = [
        dict(zip(columns, (mode, name, *cell), strict=True))
        for name, *row in zip(names, curves.accuracy, curves.low, curves.high, strict=True)
        for cell in zip(curves.levels, *row, curves.images, strict=True)
    ]
    chosen = [
        {"mode": mode, "level": level, "resolution": name, "share": share, "resolution_of_level": rung == place}
        for level, rung, shares in zip(curves.levels, curves.rungs, curves.shares, strict=True)
        for place, (name, share) in enumerate(zip([*names, "none"], shares, strict=True))
    ]
    write_csv(folder / "curve.csv", measured)
    write_csv(folder / "chosen.csv", chosen)
    atomically(folder / "curve.png", partial(plot, curves, mode))
    text = resolutions_text(curves, mode, notes, source)
    atomically(folder / "resolutions.yaml", lambda path: path.write_text(text, encoding="utf-8"))


def resolutions_text(curves: Curves, mode: str, notes: Sequence[str], source: Sequence[str]) -> str:
    """resolutions.yaml: what was found, under comments that say how; a level that has none is left out."""
    found = {
        level: curves.ladder[rung] for level, rung in zip(curves.levels, curves.rungs, strict=True) if rung is not None
    }
    missing = [level for level in curves.levels if level not in found]
    lines = []
    if missing:
        lines.append(f"INCOMPLETE: no resolution was found for {', '.join(missing)}; train.py would take full size")
    lines += [f"Found by recipes/find_resolutions.py, mode {mode}: {MODES[mode]}.", *source]
    limits = ", ".join(f"{level} {limit}" for level, limit in zip(curves.levels, curves.thresholds, strict=False))
    lines += [
        f"thresholds: {limits or 'none'}",
        f"measured: {', '.join(map(shown, curves.ladder))}; the images' median is {curves.side} px",
        *notes,
    ]
    comments = "".join(f"# {line}\n" for line in lines)
    return comments + yaml.safe_dump({"resolutions": found}, sort_keys=False)


def plot(curves: Curves, mode: str, path: Path) -> None:
    """Every level's accuracy against resolution, with its interval, the thresholds and the chosen rungs."""
    x = [curves.side if resolution is None else resolution for resolution in curves.ladder]
    figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for column, (level, rung) in enumerate(zip(curves.levels, curves.rungs, strict=True)):
        (line,) = ax.plot(x, curves.accuracy[:, column], marker=".", label=level)
        ax.fill_between(x, curves.low[:, column], curves.high[:, column], color=line.get_color(), alpha=0.15, lw=0)
        if rung is not None:
            label = f"{level}: {shown(curves.ladder[rung])}"
            ax.plot(x[rung], curves.accuracy[rung, column], "D", ms=9, mfc="none", color=line.get_color(), label=label)
    for threshold in sorted(set(curves.thresholds)):
        of = ", ".join(
            level for level, limit in zip(curves.levels, curves.thresholds, strict=False) if limit == threshold
        )
        ax.axhline(threshold, color="0.3", ls="--", lw=1, label=f"threshold {threshold} ({of})")
    ax.set_xscale("log")
    ticks = ["full\n" * (resolution is None) + str(side) for resolution, side in zip(curves.ladder, x, strict=True)]
    ax.set_xticks(x, ticks)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(ylim=(0, 1.02), xlabel="resolution in pixels", ylabel="validation accuracy")
    ax.set_title(f"{mode}: {MODES[mode]}", fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)


def print_table(curves: Curves, mode: str) -> None:
    title = f"{mode}: validation accuracy in %, with 95 % intervals"
    table = Table(title=title, caption="◂ the level's resolution")
    table.add_column("resolution", justify="right")
    for level in curves.levels:
        table.add_column(escape(level), justify="right")
    for rung, resolution in enumerate(curves.ladder):
        cells = []
        for column, chosen in enumerate(curves.rungs):
            value, low, high = (100 * figures[rung, column] for figures in (curves.accuracy, curves.low, curves.high))
            cells.append(f"{value:.1f} ({low:.1f} to {high:.1f}) {'◂' if rung == chosen else ' '}")
        table.add_row(shown(resolution), *cells)
    Console(width=max(Console().width, 100)).print(table)


def parse(args: list[str]) -> tuple[Search, Path | None, str]:
    """Reads a run's folder, or the YAML files of a recipe, and the options that go over them."""
    run = Path(args[0]) if args and not args[0].startswith("-") else None
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", action="append", default=[])
    first.add_argument("--full", nargs="?", const="true")  # a flag, where jsonargparse wants a value
    known, rest = first.parse_known_args(args[1:] if run else args)
    rest += ["--full", known.full] if known.full else []
    files = [argument for config in known.config for argument in ("--config", config)]
    if run is None:
        if not files and not {"-h", "--help"} & set(rest):
            raise ValueError("name a run's folder, or a recipe: --config FILE")
        return auto_cli(Search, args=[*files, *rest], as_positional=False), None, Path(known.config[0]).stem
    if files:
        raise ValueError(f"{run} has its recipe already; name a run or a recipe, not both")
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{run} is no run of train.py: it holds no config.yaml")
    own = ["--config", str(run / "config.yaml")]
    before, options = (auto_cli(Search, args=[*own, *more], as_positional=False) for more in ([], rest))
    for name in (spec.name for spec in fields(Options) if spec.name not in FREE_TO_CHANGE):
        if getattr(before, name) != getattr(options, name):
            raise ValueError(f"{name} belongs to the run, which was trained with {getattr(before, name)}")
    return options, run, ""


if __name__ == "__main__":
    try:
        complete = main(*parse(sys.argv[1:]))
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"find_resolutions.py: {complaint(error)}") from error
    raise SystemExit(0 if complete else 1)
