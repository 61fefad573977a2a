"""Comparison of class names that people and file systems spell differently."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def normalize_name(name: str) -> str:
    """Return a name in Unicode's form NFC.

    macOS writes the names of folders in NFD, in which an accent is a character of its own.

    Examples:
        >>> len("e\\u0301"), len(normalize_name("e\\u0301"))
        (2, 1)
    """
    return unicodedata.normalize("NFC", name)


def letters_of(name: str) -> str:
    """Return a name's letters, with their accents and vowel signs, and digits, in one case.

    Examples:
        >>> letters_of("T-shirt/top"), letters_of("t_shirt top")
        ('tshirttop', 'tshirttop')
    """
    return "".join(c for c in normalize_name(name).casefold() if c.isalnum() or unicodedata.category(c).startswith("M"))


def find_case_variants(paths: Iterable[tuple[str, ...]]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return pairs of nodes with the same parent and names that differ only in case.

    Args:
        paths: paths from the coarsest class down; their prefixes are the nodes.

    Examples:
        >>> find_case_variants([("Birds", "Gull"), ("birds", "Jay"), ("Birds", "Tern")])
        [(('Birds',), ('birds',))]
    """
    first: dict[tuple[str, ...], tuple[str, ...]] = {}
    variants: dict[tuple[tuple[str, ...], tuple[str, ...]], None] = {}
    for path in paths:
        for depth in range(1, len(path) + 1):
            node = path[:depth]
            before = first.setdefault((*node[:-1], node[-1].casefold()), node)
            if before != node:
                variants[before, node] = None
    return list(variants)
