"""Freed memory of a process, which large feature maps use again."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # numbers in glibc's malloc.h


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory instead of returning it to the system, unless the user set its thresholds.

    Otherwise the feature maps of each batch are new pages, whose first use takes a tenth of a CPU training's time and
    up to half of a prediction's. It holds for the whole process, so only commands and recipes call it. Other C
    libraries are left as they are.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(AttributeError, OSError, TypeError):  # other systems
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # only there have these numbers this meaning
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
