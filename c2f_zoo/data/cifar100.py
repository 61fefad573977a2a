"""CIFAR-100."""

from __future__ import annotations

from torchvision.datasets import CIFAR100

from c2f_zoo.data.registry import check_split, register_dataset
from c2f_zoo.data.sources import Relabelled, labels_by_name, parent_of, translate_torchvision_errors
from c2f_zoo.hierarchy import load_hierarchy


@register_dataset("cifar100")
def cifar100(root: str, split: str, download: bool = False) -> Relabelled:
    """Open CIFAR-100: 20 superclasses and 100 classes, 32 x 32 pixels.

    By Krizhevsky (2009), read by torchvision. Classes are matched by their names in the dataset's file `meta`; the tree
    is `load_hierarchy("cifar100")`.

    Args:
        root: the folder that contains, or will contain, `cifar-100-python/`; or that folder.
        split: `"train"` (50 000 images) or `"test"` (10 000).
        download: download the dataset (169 MB) if it is missing.

    Raises:
        FileNotFoundError: files are missing or are not the published ones, and `download` is false.
        ConnectionError: the download failed.
        ValueError: a class is not in the tree.
    """
    check_split("cifar100", split)
    root = str(parent_of(root, "cifar-100-python"))
    with translate_torchvision_errors("CIFAR-100", root, download, "cifar-100-python/"):
        data = CIFAR100(root, train=split == "train", download=download)
    hierarchy = load_hierarchy("cifar100")
    labels = labels_by_name(data.classes, hierarchy, f"{root}/cifar-100-python/meta")
    return Relabelled(data, [labels[number] for number in data.targets], hierarchy)
