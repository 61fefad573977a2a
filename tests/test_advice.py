"""Advice on learning rates, sizes and lengths."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch

from c2f_zoo import create_dataset, create_pooling, list_poolings
from c2f_zoo.data import LabelledImages
from c2f_zoo.pooling.avg import AveragePooling
from c2f_zoo.training.advice import advise, is_normalized, measure_step, note_rising
from c2f_zoo.training.options import Stage, TrainOptions, read_options
from c2f_zoo.training.setup import build_model
from c2f_zoo.zoo import num_taps_of

CONFIGS = sorted((Path(__file__).parents[1] / "recipes" / "configs").glob("*.yaml"))
SMALL = {"backbone": "test_convnext", "input_size": 32, "pooling_options": {"dim": 8}}


@pytest.fixture(scope="module")
def critters() -> LabelledImages:
    return create_dataset("critters", "train", per_class=1)


def advice_on(dataset: LabelledImages, lr: float = 0.1, **values: Any) -> list[str]:
    defaults: dict[str, Any] = {"model_options": SMALL, "stages": [Stage(epochs=1, lr=lr)], "resolutions": {}}
    options = TrainOptions(dataset="critters", model="mlph", **defaults | values)
    return list(advise(options, build_model(options, dataset.hierarchy), dataset, range(len(dataset))))


AVERAGE = {**SMALL, "pooling": "avg", "pooling_options": {}}


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"lr": 1.0, "optimizer": "adamw"}, "lr of stage 1 is 1.0: adamw changes a weight by about 1 in a step"),
        ({"lr": 1.0, "optimizer": "muon"}, "lr of stage 1 is 1.0: muon changes a weight by about"),
        ({"lr": 1.0, "model_options": AVERAGE}, "lr of stage 1 is 1.0, which suits poolings that normalize"),
        ({"lr": 0.001}, "lr of stage 1 is 0.001, but mlp normalizes its vector"),
        (
            {"model_options": {**SMALL, "input_size": None}},
            "input_size is 448, the paper's; test_convnext was pretrained at 160 pixels, and 36 training images have a "
            "median size of 96. --model_options.input_size 160 needs about 0.13 of the time",
        ),
        (
            {"model_options": {**SMALL, "pooling_options": {}}},
            "pooling and head have 2.91 M weights, the backbone 0.12",
        ),
    ],
)
def test_a_poor_first_guess_is_said(values: dict[str, Any], line: str, critters: LabelledImages) -> None:
    values = {
        key: {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value
        for key, value in values.items()
    }
    (found,) = advice_on(critters, **values)
    assert found.startswith(line)


@pytest.mark.parametrize(
    "values",
    [{"lr": 1.0}, {"lr": 1e-3, "optimizer": "adamw"}, {"lr": 5e-3, "optimizer": "muon"}, {"model_options": AVERAGE}],
)
def test_nothing_is_said_of_usual_values(values: dict[str, Any], critters: LabelledImages) -> None:
    assert advice_on(critters, **values) == []


def test_the_printed_option_for_dim_is_read(critters: LabelledImages) -> None:
    (line,) = advice_on(critters, model_options={**SMALL, "pooling_options": {"impl": "plain"}})
    option, value = shlex.split(line.partition("; --")[2].removesuffix(" trains faster"))
    config = next(path for path in CONFIGS if path.stem == "smoke")
    options = read_options(TrainOptions, [config], [f"--{option}", value])
    assert options.model_options["pooling_options"] == {"dim": 1024, "impl": "plain"}


def test_an_optimizer_that_runs_elsewhere_gets_no_advice(
    critters: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: torch.optim.Optimizer, closure: None = None) -> None:
        raise RuntimeError("FusedSGD only supports CUDA tensors")

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    assert advice_on(critters, lr=1e-5) == []


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_learning_rates_of_our_configurations_are_usual(config: Path) -> None:
    options = read_options(TrainOptions, [config]) if "stages" in config.read_text(encoding="utf-8") else None
    for stage in options.stages if options else []:
        step, depends_on_gradient = measure_step(options, stage.lr)
        assert depends_on_gradient or step <= 0.02


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lion", "lamb", "muon", "adafactor"])
def test_a_step_is_that_of_the_optimizer(optimizer: str) -> None:
    """The mean over ten steps with one gradient, by hand with timm's optimizer, at two lengths of the gradient."""
    changes = []
    for scale in (1.0, 10.0):
        generator = torch.Generator().manual_seed(0)
        start, gradient = (torch.randn(64, 64, generator=generator) for _ in range(2))
        weight = torch.nn.Parameter(start.clone())
        found = timm.optim.create_optimizer_v2(
            [weight],
            opt=optimizer,
            lr=0.01,
            weight_decay=0.0,
            momentum=0.9,
            **({"nesterov": False} if optimizer == "sgd" else {}),
        )
        for _ in range(10):
            weight.grad = scale * gradient
            found.step()
        changes.append(((weight.detach() - start) / 10).pow(2).mean().sqrt().item())
    step, depends_on_gradient = measure_step(TrainOptions("critters", "mlph", {}, [], optimizer=optimizer), 0.01)
    assert step == pytest.approx(changes[0])
    assert depends_on_gradient == (optimizer == "sgd") == (changes[1] > 5 * changes[0])


NORMALIZED = {"bilinear", "compact_bilinear", "hbp", "hbp_shared", "kernel", "low_rank_bilinear", "mlp", "trilinear"}


@pytest.mark.parametrize("pooling", list_poolings())
def test_which_poolings_normalize_their_vector(pooling: str) -> None:
    assert is_normalized(create_pooling(pooling, [8] * num_taps_of(pooling))) == (pooling in NORMALIZED)


def test_a_pooling_that_needs_large_maps_gets_no_advice() -> None:
    class Large(AveragePooling):
        def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
            return super().forward([torch.nn.functional.avg_pool2d(x, 7) for x in maps])

    assert is_normalized(Large([8])) is None


@pytest.mark.parametrize(
    "rises, line",
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5], "still rose from 0.400 to 0.500 in the last of 5 epochs; train longer"),
        (
            [0.5, 0.6, 0.7, 0.8, 0.81, 0.82, 0.83, 0.84, 0.83, 0.86],
            "still rose from 0.840 to 0.860 in the last 2 of 10",
        ),
        ([0.1, 0.5, 0.9, 0.9, 0.905], ""),
        ([0.1, 0.9, 0.7, 0.8, 0.85], ""),
        ([0.3], ""),
        ([0.3, 0.6], "still rose from 0.300 to 0.600 in the last of 2 epochs"),
        ([], ""),
    ],
)
def test_a_validation_accuracy_that_still_rises_is_said(rises: list[float], line: str) -> None:
    rows = [{"epoch": 1, "loss_genus": 9.0, "val_genus": score - 0.1, "val_species": score + 0.1} for score in rises]
    found = note_rising(rows)
    assert line in found and bool(found) == bool(line)


def test_an_accuracy_near_1_cannot_rise_further() -> None:
    rows = [{"epoch": epoch, "val_genus": score} for epoch, score in enumerate([0.5, 0.9, 0.995], start=1)]
    assert not note_rising(rows)
    assert "rose from 0.900 to 0.985" in note_rising([*rows[:2], {"epoch": 3, "val_genus": 0.985}])
