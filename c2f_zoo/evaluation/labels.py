"""Translation of a dataset's labels to a model's larger tree."""

from __future__ import annotations

import torch
from torch import Tensor

from c2f_zoo.data import LabelledImages, labels_of
from c2f_zoo.decoding import is_path
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.hierarchy.names import normalize_name
from c2f_zoo.registry import unknown_name


def labels_in(tree: Hierarchy, dataset: LabelledImages) -> Tensor:
    """Translate a dataset's labels to another tree, by names.

    A level that is missing in the dataset's tree gets the parents of the next finer labels.

    Args:
        tree: a tree with all levels and classes of the dataset's tree.
        dataset: the dataset.

    Returns:
        int64 labels (images, levels of `tree`); -1 where unknown.

    Raises:
        ValueError: a level or a class is missing in the tree, or has another parent there.

    Examples:
        >>> dataset = create_dataset("critters", "test", per_class=1)
        >>> labels_in(load_hierarchy("critters"), dataset)[35]
        tensor([ 3, 11, 35])
    """
    own, labels = labels_of(dataset), torch.full((len(dataset), len(tree.levels)), -1)
    for depth, level in enumerate(dataset.hierarchy.levels):
        label_of = _translate_level(dataset.hierarchy, tree, level)
        labels[:, tree.levels.index(level)] = label_of[own[:, depth]].where(own[:, depth] >= 0, -1)
    for depth, finer in reversed(list(enumerate(tree.levels[1:]))):
        parent = tree.parent_index(finer)[labels[:, depth + 1]].where(labels[:, depth + 1] >= 0, -1)
        labels[:, depth] = labels[:, depth].where(labels[:, depth] >= 0, parent)
    wrong = (~is_path(labels, tree)).nonzero()
    if len(wrong):
        path = zip(tree.levels, labels[wrong[0, 0]].tolist(), strict=True)
        names = " > ".join(tree.class_names(level)[label] for level, label in path if label >= 0)
        raise ValueError(f"the dataset's path {names} does not exist in the model's tree")
    return labels


def _translate_level(own: Hierarchy, tree: Hierarchy, level: str) -> Tensor:
    """Return the label in `tree` of each class of a level of `own`."""
    if level not in tree.levels:
        unknown = unknown_name("level", level, tree.levels)
        raise ValueError(f"a level of the dataset is missing in the model's tree: {unknown}")
    names = tree.class_names(level)
    label_of = {normalize_name(name): label for label, name in enumerate(names)}
    for name in map(normalize_name, own.class_names(level)):
        if name not in label_of:
            unknown = unknown_name(level, name, names)
            raise ValueError(f"a class of the dataset is missing in the model's tree: {unknown}")
    return torch.tensor([label_of[normalize_name(name)] for name in own.class_names(level)])
