"""Tables of metrics and accuracies, and `metrics.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from c2f_zoo.config import format_resolution
from c2f_zoo.io.files import atomic_write


def format_metric(name: str, value: float) -> str:
    """Format a metric's value for display.

    Fractions are in %, heights in levels of the tree; an undefined value is "-".

    Examples:
        >>> format_metric("species/top1", 0.987), format_metric("hd@5", 1.355), format_metric("fpa", math.nan)
        ('98.7', '1.355', '-')
    """
    from c2f_zoo.metrics import metric_info  # imports torchmetrics, which takes more than a second

    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if metric_info(name).unit == "levels" else f"{100 * value:.1f}"


def metrics_table(title: str, any_decoding: Mapping[str, float], decodings: Mapping[str, Mapping[str, float]]) -> Table:
    """Tabulate all metrics, with a column for each decoding.

    Args:
        title: title of the table.
        any_decoding: names and values of the metrics that do not depend on the decoding.
        decodings: for each decoding, names and values of its metrics.

    Examples:
        >>> table = metrics_table("Test", {"species/top1": 0.9}, {"joint": {"fpa": 0.8}})
        >>> [column.header for column in table.columns], table.row_count
        (['metric', 'any', 'joint'], 2)
    """
    table = Table(
        title=escape(f"{title}: fractions in %, heights in levels of the tree"),
        caption="any: does not depend on the decoding. ↑ higher is better, ↓ lower",
    )
    table.add_column("metric")
    for column in ("any", *decodings):
        table.add_column(column, justify="right")
    for name, value in any_decoding.items():
        table.add_row(escape(_with_arrow(name)), format_metric(name, value))
    table.add_section()
    for name in next(iter(decodings.values())):
        values = [format_metric(name, report[name]) for report in decodings.values()]
        table.add_row(escape(_with_arrow(name)), "", *values)
    return table


def _with_arrow(name: str) -> str:
    from c2f_zoo.metrics import metric_info

    return f"{name} {'↑' if metric_info(name).higher_is_better else '↓'}"


def accuracy_table(
    title: str,
    accuracy: Mapping[str, Mapping[int | None, float]],
    own: Mapping[str, int | None],
    num_classes: Mapping[str, int],
) -> Table:
    """Tabulate accuracy in % by level and resolution.

    Brackets mark each level's own resolution.

    Args:
        title: title of the table.
        accuracy: level -> resolution -> accuracy in [0, 1], levels from coarse to fine; resolution None: full size.
        own: the resolution of each level.
        num_classes: the number of classes of each level.

    Examples:
        >>> accuracy = {"genus": {None: 0.978, 32: 0.996}, "species": {None: 0.987, 32: 0.448}}
        >>> own = {"genus": 32, "species": None}
        >>> table = accuracy_table("Accuracy in %", accuracy, own, num_classes={"genus": 4, "species": 9})
        >>> [column.header for column in table.columns]
        ['level', 'classes', 'full size', '32 px']
    """
    resolutions = list(dict.fromkeys(resolution for cells in accuracy.values() for resolution in cells))
    table = Table(title=escape(title))
    table.add_column("level")
    for header in ("classes", *map(format_resolution, resolutions)):
        table.add_column(header, justify="right")
    for level, cells in accuracy.items():
        row = [escape(level), str(num_classes[level])]
        for resolution in resolutions:
            text = f"{100 * cells[resolution]:.1f}"
            row.append(f"[bold]\\[{text}][/bold]" if resolution == own[level] else f"{text} ")
        table.add_row(*row)
    return table


def trust_table(title: str, rules: Mapping[str, Mapping[str, float]]) -> Table:
    """Tabulate what each rule's predictions are worth over all thresholds.

    Args:
        title: title of the table.
        rules: rule -> its measures, see `c2f_zoo.evaluation.trust_curves.measures`.

    Examples:
        >>> measures = {"haurc": 0.095, "gain": 0.2, "AC": 0.7, "AP": 0.8, "R@90C": 0.6, "R@95C": 0.5}
        >>> table = trust_table("Mixed resolutions", {"climb": measures})
        >>> [list(column.cells)[0] for column in table.columns]
        ['climb', '95.0', '20.0', '70.0', '80.0', '60.0', '50.0']
    """
    table = Table(title=escape(title), caption="in %, but hAURC x 1000. ↑ higher is better, ↓ lower")
    table.add_column("rule")
    headers = {"haurc": "hAURC ↓", "gain": "gain ↑", "AC": "AC ↑", "AP": "AP ↑", "R@90C": "R@90C ↑", "R@95C": "R@95C ↑"}
    for header in headers.values():
        table.add_column(header, justify="right")
    for rule, values in rules.items():
        cells = [(1000 if name == "haurc" else 100) * values[name] for name in headers]
        table.add_row(escape(rule), *("-" if math.isnan(cell) else f"{cell:.1f}" for cell in cells))
    return table


def print_tables(*tables: Table) -> None:
    """Print tables, at least 100 columns wide for long names in log files."""
    console = Console(width=max(Console().width, 100), emoji=False)
    for table in tables:
        console.print(table)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; an undefined number (nan) becomes null.

    Args:
        path: the file to create or replace; its folder must exist.
        values: the file's content.

    Examples:
        >>> write_json(Path("metrics.json"), {"fpa": 0.5, "mistake_severity": math.nan})
        >>> json.loads(Path("metrics.json").read_text())
        {'fpa': 0.5, 'mistake_severity': None}
    """
    text = json.dumps(without_nan(values), indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write(path, lambda part: part.write_text(text + "\n", encoding="utf-8"))


def without_nan(value: Any) -> Any:
    """Replace nan by None in a nested dictionary."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
