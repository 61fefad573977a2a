"""iNaturalist 2021."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import INaturalist

from c2f_zoo.data.files import ImageFiles
from c2f_zoo.data.registry import register_dataset, unknown_split
from c2f_zoo.data.sources import translate_torchvision_errors
from c2f_zoo.hierarchy import Hierarchy


@register_dataset("inaturalist")
def inaturalist(root: str, split: str, mini: bool = False, download: bool = False) -> ImageFiles:
    """Living beings (Van Horn et al., CVPR 2021), 10 000 species in seven levels; read by torchvision.

    The tree comes from the names of the folders, see `Hierarchy.from_inaturalist`. The images published for
    validation are the test split here, as those for the test have no labels.

    Args:
        root: the folder that holds, or is to hold, `2021_train/` or `2021_train_mini/`, and `2021_valid/`.
        split: `"train"` (2 686 843 images) or `"test"` (100 000).
        mini: train on `2021_train_mini` (500 000).
        download: fetch what is not there (224, 42 and 8.4 GB); torchvision checks the md5 sums.

    Raises:
        FileNotFoundError: the dataset is not there and `download` is false.
        ConnectionError: the download failed.
        ValueError: a folder's name is no category.
    """
    if split not in ("train", "test"):
        raise unknown_split("inaturalist", split, ("train", "test"))
    version = "2021_valid" if split == "test" else "2021_train_mini" if mini else "2021_train"
    folder = Path(root, version)
    if not download and not folder.is_dir():  # torchvision would make the root
        raise FileNotFoundError(f"there is no folder {folder}; pass download=True where there is a network")
    with translate_torchvision_errors(
        "iNaturalist 2021", root, download, f"{version}/ with a folder for each of its categories, 00000_... on"
    ):
        data = INaturalist(root, version, download=download)
    hierarchy = Hierarchy.from_inaturalist(data.all_categories)
    # A category is a label: both count the sorted folders. Files come in no order from a disk; a split needs one.
    images = sorted(data.index)
    paths = [folder / data.all_categories[label] / name for label, name in images]
    return ImageFiles(paths, [label for label, _ in images], hierarchy)
