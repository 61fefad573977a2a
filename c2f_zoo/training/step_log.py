"""The losses of every step of a run, in a CSV file."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from c2f_zoo.io.files import atomic_write, escape_formula

COLUMNS = ("step", "epoch", "stage", "level", "lr", "loss")


class StepLog:
    """The losses of every step, in a CSV file to which each checkpoint adds its rows.

    Args:
        path: the file.

    Examples:
        >>> log = StepLog(Path("steps.csv"))
        >>> log.add({"step": 1, "epoch": 1, "stage": 1, "level": "genus", "lr": 0.1}, torch.tensor(0.5))
        >>> log.write()
        >>> print(Path("steps.csv").read_text().strip())
        step,epoch,stage,level,lr,loss
        1,1,1,genus,0.1,0.5
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[tuple[Mapping[str, Any], Tensor]] = []

    def add(self, row: Mapping[str, Any], loss: Tensor) -> None:
        """Add a row; the loss stays on its device until `write`, so that steps do not wait for it."""
        self._waiting.append((row, loss))

    def write(self) -> None:
        """Append the rows to the file, and flush it to disk."""
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=COLUMNS)
            if file.tell() == 0:
                writer.writeheader()
            rows = ({**row, "level": escape_formula(row["level"]), "loss": loss.item()} for row, loss in self._waiting)
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        self._waiting = []

    def forget_after(self, step: int) -> None:
        """Remove the rows after a step from the file, with a line that a kill left unfinished."""
        if not self.path.exists():
            return

        def copy_rows(part: Path) -> None:
            # Bytes, because a kill may have left half of a character.
            with open(self.path, "rb") as source, open(part, "wb") as target:
                for number, line in enumerate(source):
                    is_whole = line.endswith(b"\n")
                    if not is_whole or (number > 0 and int(line.partition(b",")[0]) > step):
                        break
                    target.write(line)

        atomic_write(self.path, copy_rows)
