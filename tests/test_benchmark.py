"""The benchmark: what it compares is one function, and what it counts is right."""

from __future__ import annotations

import csv
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from c2f_zoo import create_pooling, list_poolings
from c2f_zoo.zoo import num_taps_of

RECIPE = Path(__file__).parents[1] / "recipes" / "benchmark.py"
benchmark = runpy.run_path(str(RECIPE))


@pytest.mark.parametrize("name", list_poolings())
def test_ours_and_the_plain_transcription_are_one_function(name: str) -> None:
    torch.manual_seed(0)
    maps = [torch.rand(2, 6, 4, 3) for _ in range(num_taps_of(name))]
    options = {} if name in ("avg", "bilinear", "gem", "max") else {"dim": 5}
    pooling = create_pooling(name, [6] * len(maps), **options)
    with torch.no_grad():
        torch.testing.assert_close(benchmark["PLAIN"][name](pooling, maps), pooling(maps), rtol=1e-3, atol=1e-3)


def test_kept_bytes_by_hand() -> None:
    x = torch.rand(1000, requires_grad=True)
    # exp keeps its output, 4000 bytes; the product with x keeps that again and x, which was given.
    assert benchmark["kept_bytes"](lambda: x.exp() * x, [x]) == 4000


def test_peak_bytes_sees_what_was_allocated() -> None:
    # In a process of its own, as in the benchmark: nothing else comes or goes there.
    code = f"""
import runpy, torch
benchmark = runpy.run_path({str(RECIPE)!r})
print(benchmark["peak_bytes"](lambda: torch.ones(50_000_000).sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 190e6 < int(done.stdout) < 260e6


def test_it_writes_a_row_for_each_variant(tmp_path: Path) -> None:
    command = [sys.executable, str(RECIPE), "pooling", "--names", "[avg,trilinear]", "--batch", "2", "--channels", "4"]
    command += ["--size", "3", "--repeats", "1", "--output", str(tmp_path / "out.csv")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    variants = [(row["pooling"], row["variant"]) for row in rows]
    assert variants == [("avg", "plain"), ("avg", "ours"), ("trilinear", "plain"), ("trilinear", "ours")]
    for row in rows:
        assert float(row["step_ms"]) > 0
    # At the least three projections of 2 x 8192 x 9 float32.
    assert float(rows[2]["kept_mib"]) > 3 * 2 * 8192 * 9 * 4 / 2**20
    assert "trilinear" in done.stdout


def test_a_sweep_is_drawn(tmp_path: Path) -> None:
    rows = [
        {"against": what, "variant": variant, what: value, "step_ms": 3.0 * value, "peak_step_mib": 2.0 * value}
        for what in ("dim", "batch", "channels", "size")
        for variant in ("plain", "ours")
        for value in (1, 2)
    ]
    benchmark["plot_sweep"](rows, tmp_path / "sweep.png")
    assert Image.open(tmp_path / "sweep.png").size[0] > 1000
