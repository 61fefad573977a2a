"""Time and memory of functions, measured in new processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

import pytest
import torch

from c2f_zoo.evaluation.measuring import kept_bytes, peak_bytes, run_in_new_process, run_interleaved, seconds_per_call


def make_calls(size: int) -> dict[str, Callable[[], object]]:
    x = torch.rand(size, size)
    return {"product_ms": lambda: x @ x, "sum_ms": lambda: x.sum()}


def fail() -> dict[str, Callable[[], object]]:
    raise ValueError("no such variant")


def allocate() -> tuple[int, int]:
    torch.ones(1000).sum()
    return os.getpid(), peak_bytes(lambda: torch.ones(50_000_000).sum())


@pytest.mark.slow
def test_interleaved_processes_return_medians() -> None:
    small, large = run_interleaved([partial(make_calls, 8), partial(make_calls, 600)], repeats=2)
    assert list(small) == list(large) == ["product_ms", "sum_ms", "mm_gflops", "matmul_gflops"]
    assert 0 <= small["product_ms"] < large["product_ms"]
    assert small["mm_gflops"] > 0 and large["matmul_gflops"] > 0


@pytest.mark.slow
def test_a_failed_process_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="a measured process failed; its error is printed above"):
        run_in_new_process(fail)
    assert "ValueError: no such variant" in capfd.readouterr().err


def test_kept_bytes_by_hand() -> None:
    x = torch.rand(1000, requires_grad=True)
    # exp keeps its output, 4000 bytes; the product keeps that again and x, which is an input.
    assert kept_bytes(lambda: x.exp() * x, [x]) == 4000


@pytest.mark.slow
def test_peak_bytes_include_temporary_tensors() -> None:
    before = dict(os.environ)
    process, peak = run_in_new_process(allocate)
    assert process != os.getpid() and dict(os.environ) == before
    assert 190e6 < peak < 260e6


def test_a_short_call_is_timed_several_times() -> None:
    calls: list[int] = []

    def wait() -> None:
        calls.append(1)
        time.sleep(0.01)

    assert 0.01 <= seconds_per_call(wait) < 0.15
    assert len(calls) > 1
