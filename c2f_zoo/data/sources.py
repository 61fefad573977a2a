"""What datasets that another library opens have in common: classes known by name, images and errors of ours."""

from __future__ import annotations

import contextlib
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.registry import unknown_name


class Pairs(Protocol):
    """A dataset of torchvision's kind: its items are (image, ...)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(eq=False)
class Relabelled:
    """Another library's images, which lie in memory in grey or RGB, with labels of a tree: a `LabelledImages`.

    Args:
        data: items are (PIL image, ...).
        targets: for each its label at the tree's finest level.
        hierarchy: the tree.
        splits: which splits the whole dataset has.
    """

    data: Pairs
    targets: list[int]
    hierarchy: Hierarchy
    splits: tuple[str, ...] = ("train", "test")

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.data[index][0].convert("RGB"), self.targets[index]


def labels_by_name(names: Sequence[str], hierarchy: Hierarchy, source: str) -> list[int]:
    """Finds a dataset's classes among the finest of a tree, never by their order.

    A name that the tree does not have is looked for by its letters and digits alone, so that `black_footed albatross`
    is `Black-footed Albatross`, where that leaves no doubt.

    Args:
        names: the dataset's classes.
        hierarchy: the tree; it may have more classes.
        source: what to call the dataset in an error.

    Returns:
        The label in the tree of each name.

    Raises:
        ValueError: a class is not in the tree, or two are the same one there; the message names it.

    Examples:
        >>> labels_by_name(["Bag", "T - shirt / top"], load_hierarchy("fashion_mnist"), "my data")
        [8, 0]
    """
    classes = hierarchy.classes[-1]
    exact = {name: label for label, name in enumerate(classes)}
    count = Counter(map(_letters, classes))
    loose = {key: label for label, name in enumerate(classes) if count[key := _letters(name)] == 1}
    labels = []
    for name in names:
        label = exact.get(name, loose.get(_letters(name)))
        if label is None:
            unknown = unknown_name(hierarchy.finest, name, classes)
            raise ValueError(f"{source} has a class that is not in the tree: {unknown}; give a tree that has it")
        labels.append(label)
    twice = [classes[label] for label, times in Counter(labels).items() if times > 1]
    if twice:
        raise ValueError(f"{source} has two classes for the tree's {twice[0]!r}")
    return labels


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def labels_by_index(count: int, hierarchy: Hierarchy, source: str) -> list[int]:
    """Takes the order of a dataset's classes, whose names are not known, for the tree's; the numbers must agree.

    Raises:
        ValueError: they do not.
    """
    classes = hierarchy.num_classes[hierarchy.finest]
    if count != classes:
        raise ValueError(
            f"{source} has {count} classes without names, and the tree {classes} at {hierarchy.finest}; they can be "
            "matched by their order alone, and only if they are as many: name the dataset's classes in its own order "
            "with class_names"
        )
    return list(range(classes))


@contextlib.contextmanager
def translate_torchvision_errors(source: str, root: str | Path, download: bool, holds: str) -> Iterator[None]:
    """Around a torchvision dataset that is opened: its errors say what to do.

    Of an archive that it fetches and unpacks, members with absolute or `..` paths are refused, which Python does by
    itself from 3.14 on only.

    Args:
        source: the dataset's name.
        root: the folder it is opened in.
        download: whether it is fetched.
        holds: what the folder must hold.

    Raises:
        FileNotFoundError: the dataset is not there and is not to be fetched.
        ConnectionError: it could not be fetched.
    """
    before = vars(tarfile.TarFile).get("extraction_filter")
    if hasattr(tarfile, "data_filter"):  # Python 3.10.12, 3.11.4 or later
        tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # type: ignore[assignment]
    try:
        yield
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        if download:
            raise ConnectionError(
                f"{source} could not be fetched to {root}: {error}; remove what is half there and try again, or fetch "
                f"it by other means, so that the folder holds {holds}"
            ) from error
        raise FileNotFoundError(f"{root} holds no {source} ({error}); it must hold {holds}") from error
    finally:
        tarfile.TarFile.extraction_filter = before  # type: ignore[assignment]


def targets_of(labels: Sequence[Any], table: Mapping[Any, int], source: str) -> list[int]:
    """Turns a dataset's own labels, which are numbers or names, into the tree's.

    Raises:
        ValueError: a label is none of the table's; the message names the first image that has it.
    """
    for index, label in enumerate(labels):
        if not isinstance(label, (int, str)) or label not in table:
            raise ValueError(
                f"image {index} of {source} has the label {label!r}, which is not one of its {len(table)} classes; "
                "leave it out"
            )
    return [table[label] for label in labels]
