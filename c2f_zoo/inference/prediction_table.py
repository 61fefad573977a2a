"""The CSV file of `c2f-zoo predict`: rows are appended, and an interrupted run goes on where it stopped."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from c2f_zoo.hierarchy.escape import printable
from c2f_zoo.inference.image_predictor import ImagePredictor
from c2f_zoo.inference.prediction import Prediction
from c2f_zoo.io.files import atomic_write, digest_text, escape_formula, fsync_folder, unescape_formula
from c2f_zoo.paths import expand

TRUSTED = ("trusted_level", "trusted_name", "trusted_confidence")
_SHOWN = 8  # columns in a message
_ENCODING: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}  # file names may be no UTF-8


def level_columns(levels: Sequence[str]) -> dict[str, str]:
    """Return the column of each level; the probability's is `<column>_confidence`.

    It is the level's name, with `level_` before it if another column has that name.

    Examples:
        >>> level_columns(["file", "genus"])
        {'file': 'level_file', 'genus': 'genus'}
    """
    taken, columns = {"file", *TRUSTED, "error"}, {}
    for level in levels:
        column = level
        while not taken.isdisjoint((column, f"{column}_confidence")):
            column = f"level_{column}"
        columns[level] = column
        taken |= {column, f"{column}_confidence"}
    return columns


def settings_of(predictor: ImagePredictor) -> dict[str, Any]:
    """Return all that predictions depend on, beside the images: digests of the model's parts, and options."""
    restriction = predictor.restriction
    return {
        **predictor.identity(),
        "risk": predictor.risk,
        "restriction": None if restriction is None else restriction.text,
        "possible classes": None if restriction is None else digest_text(str(restriction.leaves)),
    }


class PredictionTable:
    """A CSV file of predictions, a row for each file.

    The columns are `file`, for each level its class and `<level>_confidence`, `trusted_level`, `trusted_name`,
    `trusted_confidence` and `error`. Text that a spreadsheet would take for a formula gets a leading apostrophe. Rows
    are flushed one by one, and to disk at the end of `with`. `FILE.json` beside it records the model and the options.

    A table that exists is continued after its last whole row; half a row, of a killed run, is dropped.

    Args:
        path: the file.
        levels: the levels of the predictions.
        settings: the model and the options, see `settings_of`.

    Attributes:
        done: the files that have a row, each with its error or `""`.

    Raises:
        OSError: the file cannot be written.
        ValueError: it is no such table, or was written with another model or other options.

    Examples:
        >>> with PredictionTable("birds.csv", ["family"], {"risk": 0.1}) as table:
        ...     table.append("1.png", Prediction([("family", "Parulidae", 0.5)]))
        >>> with PredictionTable("birds.csv", ["family"], {"risk": 0.1}) as table:
        ...     table.done
        {'1.png': ''}
    """

    def __init__(self, path: str | os.PathLike[str], levels: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.path = expand(path)
        self.columns = level_columns(levels)
        of_levels = (name for column in self.columns.values() for name in (column, f"{column}_confidence"))
        header = list(map(escape_formula, ["file", *of_levels, *TRUSTED, "error"]))
        self.done: dict[str, str] = {}
        beside = self.path.with_name(f"{self.path.name}.json")
        if self.path.exists() and self.path.stat().st_size:
            self._check_settings(beside, settings)
            self._read(header)
        else:
            text = json.dumps(settings, indent=2) + "\n"
            atomic_write(beside, lambda part: part.write_text(text, encoding="utf-8"))
        self._file = open(self.path, "a", newline="", **_ENCODING)  # noqa: SIM115 - closed by __exit__
        if self._file.tell() == 0:
            self._write(header)

    def __enter__(self) -> PredictionTable:
        return self

    def __exit__(self, *error: object) -> None:
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
        fsync_folder(self.path.parent)

    def error_of(self, file: str | os.PathLike[str]) -> str | None:
        """Return the error in a file's row, `""` for a prediction; None if the file has no row."""
        return self.done.get(_as_written(file))

    def append(self, file: str | os.PathLike[str], prediction: Prediction | None, error: str = "") -> None:
        """Append a file's row: its prediction, or why it has none."""
        found = {level: (name, f"{p:.4f}") for level, name, p in ([] if prediction is None else prediction.path)}
        cells = [cell for level in self.columns for cell in found.get(level, ("", ""))]
        trusted = None if prediction is None else prediction.trusted
        level, name, p = ("", "", "") if trusted is None else (trusted[0], trusted[1], f"{trusted[2]:.4f}")
        self._write([os.fspath(file), *cells, level, name, p, error])
        self.done[_as_written(file)] = error

    def _write(self, cells: Sequence[str]) -> None:
        csv.writer(self._file).writerow(map(escape_formula, cells))
        self._file.flush()

    def _check_settings(self, beside: Path, settings: Mapping[str, Any]) -> None:
        """Raise a ValueError if the table was written with another model or other options."""
        hint = "name another file, or remove it"
        try:
            before = json.loads(beside.read_text(encoding="utf-8"))
            different = [key for key in settings if before[key] != settings[key]]
        except (OSError, ValueError, KeyError, TypeError):
            reason = f"{beside.name}, which names its model, is missing or damaged"
            raise ValueError(f"{self.path} cannot be continued: {reason}; {hint}") from None
        if different:
            raise ValueError(
                f"{self.path} was written with another model or other options ({', '.join(different)}); {hint}"
            )

    def _read(self, header: Sequence[str]) -> None:
        """Read the rows, and drop what follows the last whole one."""
        end = _end_of_rows(self.path)
        with open(self.path, newline="", **_ENCODING) as file:
            found = next(csv.reader(file), [])
        if found != header and (end or not ",".join(header).startswith(",".join(found))):
            columns = ", ".join(map(printable, found[:_SHOWN]))
            raise ValueError(f"{self.path} has other columns ({columns}, ...); name another file, or remove it")
        os.truncate(self.path, end)
        with open(self.path, newline="", **_ENCODING) as file:
            rows = csv.reader(file)
            self.done = {unescape_formula(row[0]): unescape_formula(row[-1]) for row in islice(rows, 1, None) if row}


def _end_of_rows(path: Path) -> int:
    """Return the position after the last whole row: a line break outside of quotation marks."""
    end = position = marks = 0
    with open(path, "rb") as file:
        for line in file:
            position, marks = position + len(line), marks + line.count(b'"')
            if line.endswith(b"\n") and marks % 2 == 0:
                end = position
    return end


def _as_written(file: str | os.PathLike[str]) -> str:
    """Return a file's name as it is read from the table."""
    return os.fspath(file).encode(**_ENCODING).decode("utf-8")  # type: ignore[no-any-return]
