"""The resolution search: curves by hand, the loop of the paper, exact binomials, and real runs."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import find_resolutions as find
import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import SMALL
from in_process import run_in_process
from PIL import Image
from two_processes import run_in_two_processes

from c2f_zoo import create_dataset, create_model
from c2f_zoo.config import Preprocessing
from c2f_zoo.data import create_transform, labels_of, train_and_val
from c2f_zoo.data.image_sizes import median_side
from c2f_zoo.evaluation.resolution_curves import Curves, analyze, bootstrap, chosen_fractions
from c2f_zoo.evaluation.resolution_report import findings, resolutions_yaml, warn_trained_below_full_size
from c2f_zoo.evaluation.resolution_search import (
    Measurement,
    check_grid,
    default_grid,
    fill_thresholds,
    mean_accuracy,
    measure,
    search,
    sweep,
)

ROOT = Path(__file__).parents[1]

RECIPE = str(ROOT / "recipes" / "find_resolutions.py")
LEVELS = ("species", "genus", "family", "order", "class")

SPECIES, GENUS, FAMILY = (0.95, 0.85, 0.70, 0.40, 0.10), (0.98, 0.95, 0.82, 0.79, 0.30), (1, 1, 1, 0.9, 0.5)
HAND = {
    "as in the paper": ([SPECIES, GENUS, FAMILY], [0.8, 0.8], (0, 2, 3)),
    "equal to the threshold is not below it": ([(0.9, 0.8, 0.7), (1, 1, 1)], [0.8], (0, 2)),
    "species is below at full size": ([(0.7, 0.6), (0.9, 0.5), (1, 1)], [0.8, 0.8], (0, None, None)),
    "species never falls": ([(0.9, 0.85), (0.5, 0.5), (1, 1)], [0.8, 0.8], (0, None, None)),
    "genus never falls": ([SPECIES, GENUS, FAMILY], [0.8, 0.2], (0, 2, None)),
    "genus has fallen where species falls": ([(0.9, 0.7, 0.5), (0.9, 0.75, 0.5), (1, 1, 1)], [0.8, 0.8], (0, 1, 1)),
    "genus counts from where species falls": ([(0.9, 0.85, 0.7), (0.9, 0.7, 0.9), (1, 1, 1)], [0.8, 0.8], (0, 2, None)),
    "the first point below counts": ([(0.9, 0.7, 0.9, 0.6), (1, 1, 1, 1)], [0.8], (0, 1)),
    "genus is below at full size": ([(0.9, 0.7), (0.5, 0.5), (1, 1)], [0.8, 0.8], (0, 1, 1)),
    "a threshold for each": ([SPECIES, GENUS, FAMILY], [0.9, 0.5], (0, 1, 4)),
    "two levels": ([SPECIES, FAMILY], [0.8], (0, 2)),
    "one level": ([SPECIES], [], (0,)),
    "five levels": ([SPECIES, GENUS, FAMILY, FAMILY, FAMILY], [0.8] * 4, (0, 2, 3, 4, 4)),
}


@pytest.mark.parametrize(("columns", "thresholds", "expected"), HAND.values(), ids=HAND)
def test_curves_by_hand(
    columns: list[tuple[float, ...]], thresholds: list[float], expected: tuple[int | None, ...]
) -> None:
    assert search(np.array(columns).T, thresholds) == expected


def lower_step_by_step(accuracy: np.ndarray, thresholds: Sequence[float]) -> tuple[int | None, ...]:
    """Search as the paper describes: lower the resolution; below the threshold, switch to the next coarser level."""
    found: list[int | None] = [0]
    target = 0
    for point, row in enumerate(accuracy):
        while target < len(thresholds) and row[target] < thresholds[target]:
            if point == 0 and target == 0:
                return (0, *[None] * len(thresholds))
            found.append(point)
            target += 1
    return (*found, *[None] * (len(thresholds) - target))


@pytest.mark.parametrize("seed", range(3))
def test_the_search_equals_the_loop_of_the_paper(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(300):
        points, levels = rng.integers(1, 9), rng.integers(1, 6)
        accuracy = rng.random((points, levels))
        if rng.random() < 0.5:  # nearly monotone, like curves of a real model
            accuracy = -np.sort(-accuracy, axis=0)
        thresholds = rng.uniform(0.1, 0.9, levels - 1)
        assert search(accuracy, thresholds) == lower_step_by_step(accuracy, thresholds)


def measurements_of(accuracy: np.ndarray, images: int = 1000) -> list[Measurement]:
    """Return measurements with given accuracies (grid points, levels)."""
    correct = np.arange(images)[:, None] < np.round(images * np.asarray(accuracy))[:, None]
    return [Measurement(at_point, np.ones_like(at_point), []) for at_point in correct]


def measured_accuracy(accuracy: np.ndarray, thresholds: Sequence[float], full: bool) -> np.ndarray:
    """Return the accuracies that a sweep measures."""
    grid = range(len(accuracy), 0, -1)
    at = dict(zip(grid, measurements_of(accuracy), strict=True))
    found = sweep(grid, thresholds, full, lambda resolution: at[resolution])
    return np.stack([mean_accuracy(measurement.correct, measurement.known) for measurement in found])


@pytest.mark.parametrize(("columns", "thresholds", "expected"), HAND.values(), ids=HAND)
def test_stopping_early_finds_the_same_resolutions(
    columns: list[tuple[float, ...]], thresholds: list[float], expected: tuple[int | None, ...]
) -> None:
    accuracy = np.array(columns, dtype=float).T
    whole, early = (measured_accuracy(accuracy, thresholds, full) for full in (True, False))
    assert whole == pytest.approx(accuracy)
    assert search(early, thresholds) == expected
    if None not in expected:  # no unnecessary grid point is measured
        assert len(early) == 1 + max(point for point in expected if point is not None)
    if accuracy[0, 0] < 0.8:
        assert len(early) == 1


def test_resampled_accuracies_are_means_over_drawn_images() -> None:
    rng = np.random.default_rng(1)
    correct, known = rng.random((3, 50, 2)) < 0.7, rng.random((50, 2)) < 0.8
    samples = bootstrap(correct, known, resamples=20, seed=7)
    draws = np.random.default_rng(7)
    for sample in samples:
        drawn = draws.integers(50, size=50)
        for point in range(3):
            for level in range(2):
                predictions = [correct[point, image, level] for image in drawn if known[image, level]]
                assert sample[point, level] == pytest.approx(sum(predictions) / len(predictions))


def test_intervals_equal_binomial_quantiles() -> None:
    images, hits, resamples = 60, 48, 4000
    correct = (np.arange(images) < hits)[None, :, None]
    samples = bootstrap(correct, np.ones((images, 1), dtype=bool), resamples, seed=0)[:, 0, 0]
    p = hits / images
    exact = [math.comb(images, k) * p**k * (1 - p) ** (images - k) for k in range(images + 1)]
    counts = np.bincount(np.round(samples * images).astype(int), minlength=images + 1) / resamples
    for k, expected in enumerate(exact):
        assert abs(counts[k] - expected) < 4.5 * math.sqrt(expected * (1 - expected) / resamples) + 1e-3
    ends = np.searchsorted(np.cumsum(exact), (0.025, 0.975))
    assert np.quantile(samples, (0.025, 0.975)) * images == pytest.approx(ends, abs=1)


def test_fractions_of_chosen_grid_points_equal_binomial_probabilities() -> None:
    # Species: all correct at full size, 48 of 60 at the next grid point, none at the last. The genus has the second
    # point where a resample has fewer than 48 correct.
    places = np.arange(60)
    correct = np.stack([places < 60, places < 48, places < 0])[:, :, None].repeat(2, axis=2)
    samples = bootstrap(correct, np.ones((60, 2), dtype=bool), 4000, seed=3)
    fractions = chosen_fractions(samples, [0.8])
    less = sum(math.comb(60, k) * 0.8**k * 0.2 ** (60 - k) for k in range(48))
    assert fractions[0] == pytest.approx([1, 0, 0, 0])
    assert fractions[1] == pytest.approx([0, less, 1 - less, 0], abs=4 * math.sqrt(less * (1 - less) / 4000))


def test_grid_points_and_levels_are_resampled_together() -> None:
    # The same images are correct at both lower grid points and at both levels: a resample that does not choose the
    # first of them does not choose the second either, and family and genus have the same resolution.
    places = np.arange(60)
    correct = np.stack([places < 60, places < 48, places < 48])[:, :, None].repeat(3, axis=2)
    samples = bootstrap(correct, np.ones((60, 3), dtype=bool), 1000, seed=0)
    assert np.array_equal(samples[:, 1], samples[:, 2])
    assert np.array_equal(samples[:, :, 0], samples[:, :, 1])
    fractions = chosen_fractions(samples, [0.8, 0.8])
    assert fractions[1, 2] == 0 and 0.2 < fractions[1, 1] < 0.8
    assert np.array_equal(fractions[1], fractions[2])


def test_the_default_grid_goes_from_full_size_to_8_pixels() -> None:
    assert default_grid(96) == [None, 67, 47, 33, 23, 16, 11, 8]
    for side in (11, 32, 224, 227, 500, 4000):
        full, *pixels = default_grid(side)
        assert full is None and pixels[-1] == 8
        for above, below in zip([side, *pixels], pixels, strict=False):
            assert 0.8 * math.sqrt(2) < above / below < 1.25 * math.sqrt(2)
    assert default_grid(8) == default_grid(5) == [None]


@pytest.mark.parametrize("grid", [[], [None, None], [96, None], [48, 96], [48, 48], [32, 0]])
def test_a_grid_that_does_not_decrease_is_an_error(grid: list[int | None]) -> None:
    with pytest.raises(ValueError, match=r"invalid resolution grid .*; it must decrease"):
        check_grid(grid)


def test_thresholds_are_for_all_levels_but_the_coarsest() -> None:
    levels = ("family", "genus", "species")
    assert fill_thresholds({"genus": 0.7}, levels) == (0.8, 0.7)
    assert fill_thresholds({}, ("species",)) == ()
    for given, message in (
        ({"specie": 0.5}, "unknown level in thresholds: 'specie'; did you mean 'species'"),
        ({"family": 0.5}, "family is the coarsest level"),
        ({"genus": 80}, r"the threshold of genus is 80; it must be in \(0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            fill_thresholds(given, levels)


class Sized:
    """Black images of given sizes."""

    def __init__(self, *sizes: tuple[int, int]) -> None:
        self.sizes = sizes

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", self.sizes[index]), 0


def test_full_size_is_the_median_size_of_the_images() -> None:
    dataset = Sized((50, 40), (90, 30), (100, 400), (1000, 1000))
    assert median_side(dataset, [0, 1, 2], Preprocessing()) == 40
    by_area = Preprocessing(resolution_of="area")
    assert median_side(dataset, [0, 1, 2], by_area) == 52  # sqrt(90 * 30) = 51.96


def curves_of(columns: Sequence[Sequence[float]], thresholds: Sequence[float], grid: Sequence[int | None]) -> Curves:
    measurements = measurements_of(np.array(columns, dtype=float).T)
    return analyze(LEVELS[: len(columns)], thresholds, grid, 96, measurements, resamples=200, seed=0)


@pytest.mark.parametrize(
    ("case", "grid", "sentences"),
    [
        (
            "as in the paper",
            [None, 64, 48, 32, 16],
            [
                "genus: 48 px, where species falls below 0.8 (0.700, 95 % interval 0.6",
                "family: 32 px, where genus falls below 0.8 (0.790, 95 % interval 0.7",
            ],
        ),
        (
            "species is below at full size",
            [None, 48],
            [
                "species is below 0.8 at full size already (0.700): no resolution of genus, family follows. Train a "
                "better model, or lower the threshold, for example to nine tenths of the accuracy: "
                "--thresholds.species 0.63"
            ],
        ),
        (
            "species never falls",
            [None, 48],
            ["species stays at 0.8 or more down to 48 px (0.850): no resolution of genus, family follows."],
        ),
        (
            "genus never falls",
            [None, 64, 48, 32, 16],
            ["genus: 48 px", "genus stays at 0.2 or more down to 16 px (0.300): no resolution of family follows."],
        ),
        (
            "genus has fallen where species falls",
            [None, 64, 48],
            ["genus: 64 px", "that is genus's own resolution: genus is below its threshold there already"],
        ),
        (
            "the first point below counts",
            [None, 64, 48, 32],
            [
                "genus: 64 px",
                "species is not monotone: below 0.8 at 64 px, but not at 48 px; the first grid point below the "
                "threshold counts",
            ],
        ),
        ("one level", [None, 64, 48, 32, 16], ["species is the only level and is seen at full size"]),
    ],
)
def test_findings_are_described(case: str, grid: list[int | None], sentences: list[str]) -> None:
    columns, thresholds, _ = HAND[case]
    found = findings(curves_of(columns, thresholds, grid))
    assert len(found) == len(sentences)
    for line, expected in zip(found, sentences, strict=True):
        assert expected in line


def test_a_complete_result_is_a_file_for_train() -> None:
    columns, thresholds, _ = HAND["as in the paper"]
    curves = curves_of(columns, thresholds, [None, 64, 48, 32, 16])
    text = resolutions_yaml(curves, "mode retrain", ["command: c", "date: d", "data: e", *findings(curves)])
    assert yaml.safe_load(text) == {"resolutions": {"species": None, "genus": 48, "family": 32}}
    assert "INCOMPLETE" not in text
    for part in (
        "mode retrain",
        "species 0.8, genus 0.8",
        "# command: c",
        "# date: d",
        "# data: e",
        "genus: 48 px, where",
    ):
        assert part in text


def test_the_first_line_lists_levels_without_a_resolution() -> None:
    columns, thresholds, _ = HAND["genus never falls"]
    curves = curves_of(columns, thresholds, [None, 64, 48, 32, 16])
    text = resolutions_yaml(curves, "mode test_only", findings(curves))
    assert text.startswith("# INCOMPLETE: no resolution was found for family")
    assert yaml.safe_load(text) == {"resolutions": {"species": None, "genus": 48}}
    assert "genus stays at 0.2 or more" in text


@pytest.mark.slow
def test_a_run_at_several_resolutions_gives_a_warning() -> None:
    model = create_model("mlph", hierarchy="critters", resolutions={"genus": 32}, **SMALL)  # type: ignore[arg-type]
    (warning,) = warn_trained_below_full_size(model)
    assert "species at full size, genus at 32 px, family at full size" in warning
    assert "not the curves of a model trained at full size" in warning
    full = create_model("mlph", hierarchy="critters", resolutions={"genus": None}, **SMALL)  # type: ignore[arg-type]
    assert warn_trained_below_full_size(full) == []


class Holed:
    """Critters: image 1 is unreadable, and the species of image 2 is unknown."""

    def __init__(self) -> None:
        self.critters = create_dataset("critters", "train", per_class=1)
        self.hierarchy = self.critters.hierarchy
        self.labels = labels_of(self.critters)
        self.labels[2, 2] = -1
        self.targets = self.labels[:, 2].tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index == 1:
            raise OSError("there is a hole in it")
        return self.critters[index][0], self.targets[index]


def test_unreadable_and_unlabelled_images_do_not_count() -> None:
    model = create_model("mlph", hierarchy="critters", **SMALL)  # type: ignore[arg-type]
    for parameter in model.head.parameters():  # otherwise it predicts one class for all images
        torch.nn.init.normal_(parameter)
    dataset, indices, accelerator = Holed(), [30, 0, 1, 2, 14, 3], Accelerator(cpu=True)
    found = measure(model, dataset, indices, 24, batch_size=4, on_error="skip", accelerator=accelerator)
    assert found.unreadable == [1]
    assert found.known.tolist() == [[True] * 3, [False] * 3, [False, True, True], *[[True] * 3] * 3]
    transform = create_transform(model.eval().config.preprocessing, 24, train=False)
    for row, index in zip(found.correct, sorted(indices), strict=True):
        with torch.no_grad():
            logits = model(transform(dataset.critters[index][0])[None])
        path = [int(logits[level].argmax()) for level in ("species", "genus", "family")]
        labels = dataset.labels[index].flip(0).tolist()
        assert row.tolist() == [
            index != 1 and predicted == label for predicted, label in zip(path, labels, strict=True)
        ]


def curve_in(folder: Path) -> list[dict[str, str]]:
    with open(folder / "curve.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


RETRAIN = ["--config", "recipe.yaml", "--grid", "[null, 12]", "--full", "--bootstrap", "50"]


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run a search that trains at each of two grid points; return its folder and its output."""
    folder = tmp_path_factory.mktemp("retrain")
    recipe = yaml.safe_load((ROOT / "recipes" / "configs" / "smoke.yaml").read_text())
    recipe |= {"stages": [{"epochs": 1, "lr": 0.5}], "dataset_options": {"per_class": 2}, "val_fraction": 0.5}
    recipe["model_options"] |= {"input_size": 32}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    # Nothing is learned in one step: the species is below its threshold at full size.
    code, printed, errors = run_in_process(RECIPE, RETRAIN, folder)
    assert code == 1, errors
    return folder, printed + errors


