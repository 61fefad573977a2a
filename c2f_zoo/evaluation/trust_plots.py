"""Plots of the trust that predictions deserve: risk against coverage, and reliability diagrams."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter

from c2f_zoo.evaluation.plots import saved_figure
from c2f_zoo.evaluation.trust_curves import Curve, OperatingPoint, risk_coverage_area


def plot_risk_coverage(
    curves: Mapping[str, Curve], path: Path, points: Mapping[str, OperatingPoint] | None = None, title: str = ""
) -> None:
    """Plot mean risk against mean coverage, with a curve for each rule, the one of the least area in front.

    Args:
        curves: rule -> its curve.
        path: the PNG file.
        points: label -> operating point to mark, e.g. that of a calibrated threshold.
        title: title of the plot.
    """
    areas = {rule: risk_coverage_area(curve) for rule, curve in curves.items()}
    with saved_figure(path, 8, 5) as figure:
        ax = figure.subplots()
        drawn: list[str] = []
        for rank, rule in enumerate(sorted(curves, key=areas.__getitem__)):
            curve, area = curves[rule], f"{1000 * areas[rule]:.1f}"
            how: dict[str, Any] = {"color": f"C{list(curves).index(rule) % 10}", "label": f"{rule}: hAURC {area}"}
            how["ls"] = "-" if np.isfinite(curve.threshold).any() else ":"  # without a threshold: between three points
            how["lw"] = 1.5 + 1.3 * drawn.count(area)  # behind an equal curve, and wider, so that both show
            ax.plot(curve.coverage, curve.risk, zorder=3 - rank / len(curves), **how)
            drawn.append(area)
        for number, (label, point) in enumerate((points or {}).items()):
            how = {"color": "0.2", "mfc": "white", "ms": 8, "ls": "none", "zorder": 4, "clip_on": False}
            ax.plot(point.coverage, 1 - point.accuracy, "osD^vP*X"[number % 8], label=label, **how)
        ax.set(xlabel="mean coverage", ylabel="mean risk", xlim=(0, 1.02))
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set_title(title or "Risk against coverage (hAURC x 1000)", fontsize=10)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)


def plot_reliability(diagrams: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Plot accuracy against confidence, with a panel for each level.

    The area of a dot grows with the number of images of its bin.

    Args:
        diagrams: level -> what `Reliability.compute` returns.
        path: the PNG file.
    """
    with saved_figure(path, 0.4 + 3.2 * len(diagrams), 3.6) as figure:
        axes = figure.subplots(1, len(diagrams), sharex=True, sharey=True, squeeze=False)[0]
        for ax, (level, diagram) in zip(axes, diagrams.items(), strict=True):
            largest = max(diagram["images"], default=1)
            sizes = [8 + 112 * count / largest for count in diagram["images"]]
            ax.plot([0, 1], [0, 1], color="0.6", ls="--", lw=1)
            ax.plot(diagram["confidence"], diagram["accuracy"], color="C0", lw=1)
            ax.scatter(diagram["confidence"], diagram["accuracy"], sizes, color="C0", alpha=0.6, lw=0)
            ax.set(xlim=(0, 1.03), ylim=(0, 1.03), aspect="equal", xlabel="confidence")
            ax.set_title(f"{level}: ECE {100 * diagram['ece']:.1f} %", fontsize=10)
            ax.grid(alpha=0.3)
        axes[0].set_ylabel("accuracy")
