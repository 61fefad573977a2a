"""How trees are read from the lists that two datasets come with: iNaturalist and FGVC-Aircraft."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from c2f_zoo.hierarchy.reading import RANKS, Parts, parts_of, path_faults, refuse

_AIRCRAFT = {"manufacturer": "manufacturers.txt", "family": "families.txt", "variant": "variants.txt"}


def read_inaturalist(categories: Iterable[str]) -> Parts:
    """What `Hierarchy.from_inaturalist` is made of."""
    paths: dict[str, tuple[str, ...]] = {}
    faults = []
    for category in categories:
        number, *names = category.split("_")
        if not number.isdigit() or len(names) != len(RANKS):
            faults.append(f"category {category!r} must be a number and 7 names, {', '.join(RANKS)}, joined by '_'")
        elif f"category {category!r}" in paths:
            faults.append(f"category {category!r} is named twice")
        else:
            *above, genus, epithet = names
            paths[f"category {category!r}"] = (*above, genus, f"{genus} {epithet}")
    rows = list(zip(paths, _qualify(list(paths.values())), strict=True))
    refuse("the categories", faults + path_faults(RANKS, rows))
    return parts_of(RANKS, rows)


def _qualify(paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Homonyms, which stand under several parents, get the parent's name in brackets."""
    nodes = {path[: depth + 1] for path in paths for depth in range(len(path))}
    count = Counter((len(node), node[-1]) for node in nodes)
    qualified = []
    for path in paths:
        names: list[str] = []
        for depth, name in enumerate(path, start=1):
            names.append(f"{name} ({names[-1]})" if count[depth, name] > 1 else name)
        qualified.append(tuple(names))
    return qualified


def read_aircraft(folder: str | Path) -> Parts:
    """What `Hierarchy.from_aircraft` is made of."""
    folder = Path(folder)
    files = {level: f"images_{level}_trainval.txt" for level in _AIRCRAFT}
    missing = [name for name in (*_AIRCRAFT.values(), *files.values()) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} is no FGVC-Aircraft folder: it lacks {', '.join(missing)}; name 'fgvc-aircraft-2013b/data'"
        )
    faults: list[str] = []
    classes = [_class_list(folder / file, faults) for file in _AIRCRAFT.values()]
    shown = [
        _images(folder / files[level], names, _AIRCRAFT[level], faults)
        for level, names in zip(_AIRCRAFT, classes, strict=True)
    ]
    images = dict.fromkeys(image for table in shown for image in table)
    for file, table in zip(files.values(), shown, strict=True):
        lacking = [image for image in images if image not in table]
        faults += [f"{file} lacks {len(lacking)} of the other files' images, {lacking[0]} first"] if lacking else []
    first: dict[tuple[str, ...], str] = {}  # each path, and the first image of it
    for image in images:
        if all(image in table for table in shown):
            first.setdefault(tuple(table[image] for table in shown), f"image {image}")
    rows = [(where, path) for path, where in first.items()]
    refuse(folder, faults + path_faults(tuple(_AIRCRAFT), rows))
    return parts_of(tuple(_AIRCRAFT), rows, classes)


def _lines(path: Path) -> list[tuple[str, str]]:
    """Where each line that is not blank stands, and the line."""
    lines = path.read_text(encoding="utf-8", errors="backslashreplace").splitlines()
    return [(f"{path.name}, line {number}", line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def _class_list(path: Path, faults: list[str]) -> list[str]:
    where: dict[str, str] = {}
    for place, name in _lines(path):
        if where.setdefault(name, place) != place:
            faults.append(f"{place}: {name!r} is named before, in {where[name]}")
    return list(where)


def _images(path: Path, names: Sequence[str], list_file: str, faults: list[str]) -> dict[str, str]:
    """The class of each image."""
    class_of: dict[str, str] = {}
    for place, line in _lines(path):
        image, _, name = line.partition(" ")
        if name not in names:
            faults.append(f"{place}: {line!r} must be an image's number and one of {list_file}")
        elif class_of.setdefault(image, name) != name:
            faults.append(f"{place}: image {image} is {class_of[image]!r} on an earlier line")
    faults += [
        f"{list_file}: {path.name} has no image of {name!r}" for name in sorted(set(names) - set(class_of.values()))
    ]
    return class_of