@pytest.mark.slow
def test_retrain_trains_every_level_at_each_grid_point(retrained: tuple[Path, str]) -> None:
    folder, printed = retrained
    assert "mode retrain" in printed and "species is below 0.8 at full size already" in printed
    output = folder / "runs" / "recipe-resolutions"
    assert {path.name for path in output.iterdir()} == {
        "chosen.csv",
        "curve.csv",
        "curve.png",
        "resolutions.yaml",
        "grid",
    }
    for name, resolution in (("full", None), ("12px", 12)):
        model = create_model(f"local-dir:{output / 'grid' / name}")
        assert dict(model.config.resolutions) == dict.fromkeys(("species", "genus", "family"), resolution)
        assert not (output / "grid" / name / "test.csv").exists()
    text = (output / "resolutions.yaml").read_text()
    assert text.startswith("# INCOMPLETE") and "mode retrain" in text
    assert yaml.safe_load(text) == {"resolutions": {"species": None}}
    with Image.open(output / "curve.png") as image:
        assert min(image.size) > 300


@pytest.mark.slow
def test_the_curve_is_the_fraction_of_correct_predictions(retrained: tuple[Path, str]) -> None:
    output = retrained[0] / "runs" / "recipe-resolutions"
    rows = curve_in(output)
    assert [(row["resolution"], row["level"]) for row in rows] == [
        (resolution, level) for resolution in ("full", "12") for level in ("species", "genus", "family")
    ]
    dataset, _, val_indices = train_and_val("critters", 0.5, 0, per_class=2)
    for row in rows:
        assert (row["mode"], row["images"]) == ("retrain", "36")
        assert float(row["low"]) <= float(row["accuracy"]) <= float(row["high"])
        resolution = None if row["resolution"] == "full" else int(row["resolution"])
        folder = "full" if resolution is None else f"{resolution}px"
        model = create_model(f"local-dir:{output / 'grid' / folder}").eval()
        transform = create_transform(model.config.preprocessing, resolution, train=False)
        correct = 0
        for index in val_indices:
            image, label = dataset[index]
            with torch.no_grad():
                predicted = int(model(transform(image)[None])[row["level"]].argmax())
            correct += predicted == int(dataset.hierarchy.to_parent(torch.tensor(label), row["level"]))
        assert float(row["accuracy"]) == pytest.approx(correct / 36)


