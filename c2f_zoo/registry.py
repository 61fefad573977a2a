"""Names to things: the one registry class behind models, backbones, poolings, heads, hierarchies and datasets."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """Builds the error for a name that nothing answers to; it offers the closest known names.

    Examples:
        >>> unknown_name("backbone", "resnet5O", ["resnet50", "vgg16"])
        ValueError("unknown backbone 'resnet5O'; did you mean 'resnet50'?")
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        hint = "did you mean " + " or ".join(repr(match) for match in close) + "?"
    else:
        shown = ", ".join(sorted(known)[:12]) + (", ..." if len(known) > 12 else "")
        hint = f"known: {shown or 'none'}"
    return ValueError(f"unknown {kind} {name!r}; {hint}")


def check_options(kind: str, function: Callable[..., Any], options: Iterable[str]) -> None:
    """Raises a ValueError, with close names, unless a function takes keyword arguments of these names."""
    parameters = inspect.signature(function).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in options:
            if name not in parameters:
                raise unknown_name(kind, name, parameters)


class Registry(Generic[T]):
    """A named collection of one kind of thing.

    Args:
        kind: what an entry is called in error messages, e.g. `"pooling"`.

    Examples:
        >>> colours = Registry[str]("colour")
        >>> colours.register("red")("#f00")
        '#f00'
        >>> colours["red"]
        '#f00'
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str, *, override: bool = False) -> Callable[[T], T]:
        """Returns a decorator that stores what it decorates under `name`.

        Args:
            name: the name to store it under.
            override: replace what the name stood for; without it a duplicate is an error.

        Raises:
            ValueError: the name is empty, or taken and `override` is false.
        """
        if not name:
            raise ValueError(f"a {self.kind} needs a name")

        def store(entry: T) -> T:
            if name in self._entries and not override:
                raise ValueError(
                    f"{self.kind} {name!r} is registered already ({self._entries[name]!r}); "
                    "choose another name or pass override=True"
                )
            self._entries[name] = entry
            return entry

        return store

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def names(self, pattern: str = "*") -> list[str]:
        """Lists the registered names that match a shell-style wildcard, sorted."""
        return sorted(fnmatch.filter(self._entries, pattern))
