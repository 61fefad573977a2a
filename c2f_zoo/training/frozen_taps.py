"""Feature maps of a frozen backbone on disk: computed once, and read in place of images."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from c2f_zoo.data import LabelledImages, TransformedImages, create_views, labels_of
from c2f_zoo.data.transformed_images import load_image
from c2f_zoo.io.files import fsync_file, fsync_folder
from c2f_zoo.io.progress import ProgressLines
from c2f_zoo.io.weights import digest_weights
from c2f_zoo.model import C2FModel
from c2f_zoo.paths import expand
from c2f_zoo.training.start_checks import format_bytes

_FORMAT = 1  # increment it if the content of the files changes
_BATCH = 16

View = tuple[int | None, bool]  # resolution in pixels (None: full size), mirrored


@dataclass(frozen=True)
class FrozenTaps:
    """Feature maps of all images of a dataset, in memory-mapped files.

    Args:
        maps: view -> tap -> float16 maps (images, C, H, W).
        labels: int64 labels (images, levels of the tree); -1 where unknown.
    """

    maps: Mapping[View, Mapping[str, np.ndarray]]
    labels: Tensor

    @property
    def views(self) -> list[View]:
        """The views in the order of their numbers."""
        return list(self.maps)

    def read(self, taps: Sequence[str], rows: Tensor) -> list[Tensor]:
        """Read the maps of images.

        Args:
            taps: names of the taps.
            rows: int64 (N, 2): number of the view, index of the image.

        Returns:
            A float32 map (N, C, H, W) of each tap.
        """
        files, places = list(self.maps.values()), rows.tolist()
        return [torch.from_numpy(np.stack([files[view][tap][index] for view, index in places])).float() for tap in taps]


def open_taps(
    model: C2FModel,
    dataset: LabelledImages,
    resolutions: Sequence[int | None],
    mirrored: bool,
    folder: str | Path,
    bf16: bool = False,
) -> FrozenTaps:
    """Open the feature maps of a dataset's images; compute those that are not in the folder.

    There is a file for each tap and view. Its name is a hash of the backbone's weights rounded to half precision, the
    tap, the preprocessing, the view, and the pixels of all images: it is found again by any recipe with the same
    content. Images are center-cropped. An interrupted computation leaves no file of that name.

    Args:
        model: the model; its pooling and head are not used.
        dataset: the dataset.
        resolutions: the resolutions in pixels; None is full size.
        mirrored: add a view of the mirrored images for each resolution.
        folder: the folder of the files; it is created if it does not exist. Unused files may be deleted.
        bf16: compute the maps under autocast to bfloat16.

    Raises:
        ValueError: an image is unreadable, or a map is not finite in half precision.
        OSError: the files cannot be written, or the disk has no room for them.

    Examples:
        >>> model = create_model("mlph_tiny_critters", input_size=32)
        >>> dataset = create_dataset("critters", "test", per_class=1)
        >>> taps = open_taps(model, dataset, [None, 12], mirrored=False, folder="taps")
        >>> taps.views, [tuple(x.shape) for x in taps.read(model.backbone.taps, torch.tensor([[1, 7]]))][0]
        ([(None, False), (12, False)], (1, 64, 2, 2))
    """
    folder = expand(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {**_describe_content(model, dataset), **({"autocast": "bf16"} if bf16 else {})}
    flips = (False, True) if mirrored else (False,)
    files = {
        (resolution, flip): {tap: folder / _file_name(content, tap, resolution, flip) for tap in model.backbone.taps}
        for resolution in dict.fromkeys(resolutions)
        for flip in flips
    }
    with FileLock(folder / "lock"):  # another process may be computing the same files
        missing = {view: [tap for tap, file in of_tap.items() if not file.exists()] for view, of_tap in files.items()}
        missing = {view: taps for view, taps in missing.items() if taps}
        if missing:
            _compute(model, dataset, {view: {tap: files[view][tap] for tap in missing[view]} for view in missing}, bf16)
    maps = {view: {tap: np.load(file, mmap_mode="r") for tap, file in of_tap.items()} for view, of_tap in files.items()}
    return FrozenTaps(maps, labels_of(dataset))


def _describe_content(model: C2FModel, dataset: LabelledImages) -> dict[str, object]:
    pixels = hashlib.sha256()
    for index in range(len(dataset)):
        image = load_image(dataset, index)
        pixels.update(f"{image.size}".encode() + image.tobytes())
    return {
        "format": _FORMAT,
        "backbone": [model.config.backbone, dict(model.config.backbone_options)],
        "weights": digest_weights(model.backbone.state_dict()),
        "preprocessing": asdict(model.config.preprocessing),
        "images": pixels.hexdigest(),
    }


def _file_name(content: Mapping[str, object], tap: str, resolution: int | None, mirrored: bool) -> str:
    key = json.dumps({**content, "tap": tap, "resolution": resolution, "mirrored": mirrored}, default=str)
    return f"taps-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"


@torch.no_grad()
def _compute(model: C2FModel, dataset: LabelledImages, files: Mapping[View, Mapping[str, Path]], bf16: bool) -> None:
    """Compute maps and write them; each image is decoded once."""
    backbone = model.backbone.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    resolutions = {resolution: resolution for resolution, _ in files}
    images = TransformedImages(dataset, create_views(model.config.preprocessing, resolutions, train=False))
    parts = {view: {tap: file.with_suffix(".part") for tap, file in of_tap.items()} for view, of_tap in files.items()}
    shapes = dict(zip(backbone.taps, backbone.map_shapes, strict=True))
    _check_room([(len(dataset), *shapes[tap]) for of_tap in files.values() for tap in of_tap], _folder_of(files))
    bar = tqdm(DataLoader(images, _BATCH), desc="computing taps", disable=None, leave=False)
    lines = ProgressLines("computing taps", len(bar), len(dataset), bool(bar.disable), "batches")
    with ExitStack() as stack:
        out = {
            view: {
                tap: _start_array(stack.enter_context(open(part, "wb")), (len(dataset), *shapes[tap]))
                for tap, part in of_tap.items()
            }
            for view, of_tap in parts.items()
        }
        for number, (crops, *_) in enumerate(bar, start=1):
            for (resolution, mirrored), of_tap in out.items():
                x = crops[resolution].flip(3) if mirrored else crops[resolution]
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    maps = backbone(x)
                for tap, found in zip(backbone.taps, maps, strict=True):
                    if tap in of_tap:
                        of_tap[tap].write(_to_half(tap, found).tobytes())
            lines.update(number)
    for view, written in parts.items():
        for tap, part in written.items():
            fsync_file(part)
            os.replace(part, files[view][tap])
    fsync_folder(_folder_of(files))


def _start_array(file: BinaryIO, shape: tuple[int, ...]) -> BinaryIO:
    """Write the header of a half-precision array in NumPy's format; its values are to follow."""
    header = {"descr": "<f2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
    return file


def _to_half(tap: str, maps: Tensor) -> np.ndarray:
    half = maps.half().contiguous()
    if not half.isfinite().all():
        raise ValueError(f"maps of {tap} are not finite in half precision, and cannot be kept as taps")
    return half.numpy().astype("<f2", copy=False)


def _folder_of(files: Mapping[View, Mapping[str, Path]]) -> Path:
    return next(file.parent for of_tap in files.values() for file in of_tap.values())


def _check_room(shapes: Sequence[tuple[int, ...]], folder: Path) -> None:
    """Check that the disk has room, before hours of computation."""
    needed, free = sum(2 * math.prod(shape) for shape in shapes), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the maps need {format_bytes(needed)}, but the disk of {folder} has {format_bytes(free)} left; choose "
            "another folder, fewer taps or a smaller input_size"
        )
