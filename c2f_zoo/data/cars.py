"""Stanford Cars, in the layout of its devkit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torchvision.datasets import StanfordCars

from c2f_zoo.data.files import ImageFiles, refuse_missing
from c2f_zoo.data.registry import register_dataset, unknown_split
from c2f_zoo.data.sources import labels_by_name, translate_torchvision_errors
from c2f_zoo.hierarchy import load_hierarchy

_HOLDS = (
    "stanford_cars/ with devkit/ (cars_meta.mat, cars_train_annos.mat), cars_train/, cars_test/ and "
    "cars_test_annos_withlabels.mat. Its home at Stanford is gone; copies are at "
    "kaggle.com/datasets/rickyyyyyyy/torchvision-stanford-cars (in this layout) and, to be opened as "
    "'hfds/tanganke/stanford_cars', at huggingface.co/datasets/tanganke/stanford_cars (we have checked neither)"
)


@register_dataset("cars")
def cars(root: str, split: str) -> ImageFiles:
    """Cars (Krause et al., 3D Representation and Recognition 2013), 196 classes; read by torchvision.

    Classes are known by the names in the devkit's `cars_meta.mat`, and the tree is `load_hierarchy("cars")`. Needs
    scipy: `pip install 'c2f_zoo[cars]'`.

    The dataset's home at Stanford is gone, so it cannot be downloaded. Copies are discussed in
    [torchvision's issue 7545](https://github.com/pytorch/vision/issues/7545): one in this layout is Kaggle's
    `rickyyyyyyy/torchvision-stanford-cars`; one for `hfds/` is `tanganke/stanford_cars`. We have checked neither.

    Args:
        root: the folder that holds `stanford_cars/`, with `devkit/`, `cars_train/`, `cars_test/` and
            `cars_test_annos_withlabels.mat`.
        split: `"train"` (8 144 images) or `"test"` (8 041).

    Raises:
        ImportError: scipy is missing.
        FileNotFoundError: the folder is not there or lacks something.
        ValueError: a class is not in the tree, or image files are missing; the message names them.
    """
    if split not in ("train", "test"):
        raise unknown_split("cars", split, ("train", "test"))
    if importlib.util.find_spec("scipy") is None:
        raise ImportError("Stanford Cars' labels are .mat files, which scipy reads: pip install 'c2f_zoo[cars]'")
    with translate_torchvision_errors("Stanford Cars", root, False, _HOLDS):
        data = StanfordCars(root, split)
    hierarchy = load_hierarchy("cars")
    table = labels_by_name(data.classes, hierarchy, f"{root}/stanford_cars/devkit/cars_meta.mat")
    paths = [Path(path) for path, _ in data._samples]
    refuse_missing(root, paths)
    return ImageFiles(paths, [table[label] for _, label in data._samples], hierarchy)