@pytest.mark.slow
def test_a_finished_grid_point_is_not_trained_again(
    retrained: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(retrained[0], tmp_path / "again")
    monkeypatch.chdir(tmp_path / "again")
    output = Path("runs", "recipe-resolutions")
    before = curve_in(output)
    shutil.rmtree(output / "grid" / "12px")
    assert not find.main(*find.parse(RETRAIN))
    printed = capsys.readouterr().out
    assert printed.count(", after 1 epochs") == 1
    assert printed.count("stage 1, epoch 1:") == 1, "the grid point that was missing"
    assert curve_in(output) == before
    with pytest.raises(ValueError, match="was started with other options: momentum"):
        find.main(*find.parse([*RETRAIN, "--momentum", "0.5"]))


@pytest.mark.slow
def test_a_run_is_tested_at_each_grid_point_by_two_processes(retrained: tuple[Path, str]) -> None:
    model = retrained[0] / "runs" / "recipe-resolutions" / "grid" / "full"
    scores = {row["level"]: float(row["accuracy"]) for row in curve_in(model.parents[1]) if row["resolution"] == "full"}
    # The species stays above its threshold; the genus is below its own at every grid point.
    options = [
        "--thresholds",
        f"{{species: {max(scores['species'], 0.001)}, genus: 1}}",
        "--grid",
        "[null, 12, 2]",
    ]
    one = find.parse([str(model), *options, "--bootstrap", "50", "--full"])
    complete = find.main(*one)
    alone = curve_in(model / "find_resolutions")
    code, printed = run_in_two_processes(RECIPE, [str(model), *options, "--output", "two", "--full"], model)
    assert code == (0 if complete else 1), printed[-3000:]
    together = curve_in(model / "two")
    assert "mode test_only" in printed and "trained with" not in printed
    for row, other in zip(together, alone, strict=True):
        for key in ("mode", "resolution", "level", "accuracy", "images"):
            assert row[key] == other[key]
    assert {row["level"]: float(row["accuracy"]) for row in alone[:3]} == scores, "the same model"

    accuracy = np.array([float(row["accuracy"]) for row in alone]).reshape(3, 3)
    expected = lower_step_by_step(accuracy, [max(scores["species"], 0.001), 1])
    found = yaml.safe_load((model / "find_resolutions" / "resolutions.yaml").read_text())["resolutions"]
    grid = [None, 12, 2]
    levels = ("species", "genus", "family")
    assert found == {level: grid[point] for level, point in zip(levels, expected, strict=True) if point is not None}
    assert complete == (None not in expected)


@pytest.mark.slow
def test_the_test_images_are_never_opened(cub_folder: Path, tmp_path: Path) -> None:
    is_train = dict(line.split() for line in (cub_folder / "train_test_split.txt").read_text().splitlines())
    for line in (cub_folder / "images.txt").read_text().splitlines():
        number, name = line.split()
        if is_train[number] == "0":
            (cub_folder / "images" / name).write_text("no image")
    recipe = {
        "dataset": "cub",
        "dataset_options": {"root": str(cub_folder)},
        "model": "mlph",
        "model_options": {"backbone": "test_convnext", "input_size": 64, "pooling_options": {"dim": 8}},
        "resolutions": {},
        "stages": [{"epochs": 1, "lr": 0.1}],
        "batch_size": 4,
        "val_fraction": 0.5,
    }
    (tmp_path / "birds.yaml").write_text(yaml.safe_dump(recipe))
    output = tmp_path / "found"
    options = ["--config", str(tmp_path / "birds.yaml"), "--output", str(output), "--bootstrap", "10"]
    find.main(*find.parse([*options, "--grid", "[null, 16]", "--full"]))
    rows = curve_in(output)
    assert len(rows) == 6 and {row["images"] for row in rows} == {"4"}
    find.main(*find.parse([str(output / "grid" / "16px"), "--bootstrap", "10", "--full"]))
    tested = curve_in(output / "grid" / "16px" / "find_resolutions")
    assert [row["resolution"] for row in tested[::3]] == ["full", *map(str, default_grid(40)[1:])]
    text = (output / "grid" / "16px" / "find_resolutions" / "resolutions.yaml").read_text()
    assert "The run was trained with species at 16 px, genus at 16 px, family at 16 px" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name a run's folder, or a recipe"),
        (["RUN", "--config", "other.yaml"], "has its own recipe"),
        (["RUN", "--seed", "3"], "seed cannot be changed: the run was trained with 0"),
        (["RUN", "--val_fraction=0.2"], "val_fraction cannot be changed: the run was trained with 0.5"),
        (["nowhere"], "nowhere is not a run of train.py: it has no config.yaml"),
    ],
)
def test_contradictory_arguments_are_errors(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("RUN").mkdir()
    recipe = yaml.safe_load((ROOT / "recipes" / "configs" / "smoke.yaml").read_text()) | {"val_fraction": 0.5}
    Path("RUN", "config.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find.parse(options)


def test_full_is_a_flag_in_any_position(tmp_path: Path) -> None:
    recipe = ["--config", str(ROOT / "recipes" / "configs" / "smoke.yaml")]
    for options, full in (
        ([*recipe], False),
        ([*recipe, "--full"], True),
        (["--full", *recipe], True),
        ([*recipe, "--full", "--bootstrap", "10"], True),
        ([*recipe, "--full", "false"], False),
    ):
        parsed, folder, name = find.parse(options)
        assert (parsed.full, folder, name) == (full, None, "smoke")


def test_missing_validation_images_are_an_error(tmp_path: Path) -> None:
    options = ["--config", str(ROOT / "recipes" / "configs" / "smoke.yaml"), "--val_fraction", "0"]
    with pytest.raises(ValueError, match="there are no validation images to search on"):
        find.main(*find.parse([*options, "--output", str(tmp_path / "found")]))
    assert not (tmp_path / "found").exists()
