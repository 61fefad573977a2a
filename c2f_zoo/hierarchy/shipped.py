"""The trees that come with the package, one CSV file each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from c2f_zoo.hierarchy.tree import Hierarchy
from c2f_zoo.registry import Registry

HIERARCHIES: Registry[Callable[[], Hierarchy]] = Registry("hierarchy")
register_hierarchy = HIERARCHIES.register

_TREES = Path(__file__).parent / "trees"

# cub, cars: reconstructions (the paper's own files were never published) that give its Table 2;
# docs/reference/hierarchies.md says how. fashion_mnist: Seo & Shin 2019. critters: the embedded dataset's.
for _name in ("cars", "critters", "cub", "fashion_mnist"):
    register_hierarchy(_name)(partial(Hierarchy.from_csv, _TREES / f"{_name}.csv"))


def load_hierarchy(name: str) -> Hierarchy:
    """Gives a registered class tree.

    Args:
        name: one of `list_hierarchies()`.

    Raises:
        ValueError: the name is unknown.

    Examples:
        >>> load_hierarchy("cub").num_classes
        {'family': 36, 'genus': 113, 'species': 200}
    """
    return HIERARCHIES[name]()


def list_hierarchies(pattern: str = "*") -> list[str]:
    """Lists the names that `load_hierarchy` knows, filtered by a wildcard."""
    return HIERARCHIES.names(pattern)
