"""The search for resolutions: against curves worked out by hand, the paper's loop, exact binomials, and real runs."""

from __future__ import annotations

import csv
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import find_resolutions as find
import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import SMALL
from PIL import Image

from c2f_zoo import create_dataset, create_model
from c2f_zoo.config import Preprocessing
from c2f_zoo.data import create_transform, labels_of, train_and_val

ROOT = Path(__file__).parents[1]

RECIPE = str(ROOT / "recipes" / "find_resolutions.py")
TWO_PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
LEVELS = ("species", "genus", "family", "order", "class")

SPECIES, GENUS, FAMILY = (0.95, 0.85, 0.70, 0.40, 0.10), (0.98, 0.95, 0.82, 0.79, 0.30), (1, 1, 1, 0.9, 0.5)
HAND = {
    "as in the paper": ([SPECIES, GENUS, FAMILY], [0.8, 0.8], (0, 2, 3)),
    "equal to the threshold is not under it": ([(0.9, 0.8, 0.7), (1, 1, 1)], [0.8], (0, 2)),
    "the finest is under at full size": ([(0.7, 0.6), (0.9, 0.5), (1, 1)], [0.8, 0.8], (0, None, None)),
    "species never falls": ([(0.9, 0.85), (0.5, 0.5), (1, 1)], [0.8, 0.8], (0, None, None)),
    "genus never falls": ([SPECIES, GENUS, FAMILY], [0.8, 0.2], (0, 2, None)),
    "genus has fallen where species falls": ([(0.9, 0.7, 0.5), (0.9, 0.75, 0.5), (1, 1, 1)], [0.8, 0.8], (0, 1, 1)),
    "genus counts from where species falls": ([(0.9, 0.85, 0.7), (0.9, 0.7, 0.9), (1, 1, 1)], [0.8, 0.8], (0, 2, None)),
    "the first rung under counts": ([(0.9, 0.7, 0.9, 0.6), (1, 1, 1, 1)], [0.8], (0, 1)),
    "genus under at full size": ([(0.9, 0.7), (0.5, 0.5), (1, 1)], [0.8, 0.8], (0, 1, 1)),
    "a threshold for each": ([SPECIES, GENUS, FAMILY], [0.9, 0.5], (0, 1, 4)),
    "two levels": ([SPECIES, FAMILY], [0.8], (0, 2)),
    "one level": ([SPECIES], [], (0,)),
    "five levels": ([SPECIES, GENUS, FAMILY, FAMILY, FAMILY], [0.8] * 4, (0, 2, 3, 4, 4)),
}


@pytest.mark.parametrize(("columns", "thresholds", "expected"), HAND.values(), ids=HAND)
def test_curves_worked_out_by_hand(
    columns: list[tuple[float, ...]], thresholds: list[float], expected: tuple[int | None, ...]
) -> None:
    assert find.search(np.array(columns).T, thresholds) == expected


def lower_step_by_step(accuracy: np.ndarray, thresholds: Sequence[float]) -> tuple[int | None, ...]:
    """The protocol in the paper's words: lower the resolution; when the target falls, switch to the next coarser."""
    found: list[int | None] = [0]
    target = 0
    for rung, row in enumerate(accuracy):
        while target < len(thresholds) and row[target] < thresholds[target]:
            if rung == 0 and target == 0:
                return (0, *[None] * len(thresholds))
            found.append(rung)
            target += 1
    return (*found, *[None] * (len(thresholds) - target))


@pytest.mark.parametrize("seed", range(3))
def test_the_search_is_the_papers_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(300):
        rungs, levels = rng.integers(1, 9), rng.integers(1, 6)
        accuracy = rng.random((rungs, levels))
        if rng.random() < 0.5:  # as curves of a real model are, nearly
            accuracy = -np.sort(-accuracy, axis=0)
        thresholds = rng.uniform(0.1, 0.9, levels - 1)
        assert find.search(accuracy, thresholds) == lower_step_by_step(accuracy, thresholds)


def images_right(accuracy: np.ndarray, images: int = 1000) -> np.ndarray:
    """Answers (rungs, images, levels) of which a share is right."""
    places = np.arange(images)[:, None]
    return places < np.round(images * np.asarray(accuracy))[:, None]


def walked(accuracy: np.ndarray, thresholds: Sequence[float], full: bool) -> np.ndarray:
    """The accuracies that the walk measures."""
    ladder = range(len(accuracy), 0, -1)
    known = np.ones((1000, accuracy.shape[1]), dtype=bool)
    rungs = {resolution: right for resolution, right in zip(ladder, images_right(accuracy), strict=True)}
    right, known, _ = find.walk(ladder, thresholds, full, lambda r: (rungs[r], known, []))
    return find.mean_of(right, known)


