"""Calibrate a model on validation images at mixed resolutions."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table

import c2f_zoo
from c2f_zoo.data import LabelledImages
from c2f_zoo.data.derived import draw_views
from c2f_zoo.data.splits import train_and_val
from c2f_zoo.evaluation.labels import labels_in
from c2f_zoo.evaluation.mixed_resolutions import MixedScores, score_views
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.evaluation.report import write_json
from c2f_zoo.evaluation.resolution_search import check_grid
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.inference.calibration import (
    NEIGHBOURS,
    PROBABILITIES,
    Calibration,
    calibrate,
    calibrated,
    conformal_threshold,
    fit_temperature,
    group_edges,
    group_of,
    images_needed,
    smallest_thresholds,
    triples_of,
)
from c2f_zoo.inference.resolutions import own_resolutions
from c2f_zoo.inference.trust import RULES
from c2f_zoo.io.card import detail_groups
from c2f_zoo.io.weights import CALIBRATION_FILE, digest_weights
from c2f_zoo.metrics import CalibrationError
from c2f_zoo.model import C2FModel, load_model
from c2f_zoo.paths import expand
from c2f_zoo.training.launch import create_accelerator
from c2f_zoo.training.options import TrainOptions, read_options
from c2f_zoo.zoo.pretrained import renew_checksum

_logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"  # of a bundled model: the options of its run
CANDIDATES = ("climb", "darts")  # rules, of which the one that covers more is calibrated
RISKS = (0.2, 0.1, 0.05, 0.02, 0.01)  # thresholds are found for these, as far as there are images enough
FIT_FRACTION = 0.25  # of the images, for temperatures, groups, rule and probabilities
MAX_GROUPS = 24
MAX_PHOTOS = 2000  # more do not change a threshold that matters
BATCH_SIZE = 32


def calibrate_run(
    run: str, risk: float, resolutions: Sequence[int | None] | None = None, root: str | None = None, seed: int = 0
) -> Calibration:
    """Calibrate the model of a run on the run's validation images, and write `calibration.json` beside it.

    Args:
        run: folder of a finished run of `recipes/train.py`, or of a bundled model.
        risk: the promised risk by default, in (0, 1).
        resolutions: the resolution grid; default: `resolution_grid`.
        root: the folder of the run's dataset, if it is elsewhere now.
        seed: seed of the views, and of the images that temperatures are fitted on.

    Raises:
        FileNotFoundError: the folder is not a run's.
        ValueError: the run has no validation images, or too few for the risk.
    """
    folder = expand(run)
    configs = [file for file in (folder / "config.yaml", folder / RECIPE_FILE) if file.is_file()]
    if not configs:
        raise FileNotFoundError(f"{folder} has no config.yaml; pass the folder of a run of train.py")
    options, model = read_options(TrainOptions, configs[:1]), load_model(folder)
    given = {**options.dataset_options, **({"root": root} if root else {})}
    dataset, _, indices = train_and_val(options.dataset, options.val_fraction, options.seed, **given)
    if not indices:
        raise ValueError(f"{run} has no validation images (val_fraction 0); a calibration needs images not trained on")
    about = {"dataset": options.dataset, "split": "validation"}
    found = calibrate_model(model, dataset, indices, risk, resolutions, seed, about)
    write_json(folder / CALIBRATION_FILE, found.to_dict())
    renew_checksum(folder, CALIBRATION_FILE)
    return found


def calibrate_model(
    model: C2FModel,
    dataset: LabelledImages,
    indices: Sequence[int],
    risk: float,
    resolutions: Sequence[int | None] | None = None,
    seed: int = 0,
    about: dict[str, Any] | None = None,
) -> Calibration:
    """Calibrate a model on images that it was not trained on.

    Each image is scored at every resolution of the grid; of more than 2000 images, 2000 are drawn. A quarter of them
    serves temperatures, the groups of visible detail and the choice of rule and probabilities. For the others these are
    given, and they serve the thresholds of the risks that they are enough for. There are as many groups, up to 24, as
    leave three adjacent ones images enough for these risks.

    Args:
        model: the model.
        dataset: the dataset.
        indices: the images' indices in it.
        risk: the promised risk by default, in (0, 1).
        resolutions: the resolution grid; default: `resolution_grid`.
        seed: seed of the views, and of the quarter.
        about: further lines on where the images come from.

    Raises:
        ValueError: there are too few images for the risk; the message says how many are needed. Or a class of the
            dataset is not in the model's tree, or the grid is empty, does not decrease or has a resolution below 1.
    """
    if not 0 < risk < 1:
        raise ValueError(f"risk is {risk}; it must be a fraction between 0 and 1")
    grid = check_grid(resolution_grid(model) if resolutions is None else resolutions)
    order, fit_images = draw_photos(model, dataset, indices, risk, seed)
    views = draw_views(sorted(order.tolist()), grid, seed)
    scores = score_views(model, dataset, views, create_accelerator(), batch_size=BATCH_SIZE)
    is_fit = np.isin(scores.index, fit_images)
    fit, rest = scores.take(is_fit), scores.take(~is_fit)
    tree = model.hierarchy.truncate(model.levels[-1])
    temperatures = {
        level: fit_temperature(z, np.asarray(tree.to_parent(torch.tensor(fit.labels), level)))
        for level, z in fit.own.items()
    }
    rule, probabilities = choose_rule(fit, tree, temperatures, risk)
    if probabilities == "sum":
        temperatures = {tree.finest: temperatures[tree.finest]}
    risks = tuple(one for one in sorted({risk, *RISKS}, reverse=True) if images_needed(one) <= count_photos(rest, ()))
    edges = find_groups(fit.detail, rest, images_needed(risks[-1]))
    p = calibrated(rest.own, tree, probabilities, temperatures)
    thresholds, images, overall = calibrate(RULES[rule], p, rest.labels, rest.detail, risks, edges)
    about = {**(about or {}), "photos": len(order), "resolutions": [at or "full" for at in grid], "seed": seed}
    about |= {key: describe_machine()[key] for key in ("date", "device")} | {"c2f_zoo": c2f_zoo.__version__}
    reliability = measure_reliability(rest, tree, probabilities, temperatures)
    weights = digest_weights(model.state_dict())
    parts = (risk, risks, edges, thresholds, images, overall, weights, about, reliability)
    return Calibration(rule, probabilities, temperatures, *parts)


def draw_photos(
    model: C2FModel, dataset: LabelledImages, indices: Sequence[int], risk: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw at most `MAX_PHOTOS` images with a leaf label, and of these the images to fit on; say how many are left out.

    Raises:
        ValueError: there are too few for the risk.
    """
    level = model.levels[-1]
    labels = labels_in(model.hierarchy, dataset)[:, model.hierarchy.depth(level)].numpy()
    known = np.asarray([index for index in indices if labels[index] >= 0], dtype=np.int64)
    order = np.random.default_rng(seed).permutation(known)[:MAX_PHOTOS]
    if len(order) < len(indices):
        counts = len(order), len(indices), len(indices) - len(known), level, len(known) - len(order)
        _logger.warning("%d of %d images calibrate the model: %d have no label of %s, %d are more than needed", *counts)
    needed = next(n for n in itertools.count(2) if n - _fit_count(n) >= images_needed(risk) and _fit_count(n))
    if len(order) < needed:
        raise ValueError(
            f"a risk of {risk:g} needs {needed} or more validation images with a label of {level}; there are "
            f"{len(order)} of {len(indices)}"
        )
    return order, order[: _fit_count(len(order))]


