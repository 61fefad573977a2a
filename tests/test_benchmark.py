"""Benchmarks: equal values of all variants; rows, rates and tables."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import auto_cli
from PIL import Image
from reference.poolings import PLAIN
from torch import Tensor

import c2f_zoo
from c2f_zoo import C2FModel, create_pooling, list_poolings
from c2f_zoo.data import Normalize
from c2f_zoo.evaluation.photos import draw_photos
from c2f_zoo.io.files import read_csv
from c2f_zoo.pooling import POOLINGS
from c2f_zoo.zoo import num_taps_of

BENCHMARKS = Path(__file__).parents[1] / "recipes" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # new processes, which get `sys.path`, import from there too
data, detail, pooling, step, sweep = map(importlib.import_module, ("data", "detail", "pooling", "step", "sweep"))


@pytest.mark.parametrize("name", list_poolings())
def test_poolings_equal_their_plain_transcriptions(name: str) -> None:
    torch.manual_seed(0)
    maps = [torch.rand(2, 6, 4, 3) for _ in range(num_taps_of(name))]
    options = {"dim": 5} if "dim" in inspect.signature(POOLINGS[name]).parameters else {}
    module = create_pooling(name, [6] * len(maps), **options)
    with torch.no_grad():
        torch.testing.assert_close(PLAIN[name](module, maps), module(maps), rtol=1e-3, atol=1e-3)


def test_a_transcription_with_other_values_is_an_error() -> None:
    _, module, maps = pooling.build(pooling.Case("avg", "ours", 2, 6, 3, None))
    pooling.check_equal(module, maps, PLAIN["avg"])
    with pytest.raises(ValueError, match=r"differ in values by 5\.0e-01"):
        pooling.check_equal(module, maps, lambda module, maps: 2 * module(maps))


@pytest.mark.slow
def test_pooling_is_measured_in_new_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--names", "[trilinear]", "--batch", "2", "--channels", "4", "--size", "3", "--repeats", "1"]
    arguments += ["--variants", "[plain]"]
    auto_cli(pooling.main, args=[*arguments, "--output", str(tmp_path / "out.csv")])
    [row] = read_csv(tmp_path / "out.csv")
    assert (row["pooling"], row["variant"]) == ("trilinear", "plain")
    assert float(row["step_ms"]) > 0 and float(row["mm_gflops"]) > 0 and row["device"]
    # At least three projections of 2 x 8192 x 9 float32.
    assert float(row["kept_mib"]) > 3 * 2 * 8192 * 9 * 4 / 2**20
    assert "trilinear" in capsys.readouterr().out


@pytest.mark.slow
def test_sweep_runs_the_pooling_benchmark_at_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(cases: list, repeats: int) -> list[dict]:
        return [{**asdict(case), "repeats": repeats, **dict.fromkeys(pooling.COLUMNS.values(), 1.0)} for case in cases]

    def run(command: list[str], **options: object) -> None:
        assert Path(command[1]) == BENCHMARKS / "pooling.py"
        auto_cli(pooling.main, args=command[2:])

    monkeypatch.setattr(pooling, "measure", measure)
    monkeypatch.setattr(subprocess, "run", run)
    plain, ours = sweep.measure_point({"dim": 16, "batch": 1, "channels": 4, "size": 3}, repeats=2)
    assert (plain["variant"], ours["variant"]) == ("plain", "ours")
    assert [ours[name] for name in ("pooling", "dim", "batch", "channels", "size", "repeats")] == [
        "mlp", "16", "1", "4", "3", "2",
    ]  # fmt: skip


def test_sweep_draws_a_plot(tmp_path: Path) -> None:
    rows = [
        {"against": axis, "variant": variant, axis: value, "step_ms": 3.0 * value, "peak_step_mib": 2.0 * value}
        for axis in ("dim", "batch", "channels", "size")
        for variant in ("plain", "ours")
        for value in (1, 2)
    ]
    sweep.plot(rows, tmp_path / "sweep.png")
    assert Image.open(tmp_path / "sweep.png").size[0] > 1000


def test_the_largest_batch_by_hand() -> None:
    # 100 MiB, and 50 MiB for each image: 18 images fit 1 GiB.
    small, large = {"batch": 1, "total_mib": 150.0}, {"batch": 3, "total_mib": 250.0}
    assert step.largest_batch(small, large, memory_gib=1.0) == (50.0, 18)


def test_step_writes_a_row_for_each_implementation_and_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "run_interleaved", lambda calls, repeats: [{"step_ms": 100.0} for _ in calls])
    monkeypatch.setattr(step, "run_in_new_process", lambda function: 100.0 + 50 * function.args[1])
    step.main(output=str(tmp_path / "out.csv"))
    rows = read_csv(tmp_path / "out.csv")
    assert [(row["impl"], row["batch"]) for row in rows] == [
        ("plain", "1"),
        ("tiled", "1"),
        ("plain", "3"),
        ("tiled", "3"),
    ]
    assert {row["largest_batch"] for row in rows} == {str((24 * 1024 - 100) // 50)}


def test_drawn_photos_have_the_spectrum_of_photographs(tmp_path: Path) -> None:
    draw_photos(tmp_path, (256, 192), count=2)
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
    draw_photos(folder, (60, 40), count=4)
    return folder


@pytest.mark.parametrize("name", data.LOADERS)
def test_every_loader_loads_its_views(photos: Path, name: str) -> None:
    batches = list(data.open_loader(name, photos, 0, 2, 32, [None, 16, 8]))
    assert len(batches) == 2  # all four images
    if name in ("crop", "cached"):
        pixels = batches[0][0]["image"]  # with a margin
        assert (len(pixels), pixels.shape[3], pixels.dtype) == (2, 3, torch.uint8) and min(pixels.shape[1:3]) >= 32
        assert batches[0][0]["draws"].shape == (2, 4)  # a flip for each view, and a resolution
    views = batches[0][0]
    if name == "timm":
        assert views.shape == (2, 3, 32, 32) and -3 < views.min() < 0 < views.max() < 3  # normalized
    if name in ("one", "all"):
        assert len(views) == (3 if name == "all" else 1)
        assert all(view.shape == (2, 32, 32, 3) and view.dtype == torch.uint8 for view in views.values())


def test_a_round_of_a_loader_covers_all_images(photos: Path) -> None:
    call = data.loader_round("cached", photos, 1, 2, 32, [None, 8])["round_ms"]
    assert len(call()) == 2 and len(call()) == 2  # the workers stay for the next round


def test_rates_and_workers_by_hand() -> None:
    kinds = [("timm", 0), ("all", 0), ("timm", 2), ("all", 2)]
    times = [{"round_ms": ms} for ms in (1000.0, 2000.0, 500.0, 1000.0)]
    rows = data.loader_rows(kinds, times, {"images": 100, "model_images_s": 350.0})
    assert [row["images_s"] for row in rows] == [100, 50, 200, 100]
    assert [row["of_timm"] for row in rows] == [1, 0.5, 1, 0.5]
    # 100 and 50 images a second for each worker.
    assert [row["workers_to_feed"] for row in rows] == [None, None, 4, 7]


def test_every_loader_reads_the_same_images(cub_folder: Path, tmp_path: Path) -> None:
    paths = sorted(cub_folder.rglob("*.jpg"))
    (tmp_path / "links").mkdir()
    data.link_images(tmp_path / "links", paths, 5)
    linked = data.open_images(tmp_path / "links").paths
    assert len({path.resolve() for path in linked}) == 5 and {path.resolve() for path in linked} <= set(paths)
    with pytest.raises(SystemExit, match="has 12 images, fewer than --images 13"):
        data.link_images(tmp_path / "links", paths, 13)


def test_loaders_are_measured_interleaved(
    cub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setups: list = []

    def run_interleaved(given: list, repeats: int) -> list[dict[str, float]]:
        setups.extend(given)
        assert len(list(given[0].args[1].iterdir())) == 8  # the images are there
        return [{"round_ms": 100.0, "views_ms": 40.0, "normalize_ms": 8.0} for _ in given]

    monkeypatch.setattr(data, "run_interleaved", run_interleaved)
    data.main("cub", {"root": str(cub_folder)}, images=8, loaders=["all"], output=str(tmp_path / "out.csv"))
    rows = read_csv(tmp_path / "out.csv")
    kinds = [("timm", "0"), ("all", "0"), ("timm", "1"), ("all", "1")]
    assert [(row["loader"], row["workers"]) for row in rows] == kinds
    assert [(setup.func, setup.args[0]) for setup in setups[-3:]] == [
        (data.loader_round, "all"),
        (data.make_views, 8),
        (data.training_step, "mlph_tf_efficientnet_lite0_cub"),
    ]
    assert {row["images_s"] for row in rows} == {"80.0"} and {row["model_images_s"] for row in rows} == {"40.0"}
    # 8 training images of 40 x 50 pixels, which are not enlarged.
    assert float(rows[0]["cache_mib"]) == round(8 * 40 * 50 * 3 / 2**20, 1)
    assert rows[0]["timm"] and rows[0]["date"] and rows[0]["command"]
    assert {(row["views_ms"], row["normalize_ms"]) for row in rows} == {("5.0", "1.0")}
    assert "ours, all views by the worker" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--images 9 is not a multiple of --batch 8"):
        data.main(images=9)


def test_views_are_made_and_normalized(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []

    class Recorded(Normalize):
        def forward(self, images: Tensor, inplace: bool = False) -> Tensor:
            result = super().forward(images, inplace)
            made.append(tuple(result.shape))
            return result

    monkeypatch.setattr("c2f_zoo.data.views.Normalize", Recorded)
    calls = data.make_views(2, 32, [None, 8])
    calls["views_ms"]()
    assert made == [(2, 3, 32, 32)] * 2
    calls["normalize_ms"]()
    assert len(made) == 4


def test_a_training_step_changes_the_deepest_levels(small_model: C2FModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c2f_zoo, "create_model", lambda name, input_size: small_model)
    before = {level: small_model.head.get_classifier(level).weight.clone() for level in small_model.levels}
    data.training_step("mlph", batch=2, input_size=64, views=2)["round_ms"]()
    changed = [not torch.equal(small_model.head.get_classifier(at).weight, before[at]) for at in small_model.levels]
    assert changed == [False] * (len(changed) - 2) + [True, True]


@pytest.mark.slow
def test_the_detail_of_photos_is_measured_at_the_sizes_that_they_have(cub_folder: Path, tmp_path: Path) -> None:
    detail.main([str(cub_folder)], photos=4, output=str(tmp_path / "out.csv"))
    rows = {row["way"]: row for row in read_csv(tmp_path / "out.csv")}
    assert list(rows) == [*detail.WAYS, "all"]
    # The photos have 40 x 50 pixels; repeated pixels are counted to about one.
    assert [name for name in rows["all"] if name.startswith("median_")] == [f"median_{at}" for at in ("ms", 20, 28, 40)]
    assert [float(rows["nearest 500"][f"median_{size}"]) for size in (20, 28, 40)] == pytest.approx([1] * 3, abs=0.05)
    assert float(rows["nearest 500"]["rank_correlation"]) == 1


def test_the_ratios_of_detail_are_summarized() -> None:
    # At 227 the model sees 224 pixels. Ranks of the sizes: 1.5, 1.5, 3.5, 3.5; of the estimates: 1, 2, 4, 3.
    found = [(20, 10.0, 0.001), (20, 30.0, 0.002), (227, 224.0, 0.004), (227, 112.0, 0.003)]
    row = detail.summarize(found, 224)
    assert row["rank_correlation"] == pytest.approx(4 / np.sqrt(4 * 5), abs=1e-4) and row["median_ms"] == 2.5
    assert [row[f"{name}_20"] for name in ("low", "median", "high")] == pytest.approx([0.6, 1.0, 1.4])
    assert [row[f"{name}_227"] for name in ("low", "median", "high")] == pytest.approx([0.55, 0.75, 0.95])
