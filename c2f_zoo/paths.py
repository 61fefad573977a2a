"""Paths as a user writes them."""

from __future__ import annotations

import os
from pathlib import Path


def expand(path: str | os.PathLike[str]) -> Path:
    """Return a path with a leading `~` replaced by the home folder, as a shell does.

    A file whose name only starts with `~`, such as `~backup.png`, is itself.

    Examples:
        >>> expand("~/birds") == Path.home() / "birds", expand("data/~1")
        (True, PosixPath('data/~1'))
    """
    return Path(os.path.expanduser(path))
