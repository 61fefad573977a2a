"""Runs of a recipe's command: exact resume, by an interrupted run against two that were not, and trials."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

POLL = 0.02  # seconds between looks at a run's folder
OUTPUT_LINES = 15  # of each run, printed at the end
COMPARED = ("metrics.csv", "test_predictions.csv")


def check_resume(command: Sequence[str], folder: Path, step: int) -> dict[str, Any]:
    """Run a command three times, one of them stopped by SIGTERM and resumed, and compare the results.

    Args:
        command: the command of a run, to which `--output` and `--resume auto` are appended.
        folder: folder for the runs; the output of each is in a file `.log` beside its folder.
        step: the run is stopped after the first checkpoint of this step or a later one.

    Returns:
        A row with the exit code of the stopped run, its last step, and the differences of the resumed run and of the
        second whole run from the first, see `difference_of_runs`. A GPU's own operations may differ from run to run.

    Raises:
        RuntimeError: a run failed, or was not stopped.
    """
    names = ("whole", "again", "resumed")
    processes = {name: _start(command, folder / name) for name in names}
    try:
        stopped = _interrupt(processes["resumed"], folder / "resumed", step)
        row = {"exit_code": stopped, "stopped_after": latest_step(folder / "resumed")}
        processes["resumed"] = _start(command, folder / "resumed")
        for name in names:
            if processes[name].wait():
                raise RuntimeError(f"the run {name!r} failed: {_last_line(folder / name)}")
    finally:
        for name, process in processes.items():
            process.kill()
            process.wait()
            print(f"--- {name}:", *_output(folder / name)[-OUTPUT_LINES:], sep="\n", flush=True)
    found = {name: difference_of_runs(folder / "whole", folder / name) for name in names[1:]}
    return {**row, "resumed": found["resumed"], "not interrupted": found["again"]}


def try_command(command: Sequence[str]) -> dict[str, Any]:
    """Run a command, and return a row with its exit code and the last line of its output.

    Examples:
        >>> try_command(["bash", "-c", "echo done; exit 3"])
        done
        <BLANKLINE>
        {'exit_code': 3, 'last_line': 'done'}
    """
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    print(done.stdout, flush=True)
    return {"exit_code": done.returncode, "last_line": (done.stdout.strip().splitlines() or [""])[-1]}


def difference_of_runs(first: Path, second: Path) -> str:
    """Return "bit-identical", or what differs between the results of two runs.

    The weights of the last checkpoint, the metrics and the predictions of the test images are compared.
    """
    weights = [load_file(checkpoints(folder)[latest_step(folder)] / "model.safetensors") for folder in (first, second)]
    differences = [f"weights by {largest:.1e}"] if (largest := largest_difference(*weights)) else []
    for name in COMPARED:
        if (first / name).read_bytes() != (second / name).read_bytes():
            differences.append(name)
    return ", ".join(differences) or "bit-identical"


def largest_difference(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> float:
    """Return the largest difference of two models' weights; NaN if one is NaN.

    Raises:
        ValueError: the names differ.

    Examples:
        >>> largest_difference({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.0, 2.5])})
        0.5
    """
    if first.keys() != second.keys():
        raise ValueError(f"the models have different weights: {sorted(first.keys() ^ second.keys())}")
    pairs = [
        (first[name].double(), second[name].double()) for name in first if not torch.equal(first[name], second[name])
    ]
    return float(torch.stack([(a - b).abs().max() for a, b in pairs]).max()) if pairs else 0.0


def checkpoints(folder: Path) -> dict[int, Path]:
    """Return the checkpoints of a run by their steps."""
    found = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")}
    return {int(match[1]): path for path, match in found.items() if match}


def latest_step(folder: Path) -> int:
    """Return the step of the latest checkpoint of a run, or -1."""
    return max(checkpoints(folder), default=-1)


def _start(command: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
    with open(output.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            [*command, "--output", str(output), "--resume", "auto"], stdout=log, stderr=subprocess.STDOUT
        )


def _interrupt(process: subprocess.Popen[bytes], output: Path, step: int) -> int:
    """Send SIGTERM after a step's checkpoint, and return the exit code."""
    while latest_step(output) < step and process.poll() is None:
        time.sleep(POLL)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGTERM)
    if not process.wait():
        raise RuntimeError(f"the run ended before it was stopped: {_last_line(output)}")
    if latest_step(output) < step:
        raise RuntimeError(f"the run failed: {_last_line(output)}")
    return process.returncode


def _last_line(output: Path) -> str:
    return (_output(output) or ["no output"])[-1]


def _output(output: Path) -> list[str]:
    return output.with_suffix(".log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
