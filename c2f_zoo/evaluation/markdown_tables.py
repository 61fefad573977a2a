"""Tables in Markdown from the rows of CSV files, each with a line of provenance."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from c2f_zoo.hierarchy import load_hierarchy
from c2f_zoo.io.card import accuracy_grid, markdown_table
from c2f_zoo.io.files import read_csv

Row = dict[str, str]
TABLES = Path("docs", "results", "tables.yaml")
VERSIONS = {"python": "Python", "torch": "torch", "timm": "timm", "onnx": "onnx", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True)
class TableSpec:
    """What a generated table shows: an entry of `docs/results/tables.yaml`.

    The rows are selected (`where`), compared (`relative`), split (`each`), merged (`spread`), sorted and formatted, in
    this order.

    Args:
        file: a CSV file or a `weights.json`, relative to the root of the repository.
        columns: header -> template of the cells, see `fill`; none: accuracy by level and resolution.
        where: column -> the value, or values, of the rows to show; or a list of these, of which a row meets one.
        relative: arguments of `relative_to`.
        each: arguments of `split_by_prefix`.
        spread: arguments of `merge_rows`.
        sort: columns to sort by, numbers ascending.
        tree: the class tree that adds the column `classes`, by the column `level`.
        bold: first cell of a row -> headers of its cells in bold.
        best: header -> `max` or `min`: the best cells of a column are in bold.
        data: data and conditions, for the line of provenance.
        command: the command that makes the file, if its column `command` cannot be run as it is.
        about: the file with the columns of the line of provenance, if it is another one.
    """

    file: str
    columns: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, Any] | list[Mapping[str, Any]] = field(default_factory=dict)
    relative: Mapping[str, Any] | None = None
    each: Mapping[str, Any] | None = None
    spread: Mapping[str, Any] | None = None
    sort: Sequence[str] = ()
    tree: str = ""
    bold: Mapping[str, Sequence[str]] = field(default_factory=dict)
    best: Mapping[str, str] = field(default_factory=dict)
    data: str = ""
    command: str = ""
    about: str = ""


def read_specs(root: Path) -> dict[str, Any]:
    """Read `docs/results/tables.yaml`: the specs of `tables`, `values` and `figures` by name."""
    specs: dict[str, Any] = yaml.safe_load((root / TABLES).read_text(encoding="utf-8"))
    return specs


def read_rows(file: Path) -> list[Row]:
    """Read the rows of a CSV file, or the scores of all test images of a `weights.json`."""
    if file.suffix == ".csv":
        return read_csv(file)
    rows = []
    for scores in json.loads(file.read_text(encoding="utf-8"))["metrics"]:
        if scores["every"] == 1:  # the others are of a part of the images, for the tests
            about = {key: scores[key] for key in ("date", "device", "command")}
            rows += [{**cell, **about} for cell in scores["accuracy"]]
    return [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]


def selected_rows(root: Path, spec: TableSpec) -> list[Row]:
    """Return the rows of a table's file that it shows.

    Raises:
        ValueError: no row has the values of `where`.
    """
    conditions = spec.where if isinstance(spec.where, list) else [spec.where]
    rows = [row for row in read_rows(root / spec.file) if any(_meets(row, one) for one in conditions)]
    if not rows:
        raise ValueError(f"no row of {spec.file} has {spec.where}")
    return rows


def _meets(row: Row, condition: Mapping[str, Any]) -> bool:
    return all(
        row[column] in [str(value) for value in (values if isinstance(values, list) else [values])]
        for column, values in condition.items()
    )


def relative_to(rows: Sequence[Row], to: Mapping[str, str], within: Sequence[str], of: Sequence[str]) -> list[Row]:
    """Add to each row how many times the base row's values are its own, as `NAME/base`.

    Args:
        rows: the rows.
        to: column -> value of the base rows.
        within: the columns in which a row and its base row agree.
        of: the columns to compare.

    Examples:
        >>> rows = [{"pooling": "mlp", "how": "plain", "ms": "6"}, {"pooling": "mlp", "how": "ours", "ms": "2"}]
        >>> [row["ms/base"] for row in relative_to(rows, {"how": "plain"}, ["pooling"], ["ms"])]
        ['1.0', '3.0']
    """

    def group(row: Row) -> tuple[str, ...]:
        return tuple(row[key] for key in within)

    base = {group(row): row for row in rows if all(row[key] == value for key, value in to.items())}
    return [{**row, **{f"{key}/base": _ratio(base[group(row)][key], row[key]) for key in of}} for row in rows]


def _ratio(a: str, b: str) -> str:
    return str(float(a) / float(b) if float(b) else math.nan)


def split_by_prefix(rows: Iterable[Row], name: str, prefixes: Sequence[str]) -> list[Row]:
    """Return a row for each prefix of column names, e.g. for each level, with the columns' names without it.

    Examples:
        >>> rows = split_by_prefix([{"genus/top1": "0.9", "species/top1": "0.8"}], "level", ["genus", "species"])
        >>> [(row["level"], row["top1"]) for row in rows]
        [('genus', '0.9'), ('species', '0.8')]
    """
    split = []
    for row in rows:
        for prefix in prefixes:
            own = {key[len(prefix) + 1 :]: row[key] for key in row if key.startswith((f"{prefix}/", f"{prefix}_"))}
            split.append({**row, name: prefix, **own})
    return split


def merge_rows(rows: Sequence[Row], by: Sequence[str], over: str, of: Sequence[str]) -> list[Row]:
    """Merge rows that differ in one column, whose values become part of other columns' names.

    Args:
        rows: the rows.
        by: the columns in which merged rows agree.
        over: the column in which they differ.
        of: the columns that become `NAME@VALUE`; missing values are "".

    Examples:
        >>> rows = [{"rule": "climb", "risk": "0.1", "right": "0.9"}, {"rule": "climb", "risk": "0.2", "right": "0.8"}]
        >>> merge_rows(rows, ["rule"], "risk", ["right"])
        [{'rule': 'climb', 'right@0.1': '0.9', 'right@0.2': '0.8'}]
    """
    merged: dict[tuple[str, ...], Row] = {}
    missing = {f"{name}@{row[over]}": "" for row in rows for name in of}
    for row in rows:
        start = {key: value for key, value in row.items() if key not in (over, *of)} | missing
        one = merged.setdefault(tuple(row[key] for key in by), start)
        one |= {f"{name}@{row[over]}": row[name] for name in of}
    return list(merged.values())


class _Cell(Formatter):
    """Fills templates whose fields are columns of a row."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return kwargs[field_name], field_name  # not split at dots: a column may be called "accuracy@0.1"

    def format_field(self, value: str, format_spec: str) -> str:
        if format_spec == "codes":
            return ", ".join(f"`{word}`" for word in value.split())
        if format_spec == "list":
            return ", ".join(value.split())
        if not format_spec:
            return value
        number = float(value)
        if math.isnan(number):
            return "-"
        if format_spec.endswith("%"):
            number, format_spec = 100 * number, format_spec[:-1] + ".1f"
        return format(number, format_spec)


