"""Sections of a measurement: rows survive errors, time limits and kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from c2f_zoo.evaluation.sections import Record, add_rows, run_sections

CHILD = [sys.executable, "-c", "import time; time.sleep(600)"]


def run_one(record: Record, folder: Path, section: str) -> None:
    record.add(section, {"number": 1})
    if section == "fails":
        raise ValueError("no such thing")
    if section == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if section == "is slow":
        child = subprocess.Popen(CHILD)
        (folder / "child").write_text(str(child.pid))
        time.sleep(600)
    record.add(section, {"number": 2})


def exists(process: int) -> bool:
    """Return whether a process runs; one that has ended waits for its parent as a zombie."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.slow
def test_every_section_runs_and_keeps_its_rows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record = Record(tmp_path / "out.json")
    limits = {"fails": 60.0, "is killed": 60.0, "is slow": 1.0, "works": 60.0}
    run_sections(partial(run_one, record, tmp_path), limits, record, start_method="fork")
    content = json.loads((tmp_path / "out.json").read_text())
    assert {name: len(section["rows"]) for name, section in content.items()} == {
        "fails": 1,
        "is killed": 1,
        "is slow": 1,
        "works": 2,
    }
    assert content["fails"]["error"] == "ValueError: no such thing"
    assert content["fails"]["traceback"][-1] == "ValueError: no such thing"
    assert content["is killed"]["error"] == "its process ended with signal SIGKILL; see the log"
    assert content["is slow"]["error"] == "stopped at its time limit of 1 s; its rows are kept"
    assert "error" not in content["works"]
    assert not exists(int((tmp_path / "child").read_text()))  # what a section started is killed with it
    assert all(section["seconds"] < 60 for section in content.values())
    printed = capfd.readouterr().out.splitlines()
    assert printed[:2] == ["--- fails, at most 60 s", "fails: number 1"] and "ValueError: no such thing" in printed


def test_the_limit_of_all_sections(tmp_path: Path) -> None:
    record = Record(tmp_path / "out.json")
    run_sections(print, {"first": 60.0, "second": 60.0}, record, seconds=0.0, start_method="fork")
    expected = {"error": "not run: the time limit of all sections, 0 s, was over"}
    assert record.read() == {"first": expected, "second": expected}


def test_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    record = Record(tmp_path / "out.json")
    record.add("errors", {"values": float("nan"), "gradients": float("inf"), "limit": 0.5})
    assert record.rows("errors") == [{"values": "nan", "gradients": "inf", "limit": 0.5}]


def test_an_error_of_a_row_does_not_end_the_section(tmp_path: Path) -> None:
    record = Record(tmp_path / "out.json")
    for batch in (8, 64):
        with record.record_errors("step", {"batch": batch}):
            if batch == 64:
                raise MemoryError("out of memory")
            record.add("step", {"batch": batch, "ms": 3.0})
    assert record.read() == {
        "step": {"rows": [{"batch": 8, "ms": 3.0}, {"batch": 64, "error": "MemoryError: out of memory"}]}
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_of_several_processes(workers: int, tmp_path: Path) -> None:
    record = Record(tmp_path / "out.json")
    calls = {f"row {number}": partial(dict, number=number) for number in range(3)}
    add_rows(record, "checks", {**calls, "row x": partial(int, "x")}, workers)  # type: ignore[dict-item]
    rows = sorted(record.rows("checks"), key=str)
    error = "ValueError: invalid literal for int() with base 10: 'x'"
    assert rows == [{"name": "row x", "error": error}, {"number": 0}, {"number": 1}, {"number": 2}]
