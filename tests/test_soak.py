"""Tests that take minutes: `pytest -m soak`. Each writes its result to `docs/results/`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pretrained import BUNDLED_NAMES, FASHION_MNIST, measure

from c2f_zoo import create_dataset, create_model
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.io.files import read_csv, write_csv
from c2f_zoo.training.launch import usable_cores
from c2f_zoo.zoo import WEIGHTS

pytestmark = pytest.mark.soak

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
COMMAND = {"command": "pytest -m soak"}


def test_training_command_of_the_readme_reaches_its_accuracy(tmp_path: Path) -> None:
    """Test that the first command of README reaches the accuracy stated there."""
    start = time.monotonic()
    accelerate = shutil.which("accelerate", path=str(Path(sys.executable).parent))
    assert accelerate
    command = [accelerate, "launch", str(ROOT / "recipes" / "train.py"), "--output", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds = {"seconds": round(time.monotonic() - start)}
    own = [row for row in read_csv(tmp_path / "run" / "test.csv") if row["own"] == "True"]
    write_csv(RESULTS / "soak_training.csv", [{**row, **seconds, **COMMAND, **describe_machine()} for row in own])
    accuracy = {row["level"]: float(row["accuracy"]) for row in own}
    assert accuracy["species"] >= 0.98 and accuracy["genus"] >= 0.99 and accuracy["family"] >= 0.995, accuracy


def test_bundled_weights_reach_their_accuracy_on_all_test_images() -> None:
    """Test that every bundled model reaches the recorded accuracy on all test images."""
    torch.set_num_threads(usable_cores())
    rows: list[dict[str, Any]] = []
    for name in BUNDLED_NAMES:
        metrics = WEIGHTS[name].metrics[0]
        options = dict(metrics.dataset_options)
        if metrics.dataset == "fashion_mnist":
            if not FASHION_MNIST.is_dir():
                continue
            options = {"root": str(FASHION_MNIST)}
        dataset = create_dataset(metrics.dataset, metrics.split, **options)
        found = measure(create_model(name, pretrained=True), dataset, every=1)
        rows += [
            {
                "weights": name,
                "level": cell.level,
                "resolution": cell.resolution,
                "recorded": cell.accuracy,
                "accuracy": found[cell.level, cell.resolution],
                "images": len(dataset),
                **COMMAND,
                **describe_machine(),
            }
            for cell in metrics.accuracy
        ]
    write_csv(RESULTS / "soak_weights.csv", rows)
    assert all(row["accuracy"] == pytest.approx(row["recorded"], abs=0.002) for row in rows)
