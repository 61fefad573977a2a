"""Launcher and options: precision, gradient accumulation, threads and trackers."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import find_resolutions as find
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from c2f_zoo.io.freed_memory import keep_freed_memory
from c2f_zoo.training import launch
from c2f_zoo.training.launch import (
    adopt_launcher,
    create_accelerator,
    launcher_chose_threads,
    start_trackers,
    usable_cores,
)
from c2f_zoo.training.options import Stage, TrainOptions, read_options

OPTIONS = TrainOptions("critters", "mlph_tiny_critters", {}, [Stage(1, 0.1)])
PRECISION, ACCUMULATE = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


@pytest.fixture(autouse=True)
def _fresh_accelerate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let each test create its own accelerator; without a launcher's settings."""
    for name in (PRECISION, ACCUMULATE):
        monkeypatch.delenv(name, raising=False)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


# Precision and accumulation


@pytest.mark.parametrize(
    ("option", "launcher", "expected"),
    [(None, None, "no"), (None, "bf16", "bf16"), ("bf16", None, "bf16"), ("bf16", "no", "bf16"), ("no", "no", "no")],
)
def test_the_precision_is_that_of_option_or_launcher(
    monkeypatch: pytest.MonkeyPatch, option: str | None, launcher: str | None, expected: str
) -> None:
    if launcher:
        monkeypatch.setenv(PRECISION, launcher)
    options = adopt_launcher(replace(OPTIONS, mixed_precision=option))  # type: ignore[arg-type]
    assert options.mixed_precision == expected
    assert create_accelerator(options).mixed_precision == expected


def test_two_precisions_are_an_error_that_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRECISION, "fp16")
    for option in ("bf16", "no"):
        with pytest.raises(ValueError, match=f"'{option}'.*'fp16'"):
            adopt_launcher(replace(OPTIONS, mixed_precision=option))  # type: ignore[arg-type]
    monkeypatch.setenv(PRECISION, "fp8")
    with pytest.raises(ValueError, match="'fp8' is unsupported"):
        adopt_launcher(OPTIONS)


def test_the_launcher_must_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")  # as accelerate launch sets it
    assert adopt_launcher(OPTIONS).compile is False
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(ValueError, match=r"'INDUCTOR'.*use --compile true"):
        adopt_launcher(OPTIONS)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a GPU computes in fp16")
def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="'fp16' needs a GPU"):
        create_accelerator(replace(OPTIONS, mixed_precision="fp16"))


def test_the_launchers_accumulation_is_adopted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ACCUMULATE, "4")
    assert adopt_launcher(OPTIONS).accumulate == 4
    assert capsys.readouterr().out == f"accumulate 4, as the launcher says ({ACCUMULATE})\n"
    assert adopt_launcher(replace(OPTIONS, accumulate=4)).accumulate == 4
    with pytest.raises(ValueError, match=r"accumulate is 2.*is 4"):
        adopt_launcher(replace(OPTIONS, accumulate=2))
    monkeypatch.setenv(ACCUMULATE, "1")
    assert adopt_launcher(replace(OPTIONS, accumulate=2)).accumulate == 2


def test_the_search_of_resolutions_trains_as_option_and_launcher_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained: list[tuple[int, str]] = []

    def train_at(resolution: int | None, data: object, options: TrainOptions, folder: Path, accelerator: Accelerator):
        trained.append((options.accumulate, accelerator.mixed_precision))
        raise InterruptedError

    monkeypatch.setattr(find, "train_at", train_at)
    monkeypatch.setenv(ACCUMULATE, "4")
    smoke = [Path(find.__file__).parent / "configs" / "smoke.yaml"]
    options = read_options(find.SearchOptions, smoke, ["--mixed_precision", "bf16", "--output", str(tmp_path)])
    with pytest.raises(InterruptedError):
        find.main(options, None, "run")
    assert trained == [(4, "bf16")]
    for name, value in (("dry_run", True), ("log_with", ["tensorboard"])):
        with pytest.raises(ValueError, match=r"dry_run and log_with are options of train\.py"):
            find.main(replace(options, **{name: value}), None, "run")


def test_parallelism_that_changes_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    with pytest.raises(ValueError, match="tensor or context parallelism is unsupported"):
        adopt_launcher(OPTIONS)


@pytest.mark.parametrize("options", [None, OPTIONS])
def test_the_loss_is_never_divided(monkeypatch: pytest.MonkeyPatch, options: TrainOptions | None) -> None:
    monkeypatch.setenv(ACCUMULATE, "4")
    accelerator = create_accelerator(options)
    weight = nn.Parameter(torch.ones(3))
    accelerator.backward((3 * weight).sum())
    assert accelerator.gradient_accumulation_steps == 1
    assert weight.grad is not None and weight.grad.tolist() == [3, 3, 3]


