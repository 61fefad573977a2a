"""CIFAR-100 with its superclasses."""

from __future__ import annotations

from torchvision.datasets import CIFAR100

from c2f_zoo.data.registry import register_dataset, unknown_split
from c2f_zoo.data.sources import Relabelled, labels_by_name, translate_torchvision_errors
from c2f_zoo.hierarchy import load_hierarchy


@register_dataset("cifar100")
def cifar100(root: str, split: str, download: bool = False) -> Relabelled:
    """CIFAR-100 (Krizhevsky, 2009), 32 x 32 pixels, 20 superclasses and 100 classes; read by torchvision.

    The tree is `load_hierarchy("cifar100")`; classes are known by their names in the dataset's file `meta`.

    Args:
        root: the folder that holds, or is to hold, `cifar-100-python/`.
        split: `"train"` (50 000) or `"test"` (10 000).
        download: fetch it (169 MB) if it is not there.

    Raises:
        FileNotFoundError: the files are missing or are not the published ones, and `download` is false.
        ConnectionError: the download failed.
        ValueError: a class is not in the tree.
    """
    if split not in ("train", "test"):
        raise unknown_split("cifar100", split, ("train", "test"))
    with translate_torchvision_errors("CIFAR-100", root, download, "cifar-100-python/"):
        data = CIFAR100(root, train=split == "train", download=download)
    hierarchy = load_hierarchy("cifar100")
    table = labels_by_name(data.classes, hierarchy, f"{root}/cifar-100-python/meta")
    return Relabelled(data, [table[label] for label in data.targets], hierarchy)
