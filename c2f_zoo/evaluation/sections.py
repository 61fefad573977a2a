"""Sections of a measurement: each runs in a new process within a time limit, and all write to one JSON file."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from c2f_zoo.io.files import atomic_write

TRACEBACK_LINES = 12


class Record:
    """A JSON file of sections and their rows, written after every change.

    Only one process may write at a time. The file has a key for each section, with its rows, its seconds and, if it
    failed, its error.

    Args:
        path: the file to create or continue; its folder must exist.

    Examples:
        >>> Record("gpu.json").add("products", {"dtype": "bfloat16", "tflops": 790})
        products: dtype bfloat16, tflops 790
        >>> Record("gpu.json").rows("products")
        [{'dtype': 'bfloat16', 'tflops': 790}]
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def read(self) -> dict[str, Any]:
        """Return the whole content."""
        content: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        return content

    def rows(self, section: str) -> list[dict[str, Any]]:
        """Return the rows of a section."""
        return list(self.read().get(section, {}).get("rows", []))

    def add(self, section: str, row: Mapping[str, Any]) -> None:
        """Add a row to a section, and print it; NaN and infinity, which JSON does not have, become text."""
        row = {key: str(value) if _is_not_finite(value) else value for key, value in row.items()}
        self.update(section, rows=[*self.rows(section), row])
        print(f"{section}: " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    def update(self, section: str, **values: Any) -> None:
        """Set values of a section, e.g. its error."""
        content = self.read()
        content.setdefault(section, {}).update(values)
        text = json.dumps(content, indent=1, default=str)
        atomic_write(self.path, lambda part: part.write_text(text + "\n", encoding="utf-8"))

    @contextmanager
    def record_errors(self, section: str, row: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Record an exception of the block as the section's error, or as that of a row, and continue.

        Args:
            section: the section.
            row: the row that failed; None for the whole section.

        Examples:
            >>> with Record("gpu.json").record_errors("products", {"dtype": "float8"}):
            ...     raise ValueError("no such dtype")
            products: dtype float8, error ValueError: no such dtype
        """
        try:
            yield
        except Exception as error:
            lines = "".join(traceback.format_exception(error)).splitlines()[-TRACEBACK_LINES:]
            message = f"{type(error).__name__}: {error}"[:500]
            if row is None:
                self.update(section, error=message, traceback=lines)
                print("\n".join(lines), flush=True)
            else:
                self.add(section, {**row, "error": message})


def add_rows(record: Record, section: str, calls: Mapping[str, Callable[[], Mapping[str, Any]]], workers: int) -> None:
    """Add the row that each call returns, or its error.

    Args:
        record: the file.
        section: the section.
        calls: name of a row -> the call; picklable if there are workers.
        workers: number of processes that run the calls; 0 runs them in this process.
    """
    if not workers:
        for name, call in calls.items():
            with record.record_errors(section, {"name": name}):
                record.add(section, call())
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(call): name for name, call in calls.items()}
        for future in as_completed(futures):
            with record.record_errors(section, {"name": futures[future]}):
                record.add(section, future.result())


class PytestRows:
    """A plug-in of pytest that adds a row for each test.

    Args:
        record: the file.
        section: the section of the rows.
    """

    def __init__(self, record: Record, section: str) -> None:
        self.record, self.section = record, section

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Add a row after a test's call, or after a setup or teardown that skips or fails."""
        if report.when == "call" or report.outcome != "passed":
            error = {"error": str(report.longrepr)[-1000:]} if report.failed else {}
            self.record.add(self.section, {"test": report.nodeid, "outcome": report.outcome, **error})


def run_sections(
    function: Callable[[str], None],
    limits: Mapping[str, float],
    record: Record,
    seconds: float = math.inf,
    start_method: str = "spawn",
) -> None:
    """Run each section in a new process; record the error of one that fails, and run the next.

    A section that exceeds its time limit is killed, with the processes that it started; its rows are kept.

    Args:
        function: a picklable function of a section's name, which adds rows to the record.
        limits: section -> its time limit in seconds, in order.
        record: the file.
        seconds: time limit of all sections together.
        start_method: how `multiprocessing` starts a process; "fork" only before the GPU's first use.
    """
    context: Any = multiprocessing.get_context(start_method)
    end = time.monotonic() + seconds
    for section, limit in limits.items():
        start = time.monotonic()
        limit = min(limit, end - start)
        if limit <= 0:
            record.update(section, error=f"not run: the time limit of all sections, {seconds:g} s, was over")
            continue
        print(f"--- {section}, at most {limit:.0f} s", flush=True)
        process = context.Process(target=_run_section, args=(function, section, record))
        process.start()
        try:
            process.join(limit)
            if process.is_alive():
                record.update(section, error=f"stopped at its time limit of {limit:.0f} s; its rows are kept")
            elif process.exitcode:
                record.update(section, error=f"its process ended with {_describe(process.exitcode)}; see the log")
        finally:
            _kill_group(process)
            record.update(section, seconds=round(time.monotonic() - start, 1))


def _run_section(function: Callable[[str], None], section: str, record: Record) -> None:
    # A group of its own, not a session: its processes still end with the terminal's or the batch system's session.
    os.setpgrp()
    with record.record_errors(section):
        function(section)


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _describe(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"


def _kill_group(process: Any) -> None:
    with suppress(ProcessLookupError):  # all of its processes have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # if it is not yet the leader of its group
    process.join()
