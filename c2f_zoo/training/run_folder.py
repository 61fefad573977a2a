"""The folder of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from c2f_zoo.data import LabelledImages, name_of, read_error
from c2f_zoo.io.files import atomic_write, write_csv
from c2f_zoo.training.options import TrainOptions

FREE_TO_CHANGE = ("output", "resume", "num_workers", "on_error", "cache")  # when a run is resumed


def open_run_folder(options: TrainOptions, name: str, accelerator: Accelerator) -> Path:
    """Choose and create the run's folder and write its `config.yaml`.

    Args:
        options: the options; `output` and `resume` choose the folder.
        name: the run's name, the default for the folder's.
        accelerator: the processes; all must call this function.

    Raises:
        ValueError: the folder is not empty, or its run was started with other options.
    """
    chosen: list[str | None] = [None]
    if accelerator.is_main_process:
        chosen = [str(choose_run_folder(options, name))]
    output = Path(broadcast_object_list(chosen)[0])  # type: ignore[arg-type]
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        kept = {key: value for key, value in asdict(options).items() if key not in ("output", "resume")}
        text = yaml.safe_dump(kept, sort_keys=False)
        atomic_write(output / "config.yaml", lambda part: part.write_text(text, encoding="utf-8"))
        print(f"writing to {output}", flush=True)
    accelerator.wait_for_everyone()
    return output


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
    if output.exists() and any(output.iterdir()) and not (options.resume and is_run):
        raise ValueError(f"{output} is not empty; choose another --output, or continue its run with --resume auto")
    if is_run:
        before, now = yaml.safe_load((output / "config.yaml").read_text(encoding="utf-8")), asdict(options)
        changed = [key for key in now if key not in FREE_TO_CHANGE and before.get(key) != now[key]]
        if changed:
            raise ValueError(f"{output} was started with other options: {', '.join(changed)}; it cannot be resumed")
    return output


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
