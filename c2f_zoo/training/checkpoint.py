"""Checkpoints of a training run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer

from c2f_zoo.model import C2FModel


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epoch: number of finished epochs.
        best: mean validation accuracy over the levels in the best epoch.
        best_epoch: number of the best epoch, counted from 1.
        rows: the rows of `metrics.csv`, one for each epoch.
        unreadable: indices of the skipped images.
    """

    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)

    def add_epoch(self, row: dict[str, Any], unreadable: Sequence[int]) -> None:
        """Add a finished epoch.

        Args:
            row: its row of `metrics.csv`.
            unreadable: indices of its skipped images.
        """
        self.epoch += 1
        self.rows.append(row)
        self.unreadable = sorted({*self.unreadable, *unreadable})
        scores = [value for key, value in row.items() if key.startswith("val_")]
        if sum(scores) / len(scores) > self.best:
            self.best, self.best_epoch = sum(scores) / len(scores), self.epoch


def save_checkpoint(
    model: C2FModel, optimizer: Optimizer, schedule: Scheduler, progress: Progress, output: Path
) -> None:
    """Save a checkpoint to `output`, and the model if the epoch is the best.

    The previous checkpoint is removed last: a kill at any time leaves a complete one.
    """
    part, final = output / "checkpoint.part", output / f"checkpoint-{progress.epoch:04d}"
    model.save_pretrained(part)
    torch.save({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, part / "optimizer.pt")
    (part / "progress.json").write_text(json.dumps(asdict(progress)))
    os.rename(part, final)
    if progress.best_epoch == progress.epoch:
        model.save_pretrained(output)
    for old in sorted(output.glob("checkpoint-*"))[:-1]:
        shutil.rmtree(old)


def latest_checkpoint(output: Path) -> Path | None:
    """Return the latest checkpoint in a run's folder, or None."""
    return max(output.glob("checkpoint-*"), default=None)


def load_checkpoint(checkpoint: Path, model: C2FModel) -> Progress:
    """Load a checkpoint's weights into the model and return its progress."""
    model.load_state_dict(C2FModel.from_pretrained(checkpoint).state_dict())
    return Progress(**json.loads((checkpoint / "progress.json").read_text()))


def load_optimizer(checkpoint: Path, optimizer: Optimizer, schedule: Scheduler) -> None:
    """Load the state of a checkpoint's optimizer and schedule."""
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