def fill(template: str, row: Mapping[str, str]) -> str:
    """Fill a template with a row's values; empty if one of them is.

    Args:
        template: text with `{column}` or `{column:spec}`, with Python's specification of a number's format, `%` for a
            fraction in % with one digit (`+%` with its sign), `list` for words with commas, and
            `codes` for the same in backticks.
        row: the values of all columns.

    Raises:
        ValueError: the row lacks a column.

    Examples:
        >>> fill("{right:%} ({low:%} to {high:%})", {"right": "0.905", "low": "0.9", "high": "0.91"})
        '90.5 (90.0 to 91.0)'
    """
    names = [name for _, name, _, _ in Formatter().parse(template) if name]
    if absent := [name for name in names if name not in row]:
        raise ValueError(f"no column {absent[0]!r}, the columns are {', '.join(row)}")
    return "" if any(row[name] == "" for name in names) else _Cell().vformat(template, (), row)


def make_table(root: Path, spec: TableSpec) -> str:
    """Return a table in Markdown.

    Args:
        root: the folder that the spec's file is relative to.
        spec: what to show.
    """
    rows = selected_rows(root, spec)
    rows = relative_to(rows, **spec.relative) if spec.relative else rows
    rows = split_by_prefix(rows, **spec.each) if spec.each else rows
    rows = merge_rows(rows, **spec.spread) if spec.spread else rows
    rows = sorted(rows, key=lambda row: [_natural(row[key]) for key in spec.sort])
    if spec.tree:
        classes = load_hierarchy(spec.tree).num_classes
        rows = [{**row, "classes": str(classes[row["level"]])} for row in rows]
    if not spec.columns:
        return markdown_table(*accuracy_grid(rows))
    cells = [[fill(template, row) for template in spec.columns.values()] for row in rows]
    return markdown_table(list(spec.columns), _with_bold(cells, spec))


def _with_bold(cells: list[list[str]], spec: TableSpec) -> list[list[str]]:
    headers = list(spec.columns)
    chosen = {(i, headers.index(header)) for i, line in enumerate(cells) for header in spec.bold.get(line[0], ())}
    for header, kind in spec.best.items():
        column = headers.index(header)
        values = [float(line[column].partition(" ")[0]) for line in cells]
        best = max(values) if kind == "max" else min(values)
        chosen |= {(i, column) for i, value in enumerate(values) if value == best}
    return [
        [f"**{text}**" if (i, j) in chosen else text for j, text in enumerate(line)] for i, line in enumerate(cells)
    ]


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), ""
    except ValueError:
        return 1, 0.0, text


def provenance(rows: Sequence[Row], spec: TableSpec, link: str) -> str:
    """Return the line below a table: data, date, device, versions, seeds, command and file.

    Args:
        rows: the rows of the file that the table shows.
        spec: the table's spec; its `data` and `command` go before the file's columns.
        link: Markdown that names the file.

    Examples:
        >>> rows = [{"date": "2026-11-28T08:15:30", "device": "H100", "torch": "2.14.1", "seed": "0"}]
        >>> provenance(rows, TableSpec("a.csv", command="python recipes/train.py"), "[CSV](a.csv)")
        '2026-11-28; H100; torch 2.14.1; seed 0; `python recipes/train.py`; [CSV](a.csv)'
    """

    def values(column: str) -> list[str]:
        return sorted({row[column] for row in rows if row.get(column)})

    days = sorted({date[:10] for date in values("date")})
    seeds, commands = values("seed"), [spec.command] if spec.command else values("command")
    versions = [f"{title} {' and '.join(values(key))}" for key, title in VERSIONS.items() if values(key)]
    parts = [
        spec.data,
        " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "date not recorded",
        " and ".join(values("device")) or "device not recorded",
        ", ".join(versions) or "versions not recorded",
        f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" if seeds else "",
        ", ".join(f"`{command}`" for command in commands) or "command not recorded",
        link,
    ]
    return "; ".join(part for part in parts if part)
