"""What a run says: its first lines, and a line every minute in a log file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from conftest import SMALL
from PIL import Image

from c2f_zoo import Hierarchy, create_dataset, create_model
from c2f_zoo.data import CachedImages, ImageFiles, train_and_val
from c2f_zoo.data.cache import remove_stale_parts
from c2f_zoo.evaluation.scoring import score_images
from c2f_zoo.io import progress
from c2f_zoo.io.progress import ProgressLines, map_in_threads
from c2f_zoo.training.describe_run import describe_data, describe_model
from c2f_zoo.training.objective import create_objective
from c2f_zoo.training.options import Stage, TrainOptions
from c2f_zoo.training.setup import build_model
from c2f_zoo.training.stages import fit

Clock = list[float]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    now = [1000.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_line_is_printed_every_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines("stage 1, epoch 2", total=100, images=1600, is_shown=True)
    for done in range(41, 101):  # resumed after 40 rounds; a round takes 10 seconds
        clock[0] += 10
        lines.update(done, f"; loss {done}")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 10
    assert printed[0] == "stage 1, epoch 2: 46 of 100 rounds, 1.6 images/s, 9 min left; loss 46"
    assert printed[-1] == "stage 1, epoch 2: 100 of 100 rounds, 1.6 images/s, 0 s left; loss 100"


def test_the_rate_is_that_of_the_last_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines("scoring", total=10, images=640, is_shown=True, unit="batches")
    for done, now in ((1, 1064.0), (2, 1070.0), (3, 1192.0)):
        clock[0] = now
        lines.update(done)
    assert capsys.readouterr().out.splitlines() == [
        "scoring: 1 of 10 batches, 1 images/s, 10 min left",
        "scoring: 3 of 10 batches, 1 images/s, 7 min left",
    ]


def test_nothing_is_printed_beside_a_bar(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines("scoring", total=10, images=640, is_shown=False)
    clock[0] += 1000
    lines.update(1)
    assert capsys.readouterr().out == ""


def test_threads_keep_the_order(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    def square(number: int) -> int:
        clock[0] += 61
        return number**2

    assert map_in_threads(square, range(50), "squaring", workers=3) == [number**2 for number in range(50)]
    assert re.match(r"squaring: \d+ of 50 images, \S+ images/s, \S+ \w+ left\n", capsys.readouterr().out)
    assert map_in_threads(square, [], "nothing") == []


def options(**values: Any) -> TrainOptions:
    defaults: dict[str, Any] = {
        "dataset": "critters",
        "model": "mlph",
        "model_options": {"backbone": "test_convnext", "input_size": 32, "pooling": "avg"},
        "resolutions": {"species": None, "genus": 16, "family": 8},
        "stages": [Stage(epochs=1, lr=0.1), Stage(epochs=1, lr=0.1, backbone_lr=0.1)],
        "batch_size": 12,
    }
    return TrainOptions(**defaults | values)


@pytest.mark.slow
def test_training_and_scoring_say_how_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    chosen, dataset, here = options(), create_dataset("critters", "train", per_class=1), Accelerator(cpu=True)
    model = build_model(chosen, dataset.hierarchy)
    scores = dict.fromkeys(model.levels, 0.5), []
    fit(model, dataset, range(36), create_objective(chosen, model), lambda _: scores, chosen, tmp_path, here)
    printed = capsys.readouterr().out.splitlines()
    # Three batches make five rounds for three levels.
    for stage, trained in ((1, "pooling and head"), (2, "all weights")):
        assert printed[stage] == f"stage {stage}: 1 epochs of 9 steps, sgd on {trained}, lr 0.1, batches of 12"
        pattern = rf"stage {stage}, epoch {stage}: (\d) of 5 rounds, \S+ images/s, \d+ s left; loss \d+\.\d+; the run"
        assert [match[1] for line in printed if (match := re.match(pattern, line))] == list("12345")
    assert printed[0].startswith("device: cpu, number of processes: 1, ")
    list(score_images(model, dataset, range(36), {None: model.levels}, batch_size=12, accelerator=here))
    assert [line[:23] for line in capsys.readouterr().out.splitlines()] == [
        f"scoring: {number} of 3 batches" for number in (1, 2, 3)
    ]


@pytest.fixture
def own_split(tmp_path: Path) -> Path:
    for split, number in (("train", 3), ("val", 2), ("test", 1)):
        for name in ("round/disc", "edged/box"):
            (tmp_path / split / name).mkdir(parents=True)
            for shot in range(number):
                Image.new("RGB", (40, 30), (40 * shot, 90, 10)).save(tmp_path / split / name / f"{shot}.png")
    return tmp_path


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_datasets_own_validation_images_are_named(is_cached: bool, own_split: Path, tmp_path: Path) -> None:
    dataset, train, val = train_and_val("folder", 0.1, 0, root=own_split, levels=["kind", "shape"])
    chosen = options(dataset="folder")
    opened = CachedImages(dataset, tmp_path / "cache") if is_cached else dataset
    expected = "data: folder, 6 training and 4 validation images (the dataset's own), 2 test images; 2 kind, 2 shape"
    assert describe_data(chosen, opened, train, val, 2) == expected


def test_held_out_images_are_named_by_fraction_and_seed() -> None:
    chosen = options(val_fraction=0.5, seed=3)
    dataset, train, val = train_and_val("critters", 0.5, 3, per_class=4)
    line = describe_data(chosen, dataset, train, val, None)
    assert line.startswith("data: critters, 72 training and 72 validation images (val_fraction 0.5, seed 3); 4 family")
    assert "144 training images (val_fraction 0)" in describe_data(chosen, dataset, range(144), [], None)


def test_names_of_levels_do_not_reach_the_terminal_raw() -> None:
    tree = Hierarchy(("\u202ekind",), (("a", "b"),), ())  # writes from right to left
    dataset, model = ImageFiles([Path("1.png")], [0], tree), create_model("mlph", hierarchy=tree, **SMALL)
    for line in (describe_data(options(), dataset, [0], [], None), describe_model(options(), model)):
        assert "\u202e" not in line and r"\u202ekind" in line


def test_a_model_is_described() -> None:
    model = create_model("mlph_tiny_critters")
    parts = {"backbone": "tiny", "pooling": "mlp", "head": "levels"}
    counts = {part: sum(weight.numel() for weight in model.get_submodule(part).parameters()) for part in parts}
    sizes = ", ".join(f"{part} {name} {counts[part] / 1e6:.3g} M" for part, name in parts.items())
    assert describe_model(options(model="mlph_tiny_critters"), model) == (
        f"model: mlph_tiny_critters ({sizes} weights), input 96x96; species at full size, genus at 32 px, "
        "family at 12 px"
    )


def test_parts_of_killed_builds_of_a_cache_are_removed(own_split: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    old, new, other = (folder / name for name in ("images-a.cache.1.part", "images-a.cache.2.part", "notes.part"))
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    remove_stale_parts(folder)
    assert not old.exists() and new.exists() and other.exists()
    old.touch()
    os.utime(old, (0, 0))
    dataset, *_ = train_and_val("folder", 0.1, 0, root=own_split, levels=["kind", "shape"])
    file = CachedImages(dataset, folder).file
    assert {path.name for path in folder.iterdir()} == {file.name, new.name, other.name}
