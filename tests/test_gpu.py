"""The check of a GPU, without one: small sizes, targets by hand."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from c2f_zoo.evaluation.gpu_targets import summarize
from c2f_zoo.evaluation.sections import Record

BENCHMARKS = Path(__file__).parents[1] / "recipes" / "benchmarks"


def load_gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_gpu", BENCHMARKS / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


gpu = load_gpu()


@pytest.mark.slow
def test_gpu_runs_without_a_gpu(tmp_path: Path) -> None:
    sections = [name for name in gpu.SECTIONS if name != "resume"]  # which takes a minute on a CPU
    command = ["bash", str(BENCHMARKS / "gpu.sh"), str(tmp_path), "--tiny", "--only", *sections]
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: section["error"] for name, section in content.items() if "error" in section} == {}
    outcomes = {row["outcome"] for row in content["checks"]["rows"]}
    assert "ok" in outcomes and all(outcome == "ok" or "is unsupported" in outcome for outcome in outcomes)
    assert {row["outcome"] for row in content["tests"]["rows"]} == {"skipped"}
    for section in ("poolings", "step"):
        eager, ours, *_ = (row for row in content[section]["rows"] if row["variant"] in ("eager", "ours"))
        assert eager["ms"] > 0 and ours["of_gemm"] is not None
    read, trained = content["loader"]["rows"]
    assert read["loader_images_s"] > 0 and 0 < trained["fed"] <= 1
    log = (tmp_path / "gpu.log").read_text()
    assert log == done.stdout
    for target in ("target 2", "target 1:", "target 16", "target 1.3", "target 95%"):
        assert sum(target in line for line in log.splitlines()) == 1


def test_targets_by_hand(tmp_path: Path) -> None:
    record = Record(tmp_path / "gpu.json")
    for variant, milliseconds, mebibytes in (("eager", 9.0, 6400.0), ("compiled", 3.0, 3000.0), ("ours", 4.0, 100.0)):
        about = {"pooling": "mlp", "variant": variant, "precision": "bf16", "batch": 32}
        record.add("poolings", {**about, "ms": milliseconds, "peak_mib": mebibytes})
        record.add("poolings", {**about, "precision": "fp32", "ms": 1.0, "peak_mib": 1.0})
    record.add("step", {"variant": "eager", "batch": 32, "ms": 60.0})
    record.add("step", {"variant": "ours", "batch": 32, "error": "OutOfMemoryError: CUDA out of memory"})
    record.update("checks", rows=[{"check": "mlp", "outcome": "failed: more than 0.01 and 0.05"}], error="no memory")
    record.add("loader", {"workers": 16, "images_s": 80.0, "images_s_in_memory": 100.0, "fed": 0.8})
    lines = summarize(record)
    assert "checks: no memory" in lines and "checks: 1 rows, 1 failed" in lines and "step: 2 rows, 1 failed" in lines
    assert [line.partition("target ")[2] for line in lines if "target" in line] == [
        "2: time of eager / ours: 2.25 at batch 32",
        "1: time of compiled / ours: 0.75 at batch 32",
        "16: memory of eager / ours: 64.00 at batch 32",
        "1.3: time of eager / ours: not measured",
        "95%: 80.0% with 16 workers",
    ]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "NEEDED", ("torch", "no_such_package"))
    monkeypatch.setattr(gpu, "OPTIONAL", ())
    assert gpu.missing_packages() == ["no_such_package"]
