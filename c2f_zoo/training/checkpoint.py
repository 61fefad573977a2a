"""Checkpoints of a training run: folders with hashes, written beside and renamed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from c2f_zoo.io.files import atomic_write, checksum_of, fsync_file, fsync_folder
from c2f_zoo.io.weights import atomic_save

HASHES, TRAINING, PROGRESS = "hashes.json", "training.pt", "progress.json"  # beside the files of the model
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epoch: number of finished epochs.
        round: number of finished rounds of the next epoch.
        step: number of steps of the optimizer so far.
        best: mean validation accuracy over the levels in the best epoch.
        best_epoch: number of the best epoch, counted from 1.
        best_checkpoint: name of the checkpoint that holds the model of the best epoch.
        rows: the rows of `metrics.csv`, one for each epoch.
        unreadable: indices of the skipped images.
        sums: for each process, level -> sum of the losses of this epoch's steps and number of these steps.
    """

    epoch: int = 0
    round: int = 0
    step: int = 0
    best: float = -1.0
    best_epoch: int = 0
    best_checkpoint: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    sums: list[dict[str, tuple[float, int]]] = field(default_factory=list)

    def add_epoch(self, row: dict[str, Any], unreadable: Sequence[int]) -> None:
        """Add a finished epoch.

        Args:
            row: its row of `metrics.csv`.
            unreadable: indices of its skipped images.
        """
        self.epoch, self.round, self.sums = self.epoch + 1, 0, []
        self.rows.append(row)
        self.unreadable = sorted({*self.unreadable, *unreadable})
        scores = [value for key, value in row.items() if key.startswith("val_")]
        if sum(scores) / len(scores) > self.best:
            self.best, self.best_epoch = sum(scores) / len(scores), self.epoch
            self.best_checkpoint = checkpoint_name(self.step)


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint after a number of steps.

    Examples:
        >>> checkpoint_name(250)
        'checkpoint-00000250'
    """
    return f"checkpoint-{step:08d}"


def write_checkpoint(output: Path, step: int, write_to: Callable[[Path], object]) -> Path:
    """Write a checkpoint of a run: all its files, then their hashes, then its name.

    A kill at any time leaves either the whole checkpoint or none.

    Args:
        output: the run's folder.
        step: number of steps of the optimizer so far.
        write_to: a function that writes the files to a folder.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: the files cannot be written; what was written is removed.
    """
    part, final = output / "checkpoint.part", output / checkpoint_name(step)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        write_to(part)
        hashes = {path.relative_to(part).as_posix(): checksum_of(path) for path in _files(part)}
        atomic_write(part / HASHES, lambda path: path.write_text(json.dumps(hashes, indent=1)))
        for path in _files(part):
            fsync_file(path)
        for folder in [part, *(path for path in part.rglob("*") if path.is_dir())]:
            fsync_folder(folder)
        _remove(final)  # a damaged one
        os.rename(part, final)
    except Exception as error:  # on a full disk, PyTorch and safetensors raise errors of their own
        shutil.rmtree(part, ignore_errors=True)
        raise OSError(
            f"cannot save the checkpoint {final}: {error}; earlier checkpoints are intact. If the disk is full, make "
            "room, then continue with --resume auto"
        ) from error
    fsync_folder(output)
    return final


def list_checkpoints(output: Path) -> list[Path]:
    """Return the folders named `checkpoint-<number>` in a run's folder, highest number first."""
    found = [(match, path) for path in output.iterdir() if (match := _NAME.fullmatch(path.name)) and path.is_dir()]
    return [path for match, path in sorted(found, key=lambda pair: int(pair[0][1]), reverse=True)]


def damage(checkpoint: Path) -> str:
    """Return what is wrong with a checkpoint, or `""`.

    Examples:
        >>> checkpoint = write_checkpoint(Path(), 7, lambda folder: (folder / "a.txt").write_text("two birds"))
        >>> damage(checkpoint)
        ''
        >>> _ = (checkpoint / "a.txt").write_text("two bugs!")
        >>> damage(checkpoint)
        'a.txt differs from its hash'
    """
    try:
        hashes = json.loads((checkpoint / HASHES).read_text(encoding="utf-8"))
        for name, expected in hashes.items():
            if not (checkpoint / name).is_file():
                return f"{name} is missing"
            if checksum_of(checkpoint / name) != expected:
                return f"{name} differs from its hash"
    except FileNotFoundError:
        return f"{HASHES} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"{HASHES} cannot be read: {error}"
    return ""


def latest_checkpoint(output: Path, say: Callable[[str], object] = print) -> Path | None:
    """Return the latest checkpoint that is whole, or None if the folder has no checkpoint.

    Damaged ones after it are renamed to `<name>.damaged`, so that they are not counted among those to keep.

    Args:
        output: the run's folder.
        say: a function that is called with a line for each damaged checkpoint.

    Raises:
        ValueError: all checkpoints are damaged.
    """
    checkpoints = list_checkpoints(output)
    damaged = []
    for checkpoint in checkpoints:
        if reason := damage(checkpoint):
            damaged.append(checkpoint)
            say(f"{checkpoint} is damaged and not used: {reason}")
            continue
        for path in damaged:
            if (path / HASHES).exists():  # other folders may be the user's
                os.rename(path, path.with_name(path.name + ".damaged"))
        return checkpoint
    if checkpoints:
        raise ValueError(
            f"all {len(checkpoints)} checkpoints in {output} are damaged, so the run cannot be resumed; start again "
            "with another --output"
        )
    return None


def remove_old_checkpoints(output: Path, keep: int, best: str) -> None:
    """Remove all but the latest checkpoints and the best one; folders without hashes are not ours and stay.

    Args:
        output: the run's folder.
        keep: number of the latest checkpoints to keep.
        best: name of the checkpoint of the best epoch.
    """
    ours = [path for path in list_checkpoints(output) if (path / HASHES).exists()]
    for path in ours[keep:]:
        if path.name != best:
            _remove(path)


def remove_parts(output: Path) -> None:
    """Remove what a killed process left unfinished: files and folders `*.part` in a run's folder."""
    for path in output.glob("*.part"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def publish(folder: Path, output: Path) -> None:
    """Copy a saved model's files to the run's folder, all or none.

    Args:
        folder: the folder of the saved model: a checkpoint, or a folder in it.
        output: the run's folder.
    """
    with atomic_save(output) as new:
        for path in folder.iterdir():
            if path.is_file() and path.name not in (HASHES, TRAINING, PROGRESS):
                shutil.copyfile(path, new / path.name)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _remove(folder: Path) -> None:
    """Rename a checkpoint before it is removed: a kill must not leave half of one under its name."""
    if folder.exists():
        removed = folder.with_name("removed.part")
        shutil.rmtree(removed, ignore_errors=True)
        os.rename(folder, removed)
        shutil.rmtree(removed)
