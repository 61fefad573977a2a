"""Tables of accuracies, as the recipes print them."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from c2f_zoo.config import format_resolution


def accuracy_table(
    title: str,
    accuracy: Mapping[str, Mapping[int | None, float]],
    own: Mapping[str, int | None],
    num_classes: Mapping[str, int],
) -> Table:
    """Tabulate accuracy in % by level and resolution; a level's own resolution stands in brackets.

    Args:
        title: title of the table.
        accuracy: for each level, from coarse to fine, the accuracy in [0, 1] at each resolution (None: full size).
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


def print_tables(*tables: Table) -> None:
    """Print tables to the terminal, or to a log file wide enough for long names."""
    console = Console(width=max(Console().width, 100))
    for table in tables:
        console.print(table)
