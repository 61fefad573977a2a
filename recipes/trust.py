"""Measure how far predictions can be trusted: rules, promised risks, and a photo at many resolutions.

    python recipes/trust.py '[runs/any_resolution, runs/in_turn]' --resolutions '[null, 80, 48, 32, 20]'

Each run of train.py needs a calibration (`c2f-zoo calibrate RUN`), whose temperatures, kind of probabilities and groups
of visible detail are taken as they are. Its dataset's test images are scored at every resolution of the grid, half of
the shrunk ones enlarged again. Written are `trust_rules.csv`: each rule with and without temperature;
`trust_promise.csv`: risks that are promised, and what is kept, over many splits of the test images into a calibration
and a test set; `trust_bins.csv`: the same at each true resolution. Beside them a figure for each.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: waiting threads sleep, they do not spin

import numpy as np
from jsonargparse import auto_cli

from c2f_zoo.data import LabelledImages, create_dataset
from c2f_zoo.data.derived import draw_views, shrink
from c2f_zoo.evaluation.mixed_resolutions import MixedScores, score_views
from c2f_zoo.evaluation.photo_plot import plot_predictions
from c2f_zoo.evaluation.promise import Kept, at_fixed, bin_errors, keep_accuracy, keep_promise
from c2f_zoo.evaluation.promise_plot import plot_promise
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.evaluation.trust_curves import Curve, Steps, curve, measures
from c2f_zoo.evaluation.trust_plots import plot_risk_coverage
from c2f_zoo.inference.calibration import Calibration, calibrated
from c2f_zoo.inference.nodes import NodeProbabilities
from c2f_zoo.inference.prediction import format_steps
from c2f_zoo.inference.predictor import Predictor
from c2f_zoo.inference.resolutions import rules_for
from c2f_zoo.inference.trust import OWN_THRESHOLDS, Chain, Rule
from c2f_zoo.io.files import write_csv
from c2f_zoo.model import C2FModel, load_model
from c2f_zoo.paths import expand
from c2f_zoo.training.launch import create_accelerator, recipe_errors
from c2f_zoo.training.options import TrainOptions, read_options

PHOTO_SIDES = (80, 40, 20)
Row = dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """A run's model, its calibration, and its scores of the test images at mixed resolutions."""

    name: str
    model: C2FModel
    calibration: Calibration
    scores: MixedScores

    def probabilities(self, temperatures: Mapping[str, float]) -> NodeProbabilities:
        """Return the probabilities of all classes."""
        tree = self.model.hierarchy.truncate(self.model.levels[-1])
        return calibrated(self.scores.own, tree, self.calibration.probabilities, temperatures, self.scores.size)


def main(
    runs: list[str],
    resolutions: list[int | None] | None = None,
    root: str | None = None,
    risks: list[float] | None = None,
    splits: int = 100,
    bootstraps: int = 200,
    seed: int = 0,
    output: str = "runs/trust",
) -> None:
    """Measure the trust of runs' models on their test images.

    Args:
        runs: folders of runs of train.py with a calibration; of the first one a photo is drawn.
        resolutions: the resolution grid; null is full size. Default: that of each run's calibration.
        root: the folder of the runs' dataset, if it is elsewhere now.
        risks: the promised risks; default: 0.1, 0.05 and 0.01.
        splits: number of splits into a calibration and a test set.
        bootstraps: number of bootstrap samples of the photos, for intervals of 95 %.
        seed: seed of the views, the splits and the samples.
        output: folder of the CSV files and figures.
    """
    folder, about = (
        expand(output),
        {"command": " ".join(["python recipes/trust.py", *sys.argv[1:]]), **describe_machine()},
    )
    folder.mkdir(parents=True, exist_ok=True)
    scored = [score(expand(run), resolutions, root, seed) for run in runs]
    rules, promises, bins = [], [], []
    draw_photo(scored[0], expand(runs[0]), root, folder)
    for one in scored:
        rules += [{**row, **about} for row in compare_rules(one, bootstraps, seed)]
        write_csv(folder / "trust_rules.csv", rules)
        for row, kept in check_promises(one, risks or [0.1, 0.05, 0.01], splits, seed):
            promises.append({**row, **about})
            bins += [{**row, **part, **about} for part in split_by_resolution(kept, one.scores)]
        write_csv(folder / "trust_promise.csv", promises)
        write_csv(folder / "trust_bins.csv", bins)
        p = one.probabilities(one.calibration.temperatures)
        curves: dict[str, Curve] = {
            name: curve(steps_of(rule, p, one.scores)) for name, rule in rules_for(one.model).items()
        }
        plot_risk_coverage(curves, folder / f"trust_{one.name}.png")
        plot_promise([row for row in bins if row["run"] == one.name], folder / f"trust_bins_{one.name}.png")
    print(f"trust_rules.csv, trust_promise.csv, trust_bins.csv and figures are in {folder}")


