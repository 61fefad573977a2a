"""iNaturalist 2021."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from torchvision.datasets import INaturalist

from c2f_zoo.data.files import ImageFiles
from c2f_zoo.data.folder import list_class_folders
from c2f_zoo.data.registry import check_split, register_dataset
from c2f_zoo.data.sources import translate_torchvision_errors
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.hierarchy.folders import list_folder_content
from c2f_zoo.hierarchy.names import normalize_name
from c2f_zoo.paths import expand

# The first name is torchvision's, the next that in the published archive.
_FOLDERS = {
    "train": ("2021_train", "train"),
    "mini": ("2021_train_mini", "train_mini"),
    "test": ("2021_valid", "val", "valid", "2021_val"),
}
_CATEGORY = re.compile(r"\d+(_[^_]+){7}")


@register_dataset("inaturalist")
def inaturalist(root: str, split: str, mini: bool = False, download: bool = False) -> ImageFiles:
    """Open iNaturalist 2021: 10 000 species in seven levels, or some of them.

    By Van Horn et al. (CVPR 2021), read by torchvision. The tree comes from the names of all folders in `root`, see
    `Hierarchy.from_inaturalist`. The published validation set is the test set here, because the published test set has
    no labels.

    Args:
        root: the folder that contains, or will contain, `2021_train/` or `2021_train_mini/`, and `2021_valid/`; or
            `train/`, `train_mini/` and `val/`, as in the published archives.
        split: `"train"` (2 686 843 images) or `"test"` (100 000).
        mini: use `2021_train_mini` (500 000 images) as the training set.
        download: download the split if it is missing (train 224 GB, mini 42 GB, test 8.4 GB); torchvision checks the
            MD5 sums.

    Raises:
        FileNotFoundError: the dataset is missing and `download` is false.
        ConnectionError: the download failed.
        ValueError: no folder has the name of a category.
    """
    check_split("inaturalist", split)
    kind = "test" if split == "test" else "mini" if mini else "train"
    folders = _find_folders(expand(root))
    if kind not in folders and download:
        version = _FOLDERS[kind][0]
        with translate_torchvision_errors("iNaturalist 2021", root, download, f"{version}/, with its categories"):
            INaturalist(root, version, download=True)
        folders = _find_folders(expand(root))
    if kind not in folders:
        names = " or ".join(f"{name}/" for name in _FOLDERS[kind][:2])
        other = "; pass mini=True to use train_mini/" if kind == "train" and "mini" in folders else ""
        raise FileNotFoundError(f"there is no folder {names} in {root}{other}; pass download=True to download it")
    subfolders = [name for folder in folders.values() for name in list_folder_content(folder, defaultdict(list))[0]]
    content = set(map(normalize_name, subfolders))
    categories = sorted(filter(_CATEGORY.fullmatch, content)) or sorted(content)
    hierarchy = Hierarchy.from_inaturalist(categories)
    labels = {name: label for label, name in enumerate(categories)}
    found, notes = list_class_folders(folders[kind])
    images = [(labels[name], path) for name, path in found if name in labels]
    if len(images) < len(found):
        notes += (f"{folders[kind]}: images in folders that are no category, left out: {len(found) - len(images)}",)
    return ImageFiles([path for _, path in images], [label for label, _ in images], hierarchy, notes=notes)


def _find_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each kind of images that is in `root`."""
    paths = {kind: [root / name for name in names if (root / name).is_dir()] for kind, names in _FOLDERS.items()}
    return {kind: found[0] for kind, found in paths.items() if found}
