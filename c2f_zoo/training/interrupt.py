"""Signals that ask a run to save and stop."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command with --resume auto goes on


class Stopped(Exception):  # noqa: N818  # nothing went wrong
    """A run was saved and stopped because of a signal."""


class StopSignals:
    """Note SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) while the context is open, instead of dying of them.

    A second SIGINT raises KeyboardInterrupt. Outside the main thread, where Python allows no handlers, nothing changes.

    Attributes:
        received: name of the signal that came first, or `""`.

    Examples:
        >>> with StopSignals() as signals:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     signals.received
        'SIGTERM'
    """

    def __init__(self) -> None:
        self.received = ""
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
            if hasattr(signal, name):  # Windows has no SIGUSR1
                number = getattr(signal, name)
                try:
                    self._previous[number] = signal.signal(number, self._note)
                except ValueError:  # not the main thread
                    break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name
