"""The record of a run: its starts, and its report in Markdown."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from accelerate import Accelerator

import c2f_zoo
from c2f_zoo.config import format_resolution
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.hierarchy.escape import fenced, markdown
from c2f_zoo.io.card import markdown_table
from c2f_zoo.io.files import atomic_write, read_csv, write_csv

STARTS = "starts.csv"


def record_start(output: Path, accelerator: Accelerator) -> None:
    """Add a row to a run's `starts.csv`: command, git commit, date, device and versions.

    Args:
        output: the run's folder.
        accelerator: the processes; the main process writes.
    """
    if accelerator.is_main_process:
        file = output / STARTS
        row = {
            "command": shlex.join(["python", *sys.argv]),
            "commit": git_commit(),
            "processes": accelerator.num_processes,
            "mixed_precision": accelerator.mixed_precision,
            "c2f_zoo": c2f_zoo.__version__,
            "accelerate": version("accelerate"),
            **describe_machine(accelerator.device),
        }
        write_csv(file, [*(read_csv(file) if file.exists() else []), row])


def git_commit() -> str:
    """Return the commit of this library's checkout, with `+` if files differ from it; `""` outside a repository."""
    folder = Path(__file__).parent
    try:
        commit, changes = (
            subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "."])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+" if changes else "")


def write_run_report(
    output: Path,
    accuracy: Mapping[str, Mapping[int | None, float]],
    own: Mapping[str, int | None],
    images: int,
    note: str = "",
) -> None:
    """Write a run's `report.md`: test accuracy, curves, starts and options.

    Args:
        output: the run's folder.
        accuracy: level -> resolution -> accuracy in [0, 1]; resolution None: full size.
        own: the resolution of each level.
        images: number of test images.
        note: a sentence on the training, below the table.
    """
    resolutions = list(dict.fromkeys(resolution for cells in accuracy.values() for resolution in cells))
    rows = [
        [
            markdown(level),
            *(f"**{100 * cells[at]:.1f}**" if own[level] == at else f"{100 * cells[at]:.1f}" for at in resolutions),
        ]
        for level, cells in accuracy.items()
    ]
    starts = read_csv(output / STARTS)
    lines = [f"# {output.name}", "", f"Accuracy in % on {images} test images; bold: own resolution.", ""]
    lines += [markdown_table(["level", *map(format_resolution, resolutions)], rows), ""]
    lines += [note[0].upper() + note[1:] + ".", ""] if note else []
    lines += ["![training loss and validation accuracy](curves.png)", "", "## Starts", ""]
    lines += [markdown_table(list(starts[0]), [list(map(markdown, row.values())) for row in starts])]
    options = (output / "config.yaml").read_text(encoding="utf-8").strip()
    lines += ["", "## Options", "", fenced(options, "yaml"), ""]
    text = "\n".join(lines)
    atomic_write(output / "report.md", lambda part: part.write_text(text, encoding="utf-8"))
