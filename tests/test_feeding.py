"""Rates of a loader and of training steps: images counted by hand."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from c2f_zoo.evaluation import feeding
from c2f_zoo.evaluation.feeding import create_run, draw_dataset, measure_loader, measure_training
from c2f_zoo.training.options import Stage, TrainOptions
from c2f_zoo.training.run_state import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    options = TrainOptions(
        dataset="cub",
        model="mlph",
        model_options={"backbone": "test_convnext", "input_size": 32, "pooling_options": {"dim": 8}},
        resolutions={"species": None, "genus": 16, "family": 8},
        stages=[Stage(epochs=1, lr=1e-3, backbone_lr=1e-3)],
        batch_size=4,
        mixed_precision="no",
    )
    (tmp_path / "photos").mkdir()
    return create_run(options, draw_dataset(tmp_path / "photos", (50, 40), count=3), tmp_path)


def test_a_few_images_make_a_long_epoch(run: Run) -> None:
    assert len(run.batches) > 20_000
    crops, labels, *_ = next(iter(run.loader))
    images, height, width, channels = crops["image"].shape  # with a margin
    assert (images, channels) == (4, 3) and min(height, width) >= 32
    assert labels.shape == (4, 3)


def test_images_of_a_loader_are_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(feeding.time, "perf_counter", lambda: float(next(clock)))
    # The clock is read at 0 (start), at 1 to 6 before each of five batches and at the end, and at 7.
    assert measure_loader(run, seconds=6) == {"workers": 0, "loader_images_s": round(5 * 4 / 7, 2)}


@pytest.mark.slow
def test_the_loader_is_compared_with_a_batch_in_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    now, taken = [0.0], []

    class Slow:
        """A loader that takes three seconds for a batch."""

        def __init__(self, loader: object) -> None:
            self.batch = next(iter(loader))  # type: ignore[call-overload]

        def __iter__(self) -> object:
            while True:
                now[0] += 3.0
                yield self.batch

    def take_step(run: Run, state: object, step: object) -> None:
        taken.append(step)
        now[0] += 1.0

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(feeding, "take_step", take_step)
    run.loader = Slow(run.loader)  # type: ignore[assignment]
    # A round has three steps of a second each, and needs a batch: 3 + 3 seconds with the loader, 3 in memory.
    assert measure_training(run, seconds=50.0) == {
        "workers": 0,
        "images_s": round(4 / 6, 2),
        "images_s_in_memory": round(4 / 3, 2),
        "fed": 0.5,
    }
    assert len(taken) > 2 * 50 / 6


@pytest.mark.slow
def test_a_step_of_each_level_is_trained(run: Run) -> None:
    weights = [run.model.head.get_classifier(level).weight for level in run.levels]
    before = [weight.detach().clone() for weight in weights]
    row = measure_training(run, seconds=0.0)
    assert all((weight != old).any() for weight, old in zip(weights, before, strict=True))
    assert row["images_s"] > 0 and 0 < row["fed"] <= 1
