"""Reading trees from rows, CSV files, folders and paths.

Each `read_` function returns the fields of a `Hierarchy`; `Hierarchy.from_...` documents its arguments. An invalid tree
raises one ValueError that lists all faults, one per line, each with its place. Branches may differ in depth and classes
may share a name, see `c2f_zoo.hierarchy.paths`; a warning counts both.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePath

from c2f_zoo.hierarchy.faults import InvalidTreeError, group_similar
from c2f_zoo.hierarchy.folders import UNREADABLE, LeftOut, walk_folders
from c2f_zoo.hierarchy.names import find_case_variants, normalize_name
from c2f_zoo.hierarchy.paths import complete_paths, qualify, warn_of_changes
from c2f_zoo.paths import expand

Fields = tuple[tuple[str, ...], tuple[tuple[str, ...], ...], tuple[tuple[int, ...], ...]]  # levels, classes, parents
Row = tuple[str, Sequence[str]]  # its place, e.g. "line 4", and its cells

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")
SAVE_AS_UTF8 = "save the file as UTF-8 (spreadsheets call it 'CSV UTF-8')"


def read_rows(levels: Sequence[str], rows: Iterable[Sequence[str]]) -> Fields:
    """Read the fields of `Hierarchy.from_rows`."""
    numbered = [(f"row {number}", _trim(row)) for number, row in enumerate(rows, start=1)]
    raise_faults("the rows", find_path_faults(levels, numbered))
    return build_fields(levels, _complete("the rows", levels, numbered))


def read_csv(path: str | Path) -> Fields:
    """Read the fields of `Hierarchy.from_csv`."""
    rows, faults = read_csv_rows(path)
    if len(rows) < 2:
        raise_faults(path, faults or ["it needs a header with the levels, and a row for each leaf class"])
    (where, levels), *rows = [(place, cells if place == rows[0][0] else _trim(cells)) for place, cells in rows]
    faults += [f"{where}: a level {fault}" for level in levels if (fault := _find_name_fault(level))]
    faults += [f"{where}: level {level!r} is named twice" for level, count in Counter(levels).items() if count > 1]
    variants = find_case_variants(tuple(cells[: len(levels) - 1]) for _, cells in rows)  # not of leaf classes
    places = _first_places(rows) if variants else {}
    faults += [
        f"{places[variant]}: {variant[-1]!r} and {node[-1]!r} ({places[node]}) differ only in case; write them the "
        "same, or differently"
        for node, variant in variants
    ]
    raise_faults(path, faults + find_path_faults(levels, rows))
    return build_fields(levels, _complete(path, levels, rows))


def read_parents(path: str | Path, levels: Sequence[str]) -> Fields:
    """Read the fields of `Hierarchy.from_parents`."""
    rows, faults = read_csv_rows(path)
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    if len(rows) < 2 or sorted(header) != ["child", "parent"]:
        raise_faults(path, faults or ["it needs the header 'child,parent', and a row for each class of every level"])
    parent_of, where, row_faults = _read_parents(rows[1:], header.index("child"))
    chains = {name: _follow_parents(name, parent_of) for name in parent_of}
    rooted = {name: chain for name, chain in chains.items() if parent_of.get(chain[0]) == ""}
    inner = set(parent_of.values())
    paths = [(where[name], chain) for name, chain in rooted.items() if name not in inner]
    raise_faults(path, faults + row_faults + _find_cycles(parent_of, where, chains) + find_path_faults(levels, paths))
    is_short = {chain[-1] for _, chain in paths if len(chain) < len(levels)}
    classes = [
        [name for name, chain in rooted.items() if len(chain) == depth or (len(chain) < depth and name in is_short)]
        for depth in range(1, len(levels) + 1)
    ]
    return build_fields(levels, _complete(path, levels, paths, has_unique_names=True), classes)


def read_folders(folder: str | Path, levels: Sequence[str] | None) -> Fields:
    """Read the fields of `Hierarchy.from_folders`."""
    if not expand(folder).is_dir():
        raise FileNotFoundError(f"the folder {folder} does not exist")
    left_out: LeftOut = defaultdict(list)
    found = {names: files for names, files, is_leaf in walk_folders(expand(folder), left_out) if is_leaf}
    faults = [f"{UNREADABLE}: {item}" for item in left_out[UNREADABLE]]
    if not found or () in found:
        raise_faults(folder, [*faults, "it contains no folders; each class needs one"])
    faults += [f"folder {'/'.join(names)} is empty" for names, files in found.items() if not files]
    folders = dict.fromkeys(tuple(map(normalize_name, names)) for names in found)
    return _read_from_folders(folder, list(folders), levels, faults)


def read_paths(paths: Iterable[str | PurePath], levels: Sequence[str] | None) -> Fields:
    """Read the fields of `Hierarchy.from_paths`."""
    visible = [path for path in map(PurePath, paths) if not any(map(_is_hidden, path.parts))]
    faults = [
        f"path {str(path)!r} must consist of the folders of its classes, coarse to fine, and a file name"
        for path in visible
        if path.is_absolute() or ".." in path.parts or len(path.parts) < 2
    ]
    if not visible:
        faults.append("no paths are given")
    raise_faults("the paths", faults)
    folders = {tuple(normalize_name(name) for name in path.parts[:-1]) for path in visible}
    above = {names[:depth] for names in folders for depth in range(len(names))}  # files there are next to folders
    return _read_from_folders("the paths", sorted(folders - above), levels, [])


def raise_faults(source: object, faults: Sequence[str]) -> None:
    """Raise an InvalidTreeError that lists the faults, if there are any."""
    if faults:
        shown = "".join(f"\n  {line}" for line in group_similar(faults))
        raise InvalidTreeError(f"invalid hierarchy in {source}:{shown}", faults)


def find_path_faults(levels: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Return the faults of paths, each from the coarsest level to a leaf class; some may be short."""
    lengths = {len(cells) for _, cells in rows}
    shape = f"the tree has {len(levels)} levels ({', '.join(levels)})"
    if len(rows) > 1 and len(lengths) == 1 and lengths != {len(levels)}:
        return [f"every path has {lengths.pop()} names, {shape}"]
    if rows and max(lengths) < len(levels):
        return [f"the longest path has {max(lengths)} names, {shape}"]
    faults = []
    leaves: dict[tuple[str, ...], str] = {}  # path -> where
    inner: dict[tuple[str, ...], str] = {}  # path of a class above others -> where it is first
    for where, cells in rows:
        if not 0 < len(cells) <= len(levels):
            faults.append(f"{where}: the path {' > '.join(cells)!r} has {len(cells)} names, {shape}")
            continue
        faults += [
            f"{where}: {level} {fault}"
            for level, cell in zip(levels, cells, strict=False)
            if (fault := _find_name_fault(cell))
        ]
        path = tuple(cell.strip() for cell in cells)
        if leaves.setdefault(path, where) != where:
            faults.append(f"{where}: {levels[len(path) - 1]} {path[-1]!r} is already in {leaves[path]}")
        for depth in range(1, len(path)):
            inner.setdefault(path[:depth], where)
    for path, where in leaves.items():
        if path in inner:
            name = f"{levels[len(path) - 1]} {path[-1]!r}"
            faults.append(f"{where}: {name} ends here but has classes below it ({inner[path]}); remove one of the two")
    return faults