def _fit_count(photos: int) -> int:
    return round(FIT_FRACTION * photos)


def count_photos(scores: MixedScores, edges: Sequence[float]) -> int:
    """Return the number of photos of those three adjacent groups of visible detail that have the fewest."""
    triples = triples_of(group_of(scores.detail, edges), len(edges) + 1)
    return min(len(np.unique(scores.index[chosen])) for chosen in triples)


def find_groups(detail: np.ndarray, scores: MixedScores, photos: int) -> tuple[float, ...]:
    """Return the bounds of as many groups of visible detail, each with about as many images, as have enough photos.

    Args:
        detail: the visible detail that the bounds are found on, in pixels (n,).
        scores: the images that must be enough.
        photos: smallest number of their photos in three adjacent groups.
    """
    candidates = (group_edges(detail, groups) for groups in range(MAX_GROUPS, NEIGHBOURS, -1))
    return next((edges for edges in candidates if count_photos(scores, edges) >= photos), ())


def resolution_grid(model: C2FModel, steps: int = 4) -> list[int | None]:
    """Return full size, and resolutions from the model's coarsest upwards at equal ratios.

    Args:
        model: the model. If all its levels have full size, the coarsest resolution is an eighth of the input.
        steps: the number of resolutions below full size, or fewer if they are equal after rounding.

    Examples:
        >>> resolution_grid(create_model("mlph_tiny_critters"))
        [None, 57, 34, 20, 12]
    """
    full = min(model.config.preprocessing.input_size[1:])
    own = [resolution for resolution in own_resolutions(model).values() if resolution is not None and resolution < full]
    coarsest = min(own, default=max(full // 8, 1))
    below = (round(full * (coarsest / full) ** (step / steps)) for step in range(1, steps + 1))
    return [None, *dict.fromkeys(resolution for resolution in below if resolution < full)]


def choose_rule(
    scores: MixedScores, tree: Hierarchy, temperatures: Mapping[str, float], risk: float
) -> tuple[str, str]:
    """Return the rule and the kind of probabilities with the greatest mean coverage at a risk.

    With too few images for that risk, it is the smallest risk that they suffice for. Rules that are wrong about an
    image at every threshold are not chosen: `darts`, where a wrong class has the probability 1.
    """
    kinds = PROBABILITIES if set(scores.own) == set(tree.levels) else PROBABILITIES[:1]
    risk, coverage = max(risk, 1 / (len(scores.labels) + 1)), {}
    for kind, rule in itertools.product(kinds, CANDIDATES):
        p = calibrated(scores.own, tree, kind, temperatures)
        chain = RULES[rule](p)
        values = smallest_thresholds(chain, p.nodes, scores.labels)
        if values.max() == np.inf:
            continue
        threshold = conformal_threshold(values, risk)
        coverage[rule, kind] = p.nodes.coverage[chain.choose(threshold)].mean()
    return max(coverage, key=lambda pair: coverage[pair])


def measure_reliability(
    scores: MixedScores, tree: Hierarchy, probabilities: str, temperatures: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Return each level's expected calibration error with and without the temperature, 15 bins of equal width."""
    kinds = {"ece": temperatures, "ece_before": {}}
    p = {key: calibrated(scores.own, tree, probabilities, given) for key, given in kinds.items()}
    found: dict[str, dict[str, float]] = {}
    for depth, level in enumerate(tree.levels):
        labels = tree.to_parent(torch.tensor(scores.labels), level)
        found[level] = {}
        for key in kinds:
            error = CalibrationError(tree.truncate(level))
            error.update(torch.tensor(p[key].levels[depth]).log(), labels)
            found[level][key] = round(error.compute().item(), 4)
    return found


def calibration_tables(calibration: Calibration) -> tuple[Table, Table]:
    """Tabulate the thresholds of each group of visible detail, and each level's temperature and calibration error."""
    kind = {"sum": "sums over leaf classes", "levels": "the heads of the levels"}[calibration.probabilities]
    thresholds = Table(title=f"Thresholds of {calibration.rule}, probabilities: {kind}")
    for column in ("visible detail", "images", *(f"risk {100 * risk:g} %" for risk in calibration.risks)):
        thresholds.add_column(column, justify="left" if column == "visible detail" else "right")
    parts = zip(detail_groups(calibration.edges), calibration.images, calibration.thresholds, strict=True)
    for name, images, row in [*parts, ("all", sum(calibration.images), calibration.overall)]:
        thresholds.add_row(name, str(images), *(f"{threshold:.4f}" for threshold in row))
    errors = Table(title="Expected calibration error in %")
    for column in ("level", "temperature", "without", "with temperature"):
        errors.add_column(column, justify="left" if column == "level" else "right")
    for level, error in calibration.reliability.items():
        temperature = calibration.temperatures.get(level, 1.0)
        percent = (f"{100 * error[key]:.1f}" for key in ("ece_before", "ece"))
        errors.add_row(escape(level), f"{temperature:.2f}", *percent)
    return thresholds, errors
