"""Registries of models and their parts, with plug-ins of other packages."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, distributions, entry_points
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """Return the error for an unknown name, with up to three suggestions.

    They are the shortest names that continue the given one, or else similar names.

    Examples:
        >>> unknown_name("backbone", "resnet5O", ["resnet50", "vgg16"])
        ValueError("unknown backbone 'resnet5O'; did you mean 'resnet50'?")
        >>> unknown_name("backbone", "swin_tiny", ["swinv2_tiny_window8_256", "swin_tiny_patch4_window7_224"])
        ValueError("unknown backbone 'swin_tiny'; did you mean 'swin_tiny_patch4_window7_224'?")
    """
    known = list(known)
    longer = [other for other in known if name and other.startswith(name)]
    close = sorted(longer, key=lambda other: (len(other), other))[:3] or difflib.get_close_matches(name, known, n=3)
    if close:
        hint = "did you mean " + " or ".join(repr(match) for match in close) + "?"
    else:
        listed = ", ".join(sorted(known)[:12]) + (", ..." if len(known) > 12 else "")
        hint = f"known: {listed or 'none'}"
    return ValueError(f"unknown {kind} {name!r}; {hint}")


def check_names(kind: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raise a ValueError with suggestions if one of the names is unknown."""
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)


def check_options(kind: str, function: Callable[..., Any], options: Iterable[str]) -> None:
    """Raise a ValueError with suggestions if a function does not accept an option."""
    parameters = inspect.signature(function).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        check_names(kind, options, parameters)


class PluginError(ValueError):
    """A plug-in that cannot be loaded, or that has the wrong type."""


@dataclass(eq=False, repr=False)
class Registry(Generic[T]):
    """A mapping from names to entries of one kind, with plug-ins.

    A plug-in is an entry point of an installed package that refers to the object to register. Its name is listed
    without an import; the package is imported when the entry is first used. A registered entry has precedence over a
    plug-in of the same name.

    Args:
        kind: the name of an entry's type in error messages, e.g. `"pooling"`.
        group: the group of entry points, e.g. `"c2f_zoo.poolings"`; None for no plug-ins. They are read once, when
            names are listed or a name that is not registered is looked up.
        fits: a function that returns whether a loaded plug-in has the right type.
        reserved: a function that returns whether a name is reserved for built-in entries.

    Examples:
        >>> colours = Registry[str]("colour")
        >>> colours.register("red")("#f00")
        '#f00'
        >>> colours["red"]
        '#f00'
    """

    kind: str
    group: str | None = None
    fits: Callable[[Any], bool] = callable
    reserved: Callable[[str], bool] = lambda name: False
    _entries: dict[str, T] = field(default_factory=dict, init=False)
    _plugins: dict[str, EntryPoint] | None = field(default=None, init=False)  # None: not read yet
    _subscribers: list[Callable[[str], object]] = field(default_factory=list, init=False)

    def register(self, name: str, *, override: bool = False) -> Callable[[T], T]:
        """Return a decorator that stores the decorated object under `name`.

        Args:
            name: the name of the entry.
            override: replace an entry of the same name. Default: a duplicate is an error.

        Raises:
            ValueError: the name is empty, or is registered already and `override` is false.
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
            for callback in self._subscribers:
                callback(name)
            return entry

        return store

    def subscribe(self, callback: Callable[[str], object]) -> None:
        """Call a function with each known name now, and with each new name later."""
        for name in self.names():
            callback(name)
        self._subscribers.append(callback)

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            point = self._read_plugins().get(name)
            if point is None:
                raise unknown_name(self.kind, name, self.names())
            self._entries[name] = self._load(point)
        return self._entries[name]

    def registered(self, name: str) -> T | None:
        """Return the entry of a name; None if it is unknown or not imported yet."""
        return self._entries.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._read_plugins()

    def names(self, pattern: str = "*") -> list[str]:
        """Return the names that match a shell-style wildcard, sorted."""
        return sorted(fnmatch.filter({*self._entries, *self._read_plugins()}, pattern))

    def load_all(self) -> dict[str, T]:
        """Return all entries by name: registered entries in order, then plug-ins.

        Plug-ins that cannot be loaded are left out with a warning.
        """
        entries = dict(self._entries)
        for name in sorted({*self._read_plugins()} - {*entries}):
            with suppress(PluginError):  # a warning has been issued
                entries[name] = self[name]
        return entries

    def _read_plugins(self) -> dict[str, EntryPoint]:
        """Return the plug-ins by name; the installed packages are read once."""
        if self._plugins is None:
            plugins: dict[str, EntryPoint] = {}  # another thread sees all of them, or reads them too
            for point in _entry_points(self.group) if self.group else ():
                conflict = self._conflict(point.name, plugins)
                if conflict is None:
                    plugins[point.name] = point
                else:
                    _warn(f"{self._describe(point)} is ignored: {conflict}")
            self._plugins = plugins
        return self._plugins

    def _conflict(self, name: str, plugins: Mapping[str, EntryPoint]) -> str | None:
        """Return the reason if a plug-in may not have a name beside others, or None."""
        if name in self._entries:
            return f"{self.kind} {name!r} is registered already ({self._entries[name]!r})"
        if name in plugins:
            return f"{self._describe(plugins[name])} has the same name"
        return f"the name is reserved for a built-in {self.kind}" if self.reserved(name) else None

    def _load(self, point: EntryPoint) -> T:
        try:
            entry = point.load()
            if not self.fits(entry):
                raise TypeError(f"it refers to {entry!r}, which is not a {self.kind}")
        except (Exception, SystemExit) as error:  # importing third-party code can raise any error
            message = f"cannot load {self._describe(point)}: {type(error).__name__}: {error}"
            _warn(message)
            raise PluginError(message) from error
        return entry

    def _describe(self, point: EntryPoint) -> str:
        package = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
        return f"the {self.kind} plug-in {point.name!r} ({point.value}) of {package}"


def _entry_points(group: str) -> list[EntryPoint]:
    """Return the entry points of a group; packages with an invalid list are skipped."""
    try:
        return list(entry_points(group=group))
    except Exception:  # one invalid list makes the call fail for all packages: read them one by one
        points: dict[str, list[EntryPoint]] = {}
    for package in distributions():
        try:
            points.setdefault(package.name, [point for point in package.entry_points if point.group == group])
        except Exception as error:
            _warn(f"cannot read the entry points of {package.name}: {error}")
    return [point for found in points.values() for point in found]


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=5)
