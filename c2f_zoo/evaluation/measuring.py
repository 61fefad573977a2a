"""Measurement of time and memory in new processes."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from c2f_zoo.ops.products import matmul

MEBIBYTE = 2**20
TIMED_SECONDS = 0.2  # a shorter call is repeated
T = TypeVar("T")


def run_interleaved(
    setups: Sequence[Callable[[], Mapping[str, Callable[[], object]]]], repeats: int
) -> list[dict[str, float]]:
    """Time calls in several new processes, interleaved, and return medians.

    Interleaving spreads a slow phase of the machine over all processes. Each process also times two products of
    2048 x 2048 matrices, as a measure of the machine's speed.

    Args:
        setups: a picklable function for each process that returns calls by name. Each call runs once untimed.
        repeats: number of timed calls of each name.

    Returns:
        For each setup a row with the milliseconds of each call under its name, and the rates of `torch.mm`
        ("mm_gflops") and of `c2f_zoo.ops.products.matmul` ("matmul_gflops") in 1e9 operations a second.

    Raises:
        RuntimeError: a process failed.
    """
    runs: list[list[dict[str, float]]] = [[] for _ in setups]
    with ExitStack() as stack:
        connections = [stack.enter_context(_new_process(_serve, setup)) for setup in setups]
        names = [_receive(connection) for connection in connections]
        for _ in range(repeats):
            for connection, calls, rows in zip(connections, names, runs, strict=True):
                rows.append({name: _ask(connection, name) for name in calls})
    return [{name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]} for rows in runs]


def run_in_new_process(function: Callable[[], T]) -> T:
    """Run a picklable function in a new process and return its result.

    In that process, freed memory returns to the operating system at once, so that `peak_bytes` is exact.

    Raises:
        RuntimeError: the process failed.
    """
    with _environment_variable("MALLOC_MMAP_THRESHOLD_", "65536"), _new_process(_send_result, function) as connection:
        return _receive(connection)


def seconds_per_call(function: Callable[[], object]) -> float:
    """Return the seconds of a call, the median of several calls if it is short."""
    times: list[float] = []
    while sum(times) < TIMED_SECONDS:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def kept_bytes(forward: Callable[[], Tensor], inputs: Iterable[Tensor]) -> int:
    """Return the number of bytes that a forward pass keeps for the backward pass.

    Args:
        forward: a function that runs the forward pass and returns its output.
        inputs: tensors that are not counted: inputs, weights and buffers.

    Examples:
        >>> x = torch.ones(1000, requires_grad=True)
        >>> kept_bytes(lambda: x.exp(), [x])
        4000
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    kept: dict[int, int] = {}
    alive = []  # a freed tensor's address could be used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive.append(forward())
    return sum(kept.values())


def peak_bytes(function: Callable[[], object]) -> int:
    """Return the rise of the process's resident memory during a call (Linux only)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = process_bytes("VmRSS")
    function()
    return process_bytes("VmHWM") - before


def process_bytes(key: str) -> int:
    """Return a value of `/proc/self/status` in bytes.

    Args:
        key: "VmRSS" (resident memory) or "VmHWM" (its high-water mark).
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


@contextmanager
def _new_process(target: Callable[[Any, Connection], None], function: Callable[[], Any]) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(function, theirs))
    process.start()
    theirs.close()  # so that the end of the process closes the connection
    try:
        yield ours
    finally:
        ours.close()
        process.join()


@contextmanager
def _environment_variable(name: str, value: str) -> Iterator[None]:
    previous = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if previous is not None:
            os.environ[name] = previous


def _serve(setup: Callable[[], Mapping[str, Callable[[], object]]], connection: Connection) -> None:
    """Send the names of all calls, then time each requested call."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    rates = {"mm_gflops": lambda: torch.mm(a, b), "matmul_gflops": lambda: matmul(a, b)}
    calls = {**setup(), **rates}
    for call in calls.values():
        call()
    connection.send(list(calls))
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        seconds = seconds_per_call(calls[name])
        connection.send(2 * 2048**3 / seconds / 1e9 if name in rates else 1e3 * seconds)


def _send_result(function: Callable[[], Any], connection: Connection) -> None:
    connection.send(function())


def _ask(connection: Connection, name: str) -> float:
    connection.send(name)
    return _receive(connection)


def _receive(connection: Connection) -> Any:
    try:
        return connection.recv()
    except EOFError:
        raise RuntimeError("a measured process failed; its error is printed above") from None
