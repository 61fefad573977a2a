"""Run a script in this process, which has imported everything already: a new process takes seconds for that."""

from __future__ import annotations

import io
import runpy
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest


def run_in_process(script: str | Path, arguments: Sequence[str], folder: Path) -> tuple[int, str, str]:
    """Run a script as Python does, and wait for its end.

    Args:
        script: the script.
        arguments: its command-line arguments.
        folder: the working folder.

    Returns:
        The exit code, the standard output and the error output.
    """
    printed, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(errors):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [str(script), *arguments])
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=errors)
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            return code, printed.getvalue(), errors.getvalue()
    return 0, printed.getvalue(), errors.getvalue()
