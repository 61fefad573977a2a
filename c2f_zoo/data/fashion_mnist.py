"""Fashion-MNIST."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from pathlib import Path

from torchvision.datasets import FashionMNIST

from c2f_zoo.data.registry import check_split, register_dataset
from c2f_zoo.data.sources import Relabelled, parent_of, translate_torchvision_errors
from c2f_zoo.hierarchy import load_hierarchy

_FILES = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_CONTENT = f"{_FILES[0]}[.gz] and the other idx files, or torchvision's FashionMNIST/raw/"


@register_dataset("fashion_mnist")
def fashion_mnist(root: str, split: str, download: bool = False) -> Relabelled:
    """Open Fashion-MNIST: 2, 6 and 10 classes at three levels, 28 x 28 pixels.

    The images are by Xiao et al. (2017), the tree by Seo & Shin (2019).

    Args:
        root: a folder that contains the idx files, plain or gzipped (Debian's package installs them in
            `/usr/share/datasets/fashion-mnist`), or the folder where torchvision keeps, or will save, its copy.
        split: `"train"` (60 000 images) or `"test"` (10 000).
        download: download the files to `root` if they are missing.

    Raises:
        FileNotFoundError: files are missing and `download` is false.
        ConnectionError: the download failed.
    """
    check_split("fashion_mnist", split)
    folder, is_train = parent_of(root, "FashionMNIST"), split == "train"
    idx_files = [file for name in _FILES for file in (folder / f"{name}.gz", folder / name) if file.is_file()]
    with translate_torchvision_errors("Fashion-MNIST", root, download, _CONTENT):
        if {file.name.removesuffix(".gz") for file in idx_files} == set(_FILES):
            data = _read_idx_files(idx_files, is_train)
        else:
            data = FashionMNIST(folder, train=is_train, download=download)
    return Relabelled(data, data.targets.tolist(), load_hierarchy("fashion_mnist"))


def _read_idx_files(files: list[Path], is_train: bool) -> FashionMNIST:
    """Read plain or gzipped idx files from any folder."""
    # torchvision reads plain files in its own folder only; it keeps the data in memory, so that copies can be deleted.
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch, "FashionMNIST", "raw")
        raw.mkdir(parents=True)
        for file in files:
            opener = gzip.open if file.suffix == ".gz" else open
            with opener(file, "rb") as source, open(raw / file.name.removesuffix(".gz"), "wb") as target:
                shutil.copyfileobj(source, target)
        return FashionMNIST(scratch, train=is_train)
