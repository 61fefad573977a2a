"""iNaturalist 2021."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import INaturalist

from c2f_zoo.data.files import ImageFiles
from c2f_zoo.data.registry import check_split, register_dataset
from c2f_zoo.data.sources import translate_torchvision_errors
from c2f_zoo.hierarchy import Hierarchy


@register_dataset("inaturalist")
def inaturalist(root: str, split: str, mini: bool = False, download: bool = False) -> ImageFiles:
    """Open iNaturalist 2021: 10 000 species in seven levels.

    By Van Horn et al. (CVPR 2021), read by torchvision. The tree comes from the names of the folders, see
    `Hierarchy.from_inaturalist`. The published validation set is the test set here, because the published test set has
    no labels.

    Args:
        root: the folder that contains, or will contain, `2021_train/` or `2021_train_mini/`, and `2021_valid/`.
        split: `"train"` (2 686 843 images) or `"test"` (100 000).
        mini: use `2021_train_mini` (500 000 images) as the training set.
        download: download the split if it is missing (train 224 GB, mini 42 GB, test 8.4 GB); torchvision checks the
            MD5 sums.

    Raises:
        FileNotFoundError: the dataset is missing and `download` is false.
        ConnectionError: the download failed.
        ValueError: the name of a folder is not a category.
    """
    check_split("inaturalist", split)
    version = "2021_valid" if split == "test" else "2021_train_mini" if mini else "2021_train"
    folder = Path(root, version)
    if not download and not folder.is_dir():  # torchvision would create the root
        raise FileNotFoundError(f"there is no folder {folder}; pass download=True to download it")
    content = f"{version}/ with a folder for each of its categories, 00000_... on"
    with translate_torchvision_errors("iNaturalist 2021", root, download, content):
        data = INaturalist(root, version, download=download)
    hierarchy = Hierarchy.from_inaturalist(data.all_categories)
    # A category's number is its label, as both count the sorted folders. A seeded split needs a fixed order of files.
    images = sorted(data.index)
    paths = [folder / data.all_categories[label] / name for label, name in images]
    return ImageFiles(paths, [label for label, _ in images], hierarchy)
