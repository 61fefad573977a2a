"""The work of `c2f-zoo predict` on image files: predictions as lines, as JSON or in a CSV file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from c2f_zoo.hierarchy.escape import printable
from c2f_zoo.inference.ahead import predict_ahead
from c2f_zoo.inference.image_files import list_image_files
from c2f_zoo.inference.image_predictor import ImagePredictor
from c2f_zoo.inference.prediction import Prediction, format_steps
from c2f_zoo.inference.prediction_table import PredictionTable, settings_of
from c2f_zoo.paths import expand

Item = TypeVar("Item")
Write = Callable[[Path, "Prediction | None", str], None]  # of a file: its prediction, or None and an error
_MAX_ERRORS = 20  # printed, if a CSV file has all


def predict_files(
    predictor: ImagePredictor,
    paths: Sequence[Path],
    csv: Path | None = None,
    as_json: bool = False,
    top_k: int | None = None,
) -> int:
    """Predict image files; print the predictions, or write them to a CSV file.

    Unreadable files are reported at the end, on standard error.

    Args:
        predictor: the predictor.
        paths: files and folders; folders with their subfolders.
        csv: a CSV file to write or to continue, instead of printing; see `PredictionTable`.
        as_json: print a JSON array instead of lines.
        top_k: number of most probable classes to print for each image.

    Returns:
        The number of unreadable files and folders.

    Raises:
        OSError: there are no images, or the CSV file cannot be written.
        ValueError: the CSV file belongs to another model, or the model's outputs are not finite.
    """
    found = list_image_files(paths)
    for note in found.notes:
        tell(note)
    files, errors = found.files, list(found.unreadable)
    with ExitStack() as stack:
        writers: list[Write] = []
        if csv is not None:
            table = stack.enter_context(PredictionTable(csv, predictor.levels, settings_of(predictor)))
            files, before = _split_done(files, table)
            errors += before
            writers.append(table.append)
        if as_json:
            writers.append(stack.enter_context(_JsonArray(top_k)).append)
        elif csv is None:
            has_names = len(paths) > 1 or expand(paths[0]).is_dir()
            writers.append(_line_writer(has_names, top_k))
        outcomes = predict_ahead(predictor, files, lambda file: [file])
        prints_here = sys.stdout.isatty() and (as_json or csv is None)
        for file, outcome in with_progress(outcomes, len(files), is_shown=not prints_here):
            error = error_line(file, outcome) if isinstance(outcome, Exception) else ""
            errors += [error] if error else []
            for write in writers:
                write(file, None if isinstance(outcome, Exception) else outcome[0], error)
    report(errors, csv)
    total = len(found.files) + len(found.unreadable)
    if errors and total > 1:
        tell(f"{len(errors)} of {total} images cannot be predicted")
    return len(errors)


def tell(note: str) -> None:
    """Print a note on standard error."""
    print(f"c2f-zoo: {printable(note)}", file=sys.stderr, flush=True)


def error_line(file: Path, error: Exception) -> str:
    """Return an error in a line that names the file."""
    return str(error) if str(file) in str(error) else f"{file}: {error}"


def report(errors: Sequence[str], csv: Path | None = None) -> None:
    """Print errors on standard error; the first ones if a CSV file has all."""
    shown = errors if csv is None else errors[:_MAX_ERRORS]
    for error in shown:
        tell(error)
    if len(errors) > len(shown):
        tell(f"... and {len(errors) - len(shown)} more, in the column 'error' of {csv}")


def with_progress(items: Iterable[Item], total: int, is_shown: bool, description: str = "predicting") -> Iterator[Item]:
    """Yield items with a progress bar on standard error, if that is a terminal."""
    console = Console(stderr=True)
    disable = not (is_shown and console.is_terminal)
    yield from track(items, description, total, console=console, transient=True, disable=disable)


def _split_done(files: Sequence[Path], table: PredictionTable) -> tuple[list[Path], list[str]]:
    """Return the files without a row, and the errors in the rows of the others; say how many there are."""
    before = {file: table.error_of(file) for file in files}
    left = [file for file, error in before.items() if error is None]
    if len(left) < len(files):
        tell(f"{table.path} has rows of {len(files) - len(left)} files already; {len(left)} are left")
    return left, [error for error in before.values() if error]


def _line_writer(has_names: bool, top_k: int | None) -> Write:
    """Return a function that prints a prediction in one line, and the most probable classes in further ones."""

    def write(file: Path, prediction: Prediction | None, error: str) -> None:
        if prediction is None:
            return
        print(f"{printable(file)}: {prediction}" if has_names else prediction, flush=True)
        for step in prediction.top_k(top_k) if top_k else ():
            print(f"  {format_steps([step])}", flush=True)

    return write


class _JsonArray:
    """A JSON array on standard output, with an object for each file, as it comes."""

    def __init__(self, top_k: int | None) -> None:
        self._top_k, self._is_first = top_k, True

    def __enter__(self) -> _JsonArray:
        print("[", end="")
        return self

    def __exit__(self, *error: object) -> None:
        print("\n]", flush=True)

    def append(self, file: Path, prediction: Prediction | None, error: str) -> None:
        data = {"file": os.fspath(file)} if prediction is None else prediction.to_dict(self._top_k)
        print(
            "\n" if self._is_first else ",\n", json.dumps({**data, "error": error or None}), sep="", end="", flush=True
        )
        self._is_first = False
