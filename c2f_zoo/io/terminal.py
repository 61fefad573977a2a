"""Output on terminals and into files whose encoding lacks some characters."""

from __future__ import annotations

import codecs
import io
import sys

# Of one column each, like the characters that they replace.
_PLAIN = {"│": "|", "├": "|", "└": "`", "─": "-", "↑": "^", "↓": "v", "◂": "<", "…": "~"}
_ERRORS = "c2f_zoo.plain"


def make_output_printable() -> None:
    r"""Let standard output and error replace characters that their encoding lacks, instead of raising an error.

    Lines and arrows become ASCII characters, others escapes such as `\u010c`. The encoding stays the user's.

    Examples:
        >>> "├── Čáp ↑".encode("ascii", "backslashreplace")
        b'\\u251c\\u2500\\u2500 \\u010c\\xe1p \\u2191'
        >>> make_output_printable()
        >>> "├── Čáp ↑".encode("ascii", "c2f_zoo.plain")
        b'|-- \\u010c\\xe1p ^'
    """
    codecs.register_error(_ERRORS, _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end