def open_test_set(run: Path, root: str | None) -> LabelledImages:
    """Open the test images of a run's dataset."""
    options = read_options(TrainOptions, [run / "config.yaml"])
    return create_dataset(options.dataset, "test", **{**options.dataset_options, **({"root": root} if root else {})})


def score(run: Path, resolutions: Sequence[int | None] | None, root: str | None, seed: int) -> Scored:
    """Score the test images of a run's dataset at every resolution."""
    model, dataset = load_model(run), open_test_set(run, root)
    if model.calibration is None:
        raise ValueError(f"{run} has no calibration; run `c2f-zoo calibrate {run}`")
    calibration = Calibration.from_dict(model.calibration)
    if resolutions is None:
        resolutions = [None if one == "full" else one for one in calibration.about["resolutions"]]
    views = draw_views(range(len(dataset)), resolutions, seed)
    levels = model.levels[-1:] if calibration.probabilities == "sum" else None
    scores = score_views(model, dataset, views, create_accelerator(), levels, batch_size=32)
    print(f"{run.name}: {len(views)} views of {len(dataset)} test images", flush=True)
    return Scored(run.name, model, calibration, scores.take(scores.labels >= 0))


def draw_photo(one: Scored, run: Path, root: str | None, folder: Path) -> None:
    """Write what is predicted of the first test image at several resolutions, as a figure and a CSV file."""
    photo, full = open_test_set(run, root).read(0), "full size"  # type: ignore[attr-defined]
    small = {f"{side} px": shrink(photo, side) for side in PHOTO_SIDES if side < min(photo.size)}
    images = {full: photo, **small, "40 px enlarged to 500": shrink(photo, 40, 500)}
    predictions = Predictor(one.model)(list(images.values()))
    plot_predictions(images, predictions, folder / f"trust_photo_{one.name}.png")
    rows = []
    for title, found in zip(images, predictions, strict=True):
        level, name, probability = found.trusted or ("nothing", "", 1.0)
        about = {
            "detail": round(found.provenance.detail or 0, 1),
            "threshold": round(found.provenance.threshold or 0, 4),
        }
        row = {"image": title, **about, "trusted_level": level, "trusted": name, "probability": round(probability, 4)}
        rows.append({**row, "guess": format_steps(found.guess)})
    write_csv(folder / "trust_photo.csv", rows)


def steps_of(rule: Rule, p: NodeProbabilities, scores: MixedScores) -> Steps:
    """Return a rule's choices at all thresholds."""
    return Steps.of(rule(p), p, scores.labels)


