"""Tests that take minutes: `pytest -m soak`. Each writes its result to `docs/results/`."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from test_pretrained import BUNDLED_NAMES, FASHION_MNIST, measure
from test_taps import KINDS, images
from torch import Tensor

from c2f_zoo import C2FModel, create_dataset, create_model
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.io.files import read_csv, write_csv
from c2f_zoo.training.launch import usable_cores
from c2f_zoo.zoo import WEIGHTS

pytestmark = pytest.mark.soak

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
FAMILIES_PAGE = ROOT / "docs" / "reference" / "backbones.md"
COMMAND = {"command": "pytest -m soak"}
CALLS = 1000  # of each thread


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


def test_smallest_model_of_every_timm_module_trains() -> None:
    """Test that default taps of every timm module run forward and backward and equal timm's whole network."""
    torch.set_num_threads(usable_cores())
    rows = [{**families.try_family(name), **COMMAND, **describe_machine()} for name in families.smallest_models()]
    write_csv(RESULTS / "families.csv", rows)
    before, start, rest = FAMILIES_PAGE.read_text(encoding="utf-8").partition(families.HEADER)
    assert start
    after = rest[rest.index("\n\n") :]
    FAMILIES_PAGE.write_text(before + families.table(rows) + after, encoding="utf-8")
    assert not [row for row in rows if row["result"] != "ok"]


def test_four_threads_with_a_thousand_calls_each_agree() -> None:
    """Test that a model called from four threads at once predicts in each what it predicts alone."""
    torch.set_num_threads(1)
    rows = []
    for kind, (backbone, options, size) in KINDS.items():
        options = {key: value for key, value in options.items() if key != "img_size"}
        how = {"input_size": size, "backbone_options": options, "pooling_options": {"dim": 8}}
        model = create_model("mlph", backbone=backbone, hierarchy="critters", **how).eval()
        with ThreadPoolExecutor(4) as pool:
            differing = sum(pool.map(partial(count_different, model), [images(kind, seed)[:1] for seed in range(4)]))
        rows += [{"kind": kind, "backbone": backbone, "calls": 4 * CALLS, "different": differing, **COMMAND}]
    write_csv(RESULTS / "threads.csv", [{**row, **describe_machine()} for row in rows])
    assert [row["different"] for row in rows] == [0] * len(KINDS)


@torch.no_grad()
def count_different(model: C2FModel, x: Tensor) -> int:
    """Count the calls whose logits differ from those of a copy that only this thread uses."""
    expected = copy.deepcopy(model)(x)
    return sum(
        any(not torch.equal(logits, expected[level]) for level, logits in model(x).items()) for _ in range(CALLS)
    )


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
