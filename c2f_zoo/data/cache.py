"""A cache of decoded, resized images in a memory-mapped file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
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

from c2f_zoo.data.registry import IndexedImages, LabelledImages, labels_of, notes_of
from c2f_zoo.data.transformed_images import load_image
from c2f_zoo.data.transforms import Degrade
from c2f_zoo.images.formats import UnsupportedImageError, check_is_file
from c2f_zoo.images.reading import UNREADABLE
from c2f_zoo.io.files import fsync_folder
from c2f_zoo.io.progress import ProgressLines, map_in_threads
from c2f_zoo.paths import expand

_FORMAT = 1  # increment it if the content of the file changes
_CHUNK = 64  # images in memory while a file is written
STALE = 3600  # seconds; a build writes all the time
_DIGEST = hashlib.sha256().digest_size


class CachedImages(IndexedImages):
    """A dataset with decoded and resized images in a memory-mapped file.

    The name of the file is a hash of all image files and of the settings. A missing or damaged file is built by several
    threads, with a progress bar; an interrupted build leaves no file. Opening reads the image files and the cache once
    to compare checksums, without decoding. Processes share the file's pages in memory.

    The file contains the pixels of all images, RGB, uint8; their heights and widths, int64 (n, 2); and the SHA-256 of
    both.

    Args:
        dataset: a dataset of image files, with `paths`. An image must depend on its file only.
        folder: the folder of the cache; it is created if it does not exist. Unused files may be deleted.
        shorter_side: maximum length of the shorter side in pixels, >= 1; larger images are resized. None keeps all
            sizes.
        filter: the filter for resizing, as in `Degrade`, with antialiasing.

    Labels, tree and paths are the dataset's. An unreadable image is not in the file; it is read from the
    dataset, which raises the error.

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
                f"a {type(dataset).__name__} has no `paths` to detect changed images by; cache a dataset of files, or "
                "use this one without a cache"
            )
        self.dataset = dataset
        self.hierarchy = dataset.hierarchy
        self.targets = dataset.targets
        self.labels: Tensor = labels_of(dataset)
        self.paths = list(paths)
        self.notes = notes_of(dataset)
        self.shorter_side = shorter_side
        self._resize = Degrade(None, size=shorter_side, up_filter=filter)
        settings = {"format": _FORMAT, "shorter_side": shorter_side, "filter": filter, "pillow": PIL.__version__}
        self.file = expand(folder) / f"images-{_key(self.paths, settings)}.cache"
        if not _is_intact(self.file):
            self._build()
        self._pixels: np.ndarray | None = None  # mapped when first needed, in each process
        count = len(self.paths)
        sizes = np.memmap(self.file, mode="r")[-_DIGEST - 16 * count : -_DIGEST].tobytes()
        self._sizes = np.frombuffer(sizes, np.int64).reshape(count, 2)
        self._ends = 3 * self._sizes.prod(axis=1).cumsum()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pixels": None}  # a worker process maps the file itself

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """Return an image in RGB with the cached size; `shorter_side` is ignored."""
        height, width = self._sizes[index].tolist()
        if height == 0:
            return load_image(self.dataset, index, shorter_side)
        if self._pixels is None:
            self._pixels = np.memmap(self.file, mode="r")
        end = int(self._ends[index])
        return Image.fromarray(self._pixels[end - 3 * height * width : end].reshape(height, width, 3))

    def _decode(self, index: int) -> np.ndarray:
        """Return the pixels (height, width, 3) to cache, (0, 0, 3) if unreadable."""
        try:
            image = load_image(self.dataset, index, self.shorter_side)
        except UNREADABLE:
            return np.empty((0, 0, 3), np.uint8)
        too_large = self.shorter_side is not None and min(image.size) > self.shorter_side
        return np.asarray(self._resize(image) if too_large else image)

    def _build(self) -> None:
        """Write the file under a unique name, flush it to disk and rename it.

        Processes that build at the same time write separate files with the same content; the last one is kept.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_parts(self.file.parent)
        part = self.file.with_name(f"{self.file.name}.{uuid.uuid4().hex}.part")
        digest, sizes, indices = hashlib.sha256(), [], range(len(self.paths))
        # disable=None: no bar in a log file
        progress = tqdm(total=len(indices), desc="caching images", unit="", disable=None, leave=False)
        lines = ProgressLines("caching images", len(indices), len(indices), bool(progress.disable), "images")
        try:
            with open(part, "xb") as out, ThreadPoolExecutor() as pool, progress as bar:
                for start in indices[::_CHUNK]:
                    for pixels in pool.map(self._decode, indices[start : start + _CHUNK]):
                        sizes.append(pixels.shape[:2])
                        content = pixels.reshape(-1).data
                        out.write(content)
                        digest.update(content)
                        bar.update()
                        lines.update(len(sizes))
                size_table = np.array(sizes, np.int64).tobytes()
                digest.update(size_table)
                out.write(size_table + digest.digest())
                out.flush()
                os.fsync(out.fileno())
            os.replace(part, self.file)
            fsync_folder(self.file.parent)
        except BaseException:  # also for an interrupt
            part.unlink(missing_ok=True)
            raise


def remove_stale_parts(folder: Path) -> None:
    """Remove what killed builds left: unfinished files that nothing has been written to for an hour."""
    for part in folder.glob("images-*.part"):
        with contextlib.suppress(FileNotFoundError):  # another process removes it, too
            if time.time() - part.stat().st_mtime > STALE:
                part.unlink()


def _key(paths: Sequence[Path], settings: dict[str, Any]) -> str:
    """Return a hash of the bytes of these files, in this order, and of the settings."""
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for digest in map_in_threads(_digest, paths, "checking images"):
        key.update(digest)
    return key.hexdigest()[:32]


def _digest(path: Path) -> bytes:
    try:
        check_is_file(path)
        return hashlib.sha256(path.read_bytes()).digest()
    except (OSError, UnsupportedImageError):
        return bytes(_DIGEST)  # reading the image will raise the error


def _is_intact(file: Path) -> bool:
    """Return whether a file exists and ends with the checksum of the rest."""
    if not file.is_file() or file.stat().st_size <= _DIGEST:
        return False
    content = np.memmap(file, mode="r")
    return hashlib.sha256(content[:-_DIGEST].data).digest() == content[-_DIGEST:].tobytes()
