"""Figures of results: accuracy against resolution, of methods, against d, and against time and memory.

Each function takes rows of CSV files, whose values are text, and returns a figure. Accuracies are shown in %, with the
intervals of the rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

Row = Mapping[str, str]

WIDTH = 8.0  # inches; at 700 pixels a point is 1.2 pixels
SMALL = 9  # points
_MOST_LABELS = 11  # of the ticks of a panel
# Told apart without colours too.
SERIES: tuple[dict[str, Any], ...] = (
    {"color": "C0", "marker": "o"},
    {"color": "C1", "marker": "s", "ls": "--"},
    {"color": "0.35", "marker": "^", "ls": ":"},
    {"color": "C6", "marker": "D", "ls": "-."},
)
# Where the label of a point may be: points to the right and up, and its alignment. Of equally good places the first.
PLACES = tuple(
    (far * dx, far * dy, {-1: "right", 0: "center", 1: "left"}[dx], {-1: "top", 0: "center", 1: "bottom"}[dy])
    for far in (7, 16, 26, 38)
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
)


def plot_resolution(rows: Sequence[Row], names: Mapping[str, str] | None = None) -> Figure:
    """Plot accuracy against resolution, with a panel for each level and a curve for each model.

    Args:
        rows: rows with model, level, resolution in pixels, value, low and high.
        names: model -> its name in the legend.

    Examples:
        >>> row = {"model": "mlph", "level": "genus", "resolution": "24", "value": "0.8", "low": "0.7", "high": "0.9"}
        >>> plot_resolution([row]).axes[0].get_title()
        'genus'
    """
    models = _values(rows, "model")
    series = {model: [row for row in rows if row["model"] == model] for model in models}
    return _plot_curves(series, "resolution", "resolution in pixels", names or {})


def plot_dims(rows: Sequence[Row], names: Mapping[str, str] | None = None) -> Figure:
    """Plot accuracy against the dimension d of the pooling, with a panel for each level and a curve for each method.

    Args:
        rows: rows of an ablation's summary, of methods that are called `NAME_D`, e.g. `mlph_1024`.
        names: NAME -> its name in the legend.

    Raises:
        ValueError: a method's name does not end with its d, or there are several backbones.
    """
    _check_one_backbone(rows)
    series: dict[str, list[Row]] = {}
    for row in rows:
        found = re.fullmatch(r"(.+)_(\d+)", row["method"])
        if not found:
            raise ValueError(f"the method {row['method']!r} is not called NAME_D, e.g. mlph_1024; leave it out")
        series.setdefault(found[1], []).append({**row, "dim": found[2]})
    return _plot_curves(series, "dim", "dimension d of the pooling", names or {})


def _plot_curves(series: Mapping[str, Sequence[Row]], x: str, label: str, names: Mapping[str, str]) -> Figure:
    """Plot the curves of each level in a panel, against the column `x` on a logarithmic axis."""
    levels = _values([row for rows in series.values() for row in rows], "level")
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots(1, len(levels), sharey=True, squeeze=False)[0]
    for ax, level in zip(axes, levels, strict=True):
        ticks = set()
        for number, (name, rows) in enumerate(series.items()):
            own = sorted((row for row in rows if row["level"] == level), key=lambda row: float(row[x]))
            at, style = [float(row[x]) for row in own], SERIES[number % len(SERIES)]
            value, low, high = ([100 * float(row[key]) for row in own] for key in ("value", "low", "high"))
            ax.plot(at, value, ms=4, lw=1.4, label=names.get(name, name), **style)
            ax.fill_between(at, low, high, color=style["color"], alpha=0.18, lw=0)
            ticks.update(at)
        ax.set_xscale("log")
        labelled = _spaced(ticks)
        ax.set_xticks(sorted(ticks), [f"{tick:g}" * (tick in labelled) for tick in sorted(ticks)], fontsize=SMALL)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.tick_params(axis="y", labelsize=SMALL)
        ax.set_title(level, fontsize=10)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy in %")
    figure.supxlabel(label, fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=SMALL)
    return figure


def _spaced(ticks: Collection[float]) -> list[float]:
    """Return the ticks of a logarithmic axis whose labels do not overlap, from the lowest."""
    kept = sorted(ticks)[:1]
    for tick in sorted(ticks)[1:]:
        if math.log(tick / kept[-1]) >= math.log(max(ticks) / min(ticks)) / _MOST_LABELS:
            kept.append(tick)
    return kept


def plot_ablation(rows: Sequence[Row], names: Mapping[str, str] | None = None) -> Figure:
    """Plot methods sorted by accuracy, and beside them paired differences, with two panels for each level.

    A dot of a difference is filled if its interval leaves out zero.

    Args:
        rows: rows of an ablation's summary; those with a method in `minus` are differences.
        names: method -> its name in the figure.

    Raises:
        ValueError: there are several backbones.
    """
    _check_one_backbone(rows)
    names, levels = names or {}, _values(rows, "level")
    methods = {level: [row for row in rows if row["level"] == level and not row["minus"]] for level in levels}
    pairs = {level: [row for row in rows if row["level"] == level and row["minus"]] for level in levels}
    lines = [max(len(methods[level]), len(pairs[level])) + 1 for level in levels]
    columns = 2 if any(pairs.values()) else 1
    figure = Figure(figsize=(WIDTH, 0.9 + 0.45 * len(levels) + 0.23 * sum(lines)), layout="constrained")
    widths = [1.2, 1][:columns]
    grid = figure.subplots(len(levels), columns, squeeze=False, height_ratios=lines, width_ratios=widths, sharex="col")
    for axes, level in zip(grid, levels, strict=True):
        best_first = sorted(methods[level], key=lambda row: -float(row["value"]))
        _draw_intervals(axes[0], best_first, [names.get(row["method"], row["method"]) for row in best_first])
        axes[0].set_title(level, fontsize=10)
        for right in axes[1:]:
            titles = [[names.get(row[key], row[key]) for key in ("method", "minus")] for row in pairs[level]]
            _draw_intervals(right, pairs[level], [" \N{MINUS SIGN} ".join(title) for title in titles])
            right.axvline(0, color="0.3", ls="--", lw=1, zorder=1)
            right.set_visible(bool(titles))
    grid[-1, 0].set_xlabel("accuracy in %")
    if columns == 2:
        lowest = grid[max(row for row, level in enumerate(levels) if pairs[level]), 1]
        lowest.set_xlabel("difference in points (filled: not 0)")
        lowest.tick_params(axis="x", labelbottom=True)
    return figure


def _draw_intervals(ax: Axes, rows: Sequence[Row], titles: Sequence[str]) -> None:
    """Draw a dot and its interval for each row, one below the other."""
    for line, row in enumerate(rows):
        value, low, high = (100 * float(row[key]) for key in ("value", "low", "high"))
        is_open = bool(row["minus"]) and low <= 0 <= high
        ax.plot([low, high], [line, line], color="C0", lw=1.6, solid_capstyle="butt")
        ax.plot(value, line, "o", ms=5.5, color="C0", mfc="white" if is_open else "C0")
    ax.set_yticks(range(len(rows)), titles)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.tick_params(labelsize=SMALL)
    ax.grid(alpha=0.3)


def plot_cost(rows: Sequence[Row], batch: int, names: Mapping[str, str] | None = None) -> Figure:
    """Plot accuracy against time and memory; the Pareto front is a line, and the points on it are filled.

    Args:
        rows: rows of an ablation's summary, with the columns images_s, peak_mib and batch of `models.py`.
        batch: the number of images in a batch, of all rows.
        names: method or backbone -> its name in the figure.

    Raises:
        ValueError: a row was measured with another batch.
    """
    names, backbones = names or {}, _values(rows, "backbone")
    if others := [row for row in rows if int(row["batch"]) != batch]:
        raise ValueError(
            f"{len(others)} rows have a batch of {others[0]['batch']} in place of {batch}; choose with where"
        )
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    costs: dict[str, Callable[[Row], float]] = {
        "ms per image": lambda row: 1000 / float(row["images_s"]),
        f"peak memory of a forward pass of {batch} images in MiB": lambda row: float(row["peak_mib"]),
    }
    value = [100 * float(row["value"]) for row in rows]
    for ax, (label, cost) in zip(axes, costs.items(), strict=True):
        x = [cost(row) for row in rows]
        front = pareto_front(x, value)
        steps = np.repeat([x[i] for i in front], 2)[1:], np.repeat([value[i] for i in front], 2)[:-1]
        ax.plot(*steps, color="0.3", lw=1, zorder=1)
        for i, row in enumerate(rows):
            style = SERIES[backbones.index(row["backbone"]) % len(SERIES)]
            color = style["color"]
            ax.plot([x[i], x[i]], [100 * float(row[key]) for key in ("low", "high")], color=color, lw=1, alpha=0.4)
            face = color if i in front else "white"
            ax.plot(x[i], value[i], style["marker"], ms=6, color=color, mfc=face)
        _scale_log(ax, x)
        ax.set_xlabel(label, fontsize=SMALL)
        ax.tick_params(labelsize=SMALL)
        ax.grid(alpha=0.3)
        ax.margins(x=0.16, y=0.06)
    axes[0].set_ylabel("accuracy in %")
    handles = [axes[0].plot([], [], color="0.3", lw=1, label="Pareto front (filled)")[0]]
    for number, backbone in enumerate(backbones if len(backbones) > 1 else []):
        style = SERIES[number % len(SERIES)]
        handles += axes[0].plot([], [], style["marker"], color=style["color"], label=names.get(backbone, backbone))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=SMALL)
    for ax, cost in zip(axes, costs.values(), strict=True):
        _label_points(ax, [cost(row) for row in rows], value, [names.get(row["method"], row["method"]) for row in rows])
    return figure


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Return the points of the Pareto front, by cost: no other point is cheaper or better without a loss.

    A point is left out if another one costs at most as much and is at least as good, and one of both is strict.

    Examples:
        >>> pareto_front([1, 2, 3, 4], [0.7, 0.6, 0.9, 0.9])
        [0, 2]
    """
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -values[i])):
        is_equal = bool(front) and (costs[i], values[i]) == (costs[front[-1]], values[front[-1]])
        if not front or values[i] > values[front[-1]] or is_equal:
            front.append(i)
    return front


