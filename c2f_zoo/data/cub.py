"""CUB-200-2011, or any part of it in its own layout."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from c2f_zoo.data.images import check_images, read_image
from c2f_zoo.data.registry import register_dataset
from c2f_zoo.hierarchy import load_hierarchy

_FILES = ("images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt")


@register_dataset("cub")
class CUB:
    """Birds in CUB-200-2011's layout (Wah et al., CNS-TR-2011-001): four text files and `images/`.

    The folder may hold any of the 200 classes, under any numbers: classes are known by their names in
    `classes.txt`, and the tree is the part of `load_hierarchy("cub")` that holds them.

    Args:
        root: the folder with `images.txt`, `image_class_labels.txt`, `classes.txt`,
            `train_test_split.txt` and `images/`.
        split: `"train"` or `"test"`, as `train_test_split.txt` has it.

    Raises:
        FileNotFoundError: the folder lacks one of the files.
        ValueError: a line, a class or a picture file is bad; the message names it.
    """

    def __init__(self, root: str, split: str) -> None:
        folder = Path(root)
        for name in _FILES:
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} is no CUB-200-2011 folder: it lacks {name}")
        names, labels, classes, is_train = (_read_table(folder / name) for name in _FILES)
        try:
            self.hierarchy = load_hierarchy("cub").subtree(classes.values())
        except ValueError as error:
            raise ValueError(f"{folder / 'classes.txt'}: {error}") from error
        label_of = {name: label for label, name in enumerate(self.hierarchy.classes[-1])}
        wanted = "1" if split == "train" else "0"
        self.paths: list[Path] = []
        self.targets: list[int] = []
        for image_id, name in names.items():
            for table, file in ((labels, _FILES[1]), (is_train, _FILES[3])):
                if image_id not in table:
                    raise ValueError(f"{folder / file} has no line for image {image_id} ({name})")
            if labels[image_id] not in classes:
                raise ValueError(
                    f"{folder / _FILES[1]}: image {image_id} has class {labels[image_id]}, not in classes.txt"
                )
            if is_train[image_id] not in ("0", "1"):
                raise ValueError(f"{folder / _FILES[3]}: image {image_id} has {is_train[image_id]!r}, neither 0 nor 1")
            if is_train[image_id] == wanted:
                self.paths.append(folder / "images" / name)
                self.targets.append(label_of[classes[labels[image_id]]])
        check_images(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(self.paths[index]), self.targets[index]


def _read_table(path: Path) -> dict[str, str]:
    """Reads lines of `key value`."""
    table = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        key, _, value = line.strip().partition(" ")
        if key in table:
            raise ValueError(f"{path}, line {number}: {key} stands on an earlier line already")
        if not value:
            raise ValueError(f"{path}, line {number}: expected a number and a value, not {line!r}")
        table[key] = value.strip()
    return table
