"""Progress of long loops: a bar on a terminal, a line every minute in a log file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

EVERY = 60.0  # seconds

Item = TypeVar("Item")
Result = TypeVar("Result")


class ProgressLines:
    """Prints how far a loop is, how fast, and how long it will take, once a minute.

    Args:
        title: what the loop does, the start of each line.
        total: number of rounds of the loop.
        images: number of images of all rounds.
        is_shown: whether to print; false where a bar is shown, and in all processes but one.
        unit: the plural name of a round.

    Examples:
        >>> lines = ProgressLines("scoring", total=4, images=64, is_shown=True, unit="batches")
        >>> lines.update(1)  # less than a minute after the start: nothing is printed
        >>> format_duration(200), format_duration(8000)
        ('3 min', '2.2 h')
    """

    def __init__(self, title: str, total: int, images: int, is_shown: bool, unit: str = "rounds") -> None:
        self.title, self.total, self.images, self.is_shown, self.unit = title, total, images, is_shown, unit
        self._printed_at = time.monotonic()
        self._done: int | None = None  # at that time

    def is_due(self) -> bool:
        """Return whether `update` will print."""
        return self.is_shown and time.monotonic() - self._printed_at >= EVERY

    def update(self, done: int, more: str = "") -> None:
        """Print a line if a minute has passed.

        Args:
            done: number of finished rounds.
            more: further information, at the end of the line.
        """
        if self._done is None:
            self._done = done - 1  # the loop may start anywhere
        if not self.is_due():
            return
        now = time.monotonic()
        seconds = (now - self._printed_at) / max(done - self._done, 1)
        rate = self.images / self.total / seconds
        left = format_duration(seconds * (self.total - done))
        print(f"{self.title}: {done} of {self.total} {self.unit}, {rate:.3g} images/s, {left} left{more}", flush=True)
        self._printed_at, self._done = now, done


def map_in_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    title: str,
    workers: int | None = None,
    is_shown: bool = True,
) -> list[Result]:
    """Call a function for each image in threads, and show the progress.

    Args:
        function: the function.
        items: its arguments, one for each image.
        title: what the loop does.
        workers: number of threads; None: a few more than there are cores.
        is_shown: whether to show the progress; false in all processes but one.

    Examples:
        >>> map_in_threads(len, ["crow", "owl"], "counting letters")
        [4, 3]
    """
    results = []
    # disable=None: no bar in a log file
    bar = tqdm(total=len(items), desc=title, unit="image", disable=None if is_shown else True, leave=False)
    lines = ProgressLines(title, len(items), len(items), is_shown and bool(bar.disable), "images")
    with bar, ThreadPoolExecutor(workers) as pool:
        for result in pool.map(function, items):
            results.append(result)
            bar.update()
            lines.update(len(results))
    return results


def format_duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
