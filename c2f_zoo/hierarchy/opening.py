"""Opening a tree by its name or its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from c2f_zoo.hierarchy.builtin import HIERARCHIES, load_hierarchy
from c2f_zoo.hierarchy.reading import read_csv_rows
from c2f_zoo.hierarchy.tree import Hierarchy
from c2f_zoo.paths import expand
from c2f_zoo.registry import unknown_name


def open_hierarchy(
    hierarchy: str | Path | Hierarchy, levels: Sequence[str] | None = None, ragged: str | None = None
) -> Hierarchy:
    """Return the tree for an option `hierarchy`.

    Args:
        hierarchy: name of a registered tree, path of a tree's CSV file, or a tree.
        levels: names of the levels, coarse to fine; only for a CSV file with the header `child,parent`.
        ragged: treatment of short branches, see `Hierarchy`; None: the tree's own.

    Raises:
        ValueError: the file is not a tree, there is no file or tree of that name, or `levels` is missing or not needed.

    Examples:
        >>> open_hierarchy("cub").levels
        ('family', 'genus', 'species')
    """
    tree = _open(hierarchy, levels)
    return tree if ragged in (None, tree.ragged) else replace(tree, ragged=ragged)


def _open(hierarchy: str | Path | Hierarchy, levels: Sequence[str] | None) -> Hierarchy:
    if not isinstance(hierarchy, Hierarchy) and hierarchy not in HIERARCHIES and expand(hierarchy).is_file():
        return _read(expand(hierarchy), levels)
    _refuse(levels)
    if isinstance(hierarchy, Hierarchy):
        return hierarchy
    if str(hierarchy) not in HIERARCHIES:
        unknown = unknown_name("hierarchy", str(hierarchy), HIERARCHIES.names())
        raise ValueError(f"there is no file {str(hierarchy)!r}, and it is an {unknown}")
    return load_hierarchy(str(hierarchy))


def _read(file: str | Path, levels: Sequence[str] | None) -> Hierarchy:
    """Read a tree's CSV file; the header tells its form."""
    rows, _ = read_csv_rows(file)
    has_parents = bool(rows) and sorted(cell.strip().lower() for cell in rows[0][1]) == ["child", "parent"]
    if has_parents and levels is None:
        raise ValueError(
            f"{file} has the header 'child,parent', which does not name the levels; name them with the option 'levels' "
            f"of the dataset, or pass the tree: Hierarchy.from_parents({str(file)!r}, levels)"
        )
    if has_parents and levels is not None:
        return Hierarchy.from_parents(file, levels)
    _refuse(levels)
    return Hierarchy.from_csv(file)


def _refuse(levels: Sequence[str] | None) -> None:
    if levels is not None:
        raise ValueError(f"levels {list(levels)} cannot rename those of a hierarchy; leave out one of the two options")
