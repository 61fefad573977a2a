"""The trees that come with the package, one CSV file each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from c2f_zoo.hierarchy.tree import Hierarchy
from c2f_zoo.registry import Registry

HIERARCHIES: Registry[Callable[[], Hierarchy]] = Registry("hierarchy", "c2f_zoo.hierarchies")
register_hierarchy = HIERARCHIES.register

_TREES = Path(__file__).parent / "trees"

# Where each comes from: docs/reference/hierarchies.md. A file that changes gets a new version here.
_VERSIONS = {
    "cars": "1.0",
    "cifar100": "1.0",
    "critters": "1.0",
    "cub": "1.0",
    "cub_modern": "1.0",
    "fashion_mnist": "1.0",
}


def _shipped(name: str) -> Hierarchy:
    path = _TREES / f"{name}.csv"
    # CIFAR-100's own order of both levels cannot be had from paths, whose first superclass would be the apple's.
    tree = Hierarchy.from_parents(path, ("superclass", "class")) if name == "cifar100" else Hierarchy.from_csv(path)
    return replace(tree, version=_VERSIONS[name])


for _name in _VERSIONS:
    register_hierarchy(_name)(partial(_shipped, _name))


def load_hierarchy(name: str) -> Hierarchy:
    """Gives a registered class tree.

    Args:
        name: one of `list_hierarchies()`.

    Raises:
        ValueError: the name is unknown, or stands for no tree.

    Examples:
        >>> load_hierarchy("cub").num_classes
        {'family': 36, 'genus': 113, 'species': 200}
    """
    tree = HIERARCHIES[name]()
    if not isinstance(tree, Hierarchy):
        raise ValueError(f"hierarchy {name!r} gives {tree!r}, which is no Hierarchy")
    return tree


def list_hierarchies(pattern: str = "*") -> list[str]:
    """Lists the names that `load_hierarchy` knows, filtered by a wildcard."""
    return HIERARCHIES.names(pattern)
