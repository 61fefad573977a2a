"""Check and measure a GPU in less than ten minutes.

    bash recipes/benchmarks/gpu.sh OUT                    # writes OUT/gpu.json and OUT/gpu.log
    bash recipes/benchmarks/gpu.sh OUT --tiny             # small sizes, also without a GPU
    bash recipes/benchmarks/gpu.sh OUT --only poolings    # some of the sections

Each section runs in a new process with a time limit; `SECTIONS` lists them. A row is written to the JSON file as soon
as it is measured. A section that fails is recorded, and the next one runs. Nothing is installed or downloaded, and
missing packages are named: sections that need them are recorded as failed.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from c2f_zoo.evaluation.sections import Record, run_sections

ROOT = Path(__file__).parents[2]
NEEDED = ("torch", "torchvision", "timm", "accelerate", "torchmetrics", "jsonargparse")
OPTIONAL = ("triton", "pytest")
SECONDS = 470.0


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        out: the folder of the results.
        tiny: use small sizes.
        data: folder of CUB-200-2011, or of a part of it in the same layout; None: drawn images.
    """

    out: Path
    tiny: bool
    data: str | None

    @property
    def record(self) -> Record:
        return Record(self.out / "gpu.json")


def device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine(settings: Settings) -> None:
    """Describe the machine, and measure the rate of matrix products."""
    from c2f_zoo.evaluation.device_measuring import PRECISIONS, product_rate
    from c2f_zoo.evaluation.provenance import describe_machine
    from c2f_zoo.training.launch import usable_cores

    settings.record.update("machine", **describe_machine(device()), cores=usable_cores(), tiny=settings.tiny)
    for precision in PRECISIONS:
        rate = product_rate(precision, device(), size=256 if settings.tiny else 8192)
        settings.record.add("machine", {"precision": precision, "tflops": round(rate, 3)})


def rate_of(settings: Settings, precision: str) -> float:
    """Return the measured rate of matrix products, in 1e12 operations a second; NaN if it is unknown."""
    rates = {row["precision"]: row["tflops"] for row in settings.record.rows("machine")}
    return rates.get(precision, float("nan"))


def checks(settings: Settings) -> None:
    """Compare every pooling and a model with float64; see `c2f_zoo.evaluation.device_checks`."""
    from c2f_zoo.evaluation.device_checks import check_pooling_case, pooling_cases
    from c2f_zoo.evaluation.device_model_checks import model_checks

    cases = list(pooling_cases(("mlp", "max") if settings.tiny else ()))
    calls = {str(case): partial(check_pooling_case, case, device()) for case in cases if case.mode != "compiled"}
    calls |= {f"model {name}": check for name, check in model_checks(device()).items()}
    calls |= {str(case): partial(check_pooling_case, case, device()) for case in cases if case.mode == "compiled"}
    for name, check in calls.items():
        if settings.tiny and ("float16" in name.split() or name in ("model compiled", "mlp default float32 compiled")):
            continue  # slow on a CPU
        with settings.record.record_errors("checks", {"check": name}):
            settings.record.add("checks", check())


