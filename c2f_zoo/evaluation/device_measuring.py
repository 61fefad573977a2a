"""Time, memory and floating-point operations of functions on a GPU, or on the CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from c2f_zoo.evaluation.measuring import MEBIBYTE

# Name -> dtype, and whether float32 products run in TF32.
PRECISIONS = {"bf16": (torch.bfloat16, False), "tf32": (torch.float32, True), "fp32": (torch.float32, False)}
WARM_UP = 3
LONGEST = 0.5  # seconds of timed calls of one function


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in the float32 products and convolutions of a block.

    PyTorch's own default allows it in convolutions only.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return autocast to a dtype; disabled for float32 and float64."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(device.type, dtype if is_half else torch.bfloat16, enabled=is_half)


def time_and_memory(function: Callable[[], object], device: torch.device, repeats: int = 20) -> dict[str, float | None]:
    """Measure a function's time and memory.

    Args:
        function: the function. It runs a few times before the measurement.
        device: the device that it computes on.
        repeats: largest number of timed calls; fewer if they take long, but 3 or more.

    Returns:
        The median of the milliseconds of a call ("ms"), the number of timed calls ("calls"), and the peak of the
        device's memory in MiB: beyond what was allocated before the call ("peak_mib"), and of everything
        ("total_mib"). Both are None on a CPU.
    """
    for _ in range(WARM_UP):
        function()
    base = peak = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        base = torch.cuda.memory_allocated(device)
    times: list[float] = []
    while len(times) < 3 or (len(times) < repeats and sum(times) < 1e3 * LONGEST):
        times.append(milliseconds(function, device))
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    return {
        "ms": round(statistics.median(times), 4),
        "calls": len(times),
        "peak_mib": None if peak is None or base is None else round((peak - base) / MEBIBYTE, 1),
        "total_mib": None if peak is None else round(peak / MEBIBYTE, 1),
    }


def milliseconds(function: Callable[[], object], device: torch.device) -> float:
    """Return the milliseconds of one call, by the GPU's own events if the device is one."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end)
    begin = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - begin)


def product_rate(name: str, device: torch.device, size: int = 8192) -> float:
    """Measure the rate of a product of two square matrices, in 1e12 operations a second.

    Args:
        name: one of `PRECISIONS`.
        device: the device.
        size: number of rows and columns.
    """
    generator = torch.Generator(device).manual_seed(0)
    dtype, allow_tf32 = PRECISIONS[name]
    a, b = (torch.randn(size, size, generator=generator, device=device, dtype=dtype) for _ in range(2))
    with tf32(allow_tf32):
        milliseconds_of = time_and_memory(lambda: a @ b, device)["ms"]
    assert milliseconds_of is not None
    return 2e-9 * size**3 / milliseconds_of


def count_flops(function: Callable[[], object]) -> int:
    """Count the floating-point operations of matrix products and convolutions in a call.

    Kernels that PyTorch does not know, e.g. Triton's, count as none.

    Examples:
        >>> x, weight = torch.ones(4, 3), torch.ones(3, 5, requires_grad=True)
        >>> count_flops(lambda: (x @ weight).sum().backward())  # 2 * 4 * 3 * 5, twice
        240
    """
    counter: Any = FlopCounterMode(display=False)
    with counter:
        function()
    return int(counter.get_total_flops())
