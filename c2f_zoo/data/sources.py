"""Relabelling and error translation for datasets of other libraries."""

from __future__ import annotations

import contextlib
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from c2f_zoo.data.registry import IndexedImages
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.hierarchy.names import letters_of
from c2f_zoo.images.reading import prepare_image
from c2f_zoo.paths import expand
from c2f_zoo.registry import unknown_name


@dataclass(eq=False)
class Relabelled(IndexedImages):
    """A `LabelledImages` of another library's images, with labels of a tree.

    Args:
        data: its items are (image, ...); the image is of any kind that `prepare_image` accepts.
        targets: for each image the label of its leaf class.
        hierarchy: the tree.
        splits: the splits of the dataset.
    """

    data: Dataset[Any]
    targets: list[int]
    hierarchy: Hierarchy
    splits: tuple[str, ...] = ("train", "test")

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        return prepare_image(self.data[index][0])


def parent_of(root: str | Path, name: str) -> Path:
    """Return the folder that contains a dataset's folder `name`; `root` may be either.

    Examples:
        >>> str(parent_of("data", "stanford_cars")), str(parent_of("data/stanford_cars", "stanford_cars"))
        ('data', 'data')
    """
    root = expand(root)
    return root.parent if root.name == name and not (root / name).is_dir() else root


def labels_by_name(names: Sequence[str], hierarchy: Hierarchy, source: str) -> list[int]:
    """Match a dataset's classes with the leaf classes of a tree, by name.

    If a name is not in the tree, only letters and digits are compared: `black_footed albatross` matches
    `Black-footed Albatross`, unless several classes match.

    Args:
        names: the dataset's classes.
        hierarchy: the tree; it may have more classes.
        source: name of the dataset in errors.

    Returns:
        The label in the tree of each name.

    Raises:
        ValueError: a class is not in the tree, or two classes match the same one; the message names it.

    Examples:
        >>> labels_by_name(["Bag", "T - shirt / top"], load_hierarchy("fashion_mnist"), "my data")
        [8, 0]
    """
    classes = hierarchy.classes[-1]
    exact = {name: label for label, name in enumerate(classes)}
    count = Counter(map(letters_of, classes))
    loose = {key: label for label, name in enumerate(classes) if count[key := letters_of(name)] == 1}
    labels = []
    for name in names:
        label = exact.get(name, loose.get(letters_of(name)))
        if label is None:
            unknown = unknown_name(hierarchy.finest, name, classes)
            raise ValueError(f"{source} has a class that is not in the tree: {unknown}; use a tree that has it")
        labels.append(label)
    twice = [classes[label] for label, times in Counter(labels).items() if times > 1]
    if twice:
        raise ValueError(f"{source} has two classes that match the tree's {twice[0]!r}; merge them")
    return labels


def labels_by_index(count: int, hierarchy: Hierarchy, source: str) -> list[int]:
    """Match a dataset's unnamed classes with the leaf classes of a tree, by order.

    Raises:
        ValueError: the numbers of classes differ.
    """
    classes = hierarchy.num_classes[hierarchy.finest]
    if count != classes:
        raise ValueError(
            f"{source} has {count} classes without names, but the tree has {classes} at {hierarchy.finest}; pass the "
            "names of the dataset's classes, in the dataset's order, as class_names"
        )
    return list(range(classes))


@contextlib.contextmanager
def translate_torchvision_errors(source: str, root: str | Path, download: bool, content: str) -> Iterator[None]:
    """Translate the errors of a torchvision dataset, and unpack its archives safely.

    Archives are unpacked with tarfile's data filter, Python's default from 3.14 on, which refuses members outside the
    folder.

    Args:
        source: the dataset's name.
        root: the dataset's folder.
        download: whether the dataset may be downloaded.
        content: what the folder must contain.

    Raises:
        FileNotFoundError: the dataset is missing and `download` is false.
        ConnectionError: the download failed.
    """
    before = vars(tarfile.TarFile).get("extraction_filter")
    if hasattr(tarfile, "data_filter"):  # Python 3.10.12, 3.11.4 or later
        tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # type: ignore[assignment]
    try:
        yield
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        if download:
            raise ConnectionError(
                f"cannot download {source} to {root}: {error}; remove incomplete files and try again, or download it "
                f"yourself: the folder must contain {content}"
            ) from error
        raise FileNotFoundError(f"{root} does not contain {source} ({error}); it must contain {content}") from error
    finally:
        tarfile.TarFile.extraction_filter = before  # type: ignore[assignment]