@pytest.mark.parametrize(("columns", "thresholds", "expected"), HAND.values(), ids=HAND)
def test_an_early_stop_finds_what_the_whole_ladder_does(
    columns: list[tuple[float, ...]], thresholds: list[float], expected: tuple[int | None, ...]
) -> None:
    accuracy = np.array(columns, dtype=float).T
    whole, early = (walked(accuracy, thresholds, full) for full in (True, False))
    assert whole == pytest.approx(accuracy)
    assert find.search(early, thresholds) == expected
    if None not in expected:  # no rung is measured in vain
        assert len(early) == 1 + max(rung for rung in expected if rung is not None)
    if accuracy[0, 0] < 0.8:
        assert len(early) == 1


def test_each_resample_is_a_mean_over_drawn_images() -> None:
    rng = np.random.default_rng(1)
    right, known = rng.random((3, 50, 2)) < 0.7, rng.random((50, 2)) < 0.8
    samples = find.bootstrap(right, known, resamples=20, seed=7)
    draws = np.random.default_rng(7)
    for sample in samples:
        drawn = draws.integers(50, size=50)
        for rung in range(3):
            for level in range(2):
                answers = [right[rung, image, level] for image in drawn if known[image, level]]
                assert sample[rung, level] == pytest.approx(sum(answers) / len(answers))


def test_intervals_are_those_of_the_binomial() -> None:
    images, hits, resamples = 60, 48, 4000
    right = (np.arange(images) < hits)[None, :, None]
    samples = find.bootstrap(right, np.ones((images, 1), dtype=bool), resamples, seed=0)[:, 0, 0]
    p = hits / images
    exact = [math.comb(images, k) * p**k * (1 - p) ** (images - k) for k in range(images + 1)]
    counts = np.bincount(np.round(samples * images).astype(int), minlength=images + 1) / resamples
    for k, share in enumerate(exact):
        assert abs(counts[k] - share) < 4.5 * math.sqrt(share * (1 - share) / resamples) + 1e-3
    ends = np.searchsorted(np.cumsum(exact), (0.025, 0.975))
    assert np.quantile(samples, (0.025, 0.975)) * images == pytest.approx(ends, abs=1)


def test_the_share_that_chooses_a_rung_is_the_binomials() -> None:
    # Species: all right at full size, 48 of 60 at the next rung, none at the last. It is chosen where a resample has
    # less than 48 right.
    places = np.arange(60)
    right = np.stack([places < 60, places < 48, places < 0])[:, :, None].repeat(2, axis=2)
    samples = find.bootstrap(right, np.ones((60, 2), dtype=bool), 4000, seed=3)
    shares = find.shares_of(samples, [0.8])
    less = sum(math.comb(60, k) * 0.8**k * 0.2 ** (60 - k) for k in range(48))
    assert shares[0] == pytest.approx([1, 0, 0, 0])
    assert shares[1] == pytest.approx([0, less, 1 - less, 0], abs=4 * math.sqrt(less * (1 - less) / 4000))


def test_rungs_and_levels_are_resampled_together() -> None:
    # The same images are right at both lower rungs and at both levels: what the first of them does not decide, the
    # second does not either, and the genus goes wherever the species goes.
    places = np.arange(60)
    right = np.stack([places < 60, places < 48, places < 48])[:, :, None].repeat(3, axis=2)
    samples = find.bootstrap(right, np.ones((60, 3), dtype=bool), 1000, seed=0)
    assert np.array_equal(samples[:, 1], samples[:, 2])
    assert np.array_equal(samples[:, :, 0], samples[:, :, 1])
    shares = find.shares_of(samples, [0.8, 0.8])
    assert shares[1, 2] == 0 and 0.2 < shares[1, 1] < 0.8
    assert np.array_equal(shares[1], shares[2])


def test_the_ladder_goes_from_full_size_to_8_pixels() -> None:
    assert find.default_ladder(96) == [None, 67, 47, 33, 23, 16, 11, 8]
    for side in (11, 32, 224, 227, 500, 4000):
        full, *rungs = find.default_ladder(side)
        assert full is None and rungs[-1] == 8
        for above, below in zip([side, *rungs], rungs, strict=False):
            assert 0.8 * math.sqrt(2) < above / below < 1.25 * math.sqrt(2)
    assert find.default_ladder(8) == find.default_ladder(5) == [None]


