"""The folder of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from c2f_zoo.data import LabelledImages, name_of, read_error
from c2f_zoo.io.files import atomic_write, write_csv
from c2f_zoo.training.fingerprint import Fingerprint, explain_change
from c2f_zoo.training.options import TrainOptions

# When a run is resumed. `data.json` tells whether the data are the same, wherever dataset_options find them.
FREE_TO_CHANGE = (
    *("output", "resume", "num_workers", "on_error", "cache", "dataset_options"),
    *("save_every", "keep", "log_with", "dry_run"),
)
LOCK, DATA = "run.lock", "data.json"


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
        before, now = yaml.safe_load((output / "config.yaml").read_text(encoding="utf-8")), asdict(options)
        for values in (before, now):
            values.get("model_options", {}).pop("backbone_checkpoint", None)  # the checkpoint has its weights
        changed = [key for key in now if key not in FREE_TO_CHANGE and before.get(key) != now[key]]
        if changed:
            first = f"{changed[0]} was {before.get(changed[0])!r} and is {now[changed[0]]!r}"
            raise ValueError(
                f"{output} was started with other options: {', '.join(changed)} ({first}); resume it with those, or "
                "start a new run with another --output"
            )
    return output


def check_data(file: Path, data: Fingerprint) -> None:
    """Check that a resumed run has the data that it was started with.

    Args:
        file: the run's `data.json`; nothing is checked if it does not exist.
        data: the fingerprint of the data.

    Raises:
        ValueError: the data changed; the message names the first difference.
    """
    if file.exists() and (change := explain_change(json.loads(file.read_text(encoding="utf-8")), data)):
        raise ValueError(
            f"the data of the run in {file.parent} changed: {change}; restore them, or start a new run with another "
            "--output"
        )


def list_unreadable(splits: Mapping[str, tuple[LabelledImages, Sequence[int]]], output: Path) -> None:
    """List skipped images, with the reasons, on the terminal and in a file.

    The file `unreadable.csv` is written only if images were skipped.

    Args:
        splits: split -> its dataset and the indices of the skipped images.
        output: the run's folder.
    """
    rows = []
    for split, (dataset, indices) in splits.items():
        for index in indices:
            reason = read_error(dataset, index) or "it is readable now"
            rows.append({"split": split, "index": index, "name": name_of(dataset, index), "reason": reason})
    if rows:
        write_csv(output / "unreadable.csv", rows)
        print(f"\n{len(rows)} unreadable image(s) were skipped; {output / 'unreadable.csv'} lists them all:")
        for row in rows[:10]:
            print(f"  {row['split']} {row['name']}: {row['reason']}")
