"""A small dataset's images, decoded and resized once, in a memory-mapped file."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from c2f_zoo.data.registry import LabelledImages, labels_of
from c2f_zoo.data.transformed_images import UNREADABLE, load_image
from c2f_zoo.data.transforms import Degrade

_FORMAT = 1  # a change of what a file holds, or of how an image gets there, needs another number
_AT_ONCE = 64  # images that are in memory while a file is written
_DIGEST = hashlib.sha256().digest_size


class CachedImages:
    """A dataset whose images were decoded and resized once; they are read from a memory-mapped file.

    The file lies in `folder`, under a name that depends on the bytes of all image files and on the settings. Where
    it is missing, or is not as it was written, it is built, by threads and with a progress bar; a build that is killed
    leaves nothing that is read later. Each opening reads the image files and the cache once, to compare
    checksums; it decodes nothing. Processes share the file's pages in memory.

    In the file are the pixels of one image after another, RGB, uint8; their heights and widths, int64 (n, 2); and the
    SHA-256 of all that.

    Args:
        dataset: images in files, one each: it has `paths`. An image must depend on nothing but its file.
        folder: where the cache is, or comes to be; it is made. A file in it that is no longer used may be deleted.
        shorter_side: an image whose shorter side is longer is resized to this many pixels, >= 1; smaller ones are not
            enlarged. None keeps all as they are.
        filter: what they are resized with, as in `Degrade`: antialiased.

    Labels, tree and paths are the dataset's. An image that could not be read is not in the file: it is read from the
    dataset, which says why it cannot.

    Raises:
        ValueError: the dataset has no `paths`, its labels do not fit its tree, or a setting is unknown.
        OSError: the file cannot be written.

    Examples:
        >>> for name in ("round/disc", "edged/box"):
        ...     Path("photos", name).mkdir(parents=True)
        ...     for number in range(4):
        ...         Image.new("RGB", (640, 480)).save(Path("photos", name, f"{number}.png"))
        >>> dataset = create_dataset("folder", "train", root="photos", levels=["kind", "shape"])
        >>> cached = CachedImages(dataset, "cache", shorter_side=240)
        >>> len(cached), cached[0][0].size, cached[0][1]
        (6, (320, 240), 0)
    """

    def __init__(
        self, dataset: LabelledImages, folder: str | Path, shorter_side: int | None = None, filter: str = "bilinear"
    ) -> None:
        paths: Sequence[Path] | None = getattr(dataset, "paths", None)
        if paths is None:
            raise ValueError(
                f"a {type(dataset).__name__} has no `paths`, so that nothing tells whether its images have changed; "
                "cache a dataset of files, or use this one without a cache"
            )
        self.dataset = dataset
        self.hierarchy = dataset.hierarchy
        self.targets = dataset.targets
        self.labels: Tensor = labels_of(dataset)
        self.paths = list(paths)
        self.shorter_side = shorter_side
        self._resize = Degrade(None, size=shorter_side, up_filter=filter)
        settings = {"format": _FORMAT, "shorter_side": shorter_side, "filter": filter, "pillow": PIL.__version__}
        self.file = Path(folder) / f"images-{_key(self.paths, settings)}.cache"
        if not _is_whole(self.file):
            self._build()
        self._pixels: np.ndarray | None = None  # mapped when first needed, in each process anew
        count = len(self.paths)
        sizes = np.memmap(self.file, mode="r")[-_DIGEST - 16 * count : -_DIGEST].tobytes()
        self._sizes = np.frombuffer(sizes, np.int64).reshape(count, 2)
        self._ends = 3 * self._sizes.prod(axis=1).cumsum()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.read(index), self.targets[index]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pixels": None}  # a worker process maps the file itself

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """The image of an index, RGB, as the file has it, whatever `shorter_side` is asked for."""
        height, width = self._sizes[index].tolist()
        if height == 0:
            return load_image(self.dataset, index, shorter_side)
        if self._pixels is None:
            self._pixels = np.memmap(self.file, mode="r")
        end = int(self._ends[index])
        return Image.fromarray(self._pixels[end - 3 * height * width : end].reshape(height, width, 3))

    def _decode(self, index: int) -> np.ndarray:
        """Pixels (height, width, 3) as they come into the file; none of them if the image cannot be read."""
        try:
            image = load_image(self.dataset, index, self.shorter_side)
        except UNREADABLE:
            return np.empty((0, 0, 3), np.uint8)
        too_large = self.shorter_side is not None and min(image.size) > self.shorter_side
        return np.asarray(self._resize(image) if too_large else image)

    def _build(self) -> None:
        """Writes the file under another name, and renames it when all of it is on the disk.

        Two processes that build at once write one file each, with the same content; the second takes the first's place.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_name(f"{self.file.name}.{uuid.uuid4().hex}.part")
        digest, sizes, everything = hashlib.sha256(), [], range(len(self.paths))
        try:
            with open(part, "xb") as out, ThreadPoolExecutor() as pool, _bar("caching images", everything) as bar:
                for start in everything[::_AT_ONCE]:
                    for pixels in pool.map(self._decode, everything[start : start + _AT_ONCE]):
                        sizes.append(pixels.shape[:2])
                        content = pixels.reshape(-1).data
                        out.write(content)
                        digest.update(content)
                        bar.update()
                index = np.array(sizes, np.int64).tobytes()
                digest.update(index)
                out.write(index + digest.digest())
                out.flush()
                os.fsync(out.fileno())
            os.replace(part, self.file)
        except BaseException:  # an interrupt too
            part.unlink(missing_ok=True)
            raise


def _key(paths: Sequence[Path], settings: dict[str, Any]) -> str:
    """A name for the bytes of these files, in this order, and the settings."""
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    with ThreadPoolExecutor() as pool, _bar("checking images", paths) as bar:
        for digest in pool.map(_digest, paths):
            key.update(digest)
            bar.update()
    return key.hexdigest()[:32]


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return bytes(_DIGEST)  # whoever reads the image will be told


def _is_whole(file: Path) -> bool:
    """Whether a file is there and ends with the checksum of the rest."""
    if not file.is_file() or file.stat().st_size <= _DIGEST:
        return False
    content = np.memmap(file, mode="r")
    return hashlib.sha256(content[:-_DIGEST].data).digest() == content[-_DIGEST:].tobytes()


def _bar(title: str, over: Sequence[Any]) -> tqdm:
    return tqdm(total=len(over), desc=title, unit="", disable=None, leave=False)  # None: none in a log file
