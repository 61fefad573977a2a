"""The summary of an ablation table: accuracies, intervals and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table as RichTable

from c2f_zoo.evaluation.ablation_summary import Estimate, estimate_accuracy, estimate_difference
from c2f_zoo.evaluation.ablation_table import Cell, Row, Table, TableOptions

Correct = Mapping[str, np.ndarray]  # level -> whether each prediction is right (seeds, images with a label)


def summary_rows(options: TableOptions, table: Table, folder: Path) -> list[Row]:
    """Return a row for each method and level, and then for each pair of methods and level.

    Methods without a test accuracy of every seed are left out.

    Args:
        options: the options of the table.
        table: the table.
        folder: the folder with the predictions of its cells.
    """
    rows: list[Row] = []
    for backbone in options.backbones:
        tested = {method: tested_cells(options, table, backbone, method) for method in options.methods}
        chosen = {method: cells for method, cells in tested.items() if len(cells) == len(options.seeds)}
        correct = {method: load_correct(cells, folder) for method, cells in chosen.items()}
        for method, cells in chosen.items():
            how = {"lr": cells[0].lr, "weight_decay": cells[0].weight_decay}
            for row in table.rows_of(cells[0]):
                found = correct[method][row["level"]]
                estimate = estimate_accuracy(found, options.bootstrap, options.seeds[0])
                names = {"backbone": backbone, "method": method, "minus": ""}
                rows.append({**names, **_numbers(row, found, estimate), **how})
        for first, second in options.pairs:
            if {first, second} <= correct.keys():
                for row in table.rows_of(chosen[first][0]):
                    if row["level"] in correct[second]:
                        one, other = correct[first][row["level"]], correct[second][row["level"]]
                        estimate = estimate_difference(one, other, options.bootstrap, options.seeds[0])
                        names = {"backbone": backbone, "method": first, "minus": second}
                        rows.append({**names, **_numbers(row, one, estimate), "lr": "", "weight_decay": ""})
    return rows


def _numbers(row: Row, correct: np.ndarray, estimate: Estimate) -> Row:
    seeds, images = correct.shape
    return {
        "level": row["level"],
        "resolution": row["resolution"],
        **estimate.columns(),
        "seeds": seeds,
        "images": images,
    }


def tested_cells(options: TableOptions, table: Table, backbone: str, method: str) -> list[Cell]:
    """Return the tested cells of a method, in the order of the seeds."""
    rows = [row for row in table.rows if (row["backbone"], row["method"]) == (backbone, method)]
    cells = {
        Cell(backbone, method, float(row["lr"]), float(row["weight_decay"]), int(row["seed"])): None
        for row in rows
        if row.get("test_accuracy")
    }
    return sorted((cell for cell in cells if cell.seed in options.seeds), key=lambda x: options.seeds.index(x.seed))


def load_correct(cells: Sequence[Cell], folder: Path) -> Correct:
    """Load whether each cell's predictions are right: level -> (cells, images with a label).

    Raises:
        FileNotFoundError: a cell's file is missing.
    """
    found = []
    for cell in cells:
        file = folder / f"{cell.name}.npz"
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} with the test predictions is missing; restore it or delete the cell's rows"
            )
        with np.load(file) as arrays:
            found.append({level: arrays[level] for level in arrays.files})
    stacked = {level: np.stack([arrays[level] for arrays in found]) for level in found[0]}
    return {level: correct[:, correct[0] >= 0] for level, correct in stacked.items()}


def summary_tables(rows: Sequence[Row]) -> list[RichTable]:
    """Tabulate a summary: accuracies, and differences if there are any, in % with 95 % intervals.

    Args:
        rows: the rows of `summary_rows`.

    Examples:
        >>> row = {"backbone": "lite0", "method": "mlp", "minus": "hbp", "level": "genus", "value": "0.0123"}
        >>> row |= {"low": "-0.001", "high": "0.025", "images": 1459, "seeds": 3}
        >>> [cell for column in summary_tables([row])[0].columns for cell in column.cells]
        ['mlp - hbp', '+1.2 (-0.1, +2.5)']
    """
    tables = []
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        for title, is_pair in (("accuracy in %", False), ("difference in points", True)):
            chosen = [row for row in rows if row["backbone"] == backbone and bool(row["minus"]) == is_pair]
            if chosen:
                images, seeds = chosen[0]["images"], chosen[0]["seeds"]
                table = RichTable(title=escape(f"{backbone}: {title}, {images} test images, {seeds} seeds"))
                _fill(table, chosen, "{:+.1f}" if is_pair else "{:.1f}")
                tables.append(table)
    return tables


def _fill(table: RichTable, rows: Sequence[Row], number: str) -> None:
    levels = list(dict.fromkeys(row["level"] for row in rows))
    for header in ("method", *levels):
        table.add_column(escape(header), justify="left" if header == "method" else "right")
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        name = f"{row['method']} - {row['minus']}" if row["minus"] else row["method"]
        value, low, high = (number.format(100 * float(row[key])) for key in ("value", "low", "high"))
        cells.setdefault(name, {})[row["level"]] = f"{value} ({low}, {high})"
    for name, of_level in cells.items():
        table.add_row(escape(name), *(of_level.get(level, "") for level in levels))
