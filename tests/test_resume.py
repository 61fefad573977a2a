"""Runs that are killed, resumed, stopped by signals, or started twice, in real processes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import killed_runs
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_train import train_here
from two_processes import run_in_two_processes

from c2f_zoo import create_dataset, register_dataset
from c2f_zoo.data import HideLabels, LabelledImages
from c2f_zoo.data.registry import DATASETS
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.io.files import read_csv, write_csv
from c2f_zoo.training.interrupt import EXIT_CODE

ROOT = Path(__file__).parents[1]
RECIPE, SMOKE = str(ROOT / "recipes" / "train.py"), str(ROOT / "recipes" / "configs" / "smoke.yaml")
RESULTS = Path(__file__).parents[1] / "docs" / "results"

# Everything that has a state: momentum, schedules, EMA, mixup, batch norm, workers, accumulation, levels that lag.
OPTIONS: dict[str, Any] = {
    "dataset": "critters",
    "dataset_options": {"per_class": 1},
    "model": "mlph",
    "model_options": {"backbone": "tiny", "input_size": 32, "pooling_options": {"dim": 8}},
    "resolutions": {"species": None, "genus": 16, "family": 8},
    "stages": [
        {"epochs": 1, "lr": 0.1},
        {"epochs": 1, "lr": 0.1, "backbone_lr": 0.05, "schedule": "cosine", "warmup_epochs": 0.5},
    ],
    "batch_size": 6,
    "accumulate": 2,
    "clip_grad": 1.0,
    "ema": 0.9,
    "mixup": 0.2,
    "augmentation": {"color_jitter": 0.2},
    "val_fraction": 0.0,
    "save_every": "2 steps",
}


def run_and_kill(folder: Path, processes: int, moments: list[str], **options: Any) -> list[dict[str, Any]]:
    """Run once without kills and once for each of `moments`, see killed_runs.py."""
    return killed_runs.run_and_kill(folder, {**OPTIONS, **options}, processes, moments)


def check_same(runs: list[dict[str, Any]]) -> None:
    whole, *killed = runs
    for run in killed:
        assert run["kills"] == 1 + run["moments"].count("+"), run["moments"]
        assert run["results"] == whole["results"], run["moments"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "moments", "options"),
    [
        (1, ["save:0.32+anywhere:0.4"], {"num_workers": 1}),
        (2, ["save:0.61"], {"objective": "joint"}),
    ],
    ids=["one process", "two processes"],
)
def test_a_killed_run_ends_bit_for_bit_the_same(
    processes: int, moments: list[str], options: dict[str, Any], tmp_path: Path
) -> None:
    check_same(run_and_kill(tmp_path, processes, moments, **options))


def half_labelled_critters(split: str, per_class: int) -> LabelledImages:
    """Return the critters; in the first half only the genus is known."""
    dataset = create_dataset("critters", split, per_class=per_class)
    return HideLabels(dataset, "genus", range(len(dataset) // 2))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["in_turn", pytest.param("joint", marks=pytest.mark.soak)])
def test_two_processes_train_the_weights_of_one(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))
    register_dataset("half_labelled_critters")(half_labelled_critters)
    # Without batch norm, whose statistics are those of a process. The levels' targets are unequally many in the shares.
    options: dict[str, Any] = OPTIONS | {
        "dataset": "half_labelled_critters",
        "objective": objective,
        "mixup": 0.0,
        "ema": None,
        "stages": [{"epochs": 1, "lr": 0.2, "backbone_lr": 0.1}],
    }
    options["model_options"] = {"backbone": "test_convnext", "input_size": 32, "pooling": "avg"}
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(options))
    train_here(tmp_path, "--config", "options.yaml", "--output", "one", ok=True)
    code, printed = run_in_two_processes(RECIPE, ["--config", "options.yaml", "--output", "two"], tmp_path)
    assert code == 0, printed[-3000:]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(
            weights[1][name], weight, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


# The recipe on two images of each species.
QUICK = ["--config", SMOKE, "--output", "run", "--dataset_options.per_class", "2", "--batch_size", "4"]
QUICK += ["--stages", "[{epochs: 2, lr: 0.1, backbone_lr: 0.1}]"]


def start(folder: Path, *options: str, **popen: Any) -> subprocess.Popen[str]:
    """Start the recipe."""
    command = [sys.executable, "-u", RECIPE, *QUICK, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen
    )


@pytest.mark.slow
def test_a_signal_saves_and_a_second_run_is_refused(tmp_path: Path) -> None:
    with start(tmp_path, "--num_workers", "1", start_new_session=True) as first:
        assert first.stdout is not None
        for line in first.stdout:
            if line.startswith("stage 1, epoch 1"):
                break
        first.send_signal(signal.SIGSTOP)  # it holds the lock
        error = train_here(tmp_path, *QUICK, "--resume", "auto", ok=False)
        assert "run is used by another run; wait for it, or choose another --output" in error
        os.killpg(first.pid, signal.SIGTERM)  # to the loader's worker too, as Slurm does
        first.send_signal(signal.SIGCONT)
        _, error = first.communicate()
    assert first.returncode == EXIT_CODE, error
    assert "stopped by SIGTERM after " in error
    assert "Traceback" not in error
    rows = read_csv(tmp_path / "run" / "steps.csv")
    latest = max(int(path.name.removeprefix("checkpoint-")) for path in (tmp_path / "run").glob("checkpoint-*"))
    assert int(rows[-1]["step"]) == latest
    printed = train_here(tmp_path, *QUICK, "--resume", "auto", ok=True)
    assert f"resumed from checkpoint-{latest:08d}" in printed
    printed = train_here(tmp_path, *QUICK, "--resume", "auto", ok=True)
    assert "this run is finished; its test scores are in run/test.csv" in printed
    train_here(tmp_path, *QUICK, "--output", "whole", ok=True)
    for name in ("model.safetensors", "metrics.csv", "steps.csv", "test_predictions.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.soak
def test_runs_killed_at_many_moments_end_the_same(tmp_path: Path) -> None:
    random.seed(0)
    rows = []
    for processes, objective, workers, count in (
        *[(1, "in_turn", 0, 12), (1, "in_turn", 1, 8), (1, "joint", 0, 4), (1, "any_resolution", 1, 4)],
        *[(2, "in_turn", 0, 4), (2, "any_resolution", 0, 2), (2, "joint", 1, 2)],
    ):
        moments = [
            f"{'save' if number % 2 else 'anywhere'}:{random.uniform(0.01, 0.98):.4f}" for number in range(count)
        ]
        moments += ["save:0.2+anywhere:0.2+save:0.2"]
        folder = tmp_path / f"{processes}-{objective}-{workers}"
        runs = run_and_kill(folder, processes, moments, objective=objective, num_workers=workers)
        kinds = {"processes": processes, "objective": objective, "workers": workers}
        for run in runs[1:]:
            same = run["results"] == runs[0]["results"]
            row = {**kinds, "killed at": run["moments"], "kills": run["kills"], "bit-identical": same}
            rows.append({**row, "command": "pytest -m soak tests/test_resume.py", **describe_machine()})
        write_csv(RESULTS / "killed_runs.csv", rows)
        check_same(runs)
    assert sum(row["kills"] for row in rows) >= 50
