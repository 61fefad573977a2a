"""The benchmark: what it compares is one function, and what it counts is right."""

from __future__ import annotations

import csv
import json
import runpy
import subprocess
import sys
from pathlib import Path

import benchmark_data
import numpy as np
import pytest
import torch
from PIL import Image

import c2f_zoo
from c2f_zoo import C2FModel, create_pooling, list_poolings
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
import runpy, sys, torch
sys.path.insert(0, {str(RECIPE.parent)!r})
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


def test_photos_are_drawn_with_the_spectrum_of_photographs(tmp_path: Path) -> None:
    benchmark_data.draw_photos(tmp_path, (256, 192), count=2)
    first, second = (Image.open(path) for path in sorted(tmp_path.iterdir()))
    assert first.size == second.size == (256, 192) and first.format == "JPEG"
    assert first.tobytes() != second.tobytes()
    spectrum = np.abs(np.fft.fft2(np.asarray(first.convert("L"), float)))
    x, y = np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(192))
    radius = np.hypot(x, y)
    means = [spectrum[(radius > at / 1.2) & (radius < at * 1.2)].mean() for at in (0.02, 0.04, 0.08, 0.16)]
    slope = np.polyfit(np.log([1, 2, 4, 8]), np.log(means), 1)[0]
    assert -1.5 < slope < -0.7


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "classes" / "image"
    folder.mkdir(parents=True)
    benchmark_data.draw_photos(folder, (60, 40), count=4)
    return folder


@pytest.mark.parametrize("name", benchmark_data.LOADERS)
def test_every_loader_gives_what_it_says(photos: Path, name: str) -> None:
    batches = list(benchmark_data.open_loader(name, photos, 0, 2, 32, [None, 16, 8]))
    assert len(batches) == 2  # all four images
    if name == "decode":
        return
    views = batches[0][0] if name.startswith("timm") or name == "all_float" else batches[0]
    tensors = list(views.values()) if isinstance(views, dict) else [views]
    assert len(tensors) == (3 if name in ("all", "all_float", "cached") else 1)
    for tensor in tensors:
        assert tensor.shape == (2, 3, 32, 32) and tensor.dtype == torch.float32
        assert -3 < tensor.min() < 0 < tensor.max() < 3  # normalised


def test_rates_and_workers_by_hand() -> None:
    kinds = [("timm", 0), ("all", 0), ("timm", 2), ("all", 2)]
    times = [{"round_ms": ms} for ms in (1000.0, 2000.0, 500.0, 1000.0)]
    rows = benchmark_data.loader_rows(kinds, times, {"images": 100, "model_images_s": 350.0})
    assert [row["images_s"] for row in rows] == [100, 50, 200, 100]
    assert [row["of_timm"] for row in rows] == [1, 0.5, 1, 0.5]
    # 100 and 50 images a second for each worker.
    assert [row["workers_to_feed"] for row in rows] == [None, None, 4, 7]


def test_the_same_images_are_linked_for_every_loader(cub_folder: Path, tmp_path: Path) -> None:
    paths = sorted(cub_folder.rglob("*.jpg"))
    (tmp_path / "links").mkdir()
    benchmark_data.link_images(tmp_path / "links", paths, 5)
    linked = benchmark_data.images_in(tmp_path / "links").paths
    assert len({path.resolve() for path in linked}) == 5 and {path.resolve() for path in linked} <= set(paths)
    with pytest.raises(SystemExit, match="has 12 images, less than --images 13"):
        benchmark_data.link_images(tmp_path / "links", paths, 13)


def test_loaders_are_measured_beside_each_other(
    cub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def taking_turns(commands: list[tuple], repeats: int) -> list[dict[str, float]]:
        asked.extend(commands)
        assert len(list(commands[0][2].iterdir())) == 8  # the images are there
        return [{"round_ms": 100.0} for _ in commands]

    monkeypatch.setitem(benchmark["data"].__globals__, "taking_turns", taking_turns)
    benchmark["data"]("cub", {"root": str(cub_folder)}, images=8, loaders=["all"], output=str(tmp_path / "out.csv"))
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["loader"], row["workers"]) for row in rows] == [
        ("timm", "0"),
        ("all", "0"),
        ("timm", "1"),
        ("all", "1"),
    ]
    assert [(command[0], command[1]) for command in asked[-2:]] == [
        ("measure_data", "all"),
        ("measure_training", "mlph_tf_efficientnet_lite0_cub"),
    ]
    assert {row["images_s"] for row in rows} == {"80.0"} and {row["model_images_s"] for row in rows} == {"40.0"}
    # 8 training images of 40 x 50 pixels, which are not enlarged.
    assert float(rows[0]["cache_mib"]) == round(8 * 40 * 50 * 3 / 2**20, 1)
    assert rows[0]["timm"] and rows[0]["date"] and rows[0]["command"]
    assert "ours, all views, bytes" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no whole batches of 8"):
        benchmark["data"](images=9)


def test_a_loaders_process_serves_rounds(photos: Path) -> None:
    command = [sys.executable, str(RECIPE), "measure_data", "cached", str(photos), "1", "2", "32", "[null,8]"]
    done = subprocess.run(command, input="round_ms\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names, milliseconds = map(json.loads, done.stdout.splitlines())
    assert names[0] == "round_ms" and milliseconds > 0


def test_a_training_step_takes_the_finest_levels(small_model: C2FModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c2f_zoo, "create_model", lambda name, input_size: small_model)
    before = {level: small_model.head.get_classifier(level).weight.clone() for level in small_model.levels}
    benchmark_data.training_step("mlph", batch=2, input_size=64, views=2)()
    changed = [not torch.equal(small_model.head.get_classifier(at).weight, before[at]) for at in small_model.levels]
    assert changed == [False] * (len(changed) - 2) + [True, True]
