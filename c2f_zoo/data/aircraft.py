"""FGVC-Aircraft."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import FGVCAircraft

from c2f_zoo.data.files import ImageFiles, raise_for_missing_files
from c2f_zoo.data.registry import SPLITS, register_dataset
from c2f_zoo.data.sources import labels_by_name, parent_of, translate_torchvision_errors
from c2f_zoo.hierarchy import Hierarchy


@register_dataset("aircraft")
def aircraft(root: str, split: str, download: bool = False) -> ImageFiles:
    """Open FGVC-Aircraft: 30 manufacturers, 70 families and 100 variants.

    By Maji et al. (arXiv:1306.5151), read by torchvision. The tree comes from the dataset's own lists, see
    `Hierarchy.from_aircraft`.

    Args:
        root: the folder that contains, or will contain, `fgvc-aircraft-2013b/`; or that folder.
        split: `"train"` (3 334 images), `"val"` (3 333) or `"test"` (3 333).
        download: download the dataset (2.6 GB) if it is missing; its authors publish no checksum.

    Raises:
        FileNotFoundError: the dataset or one of its lists is missing and `download` is false.
        ConnectionError: the download failed.
        ValueError: the lists do not form a tree, or image files are missing; the message names them.
    """
    root = str(parent_of(root, "fgvc-aircraft-2013b"))
    with translate_torchvision_errors("FGVC-Aircraft", root, download, "fgvc-aircraft-2013b/"):
        data = FGVCAircraft(root, split, annotation_level="variant", download=download)
    lists = Path(root, "fgvc-aircraft-2013b", "data")
    hierarchy = Hierarchy.from_aircraft(lists)
    labels = labels_by_name(data.classes, hierarchy, str(lists / "variants.txt"))
    paths = [Path(path) for path in data._image_files]
    raise_for_missing_files(root, paths)
    return ImageFiles(paths, [labels[number] for number in data._labels], hierarchy, splits=SPLITS)
