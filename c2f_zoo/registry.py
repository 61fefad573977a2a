"""Names to things: the one registry class behind models, backbones, poolings, heads, hierarchies and datasets."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, distributions, entry_points
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


class PluginError(ValueError):
    """A plug-in was asked for that cannot be loaded, or is not what it should be."""


class Registry(Generic[T]):
    """A named collection of one kind of thing: what this process registers, and what installed packages offer.

    An installed package offers a thing by an entry point (a plug-in). The entry point refers to what `register` would
    decorate. Its name is listed without importing it; it is imported when it is first asked for. What is registered
    goes before a plug-in of the same name.

    Args:
        kind: what an entry is called in error messages, e.g. `"pooling"`.
        group: the group of entry points, e.g. `"c2f_zoo.poolings"`; None for none. They are looked for once, when a
            list or a name that is not registered is first asked for.
        fits: whether a thing is of this kind, asked of a plug-in when it is loaded.
        reserved: whether something outside this registry answers to a name, so that no plug-in may have it.

    Examples:
        >>> colours = Registry[str]("colour")
        >>> colours.register("red")("#f00")
        '#f00'
        >>> colours["red"]
        '#f00'
    """

    def __init__(
        self,
        kind: str,
        group: str | None = None,
        fits: Callable[[Any], bool] = callable,
        reserved: Callable[[str], bool] = lambda name: False,
    ) -> None:
        self.kind = kind
        self.group = group
        self._fits = fits
        self._reserved = reserved
        self._entries: dict[str, T] = {}
        self._plugins: dict[str, EntryPoint] | None = None  # None: not looked for yet
        self._watchers: list[Callable[[str], object]] = []

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
            for tell in self._watchers:
                tell(name)
            return entry

        return store

    def watch(self, tell: Callable[[str], object]) -> None:
        """Calls a function with every name that there is, and with each that is registered from now on."""
        for name in self.names():
            tell(name)
        self._watchers.append(tell)

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            point = self._found().get(name)
            if point is None:
                raise unknown_name(self.kind, name, self.names())
            self._entries[name] = self._load(point)
        return self._entries[name]

    def registered(self, name: str) -> T | None:
        """What is in this process under a name; None for a plug-in that nobody asked for yet, which is not imported."""
        return self._entries.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._found()

    def names(self, pattern: str = "*") -> list[str]:
        """Lists the names that match a shell-style wildcard, sorted; plug-ins among them, which it does not import."""
        return sorted(fnmatch.filter({*self._entries, *self._found()}, pattern))

    def _found(self) -> dict[str, EntryPoint]:
        """The plug-ins by name; the installed packages are looked through once."""
        if self._plugins is None:
            self._plugins = {}
            for point in _entry_points(self.group) if self.group else ():
                owner = self._owner(point.name)
                if owner is None:
                    self._plugins[point.name] = point
                else:
                    _warn(f"{self._describe(point)} is left out: {owner}")
        return self._plugins

    def _owner(self, name: str) -> str | None:
        """What has a name that a plug-in wants; None where it is free."""
        if name in self._entries:
            return f"{self.kind} {name!r} is {self._entries[name]!r}"
        if self._plugins and name in self._plugins:
            return f"{self._describe(self._plugins[name])} came first"
        return f"the name is taken for a built-in {self.kind}" if self._reserved(name) else None

    def _load(self, point: EntryPoint) -> T:
        try:
            entry = point.load()
            if not self._fits(entry):
                raise TypeError(f"it refers to {entry!r}, which is no {self.kind}")
        except (Exception, SystemExit) as error:  # whatever a stranger's module does when it is imported
            fault = f"{self._describe(point)} is broken: {type(error).__name__}: {error}"
            _warn(fault)
            raise PluginError(fault) from error
        return entry

    def _describe(self, point: EntryPoint) -> str:
        package = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
        return f"the {self.kind} plug-in {point.name!r} ({point.value}) of {package}"


def _entry_points(group: str) -> list[EntryPoint]:
    """The entry points of a group, but for those of packages whose list of them cannot be read."""
    try:
        return list(entry_points(group=group))
    except Exception:  # the list of one package breaks that of all, so that they are read one by one
        points: dict[str, list[EntryPoint]] = {}
    for package in distributions():
        try:
            points.setdefault(package.name, [point for point in package.entry_points if point.group == group])
        except Exception as error:
            _warn(f"the entry points of {package.name} cannot be read: {error}")
    return [point for found in points.values() for point in found]


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=5)
