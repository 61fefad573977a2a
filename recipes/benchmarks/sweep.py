"""Measure the cost of `mlp` against d, batch, channels and map size.

    python recipes/benchmarks/sweep.py

Changes one of the four numbers at a time, from d 4096, batch 2, 256 channels and maps of 28 x 28. Runs `pooling.py` at
every point.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from jsonargparse import auto_cli

from c2f_zoo.io.files import read_csv, write_csv
from c2f_zoo.paths import expand

plt.switch_backend("agg")
CENTER = {"dim": 4096, "batch": 2, "channels": 256, "size": 28}
AXES = {
    "dim": (1024, 4096, 8192, 16384),
    "batch": (1, 2, 4, 8),
    "channels": (64, 256, 512, 1024),
    "size": (7, 14, 28, 56),
}
TITLES = {"dim": "d", "batch": "batch", "channels": "channels", "size": "height and width"}


def main(repeats: int = 3, output: str = "runs/benchmark-sweep.csv") -> None:
    """Measure every point, write a CSV row for each variant, and draw the plots.

    Args:
        repeats: number of timed calls; the median is reported.
        output: the CSV file to create or replace; the plot has the same name with .png.
    """
    expand(output).parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for axis, values in AXES.items():
        for value in values:
            for row in measure_point({**CENTER, axis: value}, repeats):
                rows.append({"against": axis, **row})
                print(axis, value, row["variant"], row["step_ms"], "ms", row["peak_step_mib"], "MiB", flush=True)
            write_csv(output, rows)
    plot(rows, expand(output).with_suffix(".png"))
    print(f"written to {output}")


def measure_point(shape: dict[str, int], repeats: int) -> list[dict[str, str]]:
    """Run the benchmark of poolings at one shape, and return its rows."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"names": "[mlp]", "variants": "[plain,ours]", **shape, "repeats": repeats, "output": f"{folder}/out"}
        arguments = [str(text) for name, value in options.items() for text in (f"--{name}", value)]
        subprocess.run(
            [sys.executable, str(Path(__file__).with_name("pooling.py")), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return read_csv(f"{folder}/out")


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw time and memory against each of the four numbers."""
    figure, grid = plt.subplots(2, len(AXES), figsize=(13, 6), layout="constrained", sharey="row")
    for column, (axis, title) in enumerate(TITLES.items()):
        for variant, style in (("plain", "o--"), ("ours", "o-")):
            chosen = [row for row in rows if row["against"] == axis and row["variant"] == variant]
            values = [int(row[axis]) for row in chosen]
            for line, key in enumerate(("step_ms", "peak_step_mib")):
                grid[line][column].plot(values, [float(row[key]) for row in chosen], style, label=variant)
        for panel in grid[:, column]:
            panel.set(xscale="log", yscale="log", xlabel=title)
            panel.set_xticks(values, [str(value) for value in values], minor=False)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
    grid[0][0].set_ylabel("forward + backward, ms")
    grid[1][0].set_ylabel("peak beyond inputs and gradients, MiB")
    grid[0][0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    auto_cli(main)
