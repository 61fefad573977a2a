"""Confusion matrices in the order of the tree, as CSV files and plots."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from torch import Tensor

from c2f_zoo.evaluation.plots import saved_figure
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.hierarchy.escape import printable
from c2f_zoo.io.files import write_csv

MAX_CLASSES = 2000  # a larger confusion matrix has millions of cells, and its plot is unreadable
MAX_NAMES = 60  # on an axis
MAX_NAME_BYTES = 200  # of a level in a file's name, of 255 that file systems allow


def has_confusion(num_classes: int) -> bool:
    """Return whether a confusion matrix is computed for this number of classes."""
    return 2 <= num_classes <= MAX_CLASSES


def write_confusions(folder: Path, confusions: Mapping[str, Tensor], tree: Hierarchy) -> None:
    """Write each level's confusion matrix to `confusion_<level>.csv` and `.png`.

    In a file's name, `_` replaces characters of the level other than letters, digits, `_` and `.`.

    Args:
        folder: an existing folder.
        confusions: level -> counts (classes, classes), int64; a row is a true class.
        tree: the class tree.
    """
    for (level, matrix), stem in zip(confusions.items(), file_stems(list(confusions)), strict=True):
        order = tree_order(tree, level)
        write_confusion_csv(matrix, tree, level, order, folder / f"{stem}.csv")
        plot_confusion(matrix, tree, level, order, folder / f"{stem}.png")


def file_stems(levels: Sequence[str]) -> list[str]:
    """Return a file name without extension for each level, different on every file system.

    Examples:
        >>> file_stems(["sub/family", "Sub family", "genus"])
        ['confusion_sub_family', 'confusion_Sub_family_2', 'confusion_genus']
    """
    stems: list[str] = []
    for level in levels:
        short = "confusion_" + re.sub(r"[^\w.]+", "_", level).encode()[:MAX_NAME_BYTES].decode(errors="ignore")
        candidates = itertools.chain([short], (f"{short}_{number}" for number in itertools.count(2)))
        taken = {stem.lower() for stem in stems}
        stems.append(next(name for name in candidates if name.lower() not in taken))
    return stems


def tree_order(tree: Hierarchy, level: str) -> list[int]:
    """Sort a level's labels by the tree, so that siblings are neighbors.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "box", "ring")), ((0, 1, 0),))
        >>> tree_order(tree, "shape")
        [0, 2, 1]
    """
    paths = class_paths(tree, level)
    return sorted(range(len(paths)), key=paths.__getitem__)


def class_paths(tree: Hierarchy, level: str) -> list[list[int]]:
    """Return the path of labels from the coarsest level to each class of a level."""
    truncated = tree.truncate(level)
    return truncated.ancestors(torch.arange(truncated.num_classes[level])).tolist()


def write_confusion_csv(matrix: Tensor, tree: Hierarchy, level: str, order: Sequence[int], path: Path) -> None:
    """Write a row for each true class, with a column for each predicted class."""
    names = tree.class_names(level)
    header = level if level not in names else f"true {level}"
    rows = [
        {header: names[true], **{names[predicted]: int(matrix[true, predicted]) for predicted in order}}
        for true in order
    ]
    write_csv(path, rows)


def plot_confusion(matrix: Tensor, tree: Hierarchy, level: str, order: Sequence[int], path: Path) -> None:
    """Plot a confusion matrix, normalized by true class.

    Lines separate the classes of coarser levels.
    """
    counts = matrix[order][:, order].double()
    side = min(5 + 0.16 * len(order), 14)
    colors = matplotlib.colormaps["magma_r"].with_extremes(bad="0.85")  # grey for classes without images
    paths = class_paths(tree, level)
    depth = len(paths[0]) - 1
    with saved_figure(path, side + 1, side) as figure:
        ax = figure.subplots()
        fractions = (counts / counts.sum(dim=1, keepdim=True)).numpy()
        image = ax.imshow(fractions, colors, vmin=0, vmax=1, interpolation="none")
        figure.colorbar(image, label="fraction of the true class", shrink=0.7)
        for above in reversed(range(depth)):
            width, alpha = 0.4 + 0.6 * (depth - 1 - above), 0.9 if above == 0 else 0.4
            for block in blocks(paths, order, above)[1:]:
                for line in (ax.axhline, ax.axvline):
                    line(block.start - 0.5, color="tab:blue", linewidth=width, alpha=alpha)
        # Name the classes, or their coarsest ancestors if there are too many.
        named = depth if len(order) <= MAX_NAMES else 0
        large = [block for block in blocks(paths, order, named) if (block.end - block.start) * MAX_NAMES >= len(order)]
        centers = [(block.start + block.end - 1) / 2 for block in large]
        names = [printable(tree.class_names(tree.levels[named])[block.label]) for block in large]
        ax.set_xticks(centers, names, rotation=90, fontsize=7)
        ax.set_yticks(centers, names, fontsize=7)
        ax.set(title=f"{level} by itself, at its own resolution", xlabel="predicted", ylabel="true")


class Block(NamedTuple):
    """A block `start` to `end - 1` of sorted labels: the descendants of `label`."""

    start: int
    end: int
    label: int


def blocks(paths: Sequence[Sequence[int]], order: Sequence[int], depth: int) -> list[Block]:
    """Return the block of each class of a coarser level.

    Args:
        paths: the path of each label.
        order: the labels, sorted by the tree.
        depth: the depth of the coarser level.
    """
    above = [paths[label][depth] for label in order]
    starts = [i for i, label in enumerate(above) if i == 0 or above[i - 1] != label]
    return [Block(start, end, above[start]) for start, end in zip(starts, [*starts[1:], len(order)], strict=True)]
