"""FGVC-Aircraft."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import FGVCAircraft

from c2f_zoo.data.files import ImageFiles, refuse_missing
from c2f_zoo.data.registry import SPLITS, register_dataset
from c2f_zoo.data.sources import labels_by_name, translate_torchvision_errors
from c2f_zoo.hierarchy import Hierarchy


@register_dataset("aircraft")
def aircraft(root: str, split: str, download: bool = False) -> ImageFiles:
    """Aircraft (Maji et al., arXiv:1306.5151), 30 manufacturers, 70 families, 100 variants; read by torchvision.

    The tree comes from the dataset's own lists, see `Hierarchy.from_aircraft`.

    Args:
        root: the folder that holds, or is to hold, `fgvc-aircraft-2013b/`.
        split: `"train"` (3 334 images), `"val"` (3 333) or `"test"` (3 333).
        download: fetch it (2.6 GB) if it is not there; its authors give no checksum.

    Raises:
        FileNotFoundError: the dataset is not there and `download` is false, or it lacks a list.
        ConnectionError: the download failed.
        ValueError: the lists are no tree, or image files are missing; the message names them.
    """
    with translate_torchvision_errors("FGVC-Aircraft", root, download, "fgvc-aircraft-2013b/"):
        data = FGVCAircraft(root, split, annotation_level="variant", download=download)
    lists = Path(root, "fgvc-aircraft-2013b", "data")
    hierarchy = Hierarchy.from_aircraft(lists)
    table = labels_by_name(data.classes, hierarchy, str(lists / "variants.txt"))
    paths = [Path(path) for path in data._image_files]
    refuse_missing(root, paths)
    return ImageFiles(paths, [table[label] for label in data._labels], hierarchy, splits=SPLITS)