def compare_rules(one: Scored, bootstraps: int, seed: int) -> Iterator[Row]:
    """Yield hAURC x 1000, gain, AC and R@95C of each rule, with and without temperature, and their intervals.

    A bootstrap sample draws photos, with all their views, and is the same for every rule.
    """
    photos, of_photo = np.unique(one.scores.index, return_inverse=True)
    rng = np.random.default_rng(seed)
    samples = [
        np.bincount(rng.integers(len(photos), size=len(photos)), minlength=len(photos)) for _ in range(bootstraps)
    ]
    for temperatures in ({}, one.calibration.temperatures):
        p = one.probabilities(temperatures)
        for name, rule in rules_for(one.model).items():
            steps = steps_of(rule, p, one.scores)
            drawn = [measures(steps, sample[of_photo]) for sample in samples]
            row: Row = {"run": one.name, "rule": name, "temperature": bool(temperatures), "images": len(steps.labels)}
            for key, value in measures(steps).items():
                factor = 1000 if key == "haurc" else 1
                low, high = np.quantile([found[key] for found in drawn], [0.025, 0.975]) if drawn else (np.nan, np.nan)
                row |= {key: round(factor * value, 4)}
                row |= {f"{key}_low": round(factor * low, 4), f"{key}_high": round(factor * high, 4)}
            print({key: row[key] for key in ("run", "rule", "temperature", "haurc", "gain", "AC", "R@95C")}, flush=True)
            yield row


def check_promises(one: Scored, risks: Sequence[float], splits: int, seed: int) -> Iterator[tuple[Row, Kept]]:
    """Yield what is kept of promised risks: ours with and without groups, and the other rules.

    Rules with thresholds of their own promise nothing. Ours is calibrated to be as often right beside them.
    """
    p, scores, rules = one.probabilities(one.calibration.temperatures), one.scores, rules_for(one.model)
    groups, ours = one.calibration.group(scores.detail), one.calibration.rule

    def keep(chain: Chain, risk: float, groups: np.ndarray | None = None) -> Kept:
        return keep_promise(chain, p.nodes, scores.labels, scores.index, risk, groups, splits, seed)

    for risk in risks:
        for name, rule in rules.items():
            if name not in OWN_THRESHOLDS:
                yield describe(one.name, name, risk, "one", kept := keep(rule(p), risk=risk)), kept
        yield describe(one.name, ours, risk, "by detail", kept := keep(rules[ours](p), risk=risk, groups=groups)), kept
    for name, threshold in OWN_THRESHOLDS.items():
        fixed = at_fixed(rules[name](p), p.nodes, scores.labels, threshold)
        yield describe(one.name, name, None, "its own", fixed), fixed
        try:
            risk, equal = keep_accuracy(partial(keep, rules[ours](p), groups=groups), fixed.accuracy)
        except ValueError as error:  # the other rule is so seldom wrong
            print(f"{ours} is not compared with {name} at its accuracy of {fixed.accuracy:.4f}: {error}", flush=True)
            continue
        yield {**describe(one.name, ours, risk, "by detail", equal), "beside": name}, equal


def describe(run: str, rule: str, risk: float | None, thresholds: str, kept: Kept) -> Row:
    """Return a row of `trust_promise.csv`."""
    row: Row = {"run": run, "rule": rule, "thresholds": thresholds, "risk": "" if risk is None else round(risk, 4)}
    row |= {"accuracy": round(kept.accuracy, 4), "spread": round(kept.spread, 4), "coverage": round(kept.coverage, 4)}
    print(row, flush=True)
    return {**row, "beside": ""}


def split_by_resolution(kept: Kept, scores: MixedScores) -> Iterator[Row]:
    """Yield the accuracy and coverage at each true resolution; 0 is full size."""
    resolutions = np.unique(scores.resolution)
    bins = [scores.resolution == resolution for resolution in resolutions]
    accuracy, coverage = bin_errors(kept.of_image, bins), bin_errors(kept.coverage_of_image, bins)
    for resolution, (mean, error), (covered, _) in zip(resolutions, accuracy, coverage, strict=True):
        part = {"resolution": int(resolution), "accuracy": round(mean, 4), "standard_error": round(error, 4)}
        yield {**part, "coverage": round(covered, 4)}


if __name__ == "__main__":
    with recipe_errors("trust.py"):
        auto_cli(main)