def find_two_parents(levels: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Return a fault for each name with several parents, where lists of images refer to classes by name."""
    faults = []
    seen: list[dict[str, tuple[str, str]]] = [{} for _ in levels]  # at each depth: name -> parent, where
    for where, cells in rows:
        for depth, (parent, name) in enumerate(pairwise(cells), start=1):
            first, place = seen[depth].setdefault(name, (parent, where))
            if first != parent:
                two = f"{first!r} ({place}) and {parent!r} ({where})"
                faults.append(f"{where}: {levels[depth]} {name!r} has two parents: {two}")
    return faults


def _trim(cells: Sequence[str]) -> Sequence[str]:
    """Return a row's names without its last cells that are blank: a short path."""
    cells = [normalize_name(cell) for cell in cells]
    count = max((number for number, cell in enumerate(cells, start=1) if cell.strip()), default=1)
    return cells[:count]


def _complete(source: object, levels: Sequence[str], rows: Sequence[Row], has_unique_names: bool = False) -> list[Row]:
    """Return valid rows as complete paths of unique names; warn of what was changed."""
    paths = [tuple(cells) for _, cells in rows]
    completed = complete_paths(paths, len(levels), has_unique_names)
    raise_faults(source, _find_twins(levels, paths, completed))
    warn_of_changes(source, levels, paths, completed)
    return [(where, path) for (where, _), path in zip(rows, completed, strict=True)]


def _find_twins(levels: Sequence[str], paths: Sequence[Sequence[str]], completed: Sequence[Sequence[str]]) -> list[str]:
    """Return a fault for each name that two classes of a level have, though names were qualified."""
    faults = {}
    for depth, level in enumerate(levels):
        first: dict[str, tuple[Sequence[str], str]] = {}  # name -> path before names were qualified, and parent
        for path, names in zip(paths, completed, strict=True):
            name, parent = names[depth], names[depth - 1] if depth else ""
            before, parent_before = first.setdefault(name, (path[: depth + 1], parent))
            if before != path[: depth + 1]:
                both = (
                    f"both below {parent!r}" if parent == parent_before else f"below {parent_before!r} and {parent!r}"
                )
                faults[level, name] = f"{level} {name!r} would be the name of two classes, {both}; rename one"
    return list(faults.values())


def build_fields(levels: Sequence[str], rows: Sequence[Row], classes: Sequence[Sequence[str]] | None = None) -> Fields:
    """Build the fields of a tree from valid paths.

    Labels follow the order of `classes`, one list for each level. Default: the order of first appearance.
    """
    above: list[dict[str, str]] = [{} for _ in levels]
    for _, names in rows:
        for depth, name in enumerate(names):
            above[depth][name] = names[depth - 1] if depth else ""
    classes = classes or [list(parent_of) for parent_of in above]
    labels = [{name: label for label, name in enumerate(names)} for names in classes]
    parents = [
        tuple(labels[depth][parent_of[name]] for name in classes[depth + 1])
        for depth, parent_of in enumerate(above[1:])
    ]
    return tuple(levels), tuple(map(tuple, classes)), tuple(parents)


def _find_name_fault(name: str) -> str | None:
    if not name.strip():
        return "is empty"
    if "\n" in name or "\r" in name:
        return f"spans several lines, {name[:40]!r}; is a quote left open?"
    if "\ufeff" in name:
        return f"{name!r} contains a byte-order mark, as in concatenated files; remove it"
    if name != name.strip():
        return f"{name!r} has surrounding white space; write {name.strip()!r}"
    return None


def _first_places(rows: Sequence[Row]) -> dict[tuple[str, ...], str]:
    """Return the place of the first row of each class of each level, by its path."""
    places: dict[tuple[str, ...], str] = {}
    for where, cells in rows:
        for depth in range(1, len(cells) + 1):
            places.setdefault(tuple(cells[:depth]), where)
    return places


def read_csv_rows(path: str | Path) -> tuple[list[Row], list[str]]:
    """Read the non-blank rows of a CSV file, and the faults of its format."""
    data = expand(path).read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        return [], [f"it is encoded as UTF-16; {SAVE_AS_UTF8}"]
    faults = [
        f"line {number}: {line!r} is not UTF-8; {SAVE_AS_UTF8}"
        for number, line in enumerate(data.splitlines(), start=1)
        if line.decode(errors="ignore").encode() != line
    ]
    # Bytes that are not UTF-8 are kept as escapes, so that the other faults of the file are found too.
    reader = csv.reader(io.StringIO(data.decode("utf-8-sig", "backslashreplace"), newline=""))
    rows: list[Row] = []
    start = 1
    try:
        for cells in reader:
            if cells:
                rows.append((f"line {start}", cells))
            start = reader.line_num + 1
    except csv.Error as error:
        faults.append(f"line {start}: {error}; is a quote left open?")
    for delimiter, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if rows and any(delimiter in cell for cell in rows[0][1]):
            return [], [*faults, f"{rows[0][0]}: cells are separated by {name}; use commas"]
    return rows, faults


def _read_parents(rows: Sequence[Row], child: int) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Read the parent ("" for none) and the line of each class, and faults of rows.

    Names of several classes are qualified by the parent, in the result and where a row names such a class as parent.
    """
    lines: dict[str, dict[str, str]] = {}  # name -> parent -> line
    entries = []
    faults = []
    for line, cells in rows:
        if len(cells) > 2:
            faults.append(f"{line}: {len(cells)} cells, not a child and a parent: {cells}")
            continue
        pair = [*cells, ""][:2]  # a class of the coarsest level may have no comma
        name, parent = normalize_name(pair[child]), normalize_name(pair[1 - child])
        faults += [f"{line}: child {fault}" for fault in [_find_name_fault(name)] if fault]
        faults += [f"{line}: parent {fault}" for fault in [_find_name_fault(parent)] if fault and parent]
        name, parent = name.strip(), parent.strip()
        known = lines.setdefault(name, {})
        if parent in known:
            faults.append(f"{line}: {name!r} is already in {known[parent]}")
        elif known and "" in (parent, *known):  # a class of the coarsest level cannot be qualified
            first, place = next(iter(known.items()))
            two = f"{first or 'none'!r} ({place}) and {parent or 'none'!r} ({line})"
            faults.append(f"{line}: {name!r} has two parents: {two}; rename one of the classes")
        else:
            known[parent] = line
            entries.append((line, name, parent))
    parent_of: dict[str, str] = {}
    where: dict[str, str] = {}
    for line, name, parent in entries:
        if len(lines.get(parent, ())) > 1:
            written = [qualify(parent, above) for above in lines[parent]]
            several = f"the parent {parent!r} of {name!r} is the name of {len(written)} classes"
            faults.append(f"{line}: {several}; write {' or '.join(map(repr, written))}")
            parent = written[0]
        key = qualify(name, parent) if len(lines[name]) > 1 else name
        if where.setdefault(key, line) != line:
            faults.append(f"{line}: {key!r} is already in {where[key]}")
        parent_of.setdefault(key, parent)
    return parent_of, where, faults


def _follow_parents(name: str, parent_of: Mapping[str, str]) -> list[str]:
    """Return a class and its ancestors, coarse to fine; stop at a cycle."""
    chain = [name]
    while (above := parent_of.get(chain[0])) and above not in chain:
        chain.insert(0, above)
    return chain


def _find_cycles(
    parent_of: Mapping[str, str], where: Mapping[str, str], chains: Mapping[str, Sequence[str]]
) -> list[str]:
    faults = []
    for name, parent in parent_of.items():
        if parent and parent not in parent_of:
            faults.append(f"{where[name]}: the parent {parent!r} of {name!r} has no row")
        chain = chains[name]
        if parent_of.get(chain[0]) == name and next(first for first in parent_of if first in chain) == name:
            cycle = " under ".join(f"{link!r} ({where[link]})" for link in reversed(chain))
            faults.append(f"{where[name]}: a cycle: {cycle} under {name!r}")
    return faults


def _is_hidden(name: str) -> bool:
    return name.startswith(".") and name != ".."


def _read_from_folders(
    source: object, folders: Sequence[tuple[str, ...]], levels: Sequence[str] | None, faults: list[str]
) -> Fields:
    if levels is None:
        depth = max(map(len, folders))
        levels = RANKS[-depth:] if depth <= len(RANKS) else [f"level_{number}" for number in range(1, depth + 1)]
    rows = [(f"folder {'/'.join(names)}", names) for names in folders]
    faults += [
        f"folder {'/'.join(variant)}: {variant[-1]!r} and {node[-1]!r} (folder {'/'.join(node)}) differ only in case; "
        "rename one, or describe the classes in a CSV file"
        for node, variant in find_case_variants(folders)
    ]
    raise_faults(source, faults + find_path_faults(levels, rows))
    return build_fields(levels, _complete(source, levels, rows))
