"""Tests that take minutes: `pytest -m soak`. Each writes its result to `docs/results/`."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import ddp_steps
import families
import onnxruntime
import pytest
import torch
from test_pretrained import BUNDLED_NAMES, FASHION_MNIST, measure
from test_taps import KINDS, images
from torch import Tensor

from c2f_zoo import C2FModel, create_dataset, create_model, load_hierarchy
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.io.files import read_csv, write_csv
from c2f_zoo.training.launch import usable_cores
from c2f_zoo.zoo import WEIGHTS

pytestmark = pytest.mark.soak

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
TIMM_PAGE = ROOT / "docs" / "how-to" / "use-in-timm.md"
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


def test_models_train_with_ddp_in_two_processes(tmp_path: Path) -> None:
    """Test that bundled and own models train three steps without `find_unused_parameters`."""
    rows: list[dict[str, Any]] = []
    for name in (*BUNDLED_NAMES, *ddp_steps.OWN):
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", ddp_steps.__file__, name]
        done = run_command([sys.executable, *command], tmp_path)
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        failed = [] if done.returncode == 0 else [{"model": name, "result": first_error(done.stderr)}]
        rows += [{**row, **COMMAND, **describe_machine()} for row in (*found, *failed)]
    write_csv(RESULTS / "ddp.csv", rows)
    assert [row for row in rows if row["result"] != "ok" or not row["gradient_difference"] <= 1e-6] == []
    assert len(rows) == 2 * len(BUNDLED_NAMES) + 2 * len(ddp_steps.OWN)


def run_command(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder with our package, one thread for each process."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def first_error(text: str) -> str:
    """Return the first error message of a program's output, or an empty string."""
    return next(iter(re.findall(r"\w*(?:Error|ERROR): .*", text)), "")


# What each script of timm prints: the name of a figure, and a pattern of its value.
TIMM_FIGURES = {
    "train.py": ("loss of the training set", r'"loss": ([\d.]+)'),
    "validate.py": ("top1", r'"top1": ([\d.]+)'),
    "inference.py": ("label of the first image", r'"label":\s*\[\s*"([^"]+)'),
    "benchmark.py": ("images per second", r'"infer_samples_per_sec": ([\d.]+)'),
    "onnx_export.py": ("largest difference of logits", ""),
}


@pytest.mark.skipif("C2F_ZOO_TIMM_SCRIPTS" not in os.environ, reason="C2F_ZOO_TIMM_SCRIPTS names no folder of scripts")
def test_scripts_of_timm_run_with_the_commands_of_the_page(tmp_path: Path) -> None:
    """Test that timm's scripts accept our models: the commands of the page, in a folder of drawn images."""
    (tmp_path / "pytorch-image-models").symlink_to(Path(os.environ["C2F_ZOO_TIMM_SCRIPTS"]).absolute())
    page = TIMM_PAGE.read_text(encoding="utf-8")
    for name, block in re.findall(r'```python title="(.*?)"\n(.*?)```', page, re.DOTALL):
        (tmp_path / name).write_text(block, encoding="utf-8")
    draw, *commands = re.findall(r"^python (.*)$", page, re.MULTILINE)
    assert run_command([sys.executable, *shlex.split(draw)], tmp_path).returncode == 0
    rows = [{**run_script(command, tmp_path), **describe_machine()} for command in commands]
    write_csv(RESULTS / "timm_scripts.csv", rows)
    values = {row["script"]: row["value"] for row in rows if row["return_code"] == 0}
    assert values.keys() == TIMM_FIGURES.keys()
    assert float(values["train.py"]) < math.log(36) + 0.5  # a new classifier starts near log(36)
    assert float(values["validate.py"]) >= 95
    assert values["inference.py"].endswith(load_hierarchy("critters").classes[-1][0])
    assert values["onnx_export.py"] < 1e-4


def run_script(command: str, folder: Path) -> dict[str, Any]:
    """Run one script of timm, on the CPU where there is no GPU; return a row of the table."""
    arguments = shlex.split(command)
    script = Path(arguments[1]).name
    if not torch.cuda.is_available() and script != "onnx_export.py":
        arguments += ["--device", "cpu"]
    done = run_command([sys.executable, *arguments], folder)
    figure, pattern = TIMM_FIGURES[script]
    value: Any = (re.findall(pattern, done.stdout) or [""])[0]
    if script == "onnx_export.py" and done.returncode == 0:
        value = onnx_difference(folder / arguments[2])
    row = {"script": script, "command": shlex.join(["python", *arguments]), "return_code": done.returncode}
    return {**row, "figure": figure, "value": value or first_error(done.stderr)}


def onnx_difference(file: Path) -> float:
    """Return the largest difference between the logits of an exported file and of the bundled critters model."""
    images = torch.randn(4, 3, 96, 96)
    session = onnxruntime.InferenceSession(file)
    exported = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    with torch.no_grad():
        expected = create_model("mlph_tiny_critters", pretrained=True).at_level("species").eval()(images)
    return float((exported - expected).abs().max())


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
