"""The benchmark of models: counts by hand, costs, models that are finished, left out or do not compile."""

from __future__ import annotations

import importlib
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import c2f_zoo
from c2f_zoo.backbones import BACKBONES
from c2f_zoo.evaluation.measuring import run_in_new_process
from c2f_zoo.hierarchy import load_hierarchy
from c2f_zoo.io.files import read_csv
from c2f_zoo.zoo import METHODS, num_taps_of

BENCHMARKS = Path(__file__).parents[1] / "recipes" / "benchmarks"
SIZE = 8  # pixels


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Import the benchmark as new processes do, which get `sys.path`."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module("models")
    del sys.modules["models"]


@pytest.fixture
def three_convs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a backbone of three layers with 4 channels, which keep the size."""
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))

    @c2f_zoo.register_backbone("three_convs")
    def build(pretrained: bool = False) -> nn.Module:
        layers = [nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.ReLU()) for c in (3, 4, 4)]
        return nn.Sequential(*layers)


@pytest.fixture
def in_process(models: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measure in this process, uncompiled, and let every call take 100 ms; return the names of measured models."""
    measured = []

    def interleaved(setups: list[partial], repeats: int) -> list[dict[str, float]]:
        (setup,) = pickle.loads(pickle.dumps(setups))
        measured.append(setup.args[0].name)
        calls = setup()
        for call in calls.values():
            call()
        return [dict.fromkeys(calls, 100.0)]

    monkeypatch.setattr(models, "run_interleaved", interleaved)
    monkeypatch.setattr(models, "run_in_new_process", lambda function: pickle.loads(pickle.dumps(function))())
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: model)
    return measured


def case_of(models: ModuleType, name: str, **options: Any) -> Any:
    return models.Case(name, options, batch=2, device="cpu", precision="fp32")


