"""Reading the trees of iNaturalist and FGVC-Aircraft from the datasets' lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from c2f_zoo.hierarchy.paths import complete_paths
from c2f_zoo.hierarchy.reading import RANKS, Fields, build_fields, find_path_faults, find_two_parents, raise_faults
from c2f_zoo.paths import expand

_AIRCRAFT = {"manufacturer": "manufacturers.txt", "family": "families.txt", "variant": "variants.txt"}


def read_inaturalist(categories: Iterable[str]) -> Fields:
    """Read the fields of `Hierarchy.from_inaturalist`."""
    paths: dict[str, tuple[str, ...]] = {}
    faults = []
    for category in categories:
        number, *names = category.split("_")
        if not number.isdigit() or len(names) != len(RANKS):
            faults.append(f"category {category!r} must be a number and 7 names, {', '.join(RANKS)}, joined by '_'")
        elif f"category {category!r}" in paths:
            faults.append(f"category {category!r} appears twice")
        else:
            *above, genus, epithet = names
            paths[f"category {category!r}"] = (*above, genus, f"{genus} {epithet}")
    raise_faults("the categories", faults + find_path_faults(RANKS, list(paths.items())))
    rows = list(zip(paths, complete_paths(list(paths.values()), len(RANKS)), strict=True))
    return build_fields(RANKS, rows)


def read_aircraft(folder: str | Path) -> Fields:
    """Read the fields of `Hierarchy.from_aircraft`."""
    folder = expand(folder)
    files = {level: f"images_{level}_trainval.txt" for level in _AIRCRAFT}
    missing = [name for name in (*_AIRCRAFT.values(), *files.values()) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} is not an FGVC-Aircraft folder: missing {', '.join(missing)}; pass 'fgvc-aircraft-2013b/data'"
        )
    faults: list[str] = []
    classes = [_read_classes(folder / file, faults) for file in _AIRCRAFT.values()]
    tables = [
        _read_images(folder / files[level], names, _AIRCRAFT[level], faults)
        for level, names in zip(_AIRCRAFT, classes, strict=True)
    ]
    images = dict.fromkeys(image for table in tables for image in table)
    for file, table in zip(files.values(), tables, strict=True):
        unlisted = [image for image in images if image not in table]
        if unlisted:
            faults.append(f"{file}: {len(unlisted)} images of the other files are missing, first {unlisted[0]}")
    first: dict[tuple[str, ...], str] = {}  # path -> its first image
    for image in images:
        if all(image in table for table in tables):
            first.setdefault(tuple(table[image] for table in tables), f"image {image}")
    rows = [(where, path) for path, where in first.items()]
    levels = tuple(_AIRCRAFT)
    raise_faults(folder, faults + find_path_faults(levels, rows) + find_two_parents(levels, rows))
    return build_fields(tuple(_AIRCRAFT), rows, classes)


def read_lines(path: Path) -> list[tuple[str, str]]:
    """Read the place and the text of each line that is not blank."""
    lines = path.read_text(encoding="utf-8", errors="backslashreplace").splitlines()
    return [(f"{path.name}, line {number}", line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def _read_classes(path: Path, faults: list[str]) -> list[str]:
    where: dict[str, str] = {}
    for place, name in read_lines(path):
        if where.setdefault(name, place) != place:
            faults.append(f"{place}: {name!r} is already in {where[name]}")
    return list(where)


def _read_images(path: Path, names: Sequence[str], list_file: str, faults: list[str]) -> dict[str, str]:
    """Read the class of each image."""
    class_of: dict[str, str] = {}
    for place, line in read_lines(path):
        image, _, name = line.partition(" ")
        if name not in names:
            faults.append(f"{place}: {line!r} must be an image number and a class of {list_file}")
        elif class_of.setdefault(image, name) != name:
            faults.append(f"{place}: image {image} is {class_of[image]!r} on an earlier line")
    faults += [
        f"{list_file}: {path.name} has no image of {name!r}" for name in sorted(set(names) - set(class_of.values()))
    ]
    return class_of