@pytest.mark.parametrize("ladder", [[], [None, None], [96, None], [48, 96], [48, 48], [32, 0]])
def test_a_ladder_that_does_not_go_down_is_refused(ladder: list[int | None]) -> None:
    with pytest.raises(ValueError, match=r"a ladder goes down"):
        find.checked_ladder(ladder)


def test_thresholds_are_for_all_levels_but_the_coarsest() -> None:
    levels = ("family", "genus", "species")
    assert find.chosen_thresholds({"genus": 0.7}, levels) == (0.8, 0.7)
    assert find.chosen_thresholds({}, ("species",)) == ()
    for given, complaint in (
        ({"specie": 0.5}, "unknown level in thresholds: 'specie'; did you mean 'species'"),
        ({"family": 0.5}, "family is the coarsest level"),
        ({"genus": 80}, r"the threshold of genus is an accuracy in \(0, 1\], not 80"),
    ):
        with pytest.raises(ValueError, match=complaint):
            find.chosen_thresholds(given, levels)


class Sized:
    """Black images of the sizes that are given."""

    def __init__(self, *sizes: tuple[int, int]) -> None:
        self.sizes = sizes

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", self.sizes[index]), 0


def test_full_size_is_the_median_of_what_a_resolution_measures() -> None:
    dataset = Sized((50, 40), (90, 30), (100, 400), (1000, 1000))
    assert find.median_side(dataset, [0, 1, 2], Preprocessing()) == 40
    by_area = Preprocessing(resolution_of="area")
    assert find.median_side(dataset, [0, 1, 2], by_area) == 52  # sqrt(90 * 30) = 51.96


def curves_of(columns: Sequence[Sequence[float]], thresholds: Sequence[float], ladder: Sequence[int | None]) -> Any:
    right = images_right(np.array(columns, dtype=float).T)
    known = np.ones((1000, len(columns)), dtype=bool)
    options = find.Search("critters", "mlph", {}, [], bootstrap=200)
    levels = LEVELS[: len(columns)]
    return find.analyse(levels, tuple(thresholds), tuple(ladder), 96, right, known, options)


@pytest.mark.parametrize(
    ("case", "ladder", "sentences"),
    [
        (
            "as in the paper",
            [None, 64, 48, 32, 16],
            [
                "genus: 48 px, where species falls under 0.8 (0.700, 95 % interval 0.6",
                "family: 32 px, where genus falls under 0.8 (0.790, 95 % interval 0.7",
            ],
        ),
        (
            "the finest is under at full size",
            [None, 48],
            ["species is under 0.8 at full size already (0.700): no resolution of genus, family follows."],
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
            ["genus: 64 px", "that is genus's own resolution: genus is under its threshold there already"],
        ),
        (
            "the first rung under counts",
            [None, 64, 48, 32],
            ["genus: 64 px", "species is not monotone: under 0.8 at 64 px, but not at 48 px; the first rung counts"],
        ),
        ("one level", [None, 64, 48, 32, 16], ["species is the only level and is seen at full size"]),
    ],
)
def test_what_was_found_is_said(case: str, ladder: list[int | None], sentences: list[str]) -> None:
    columns, thresholds, _ = HAND[case]
    said = find.findings(curves_of(columns, thresholds, ladder))
    assert len(said) == len(sentences)
    for line, expected in zip(said, sentences, strict=True):
        assert expected in line


def test_a_full_answer_is_a_file_for_train() -> None:
    columns, thresholds, _ = HAND["as in the paper"]
    curves = curves_of(columns, thresholds, [None, 64, 48, 32, 16])
    text = find.resolutions_text(curves, "retrain", find.findings(curves), ["command: c", "date: d", "data: e"])
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


def test_a_level_without_a_resolution_is_left_out_and_the_first_line_says_so() -> None:
    columns, thresholds, _ = HAND["genus never falls"]
    curves = curves_of(columns, thresholds, [None, 64, 48, 32, 16])
    text = find.resolutions_text(curves, "test_only", find.findings(curves), [])
    assert text.startswith("# INCOMPLETE: no resolution was found for family")
    assert yaml.safe_load(text) == {"resolutions": {"species": None, "genus": 48}}
    assert "genus stays at 0.2 or more" in text


def test_a_run_at_several_resolutions_is_warned_about() -> None:
    model = create_model("mlph", hierarchy="critters", resolutions={"genus": 32}, **SMALL)  # type: ignore[arg-type]
    (warning,) = find.trained_lower(model, "test_only")
    assert "species at full size, genus at 32 px, family at full size" in warning
    assert "not the curves of a model trained at full size" in warning
    full = create_model("mlph", hierarchy="critters", resolutions={"genus": None}, **SMALL)  # type: ignore[arg-type]
    assert find.trained_lower(full, "test_only") == []


