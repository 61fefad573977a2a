"""Example images for the demo of a model."""

from __future__ import annotations

from pathlib import Path

from c2f_zoo.data import create_dataset
from c2f_zoo.hierarchy import Hierarchy, load_hierarchy
from c2f_zoo.inference.image_files import list_image_files

_COUNT = 12
_DRAWN = (7, 16, 20, 33)  # indices of test images of the critters, one of each family


def find_examples(tree: Hierarchy, folder: str | Path | None, into: Path) -> tuple[list[Path], list[str]]:
    """Find example images: those of a folder, or drawn ones if the tree is that of the critters.

    Args:
        tree: the class tree of the model.
        folder: a folder with images, of which the first 12 are taken; None for drawn ones.
        into: a folder for drawn images.

    Returns:
        The files, none if there are no examples, and notes on what was left out.

    Raises:
        FileNotFoundError: there are no images in the folder.

    Examples:
        >>> files, notes = find_examples(load_hierarchy("critters"), None, Path("."))
        >>> [file.name for file in files]
        ['1.png', '2.png', '3.png', '4.png']
    """
    if folder is not None:
        found = list_image_files([folder])
        left = len(found.files) - _COUNT
        notes = [*found.notes, *found.unreadable, *([f"further images, left out: {left}"] if left > 0 else [])]
        return found.files[:_COUNT], notes
    if tree.classes[-1] != load_hierarchy("critters").classes[-1]:
        return [], []
    dataset, files = create_dataset("critters", "test", per_class=1), []
    for number, index in enumerate(_DRAWN, start=1):
        files.append(into / f"{number}.png")
        dataset[index][0].save(files[-1])
    return files, []
