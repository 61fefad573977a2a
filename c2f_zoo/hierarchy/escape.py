"""Escaping of class and level names, which may come from others, for a terminal and for Markdown."""

from __future__ import annotations

import re
import unicodedata

JOINERS = "\u200c\u200d"  # some scripts need these invisible characters


def printable(text: object) -> str:
    r"""Return text in one line, without characters that a terminal obeys.

    Control characters, line breaks and marks that change the direction of writing become escapes such as `\x1b`.

    Examples:
        >>> print(printable("\x1b[31mred\x07 " + chr(0x202E) + "gull"))
        \x1b[31mred\x07 \u202egull
        >>> print(printable("Möwe カモメ"))
        Möwe カモメ
    """
    return "".join(c if _is_visible(c) else c.encode("unicode_escape").decode() for c in str(text))


def _is_visible(c: str) -> bool:
    return c.isprintable() or c in JOINERS or unicodedata.category(c) == "Zs"


def rich_text(text: object) -> str:
    """Return `printable` text for rich, which takes words in square brackets for styles.

    Examples:
        >>> print(rich_text("[red]"))
        \\[red]
    """
    from rich.markup import escape

    return escape(printable(text))


def markdown(text: object) -> str:
    """Return `printable` text for Markdown: characters with a meaning there become HTML entities.

    Examples:
        >>> print(markdown("<b>|x|"), markdown("red_fox"))
        &#60;b&#62;&#124;x&#124; red_fox
    """
    return re.sub(r"[&<>|`*\[\]\\#~$]|(?<![^\W_])_|_(?![^\W_])", lambda found: f"&#{ord(found[0])};", printable(text))


def fenced(text: str, language: str = "") -> str:
    """Return a fenced code block whose fence does not occur in the text.

    Examples:
        >>> print(fenced("a ```` b"))
        `````
        a ```` b
        `````
    """
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
