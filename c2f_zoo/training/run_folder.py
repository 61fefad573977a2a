"""The folder of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from c2f_zoo.io.files import atomic_write
from c2f_zoo.io.weights import CONFIG_FILE, WEIGHTS_FILE, find_file, weight_files
from c2f_zoo.training.checkpoint import list_checkpoints
from c2f_zoo.training.fingerprint import Fingerprint, explain_change
from c2f_zoo.training.options import TrainOptions, read_yaml

# When a run is resumed. `data.json` tells whether the data are the same, wherever dataset_options find them.
FREE_TO_CHANGE = (
    *("output", "resume", "num_workers", "on_error", "cache", "dataset_options"),
    *("save_every", "keep", "log_with", "dry_run"),
)
LOCK, DATA = "run.lock", "data.json"
# In the order in which they are written: a run with the last one is finished.
RESULTS = (CONFIG_FILE, "metrics.csv", "curves.png", "report.md", "test_predictions.csv", "test.csv")


@contextmanager
def open_run_folder(options: TrainOptions, name: str, data: Fingerprint, accelerator: Accelerator) -> Iterator[Path]:
    """Choose, create and lock the run's folder, and write its `config.yaml` and `data.json`.

    The folder is locked for other processes until the context is closed or the process ends.

    Args:
        options: the options; `output` and `resume` choose the folder.
        name: the run's name, the default for the folder's.
        data: the fingerprint of the data.
        accelerator: the processes; all must call this function.

    Raises:
        ValueError: the folder is not empty, is used by another run, or its run was started with other options or data.
        OSError: the folder cannot be written.
    """
    chosen: list[str | None] = [None]
    lock = None
    if accelerator.is_main_process:
        output, lock = lock_run_folder(options, name)
        chosen = [str(output)]
    output = Path(broadcast_object_list(chosen)[0])  # type: ignore[arg-type]
    try:
        if accelerator.is_main_process:
            check_data(output / DATA, data)
            kept = {key: value for key, value in asdict(options).items() if key not in ("output", "resume")}
            text = yaml.safe_dump(kept, sort_keys=False)
            atomic_write(output / "config.yaml", lambda part: part.write_text(text, encoding="utf-8"))
            atomic_write(output / DATA, lambda part: part.write_text(json.dumps(data, indent=1), encoding="utf-8"))
            print(f"writing to {output}", flush=True)
        accelerator.wait_for_everyone()
        yield output
    finally:
        if lock is not None:
            lock.release()


def has_checkpoints(output: Path, accelerator: Accelerator) -> bool:
    """Return whether a run has a checkpoint, the same for all processes."""
    found = [accelerator.is_main_process and bool(list_checkpoints(output))]
    return broadcast_object_list(found)[0]


def is_finished(output: Path, accelerator: Accelerator) -> bool:
    """Return whether a run has written all its results, the same for all processes.

    Raises:
        ValueError: its test scores are there, other results are missing, and there is no checkpoint to write them from.
    """
    missing: list[list[str]] = [[]]
    if accelerator.is_main_process:
        missing = [missing_results(output)]
    names = broadcast_object_list(missing)[0]
    if names and RESULTS[-1] not in names:
        named = (
            f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} missing in {output}, whose test scores are there"
        )
        if not has_checkpoints(output, accelerator):
            raise ValueError(f"{named}; there is no checkpoint to write it from: start again with another --output")
        accelerator.print(f"{named}: the model is tested again")
    return not names


def missing_results(output: Path) -> list[str]:
    """Return the names of the results that a run has not written.

    Examples:
        >>> missing_results(Path())[-2:]
        ['test_predictions.csv', 'test.csv']
    """
    missing = [name for name in RESULTS if not find_file(output, name).exists()]
    try:
        weight_files(output)
    except FileNotFoundError:
        missing.insert(0, WEIGHTS_FILE)
    return missing


def lock_run_folder(options: TrainOptions, name: str) -> tuple[Path, FileLock]:
    """Choose, create and lock the folder of a run.

    Raises:
        ValueError: see `open_run_folder`.
    """
    while True:
        output = choose_run_folder(options, name)
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if options.output is None and options.resume is None:
                continue  # another run was started at the same time and has taken this number
            raise ValueError(f"{output} is used by another run; wait for it, or choose another --output") from None
        try:
            choose_run_folder(replace(options, output=str(output)), name)  # nothing came in before the lock
        except ValueError:
            lock.release()
            raise
        return output, lock


def choose_run_folder(options: TrainOptions, name: str) -> Path:
    """Choose the folder of a new or a resumed run: `output`, or `runs/<name>-<n>`.

    Raises:
        ValueError: the folder is not empty, or its run was started with other options.
    """
    runs = Path("runs")
    found = [re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name) for path in runs.glob("*")]
    numbers = [int(match[1]) for match in found if match]
    if options.output is not None:
        output = Path(options.output)
    elif options.resume and numbers:
        output = runs / f"{name}-{max(numbers)}"
    else:
        output = runs / f"{name}-{max(numbers, default=0) + 1}"
    is_run = (output / "config.yaml").exists()
    # A run that was killed while it started has left no more than these.
    content = [path for path in output.glob("*") if path.name != LOCK and path.suffix != ".part"]
    if content and not (options.resume and is_run):
        raise ValueError(f"{output} is not empty; choose another --output, or continue its run with --resume auto")
    if is_run:
        before, now = read_config(output / "config.yaml"), asdict(options)
        for values in (before, now):
            values.get("model_options", {}).pop("backbone_checkpoint", None)  # the checkpoint has its weights
        changed = [key for key in now if key not in FREE_TO_CHANGE and before.get(key) != now[key]]
        if _keep_values(before.get("dataset_options") or {}) != _keep_values(now["dataset_options"]):
            changed.append("dataset_options")
        if changed:
            first = f"{changed[0]} was {before.get(changed[0])!r} and is {now[changed[0]]!r}"
            raise ValueError(
                f"{output} was started with other options: {', '.join(changed)} ({first}); resume it with those, or "
                "start a new run with another --output"
            )
    return output


def _keep_values(dataset_options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that decide what the images are, e.g. a seed; texts say where they are, and may change."""
    return {key: value for key, value in dataset_options.items() if not isinstance(value, str) and key != "download"}


def read_config(file: Path) -> dict[str, Any]:
    """Read the options of a run from its `config.yaml`.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return read_yaml(file)
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged; write the run's options to it again (report.md of a finished run and starts.csv tell "
            "them), or start a new run with another --output"
        ) from error


def check_data(file: Path, data: Fingerprint) -> None:
    """Check that a resumed run has the data that it was started with.

    Args:
        file: the run's `data.json`; nothing is checked if it does not exist.
        data: the fingerprint of the data.

    Raises:
        ValueError: the data changed; the message names the first difference.
    """
    if not file.exists():
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        change = explain_change(before, data)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged: {error!r}; if you know that the data are the same, remove it and resume"
        ) from error
    if change:
        raise ValueError(
            f"the data of the run in {file.parent} changed: {change}; restore them, or start a new run with another "
            "--output"
        )
