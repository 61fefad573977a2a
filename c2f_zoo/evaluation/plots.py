"""Plots of a model's mistakes and of accuracy against resolution."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from c2f_zoo.config import format_resolution
from c2f_zoo.evaluation.resolution_curves import Curves
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.io.files import atomic_write


@contextlib.contextmanager
def saved_figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Create a figure and save it atomically as a PNG file.

    Args:
        path: the file.
        width: width in inches, at 120 pixels per inch.
        height: height in inches.
    """
    with matplotlib.rc_context({"text.parse_math": False}):  # class names may contain dollar signs
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        atomic_write(path, partial(figure.savefig, dpi=120, format="png"))


def plot_mistakes(heights: Mapping[str, Sequence[int]], tree: Hierarchy, path: Path) -> None:
    """Plot the heights of the common ancestors of predicted and true classes.

    Args:
        heights: decoding -> number of images at each height, see `c2f_zoo.metrics.LCAHeights`.
        tree: the class tree.
        path: the PNG file.
    """
    with saved_figure(path, 3 + 1.8 * (len(tree.levels) + 1), 4) as figure:
        ax = figure.subplots()
        width = 0.8 / len(heights)
        for number, (decoding, counts) in enumerate(heights.items()):
            percents = [100 * count / max(sum(counts), 1) for count in counts]
            places = [height + (number - (len(heights) - 1) / 2) * width for height in range(len(counts))]
            bars = ax.bar(places, percents, width, label=decoding)
            ax.bar_label(bars, fmt="{:.1f}", fontsize=7, padding=1)
        ax.set_xticks(range(len(tree.levels) + 1), name_heights(tree))
        ax.set(ylabel="% of images", title=f"How near the predicted {tree.finest} is to the true one")
        ax.margins(y=0.12)
        ax.legend(title="decoding")


def name_heights(tree: Hierarchy) -> list[str]:
    """Return names of the heights of common ancestors of predicted and true classes.

    Examples:
        >>> name_heights(load_hierarchy("cub"))
        ['correct', 'same genus', 'same family', 'elsewhere']
    """
    return ["correct", *(f"same {level}" for level in reversed(tree.levels[:-1])), "elsewhere"]


def plot_resolution_curves(curves: Curves, title: str, path: Path) -> None:
    """Plot accuracy against resolution.

    The plot shows each level's curve with intervals, the thresholds and the chosen resolutions.
    """
    x = [curves.side if resolution is None else resolution for resolution in curves.grid]
    with saved_figure(path, 8, 4.5) as figure:
        ax = figure.subplots()
        for column, (level, point) in enumerate(zip(curves.levels, curves.points, strict=True)):
            (line,) = ax.plot(x, curves.accuracy[:, column], marker=".", label=level)
            color = line.get_color()
            ax.fill_between(x, curves.low[:, column], curves.high[:, column], color=color, alpha=0.15, lw=0)
            if point is not None:
                label = f"{level}: {format_resolution(curves.grid[point])}"
                ax.plot(x[point], curves.accuracy[point, column], "D", ms=9, mfc="none", color=color, label=label)
        for threshold in sorted(set(curves.thresholds)):
            limits = zip(curves.levels, curves.thresholds, strict=False)
            names = ", ".join(level for level, limit in limits if limit == threshold)
            ax.axhline(threshold, color="0.3", ls="--", lw=1, label=f"threshold {threshold} ({names})")
        ax.set_xscale("log")
        ticks = ["full\n" * (resolution is None) + str(side) for resolution, side in zip(curves.grid, x, strict=True)]
        ax.set_xticks(x, ticks)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(ylim=(0, 1.02), xlabel="resolution in pixels", ylabel="validation accuracy")
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