def _scale_log(ax: Axes, values: Iterable[float]) -> None:
    """Make the x axis logarithmic, with ticks at 1, 2 and 5 times a power of 10."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _label_points(ax: Axes, x: Sequence[float], y: Sequence[float], texts: Sequence[str]) -> None:
    """Label points, each at the place of `PLACES` that covers the fewest points, labels and lines."""
    figure: Any = ax.figure
    figure.draw_without_rendering()  # so that the layout is known
    points = ax.transData.transform(list(zip(x, y, strict=True)))
    taken = [Bbox.from_bounds(px - 5, py - 5, 10, 10) for px, py in points]
    lines = [
        line.get_path().transformed(line.get_transform()) for line in ax.get_lines() if line.get_linestyle() == "-"
    ]

    def badness(box: Bbox) -> int:
        is_outside = not (ax.bbox.contains(*box.min) and ax.bbox.contains(*box.max))
        covered = sum(box.overlaps(other) for other in taken)
        return 10 * (is_outside + covered) + sum(line.intersects_bbox(box, filled=False) for line in lines)

    how: Any = {"textcoords": "offset points", "fontsize": SMALL}
    how["arrowprops"] = {"arrowstyle": "-", "color": "0.6", "lw": 0.6, "shrinkA": 0, "shrinkB": 4}
    for point in sorted(range(len(texts)), key=lambda i: (x[i], y[i])):
        label = ax.annotate(texts[point], (x[point], y[point]), xytext=(0, 0), **how)
        label.set_in_layout(False)
        width, height = Text.get_window_extent(label).size
        boxes = []
        for dx, dy, side, above in PLACES:
            left = points[point][0] + dx * figure.dpi / 72 - width * {"left": 0, "center": 0.5, "right": 1}[side]
            bottom = points[point][1] + dy * figure.dpi / 72 - height * {"bottom": 0, "center": 0.5, "top": 1}[above]
            boxes.append(Bbox.from_bounds(left, bottom, width, height))
        best = min(range(len(boxes)), key=lambda place: badness(boxes[place]))
        dx, dy, side, above = PLACES[best]
        label.set(position=(dx, dy), ha=side, va=above)
        taken.append(boxes[best])


def _values(rows: Iterable[Row], column: str) -> list[str]:
    """Return the different values of a column, in order of appearance."""
    return list(dict.fromkeys(row[column] for row in rows))


def _check_one_backbone(rows: Sequence[Row]) -> None:
    backbones = _values(rows, "backbone")
    if len(backbones) > 1:
        raise ValueError(f"the rows are of several backbones: {', '.join(backbones)}; choose one with where")
