"""Unreadable images: found before training, and listed after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from c2f_zoo.data import LabelledImages, labels_of, name_of, read_error
from c2f_zoo.hierarchy.escape import printable
from c2f_zoo.io.files import write_csv
from c2f_zoo.io.progress import map_in_threads
from c2f_zoo.model import C2FModel
from c2f_zoo.training.launch import usable_cores
from c2f_zoo.training.setup import check_labels

SHOWN = 5

Splits = Mapping[str, tuple[LabelledImages, Sequence[int]]]  # split -> dataset and indices of images


def check_readable(splits: Splits, model: C2FModel, on_error: str, accelerator: Accelerator) -> None:
    """Read all images of validation and test once, so that an unreadable one is found before the training.

    Training images are not read: the first epoch does that. Of a dataset without files, one image is read.

    Args:
        splits: the splits; empty ones are left out.
        model: the model, whose levels need labels.
        on_error: treatment of unreadable images, `raise` or `skip`.
        accelerator: the processes; each reads a part of the images, and all must call this function.

    Raises:
        ValueError: an image is unreadable and `on_error` is `raise`, or no readable image has a label at some level.
    """
    threads = max(1, usable_cores() // accelerator.num_processes)
    for split, (dataset, indices) in splits.items():
        if not indices:
            continue
        chosen = list(indices) if getattr(dataset, "paths", None) else list(indices)[:1]
        own = chosen[accelerator.process_index :: accelerator.num_processes]
        read = partial(read_error, dataset)
        errors = map_in_threads(read, own, f"reading {split} images", threads, accelerator.is_main_process)
        faults = dict(sorted(gather_object([pair for pair in zip(own, errors, strict=True) if pair[1]])))
        if faults and on_error == "raise":
            names = "; ".join(f"{name_of(dataset, index)}: {fault}" for index, fault in list(faults.items())[:SHOWN])
            more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
            raise ValueError(
                f"{len(faults)} of {len(chosen)} {split} images cannot be read: {names}{more}. Replace them, or leave "
                "them out with on_error: skip"
            )
        readable = [index for index in indices if index not in faults]
        check_labels(labels_of(dataset)[readable], model, f"readable {split}")
        if faults:
            accelerator.print(f"{len(faults)} of {len(chosen)} {split} images cannot be read and are skipped")


def list_unreadable(splits: Splits, output: Path) -> None:
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
            print(printable(f"  {row['split']} {row['name']}: {row['reason']}"))
