"""Fashion-MNIST with the three levels of Seo & Shin."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from torchvision.datasets import FashionMNIST as TorchvisionFashionMNIST

from c2f_zoo.data.registry import register_dataset
from c2f_zoo.hierarchy import load_hierarchy

_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


@register_dataset("fashion_mnist")
class FashionMNIST:
    """Fashion-MNIST (Xiao et al., 2017), 28 x 28 pixels, with the tree 2 / 6 / 10 of Seo & Shin (2019).

    Args:
        root: either a folder that holds the idx files themselves, plain or gzipped (Debian's package
            puts them in `/usr/share/datasets/fashion-mnist`), or the folder where torchvision keeps, or
            is to download, its copy.
        split: `"train"` (60 000) or `"test"` (10 000).
        download: download the files to `root` where they are missing.

    Raises:
        FileNotFoundError: the files are missing and `download` is false.
        ConnectionError: the download failed.
    """

    def __init__(self, root: str, split: str, download: bool = False) -> None:
        self.hierarchy = load_hierarchy("fashion_mnist")
        self._data = _open(Path(root), train=split == "train", download=download)
        self.targets: list[int] = self._data.targets.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self._data[index]
        return image.convert("RGB"), label


def _open(folder: Path, train: bool, download: bool) -> TorchvisionFashionMNIST:
    idx_files = [file for name in _FILES if (file := _plain_or_gzipped(folder / name))]
    if len(idx_files) == len(_FILES):
        # torchvision reads plain files under its own folder name; the data stays in memory after that.
        with tempfile.TemporaryDirectory() as scratch:
            raw = Path(scratch, "FashionMNIST", "raw")
            raw.mkdir(parents=True)
            for file in idx_files:
                opener = gzip.open if file.suffix == ".gz" else open
                with opener(file, "rb") as source, open(raw / file.name.removesuffix(".gz"), "wb") as target:
                    shutil.copyfileobj(source, target)
            return TorchvisionFashionMNIST(scratch, train=train)
    try:
        return TorchvisionFashionMNIST(str(folder), train=train, download=download)
    except RuntimeError as error:
        if download:
            raise ConnectionError(f"cannot download Fashion-MNIST: {error}") from error
        raise FileNotFoundError(
            f"{folder} holds no Fashion-MNIST: neither {_FILES[0]}[.gz] and the other idx files, nor torchvision's "
            "FashionMNIST/raw; pass download=True where there is a network"
        ) from error


def _plain_or_gzipped(path: Path) -> Path | None:
    gzipped = path.with_name(path.name + ".gz")
    return path if path.is_file() else gzipped if gzipped.is_file() else None
