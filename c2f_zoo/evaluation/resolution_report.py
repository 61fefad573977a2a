"""Reports of a resolution search: sentences, YAML, tables and CSV rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml
from rich.markup import escape
from rich.table import Table

from c2f_zoo.config import format_resolution
from c2f_zoo.evaluation.resolution_curves import Curves
from c2f_zoo.evaluation.resolution_search import starts_below
from c2f_zoo.inference.resolutions import own_resolutions
from c2f_zoo.model import C2FModel


def findings(curves: Curves) -> list[str]:
    """Describe the result: a sentence for each choice and non-monotone level."""
    levels, thresholds, accuracy = curves.levels, curves.thresholds, curves.accuracy
    first, last = format_resolution(curves.grid[0]), format_resolution(curves.grid[-1])
    if len(levels) == 1:
        return [f"{levels[0]} is the only level and is seen at {first}: there is nothing to find"]
    if starts_below(accuracy, thresholds):
        reason = f"{levels[0]} is below {thresholds[0]} at {first} already ({accuracy[0, 0]:.3f})"
        lower = max(round(0.9 * accuracy[0, 0], 2), 0.01)
        return [
            f"{reason}: no resolution of {', '.join(levels[1:])} follows. Train a better model, or lower the "
            f"threshold, for example to nine tenths of the accuracy: --thresholds.{levels[0]} {lower}"
        ]
    sentences = []
    for above, (threshold, point) in enumerate(zip(thresholds, curves.points[1:], strict=True)):
        if point is None:
            reason = f"{levels[above]} stays at {threshold} or more down to {last} ({accuracy[-1, above]:.3f})"
            rest = ", ".join(levels[above + 1 :])
            sentences.append(f"{reason}: no resolution of {rest} follows. Extend the grid, or raise the threshold.")
            break
        sentences.append(_describe_choice(curves, above + 1, point))
    return sentences + non_monotone_levels(curves)


def _describe_choice(curves: Curves, level: int, point: int) -> str:
    """Describe the choice of a grid point for `curves.levels[level]`."""
    finer, threshold = curves.levels[level - 1], curves.thresholds[level - 1]
    value, low, high = (part[point, level - 1] for part in (curves.accuracy, curves.low, curves.high))
    sentence = (
        f"{curves.levels[level]}: {format_resolution(curves.grid[point])}, where {finer} falls below {threshold} "
        f"({value:.3f}, 95 % interval {low:.3f} to {high:.3f})"
    )
    if level > 1 and point == curves.points[level - 1]:
        sentence += f"; that is {finer}'s own resolution: {finer} is below its threshold there already"
    names = [*map(format_resolution, curves.grid), "none of these"]
    chosen = zip(names, curves.fractions[level], strict=True)
    return f"{sentence}; resamples choose " + ", ".join(f"{name} {100 * part:.1f} %" for name, part in chosen if part)


def non_monotone_levels(curves: Curves) -> list[str]:
    """Describe levels that rise above their threshold again at a lower resolution."""
    sentences = []
    for column, (level, threshold) in enumerate(zip(curves.levels, curves.thresholds, strict=False)):
        below = curves.accuracy[:, column] < threshold
        again = [point for point in np.flatnonzero(~below) if below[:point].any()]
        if again:
            first = format_resolution(curves.grid[int(below.argmax())])
            places = ", ".join(format_resolution(curves.grid[point]) for point in again)
            sentences.append(
                f"{level} is not monotone: below {threshold} at {first}, but not at {places}; the first grid point "
                "below the threshold counts"
            )
    return sentences


def warn_trained_below_full_size(model: C2FModel) -> list[str]:
    """Return a warning if a model was trained below full size at some level.

    Examples:
        >>> warn_trained_below_full_size(create_model("mlph_tiny_critters", resolutions={}))
        []
    """
    own = own_resolutions(model)
    trained = ", ".join(f"{level} at {format_resolution(own[level])}" for level in reversed(model.levels))
    if not any(own.values()):
        return []
    return [f"The run was trained with {trained}: these are not the curves of a model trained at full size."]


def resolutions_yaml(curves: Curves, title: str, comments: Sequence[str]) -> str:
    """Return the text of `resolutions.yaml` for `recipes/train.py`.

    Comments on their origin precede the resolutions. Levels without a resolution are left out.

    Args:
        curves: the result of the search.
        title: the first comment.
        comments: further comments, without `#`.
    """
    lines = [title]
    if curves.missing:
        missing = ", ".join(curves.missing)
        lines.insert(0, f"INCOMPLETE: no resolution was found for {missing}; train.py would use full size")
    thresholds = zip(curves.levels, curves.thresholds, strict=False)
    lines += [
        f"thresholds: {', '.join(f'{level} {threshold}' for level, threshold in thresholds) or 'none'}",
        f"measured: {', '.join(map(format_resolution, curves.grid))}; the images' median size is {curves.side} px",
        *comments,
    ]
    return "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(
        {"resolutions": curves.resolutions}, sort_keys=False
    )


def curve_rows(curves: Curves, mode: str) -> list[dict[str, Any]]:
    """Return a row for each grid point and level: accuracy and 95 % interval."""
    return [
        {
            "mode": mode,
            "resolution": _csv_resolution(resolution),
            "level": level,
            "accuracy": curves.accuracy[point, column],
            "low": curves.low[point, column],
            "high": curves.high[point, column],
            "images": curves.images[column],
        }
        for point, resolution in enumerate(curves.grid)
        for column, level in enumerate(curves.levels)
    ]


def chosen_rows(curves: Curves, mode: str) -> list[dict[str, Any]]:
    """Return a row for each level and grid point, with the fraction of resamples."""
    names = [*map(_csv_resolution, curves.grid), "none"]
    return [
        {
            "mode": mode,
            "level": level,
            "resolution": name,
            "fraction": fraction,
            "resolution_of_level": curves.points[column] == point,
        }
        for column, level in enumerate(curves.levels)
        for point, (name, fraction) in enumerate(zip(names, curves.fractions[column], strict=True))
    ]


def _csv_resolution(resolution: int | None) -> int | str:
    return "full" if resolution is None else resolution


def curves_table(curves: Curves, title: str) -> Table:
    """Tabulate accuracies in % with their intervals; mark each level's resolution."""
    table = Table(title=title, caption="◂ the level's resolution")
    table.add_column("resolution", justify="right")
    for level in curves.levels:
        table.add_column(escape(level), justify="right")
    for point, resolution in enumerate(curves.grid):
        cells = []
        for column, chosen in enumerate(curves.points):
            value, low, high = (100 * part[point, column] for part in (curves.accuracy, curves.low, curves.high))
            cells.append(f"{value:.1f} ({low:.1f} to {high:.1f}) {'◂' if point == chosen else ' '}")
        table.add_row(format_resolution(resolution), *cells)
    return table
