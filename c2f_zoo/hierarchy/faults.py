"""Lists of faults: thousands of one kind are shown as a few and their number."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_FAULTS = 20  # more are grouped by kind
_SHOWN = 5  # of a kind
_VARIES = re.compile(r"""'[^']*'|"[^"]*"|\([^()]*\)|\d+""")  # quoted names, places in brackets, numbers


class InvalidTreeError(ValueError):
    """An invalid tree.

    Attributes:
        faults: all faults; the message shows a few of each kind.
    """

    def __init__(self, message: str, faults: Sequence[str]) -> None:
        super().__init__(message)
        self.faults = list(faults)


def group_similar(faults: Sequence[str]) -> list[str]:
    """Return up to 20 faults as they are, and of more a few of each of 20 kinds with the number of the others.

    Faults are of one kind if they differ only in their place (the text before the first colon), quoted names, numbers
    and text in brackets.

    Examples:
        >>> print("\\n".join(group_similar([f"line {i}: the path '{i}' is empty" for i in range(1, 5001)])[3:]))
        line 4: the path '4' is empty
        line 5: the path '5' is empty
        ... and 4995 more of this kind
    """
    if len(faults) <= MAX_FAULTS:
        return list(faults)
    groups: dict[str, list[str]] = {}
    for fault in faults:
        groups.setdefault(_VARIES.sub("", fault.partition(": ")[2]), []).append(fault)
    lines = []
    first, others = list(groups.values())[:MAX_FAULTS], list(groups.values())[MAX_FAULTS:]
    for group in first:
        lines += group[:_SHOWN]
        if len(group) > _SHOWN:
            lines.append(f"... and {len(group) - _SHOWN} more of this kind")
    if others:
        lines.append(f"... and {sum(map(len, others))} more of other kinds")
    return lines
