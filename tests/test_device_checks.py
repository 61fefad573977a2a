"""Checks of poolings and of a model against float64: they pass, and an error fails them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from c2f_zoo import list_poolings
from c2f_zoo.evaluation import device_checks
from c2f_zoo.evaluation.device_checks import PoolingCase, check_pooling_case, pooling_cases
from c2f_zoo.evaluation.device_model_checks import check_model, check_model_in, model_modes
from c2f_zoo.ops import IMPLEMENTATIONS

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", list_poolings())
def test_poolings_on_the_gpu(name: str) -> None:
    rows = [check_pooling_case(case, torch.device("cuda")) for case in pooling_cases([name])]
    assert [row for row in rows if row["outcome"].startswith("failed")] == []


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("mode", model_modes(CPU))
def test_a_model_on_the_gpu(mode: str) -> None:
    assert check_model_in(mode, torch.device("cuda"))["outcome"] == "ok"


def test_every_implementation_is_checked_in_every_dtype() -> None:
    cases = [case for case in pooling_cases() if case.mode == "cast"]
    assert {case.pooling for case in cases} == set(list_poolings())
    assert {(case.impl, case.dtype) for case in cases if case.pooling == "mlp"} == {
        (impl, dtype) for impl in IMPLEMENTATIONS for dtype in (torch.float32, torch.bfloat16, torch.float16)
    }
    compiled = [case.pooling for case in pooling_cases() if case.mode == "compiled"]
    assert sorted(compiled) == sorted(2 * list_poolings())


@pytest.mark.parametrize(("pooling", "impl"), [("mlp", "tiled"), ("hbp", "gram"), ("max", None), ("isqrt_cov", None)])
@pytest.mark.parametrize("mode", ["cast", "autocast"])
def test_correct_poolings_pass(pooling: str, impl: str | None, mode: str) -> None:
    row = check_pooling_case(PoolingCase(pooling, torch.bfloat16, mode, impl), CPU)
    assert row["outcome"] == "ok"
    assert row["check"] == f"{pooling} {impl or 'default'} bfloat16 {mode}"


def test_an_unsupported_implementation_is_named() -> None:
    outcome = check_pooling_case(PoolingCase("mlp", torch.float32, impl="gram"), CPU)["outcome"]
    assert outcome == "impl='gram' is unsupported: not every term is a pair"


class Wrong(nn.Module):
    """A pooling whose values, or else gradients, are wrong unless it runs in float64."""

    def __init__(self, wrong: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.in_channels, self.wrong = (3,), wrong

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        means = maps[0].mean(dim=(2, 3))
        return means if means.dtype == torch.float64 else self.wrong(means)


@pytest.mark.parametrize(
    ("wrong", "values", "gradients"),
    [
        (lambda x: x, 0.0, 0.0),
        (lambda x: 1.02 * x, 0.02, 0.02),
        (lambda x: x.detach() + 1.2 * (x - x.detach()), 0.0, 0.2),
        (lambda x: math.nan * x, math.nan, math.nan),
    ],
)
def test_errors_by_hand(
    wrong: Callable[[torch.Tensor], torch.Tensor], values: float, gradients: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_checks, "create_case_pooling", lambda case: Wrong(wrong))
    row = check_pooling_case(PoolingCase("avg", torch.float32), CPU)
    assert row["values"] == pytest.approx(values, abs=1e-6, nan_ok=True)
    assert row["gradients"] == pytest.approx(gradients, abs=1e-6, nan_ok=True)
    assert (row["outcome"] == "ok") == (gradients == 0)


@pytest.mark.parametrize("mode", ["float32", "bfloat16", "DDP of one", "FSDP of one"])
def test_a_model_passes(mode: str) -> None:
    row = check_model_in(mode, CPU)
    assert row["outcome"] == "ok" and row["check"] == f"model {mode}"


@pytest.mark.slow
def test_a_wrong_model_fails() -> None:
    def wrap(model: nn.Module) -> Callable[..., dict[str, torch.Tensor]]:
        return lambda images: {level: 1.01 * logits for level, logits in model(images).items()}

    assert check_model("scaled", CPU, torch.float32, wrap)["values"] == pytest.approx(0.01, rel=1e-3)
    assert check_model("scaled", CPU, torch.float32, wrap)["outcome"].startswith("failed")
