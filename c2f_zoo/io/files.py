"""Atomic writes of files, and CSV files."""

from __future__ import annotations

import csv
import errno
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from c2f_zoo.paths import expand

# The start of a formula in a spreadsheet, after any apostrophes.
_FORMULA = re.compile("'*[=+\\-@\\t\\r\\n\uff1d\uff0b\uff0d\uff20]")


def atomic_write(path: str | Path, write_to: Callable[[Path], object]) -> None:
    """Write a file beside `path`, flush it to disk and rename it.

    A kill at any time leaves the old file or the new one, and an error the old one.

    Args:
        path: the file to create or replace; its folder must exist.
        write_to: a function that writes the content to a path.

    Examples:
        >>> atomic_write("notes.txt", lambda part: part.write_text("two birds"))
        >>> Path("notes.txt").read_text()
        'two birds'
    """
    path = expand(path)
    part = path.with_name(path.name + ".part")
    try:
        write_to(part)
        fsync_file(part)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    os.replace(part, path)
    fsync_folder(path.parent)


def check_extension(path: str | Path, *extensions: str) -> str:
    """Check the extension of a file to write, in either case.

    Args:
        path: the file.
        *extensions: the possible ones, in lower case.

    Returns:
        The extension, in lower case.

    Raises:
        ValueError: it is another one.

    Examples:
        >>> check_extension("why.jpg", ".png")
        Traceback (most recent call last):
        ValueError: cannot write why.jpg: name a file that ends with .png
    """
    if (found := Path(path).suffix.lower()) not in extensions:
        raise ValueError(f"cannot write {path}: name a file that ends with {' or '.join(extensions)}")
    return found


def is_read_only(error: BaseException) -> bool:
    """Return whether an error says that a file or folder may not be written."""
    return isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


def fsync_file(path: Path) -> None:
    """Flush a file to disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a loss of power.

    Some network file systems and shared folders of virtual machines cannot do this; there, do nothing.
    """
    if os.name != "posix":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def checksum_of(path: Path) -> str:
    """Return the sha256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def digest_text(text: str) -> str:
    """Return the sha256 of a text, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a CSV file atomically.

    The columns are the keys of all rows, in order of appearance. Text that a spreadsheet would take for a formula gets
    a leading apostrophe, which `read_csv` removes.

    Args:
        path: the file to create or replace; its folder must exist.
        rows: one or more rows.

    Raises:
        ValueError: there are no rows.

    Examples:
        >>> write_csv("scores.csv", [{"level": "genus", "accuracy": 0.5}])
        >>> read_csv("scores.csv")
        [{'level': 'genus', 'accuracy': '0.5'}]
    """
    if not rows:
        raise ValueError(f"no rows to write to {path}")
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def write_to(part: Path) -> None:
        # A file name that is not UTF-8 has characters that cannot be encoded.
        with open(part, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(map(escape_formula, columns))
            writer.writerows([escape_formula(row.get(column, "")) for column in columns] for row in rows)

    atomic_write(path, write_to)


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file that `write_csv` wrote; every value is text."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = [[unescape_formula(cell) for cell in row] for row in csv.reader(file) if row]
    return [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]


def escape_formula(value: Any) -> Any:
    """Return a value for a CSV file: text that starts like a formula, and is not a number, gets an apostrophe.

    Examples:
        >>> [escape_formula(value) for value in ("=1+1", "-0.5", -0.5, "gull", "'=a")]
        ["'=1+1", '-0.5', -0.5, 'gull', "''=a"]
    """
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return "'" + value
    return value


def unescape_formula(text: str) -> str:
    """Return text from a CSV file as it was before `escape_formula`.

    Examples:
        >>> [unescape_formula(text) for text in ("'=1+1", "-0.5", "'gull'")]
        ['=1+1', '-0.5', "'gull'"]
    """
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