@pytest.mark.usefixtures("three_convs")
@pytest.mark.parametrize(
    ("method", "options", "levels", "pooling_parameters", "features", "pooling_multiply_adds"),
    [
        # The Gram matrix is symmetric: the fourth of its blocks is copied.
        ("bcnn", {}, 1, 0, 4 * 4, SIZE**2 * 4 * 4 * 3 // 4),
        # Projections of 3 maps to 5 dimensions; three pairs and a triple of them.
        ("mlph", {"pooling_options": {"dim": 5}}, 3, 3 * (4 * 5 + 5), 4 * 5, SIZE**2 * (3 * 4 * 5 + (3 + 2) * 5)),
    ],
)
def test_counts_by_hand(
    models: ModuleType,
    method: str,
    options: dict[str, Any],
    levels: int,
    pooling_parameters: int,
    features: int,
    pooling_multiply_adds: int,
) -> None:
    classes = sum(list(load_hierarchy("critters").num_classes.values())[-levels:])
    weights = 3 * 4 * 9 + 2 * (4 * 4 * 9)  # of the backbone; it has 3 * 4 biases
    found = models.count(c2f_zoo.create_model(f"{method}_three_convs_critters", input_size=SIZE, **options))
    assert found == {
        "features": features,
        "parameters": weights + 3 * 4 + pooling_parameters + features * classes + classes,
        "pooling_parameters": pooling_parameters,
        "multiply_adds": SIZE**2 * weights + pooling_multiply_adds + features * classes,
        "pooling_multiply_adds": pooling_multiply_adds,
    }


@pytest.mark.slow
def test_a_finished_model_is_not_measured_again(models: ModuleType, in_process: list[str], tmp_path: Path) -> None:
    run: Callable[..., None] = partial(models.main, batch=2, repeats=1, output=str(tmp_path / "new" / "models.csv"))
    run(["mlph_tiny_critters"])
    run(["mlph_tiny_critters", "mlph_tiny_fashion_mnist"])
    assert in_process == ["mlph_tiny_critters", "mlph_tiny_fashion_mnist"]
    run(["mlph_tiny_critters"], precision="bf16")  # another setting
    rows = read_csv(tmp_path / "new" / "models.csv")
    assert [(row["model"], row["precision"]) for row in rows] == [
        ("mlph_tiny_critters", "fp32"),
        ("mlph_tiny_fashion_mnist", "fp32"),
        ("mlph_tiny_critters", "bf16"),
    ]
    for row in rows:
        assert [row[key] for key in ("images_s", "latency_ms", "compiled_latency_ms")] == ["20.0", "100.0", "100.0"]
        assert row["device"] and row["date"] and row["command"]
    assert [(row["dim"], row["input_size"]) for row in rows] == [("512", "96"), ("256", "32"), ("512", "96")]


def test_a_model_that_fails_is_left_out(
    models: ModuleType, in_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models.main(["mlph_tiny_kritters", "mlph_tiny_critters"], batch=1, output=str(tmp_path / "models.csv"))
    assert [row["model"] for row in read_csv(tmp_path / "models.csv")] == ["mlph_tiny_critters"]
    printed = capsys.readouterr().out
    assert "left out: mlph_tiny_kritters" in printed and "did you mean 'mlph_tiny_critters'" in printed
    assert "1 of 2 models are left out" in printed


@pytest.mark.usefixtures("three_convs")
def test_a_model_that_does_not_compile_has_the_other_times(
    models: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(x: torch.Tensor) -> None:
        raise RuntimeError("no compiler\nhint")

    monkeypatch.setattr(torch, "compile", lambda model, dynamic: fail)
    found = models.timed_calls(case_of(models, "bcnn_three_convs_critters", input_size=SIZE))
    assert list(found) == ["batch_ms", "latency_ms"]
    assert "not measured compiled: bcnn_three_convs_critters: no compiler\n" in capsys.readouterr().out


@pytest.mark.usefixtures("three_convs", "in_process")
def test_costs_of_a_device(models: ModuleType) -> None:
    row = models.measure_device(case_of(models, "bcnn_three_convs_critters", input_size=SIZE))
    assert row.pop("peak_mib") is row.pop("peak_step_mib") is None  # the CPU has no counters of memory
    assert list(row) == ["batch_ms", "latency_ms", "compiled_latency_ms"]
    assert all(value > 0 for value in row.values())


@pytest.mark.slow
def test_memory_of_a_pass_and_of_a_step(models: ModuleType) -> None:
    options = {"pooling": "avg", "levels": ["species"], "input_size": 160}
    case = models.Case("mlph_tiny_critters", options, batch=8, device="cpu", precision="fp32")
    row = run_in_new_process(partial(models.measure_memory, case))
    # Input and output of a layer after the stem, which halves the size: 16 channels.
    layer = 8 * 16 * 80**2 * 4 / 2**20
    assert 2 * layer < row["peak_mib"] < 10 * layer
    assert row["peak_step_mib"] > 2 * row["peak_mib"]  # a step keeps the maps of all layers


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:x"])
def test_other_devices_are_an_error(models: ModuleType, device: str) -> None:
    with pytest.raises(ValueError, match=f"device '{device}' is unsupported; choose cpu or cuda"):
        models.main(device=device)


@pytest.mark.parametrize("pooling", c2f_zoo.list_poolings())
def test_every_pooling_has_a_model_on_a_backbone(models: ModuleType, pooling: str) -> None:
    name, options = models.pooling_model(pooling, "tf_efficientnet_lite0")
    settings = models.settings_of(case_of(models, name, **options))
    dim = None if pooling in ("avg", "bilinear", "gem", "isqrt_cov", "max") else 1024
    assert [settings[key] for key in ("pooling", "dim", "input_size")] == [pooling, dim, 224]
    method = METHODS[name.removesuffix("_tf_efficientnet_lite0_cub100")]
    assert method.num_taps == num_taps_of(pooling)


def test_poolings_that_do_not_fit_the_backbone_are_left_out(
    models: ModuleType, in_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, poolings = str(tmp_path / "poolings.csv"), ["hbp_shared", "avg"]
    models.main(poolings, poolings_on="test_efficientnet", batch=1, output=output)
    assert in_process == ["bcnn_test_efficientnet_cub100"]
    assert [row["pooling"] for row in read_csv(output)] == ["avg"]
    assert re.search("left out: hbp.* hbp_shared: .*choose taps with equal numbers", capsys.readouterr().out)
