"""The registry of class trees, and the built-in trees, one CSV file each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from c2f_zoo.hierarchy.tree import Hierarchy
from c2f_zoo.registry import Registry

HIERARCHIES: Registry[Callable[[], Hierarchy]] = Registry("hierarchy", "c2f_zoo.hierarchies")
register_hierarchy = HIERARCHIES.register

_BUILT: dict[str, tuple[Callable[[], Hierarchy], Hierarchy]] = {}  # by name: the function, and the tree it returned
_TREES = Path(__file__).parent / "trees"

# Sources: docs/reference/hierarchies.md. A changed file gets a new version here.
_VERSIONS = {
    "cars": "1.0",
    "cifar100": "1.0",
    "critters": "1.0",
    "cub": "1.0",
    "cub100": "1.0",
    "cub_modern": "1.0",
    "fashion_mnist": "1.0",
}


def _read(name: str) -> Hierarchy:
    path = _TREES / f"{name}.csv"
    # A list of paths would label CIFAR-100's superclasses in another order than the dataset.
    tree = Hierarchy.from_parents(path, ("superclass", "class")) if name == "cifar100" else Hierarchy.from_csv(path)
    if name == "cub100":  # labels in the order of `cub`, as its dataset has them
        tree = _read("cub").subtree(tree.classes[-1])
    return replace(tree, version=_VERSIONS[name])


for _name in _VERSIONS:
    register_hierarchy(_name)(partial(_read, _name))


def load_hierarchy(name: str) -> Hierarchy:
    """Return a registered class tree.

    The tree is cached: later calls return the same object, unless the name is registered again.

    Args:
        name: one of `list_hierarchies()`.

    Raises:
        ValueError: the name is unknown, or its function does not return a Hierarchy.

    Examples:
        >>> load_hierarchy("cub").num_classes
        {'family': 36, 'genus': 113, 'species': 200}
    """
    if name not in HIERARCHIES and Path(name).is_file():
        raise ValueError(
            f"{name!r} is a file, not the name of a hierarchy; use c2f_zoo.hierarchy.open_hierarchy({name!r})"
        )
    build = HIERARCHIES[name]
    if name not in _BUILT or _BUILT[name][0] is not build:
        tree = build()
        if not isinstance(tree, Hierarchy):
            raise ValueError(f"hierarchy {name!r} returns {tree!r}, which is not a Hierarchy")
        _BUILT[name] = build, tree
    return _BUILT[name][1]


def list_hierarchies(pattern: str = "*") -> list[str]:
    """List the names of the registered trees, filtered by a wildcard."""
    return HIERARCHIES.names(pattern)