class Outcomes:
    """A plug-in of pytest that records the outcome of each test."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            row = {"test": report.nodeid, "outcome": report.outcome}
            if report.failed:
                row["error"] = str(report.longrepr)[-1000:]
            self.record.add("tests", row)


def tests(settings: Settings) -> None:
    """Run the other tests marked `gpu`, if pytest is installed."""
    import pytest

    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
    chosen = [str(path) for path in files if path.name != "test_device_checks.py"]  # which the section "checks" ran
    if settings.tiny:
        chosen = [f"{ROOT}/tests/test_transforms.py"]
    # Without the configured options, which need pytest-xdist.
    options = ["-m", "gpu", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    status = pytest.main([*options, *chosen], plugins=[Outcomes(settings.record)])
    settings.record.update("tests", pytest=status.name if isinstance(status, pytest.ExitCode) else status)


@dataclass(frozen=True)
class Sums:
    """A pooling to measure at a shape.

    Attributes:
        pooling: name of the pooling.
        variant: "eager" (as most code writes it), "compiled" (that, by `torch.compile`), "ours" (the automatic choice),
            or an implementation.
        precision: one of `PRECISIONS`.
        batch: number of images.
    """

    pooling: str
    variant: str
    precision: str
    batch: int


def poolings_to_measure(tiny: bool) -> Iterator[Sums]:
    """Yield what to measure, the most important first."""
    batches = (2,) if tiny else (32, 8, 64, 16)
    for batch in batches:
        for precision in ("bf16", "tf32", "fp32"):
            yield from (Sums("mlp", variant, precision, batch) for variant in ("eager", "ours"))
    middle = batches[0]
    yield Sums("mlp", "compiled", "bf16", middle)
    for precision in ("bf16", "tf32"):
        for pooling, variants in {"mlp": ("tiled", "triton"), "hbp": ("eager", "ours", "gram", "triton")}.items():
            yield from (Sums(pooling, variant, precision, middle) for variant in variants)
    if not tiny:
        rest = [("mlp", "tf32", middle), ("hbp", "bf16", middle), ("mlp", "bf16", 8), ("mlp", "bf16", 64)]
        yield from (Sums(pooling, "compiled", precision, batch) for pooling, precision, batch in rest)


def poolings(settings: Settings) -> None:
    """Measure forward and backward passes of poolings at the paper's shape."""
    for case in poolings_to_measure(settings.tiny):
        with settings.record.record_errors("poolings", vars(case)):
            settings.record.add("poolings", {**vars(case), **measure_pooling(case, settings)})
        free_memory()


def measure_pooling(case: Sums, settings: Settings) -> dict[str, Any]:
    """Measure a forward and backward pass: time, memory, and the fraction of the rate of matrix products."""
    import torch

    from c2f_zoo.evaluation.device_checks import choose_impl
    from c2f_zoo.evaluation.device_measuring import count_flops, precision, time_and_memory
    from c2f_zoo.pooling import create_pooling

    plain = plain_transcriptions()[case.pooling]
    channels, size, dim = (16, 5, 32) if settings.tiny else (512, 28, 8192)
    impl = case.variant if case.variant not in ("eager", "compiled", "ours") else None
    torch.manual_seed(0)
    module = create_pooling(case.pooling, [channels] * 3, dim=dim, impl=impl).to(device())
    kept = torch.bfloat16 if case.precision == "bf16" else torch.float32  # dtype of a backbone's maps
    maps = [torch.rand(case.batch, channels, size, size, device=device(), dtype=kept).requires_grad_() for _ in range(3)]
    call: Callable[..., Any] = module
    if impl is None and case.variant != "ours":
        call = partial(torch.compile(plain, dynamic=False) if case.variant == "compiled" else plain, module)
    choice = choose_impl(module, impl, maps, kept)
    if choice is not None and choice.refused:
        raise ValueError(choice.refused)

    def step(call: Callable[..., Any], maps: Sequence[Any]) -> None:
        for tensor in (*maps, *module.parameters()):
            tensor.grad = None
        with precision(case.precision, device()):
            vectors = call(maps)
            vectors.backward(torch.ones_like(vectors))

    one = [x[:1].detach().requires_grad_() for x in maps]
    flops = case.batch * count_flops(lambda: step(partial(plain, module), one))
    row: dict[str, Any] = {"impl": choice.impl if choice and case.variant not in ("eager", "compiled") else None}
    row |= time_and_memory(lambda: step(call, maps), device())
    return {**row, **rates(flops, row["ms"], settings, case.precision)}


def plain_transcriptions() -> dict[str, Callable[..., Any]]:
    sys.path.insert(0, str(ROOT / "tests"))
    from reference.poolings import PLAIN

    return PLAIN


def rates(flops: float, milliseconds: float, settings: Settings, precision: str) -> dict[str, float]:
    """Return the rate in 1e12 operations a second, and its fraction of that of matrix products."""
    tflops = 1e-9 * flops / milliseconds
    return {"tflops": round(tflops, 3), "of_gemm": round(tflops / rate_of(settings, precision), 4)}


def free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