class Holed:
    """Critters of which image 1 cannot be read, and the species of image 2 is unknown."""

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


def test_what_is_unreadable_or_unlabelled_does_not_count() -> None:
    model = create_model("mlph", hierarchy="critters", **SMALL)  # type: ignore[arg-type]
    for parameter in model.head.parameters():  # or one class would be the answer to all
        torch.nn.init.normal_(parameter)
    dataset, options = Holed(), find.Search("critters", "mlph", {}, [], batch_size=1, on_error="skip")
    indices = [30, 0, 1, 2, 14, 3]
    right, known, unreadable = find.measure(model, dataset, indices, 24, options, Accelerator(cpu=True))
    assert unreadable == [1]
    assert known.tolist() == [[True] * 3, [False] * 3, [False, True, True], *[[True] * 3] * 3]
    transform = create_transform(model.eval().config.preprocessing, 24, train=False)
    for row, index in zip(right, sorted(indices), strict=True):
        with torch.no_grad():
            answers = model(transform(dataset.critters[index][0])[None])
        path = [int(answers[level].argmax()) for level in ("species", "genus", "family")]
        labels = dataset.labels[index].flip(0).tolist()
        assert row.tolist() == [index != 1 and answer == label for answer, label in zip(path, labels, strict=True)]


def run(folder: Path, *options: str, launcher: Sequence[str] = (), code: int = 0) -> str:
    """Runs the recipe in a folder, in a process of its own; gives all that it printed."""
    command = [sys.executable, *launcher, RECIPE, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr[-3000:]
    assert launcher or "Traceback" not in done.stderr, done.stderr[-3000:]
    return done.stdout + done.stderr


def curve_in(folder: Path) -> list[dict[str, str]]:
    with open(folder / "curve.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


RETRAIN = ["--config", "recipe.yaml", "--ladder", "[null, 12]", "--full", "--bootstrap", "50"]


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A search that trains at each of two rungs: the folder that it ran in, and what it printed."""
    folder = tmp_path_factory.mktemp("retrain")
    recipe = yaml.safe_load((ROOT / "recipes" / "configs" / "smoke.yaml").read_text())
    recipe |= {"stages": [{"epochs": 1, "lr": 0.5}], "dataset_options": {"per_class": 2}, "val_fraction": 0.5}
    recipe["model_options"] |= {"input_size": 32}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    # Nothing is learnt in one step: the species is under its threshold at full size.
    return folder, run(folder, *RETRAIN, code=1)


def test_retrain_trains_every_level_at_each_rung(retrained: tuple[Path, str]) -> None:
    folder, printed = retrained
    assert "mode retrain" in printed and "species is under 0.8 at full size already" in printed
    output = folder / "runs" / "recipe-resolutions"
    assert {path.name for path in output.iterdir()} == {
        "chosen.csv",
        "curve.csv",
        "curve.png",
        "resolutions.yaml",
        "rungs",
    }
    for name, resolution in (("full", None), ("12px", 12)):
        model = create_model(f"local-dir:{output / 'rungs' / name}")
        assert dict(model.config.resolutions) == dict.fromkeys(("species", "genus", "family"), resolution)
        assert not (output / "rungs" / name / "test.csv").exists()
    text = (output / "resolutions.yaml").read_text()
    assert text.startswith("# INCOMPLETE") and "mode retrain" in text
    assert yaml.safe_load(text) == {"resolutions": {"species": None}}
    with Image.open(output / "curve.png") as image:
        assert min(image.size) > 300


def test_the_curve_is_the_share_of_right_answers(retrained: tuple[Path, str]) -> None:
    output = retrained[0] / "runs" / "recipe-resolutions"
    rows = curve_in(output)
    assert [(row["resolution"], row["level"]) for row in rows] == [
        (rung, level) for rung in ("full", "12") for level in ("species", "genus", "family")
    ]
    dataset, _, val_indices = train_and_val("critters", 0.5, 0, per_class=2)
    for row in rows:
        assert (row["mode"], row["images"]) == ("retrain", "36")
        assert float(row["low"]) <= float(row["accuracy"]) <= float(row["high"])
        resolution = None if row["resolution"] == "full" else int(row["resolution"])
        rung = "full" if resolution is None else f"{resolution}px"
        model = create_model(f"local-dir:{output / 'rungs' / rung}").eval()
        transform = create_transform(model.config.preprocessing, resolution, train=False)
        right = 0
        for index in val_indices:
            image, label = dataset[index]
            with torch.no_grad():
                answer = int(model(transform(image)[None])[row["level"]].argmax())
            right += answer == int(dataset.hierarchy.to_parent(torch.tensor(label), row["level"]))
        assert float(row["accuracy"]) == pytest.approx(right / 36)


def test_a_finished_rung_is_not_trained_again(
    retrained: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(retrained[0], tmp_path / "again")
    monkeypatch.chdir(tmp_path / "again")
    output = Path("runs", "recipe-resolutions")
    before = curve_in(output)
    shutil.rmtree(output / "rungs" / "12px")
    assert not find.main(*find.parse(RETRAIN))
    printed = capsys.readouterr().out
    assert printed.count("resumed after epoch 1") == 1
    assert printed.count("stage 1, epoch 1:") == 1, "the rung that was missing"
    assert curve_in(output) == before
    with pytest.raises(SystemExit, match="was started with other options: momentum"):
        find.main(*find.parse([*RETRAIN, "--momentum", "0.5"]))


def test_a_run_is_tested_at_each_rung_by_two_processes(retrained: tuple[Path, str]) -> None:
    model = retrained[0] / "runs" / "recipe-resolutions" / "rungs" / "full"
    scores = {row["level"]: float(row["accuracy"]) for row in curve_in(model.parents[1]) if row["resolution"] == "full"}
    # Low enough for the species to stay above, and so high for the genus that it is under wherever that ends.
    options = [
        "--thresholds",
        f"{{species: {max(scores['species'], 0.001)}, genus: 1}}",
        "--ladder",
        "[null, 12, 2]",
    ]
    one = find.parse([str(model), *options, "--bootstrap", "50", "--full"])
    complete = find.main(*one)
    alone = curve_in(model / "find_resolutions")
    printed = run(
        model, str(model), *options, "--output", "two", "--full", launcher=TWO_PROCESSES, code=0 if complete else 1
    )
    together = curve_in(model / "two")
    assert "mode test_only" in printed and "trained with" not in printed
    for row, other in zip(together, alone, strict=True):
        for key in ("mode", "resolution", "level", "accuracy", "images"):
            assert row[key] == other[key]
    assert {row["level"]: float(row["accuracy"]) for row in alone[:3]} == scores, "the same model at the same rung"

    accuracy = np.array([float(row["accuracy"]) for row in alone]).reshape(3, 3)
    expected = lower_step_by_step(accuracy, [max(scores["species"], 0.001), 1])
    found = yaml.safe_load((model / "find_resolutions" / "resolutions.yaml").read_text())["resolutions"]
    ladder = [None, 12, 2]
    levels = ("species", "genus", "family")
    assert found == {level: ladder[rung] for level, rung in zip(levels, expected, strict=True) if rung is not None}
    assert complete == (None not in expected)


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
    find.main(*find.parse([*options, "--ladder", "[null, 16]", "--full"]))
    rows = curve_in(output)
    assert len(rows) == 6 and {row["images"] for row in rows} == {"4"}
    find.main(*find.parse([str(output / "rungs" / "16px"), "--bootstrap", "10", "--full"]))
    tested = curve_in(output / "rungs" / "16px" / "find_resolutions")
    assert [row["resolution"] for row in tested[::3]] == ["full", *map(str, find.default_ladder(40)[1:])]
    text = (output / "rungs" / "16px" / "find_resolutions" / "resolutions.yaml").read_text()
    assert "The run was trained with species at 16 px, genus at 16 px, family at 16 px" in text


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "name a run's folder, or a recipe"),
        (["RUN", "--config", "other.yaml"], "has its recipe already"),
        (["RUN", "--seed", "3"], "seed belongs to the run, which was trained with 0"),
        (["RUN", "--val_fraction=0.2"], "val_fraction belongs to the run, which was trained with 0.5"),
        (["nowhere"], "nowhere is no run of train.py: it holds no config.yaml"),
    ],
)
def test_a_call_that_cannot_be_meant_is_refused(
    options: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("RUN").mkdir()
    recipe = yaml.safe_load((ROOT / "recipes" / "configs" / "smoke.yaml").read_text()) | {"val_fraction": 0.5}
    Path("RUN", "config.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        find.parse(options)


def test_full_is_a_flag_wherever_it_stands(tmp_path: Path) -> None:
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


def test_without_validation_images_there_is_no_search(tmp_path: Path) -> None:
    options = ["--config", str(ROOT / "recipes" / "configs" / "smoke.yaml"), "--val_fraction", "0"]
    with pytest.raises(ValueError, match="there are no validation images to search on"):
        find.main(*find.parse([*options, "--output", str(tmp_path / "found")]))
    assert not (tmp_path / "found").exists()