# Threads


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="only Linux tells a process's environment")
@pytest.mark.parametrize(
    ("script", "arguments", "threads", "chosen"),
    [
        ("accelerate", ["launch", "train.py"], None, True),
        ("torchrun", ["--nproc_per_node", "2", "train.py"], None, True),
        ("accelerate", ["launch", "train.py"], "1", False),
        ("accelerate", ["launch", "--num_cpu_threads_per_process", "1", "train.py"], None, False),
        ("accelerate", ["launch", "--num-cpu-threads-per-process=1", "train.py"], None, False),
        ("other", ["launch", "accelerate.py"], None, False),
    ],
)
def test_who_chose_the_threads(
    tmp_path: Path, script: str, arguments: list[str], threads: str | None, chosen: bool
) -> None:
    (tmp_path / script).write_text("print('ready', flush=True)\ninput()\n")
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    if threads:
        environment["OMP_NUM_THREADS"] = threads
    command = [sys.executable, str(tmp_path / script), *arguments]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert launcher_chose_threads(process.pid) == chosen
        process.communicate("\n")


def test_the_users_threads_are_obeyed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(launch, "usable_cores", lambda: 2)
    monkeypatch.setattr(launch, "launcher_chose_threads", lambda launcher: False)
    create_accelerator()
    assert torch.get_num_threads() == 1
    assert "OMP_NUM_THREADS limits it" in capsys.readouterr().out
    monkeypatch.setattr(launch, "launcher_chose_threads", lambda launcher: True)
    create_accelerator()
    assert torch.get_num_threads() == 2
    assert capsys.readouterr().out == ""


def test_processes_of_other_machines_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "usable_cores", lambda: 8)
    monkeypatch.setattr(launch, "launcher_chose_threads", lambda launcher: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    launch.set_threads(SimpleNamespace(num_processes=16))  # type: ignore[arg-type]  # 8 machines
    assert torch.get_num_threads() == 4


REPORT = """
import json, os, torch
from c2f_zoo.training.launch import create_accelerator
accelerator = create_accelerator()
print(json.dumps([os.environ["OMP_NUM_THREADS"], torch.get_num_threads()]))
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="threads matter on a CPU")
def test_accelerate_launch_sets_one_thread_and_all_cores_are_used(tmp_path: Path) -> None:
    (tmp_path / "report.py").write_text(REPORT)
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", str(tmp_path / "report.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=True)
    omp, used = json.loads(done.stdout.splitlines()[-1])
    assert omp == "1", "the launcher sets it"
    assert used == usable_cores()


# Trackers


def test_a_tracker_logs_options_and_scores(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = replace(OPTIONS, log_with=["tensorboard"])
    accelerator = create_accelerator(options)
    start_trackers(accelerator, options, tmp_path)
    for step in (1, 2):
        accelerator.log({"loss": 0.5 / step}, step=step)
    accelerator.end_training()
    folders = {path.parent for path in tmp_path.rglob("events.out.tfevents*")}
    logged = events.EventAccumulator(str(tmp_path / "c2f_zoo"))
    logged.Reload()
    assert [(event.step, event.value) for event in logged.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert all(folder.is_relative_to(tmp_path) for folder in folders)
    assert "dataset: critters" in next(tmp_path.rglob("hparams.yml")).read_text()


def test_no_tracker_by_default(tmp_path: Path) -> None:
    accelerator = create_accelerator(OPTIONS)
    start_trackers(accelerator, OPTIONS, tmp_path)
    accelerator.log({"loss": 0.5}, step=1)
    assert list(tmp_path.iterdir()) == []


def test_errors_name_the_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'tensorbord'; did you mean 'tensorboard'"):
        create_accelerator(replace(OPTIONS, log_with=["tensorbord"]))
    monkeypatch.setattr(launch, "get_available_trackers", lambda: [])
    with pytest.raises(ImportError, match="pip install wandb"):
        create_accelerator(replace(OPTIONS, log_with=["wandb"]))


_REUSE = """
import resource, torch
from c2f_zoo.io.freed_memory import keep_freed_memory
keep_freed_memory()
for _ in range(16):  # the first ones leave holes that are too small for the next
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again() -> None:
    """Without the setting every new tensor of 64 MiB touches its 16384 pages for the first time."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", _REUSE], capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) < 16384


def test_the_users_settings_of_malloc_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr("ctypes.CDLL", lambda name: called.append(name))
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "100000")
    keep_freed_memory()
    assert not called
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    keep_freed_memory()
    assert called == [None]
