"""A long training does not grow: `pytest -m soak tests/test_long_run.py`."""

from __future__ import annotations

import gc
import os
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from c2f_zoo import create_dataset
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.evaluation.scoring import scoring_options, validate
from c2f_zoo.io.files import write_csv
from c2f_zoo.training.objective import create_objective
from c2f_zoo.training.options import Stage, TrainOptions
from c2f_zoo.training.setup import build_model
from c2f_zoo.training.stages import fit

RESULTS = Path(__file__).parents[1] / "docs" / "results"
EVERY = 50  # epochs between two measurements
GROWTH = 4  # MiB that a process may grow after its first measurement with all weights trained
STAGE = Stage(epochs=100, lr=0.1)
OPTIONS = TrainOptions(
    dataset="critters",
    model="mlph",
    model_options={"backbone": "tiny", "input_size": 32, "pooling_options": {"dim": 8}},
    resolutions={"species": None, "genus": 16, "family": 8},
    stages=[STAGE, *[Stage(epochs=100, lr=0.1, backbone_lr=0.05)] * 4],
    batch_size=36,
    ema=0.9,
    num_workers=1,  # for training and for each validation
)


def measure(epoch: int) -> dict[str, Any]:
    """Count what lives in this process."""
    gc.collect()
    process = psutil.Process()
    return {
        "epoch": epoch,
        "rss_mib": round(process.memory_info().rss / 2**20, 1),
        "loaders": sum(issubclass(type(thing), DataLoader) for thing in gc.get_objects()),
        "modules": sum(issubclass(type(thing), nn.Module) for thing in gc.get_objects()),
        "processes": len(process.children(recursive=True)),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": process.num_threads(),
    }


def train_and_measure(options: TrainOptions, output: Path, every: int) -> list[dict[str, Any]]:
    """Train, and measure before the validation of every so many epochs."""
    torch.set_num_threads(1)
    dataset = create_dataset("critters", "train", per_class=1)
    model, accelerator = build_model(options, dataset.hierarchy), Accelerator(cpu=True)
    indices = range(len(dataset))
    score = partial(validate, dataset=dataset, indices=indices, **scoring_options(options, accelerator))
    rows: list[dict[str, Any]] = []
    epoch = 0

    def validate_and_measure(wrapped: nn.Module) -> tuple[dict[str, float], list[int]]:
        nonlocal epoch
        epoch += 1
        if epoch % every == 0:
            rows.append(measure(epoch))
            print(rows[-1], flush=True)
        return score(wrapped)

    objective = create_objective(options, model)
    fit(model, dataset, indices, objective, validate_and_measure, options, output, accelerator)
    return rows


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux lists a process's open files")
def test_a_run_of_500_epochs_does_not_grow(tmp_path: Path) -> None:
    rows = train_and_measure(OPTIONS, tmp_path, EVERY)
    command = {"command": "pytest -m soak tests/test_long_run.py", **describe_machine()}
    write_csv(RESULTS / "long_run.csv", [{**row, **command} for row in rows])
    assert [row["epoch"] for row in rows] == list(range(50, 501, 50))
    for name in ("loaders", "modules", "processes", "files", "threads"):
        assert len({row[name] for row in rows}) == 1, name
    assert rows[-1]["rss_mib"] - rows[2]["rss_mib"] <= GROWTH


@pytest.mark.slow
def test_loaders_and_models_of_earlier_stages_are_released(tmp_path: Path) -> None:
    stages = [Stage(epochs=1, lr=0.1), *[Stage(epochs=1, lr=0.1, backbone_lr=0.05)] * 2]
    options = TrainOptions(**{**vars(OPTIONS), "stages": stages, "num_workers": 0})
    rows = train_and_measure(options, tmp_path, every=1)
    for name in ("loaders", "modules", "processes", "files"):
        assert len({row[name] for row in rows[1:]}) == 1, name
