"""Training curves."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_curves(rows: Sequence[Mapping[str, Any]], levels: Sequence[str], path: Path) -> None:
    """Plot every level's training loss and validation accuracy as a PNG file.

    Args:
        rows: the rows of `metrics.csv`.
        levels: the levels.
        path: the file.
    """
    import matplotlib  # takes most of a second, once in a run

    with matplotlib.rc_context({"text.parse_math": False}):  # names of levels may contain dollar signs
        _plot_curves(rows, levels).savefig(path, dpi=120, format="png")


def _plot_curves(rows: Sequence[Mapping[str, Any]], levels: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for level in levels:
        axes[0].plot(epochs, [row[f"loss_{level}"] for row in rows], marker=".", label=level)
        axes[1].plot(epochs, [row[f"val_{level}"] for row in rows], marker=".", label=level)
    starts = [after["epoch"] - 0.5 for before, after in itertools.pairwise(rows) if after["stage"] != before["stage"]]
    for ax, title in zip(axes, ("training loss", "validation accuracy, own resolution"), strict=True):
        for start in starts:
            ax.axvline(start, color="grey", linestyle=":", linewidth=1)
        ax.set(title=title, xlabel="epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
    axes[1].set_ylim(0, 1)
    axes[1].legend()
    return figure
