"""Comparison of interrupted and whole runs, with a small program in place of a recipe."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from c2f_zoo.evaluation.recipe_runs import check_resume, difference_of_runs, largest_difference, latest_step

# Counts to 12 in steps, each with a checkpoint; a run that is to be interrupted waits at step 3 or at START.
PROGRAM = """
import signal, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file, save_file
forgets, start, output = sys.argv[1], int(sys.argv[2]), Path(sys.argv[sys.argv.index("--output") + 1])
assert sys.argv[-2:] == ["--resume", "auto"]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
output.mkdir(exist_ok=True)
steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in output.glob("checkpoint-*"))
weight = load_file(output / f"checkpoint-{steps[-1]}" / "model.safetensors")["w"] if steps else np.zeros(1, np.float32)
weight = weight - 0.25 if steps and forgets == "weights" else weight
for step in range(steps[-1] + 1 if steps else 1, 13):
    weight = weight + 1
    (output / f"checkpoint-{step}").mkdir()
    save_file({"w": weight}, output / f"checkpoint-{step}" / "model.safetensors")
    if output.name == "resumed" and not steps and step == start:
        signal.pause()
(output / "metrics.csv").write_text("resumed" if steps and forgets == "metrics" else "")
(output / "test_predictions.csv").write_text("")
print("finished")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forgets", "difference"),
    [("nothing", "bit-identical"), ("weights", "weights by 2.5e-01"), ("metrics", "metrics.csv")],
)
def test_what_a_resumed_run_forgets_is_found(forgets: str, difference: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    row = check_resume([sys.executable, str(tmp_path / "program.py"), forgets, "3"], tmp_path, step=3)
    assert row == {"exit_code": 75, "stopped_after": 3, "resumed": difference, "not interrupted": "bit-identical"}


@pytest.mark.slow
def test_a_run_that_is_not_interrupted_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    with pytest.raises(RuntimeError, match="the run ended before it was stopped: finished"):
        check_resume([sys.executable, str(tmp_path / "program.py"), "nothing", "0"], tmp_path, step=13)


def test_a_run_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the run failed: no such package"):
        check_resume(["bash", "-c", "echo no such package; exit 1"], tmp_path, step=1)


def test_the_last_checkpoint_is_chosen_by_number(tmp_path: Path) -> None:
    for name in ("checkpoint-9999", "checkpoint-10000", "checkpoint-best"):
        (tmp_path / name).mkdir()
    assert latest_step(tmp_path) == 10_000
    assert latest_step(tmp_path / "missing") == -1


def test_differences_of_runs_by_hand(tmp_path: Path) -> None:
    for name, value in (("first", 1.0), ("second", 1.5)):
        folder = tmp_path / name / "checkpoint-2"
        folder.mkdir(parents=True)
        save_file({"w": torch.tensor([2.0, value])}, folder / "model.safetensors")
        (tmp_path / name / "metrics.csv").write_text("")
        (tmp_path / name / "test_predictions.csv").write_text(name)
    found = difference_of_runs(tmp_path / "first", tmp_path / "second")
    assert found == "weights by 5.0e-01, test_predictions.csv"
    assert difference_of_runs(tmp_path / "first", tmp_path / "first") == "bit-identical"


def test_weights_of_other_models_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"different weights: \['v', 'w'\]"):
        largest_difference({"w": torch.ones(1)}, {"v": torch.ones(1)})
