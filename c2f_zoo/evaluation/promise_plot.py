"""Plot of what is kept of a promised risk at each true resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator, PercentFormatter

from c2f_zoo.evaluation.plots import saved_figure


def plot_promise(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot accuracy and coverage against the true resolution, for the largest promised risk and the fixed rules.

    Bars are two standard errors over images; the dashed line is the promise.

    Args:
        rows: rows of `trust_bins.csv`: rule, thresholds, risk ("" for none), beside, resolution (0: full size),
            accuracy, standard_error, coverage.
        path: the PNG file.
    """
    risk = max(float(row["risk"]) for row in rows if row["risk"] != "" and not row["beside"])
    kept: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["risk"] in ("", risk) and not row["beside"]:
            kept.setdefault(f"{row['rule']}, thresholds: {row['thresholds']}", []).append(row)
    resolutions = sorted({int(row["resolution"]) or 10**9 for row in rows}, reverse=True)
    labels = ["full" if one == 10**9 else f"{one} px" for one in resolutions]
    with saved_figure(path, 10, 4.2) as figure:
        left, right = figure.subplots(1, 2)
        for number, (name, part) in enumerate(kept.items()):
            by_resolution = {int(row["resolution"]) or 10**9: row for row in part}
            ordered = [by_resolution[one] for one in resolutions]
            width = 2.4 if "detail" in name else 1.2
            x = [at + 0.04 * number for at in range(len(resolutions))]  # bars side by side
            accuracy, errors = ([float(row[key]) for row in ordered] for key in ("accuracy", "standard_error"))
            left.errorbar(x, accuracy, [2 * error for error in errors], marker="o", ms=3, lw=width, label=name)
            right.plot(x, [float(row["coverage"]) for row in ordered], marker="o", ms=3, lw=width, label=name)
        left.axhline(1 - risk, color="0.3", ls="--", lw=1)
        left.set(ylabel="accuracy of the chosen class", title=f"promised: at least {100 * (1 - risk):g} % right")
        right.set(ylabel="mean coverage", title="how much is said (1: a leaf class)", ylim=(0, 1.02))
        left.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
        left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for ax in (left, right):
            ax.set_xticks(range(len(labels)), labels)
            ax.set_xlabel("true resolution")
            ax.grid(alpha=0.3)
        right.legend(fontsize=7)
