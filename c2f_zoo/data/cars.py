"""Stanford Cars."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torchvision.datasets import StanfordCars

from c2f_zoo.data.files import ImageFiles, raise_for_missing_files
from c2f_zoo.data.registry import check_split, register_dataset
from c2f_zoo.data.sources import labels_by_name, parent_of, translate_torchvision_errors
from c2f_zoo.hierarchy import load_hierarchy

_CONTENT = (
    "stanford_cars/ with devkit/ (cars_meta.mat, cars_train_annos.mat), cars_train/, cars_test/ and "
    "cars_test_annos_withlabels.mat. Stanford no longer hosts it; copies, unchecked by us, are at "
    "kaggle.com/datasets/rickyyyyyyy/torchvision-stanford-cars (in this layout) and at "
    "huggingface.co/datasets/tanganke/stanford_cars (open it as 'hfds/tanganke/stanford_cars')"
)


@register_dataset("cars")
def cars(root: str, split: str) -> ImageFiles:
    """Open Stanford Cars: 196 classes.

    By Krause et al. (3D Representation and Recognition 2013), read by torchvision. Classes are matched by their names
    in the devkit's `cars_meta.mat`; the tree is `load_hierarchy("cars")`. Needs scipy: `pip install 'c2f_zoo[cars]'`.

    Stanford no longer hosts the dataset, so it cannot be downloaded. Copies are discussed in
    [torchvision's issue 7545](https://github.com/pytorch/vision/issues/7545): Kaggle's
    `rickyyyyyyy/torchvision-stanford-cars` has this layout, and `hfds/` reads `tanganke/stanford_cars`. We have checked
    neither.

    Args:
        root: the folder that contains `stanford_cars/`, with `devkit/`, `cars_train/`, `cars_test/` and
            `cars_test_annos_withlabels.mat`; or that folder.
        split: `"train"` (8 144 images) or `"test"` (8 041).

    Raises:
        ImportError: scipy is missing.
        FileNotFoundError: the folder or a part of it is missing.
        ValueError: a class is not in the tree, or image files are missing; the message names them.
    """
    check_split("cars", split)
    if importlib.util.find_spec("scipy") is None:
        raise ImportError("Stanford Cars' labels are .mat files and need scipy: pip install 'c2f_zoo[cars]'")
    root = str(parent_of(root, "stanford_cars"))
    with translate_torchvision_errors("Stanford Cars", root, False, _CONTENT):
        data = StanfordCars(root, split)
    hierarchy = load_hierarchy("cars")
    labels = labels_by_name(data.classes, hierarchy, f"{root}/stanford_cars/devkit/cars_meta.mat")
    paths = [Path(path) for path, _ in data._samples]
    raise_for_missing_files(root, paths)
    return ImageFiles(paths, [labels[number] for _, number in data._samples], hierarchy)
