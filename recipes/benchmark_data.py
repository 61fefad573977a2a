"""The loaders, images and training step that `benchmark.py data` compares."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import timm
import timm.data
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

import c2f_zoo
from c2f_zoo.config import Preprocessing
from c2f_zoo.data import CachedImages, ImageFiles, Normalize, TransformedImages, create_views

MEBIBYTE = 2**20
# What a loader does, in the table's order; ratios are to "timm". Bytes are normalised where they arrive.
LOADERS = {
    "timm": "timm's loader, one view, bytes",
    "timm_float": "timm's loader, one view, normalised",
    "decode": "decode alone",
    "one": "ours, one view, bytes",
    "all": "ours, all views, bytes",
    "all_float": "ours, all views, normalised",
    "cached": "ours, all views, bytes, from the cache",
}


def draw_photos(folder: Path, size: tuple[int, int], count: int) -> None:
    """JPEGs of one size, with the spectrum of photographs: amplitudes fall as 1/frequency (Field, 1987)."""
    rng = np.random.default_rng(0)
    scene = np.zeros((size[1], size[0], 3), np.float32)
    for octave in range(1, math.ceil(math.log2(max(size))) + 1):
        # An octave of noise has the same contrast at every scale.
        small = rng.integers(0, 256, (2**octave, 2**octave, 3), dtype=np.uint8)
        scene += np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)) - np.float32(127.5)
    pixels = (127.5 + 50 * scene / scene.std()).clip(0, 255).astype(np.uint8)
    for number in range(count):
        shifted = np.roll(pixels, tuple(rng.integers(0, size[::-1])), axis=(0, 1))
        Image.fromarray(shifted).save(folder / f"{number:05}.jpg", quality=90)


def link_images(folder: Path, paths: Sequence[Path], count: int) -> None:
    """Puts links to some of the files, taken at random, into a folder, for timm knows folders only."""
    chosen = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))[:count]
    if len(chosen) < count:
        raise SystemExit(f"the dataset has {len(paths)} images, less than --images {count}")
    for number, index in enumerate(chosen.tolist()):
        (folder / f"{number:05}{paths[index].suffix}").symlink_to(paths[index].resolve())


def images_in(folder: Path) -> ImageFiles:
    paths = sorted(folder.iterdir())
    return ImageFiles(paths, [0] * len(paths), c2f_zoo.Hierarchy(("class",), (("image",),), ()))


def preprocessing_of(input_size: int) -> Preprocessing:
    return Preprocessing(input_size=(3, input_size, input_size))


def open_cache(folder: Path, input_size: int) -> CachedImages:
    preprocessing = preprocessing_of(input_size)
    cache = folder.parents[1] / "cache"  # outside of what timm searches
    return CachedImages(images_in(folder), cache, preprocessing.resize, preprocessing.interpolation)


def open_loader(
    name: str, folder: Path, workers: int, batch: int, input_size: int, resolutions: Sequence[int | None]
) -> Iterable[Any]:
    """One of `LOADERS`, over the images of a folder."""
    if name.startswith("timm"):
        return timm.data.create_loader(
            timm.data.create_dataset("", root=str(folder.parent)),
            (3, input_size, input_size),
            batch,
            is_training=True,
            use_prefetcher=name == "timm",
            num_workers=workers,
            device=torch.device("cpu"),
        )
    preprocessing = preprocessing_of(input_size)
    seen = resolutions[:1] if name == "one" else resolutions
    views_at = {str(depth): resolution for depth, resolution in enumerate(seen)}
    transform = create_views(preprocessing, views_at, train=True, normalize=name == "all_float")
    views = TransformedImages(
        open_cache(folder, input_size) if name == "cached" else images_in(folder),
        nothing if name == "decode" else transform,
        shorter_side=preprocessing.resize,
    )
    loader = DataLoader(views, batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)
    is_bytes = name not in ("decode", "all_float")
    return Normalized(loader, Normalize(preprocessing.mean, preprocessing.std)) if is_bytes else loader


class Normalized:
    """A loader's batches, normalised in the process that asks for them, as timm's loader does."""

    def __init__(self, loader: DataLoader, normalize: Normalize) -> None:
        self.loader, self.normalize = loader, normalize

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for views, *_ in self.loader:
            yield {name: self.normalize(images) for name, images in views.items()}


def nothing(image: Image.Image) -> int:
    return 0


def training_device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def training_step(name: str, batch: int, input_size: int, views: int) -> Callable[[], None]:
    """A step at each of the finest levels, all weights trained, as train.py makes it."""
    device = training_device()
    model = c2f_zoo.create_model(name, input_size=input_size)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.rand(batch, 3, input_size, input_size, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)

    def step() -> None:
        for level in reversed(model.levels[-views:]):
            loss = F.cross_entropy(model(images, levels=(level,))[level], labels)
            loss.backward()
            sgd.step()
            sgd.zero_grad()
        loss.item()  # a GPU's work is done when this comes back

    return step


def cache_columns(folder: Path, input_size: int) -> dict[str, Any]:
    """Builds the cache, and says how long that and opening it again took, and its size beside the files'."""
    start = time.perf_counter()
    cached = open_cache(folder, input_size)
    built = time.perf_counter()
    open_cache(folder, input_size)
    opened = time.perf_counter()
    return {
        "build_s": round(built - start, 2),
        "open_s": round(opened - built, 3),
        "cache_mib": round(cached.file.stat().st_size / MEBIBYTE, 1),
        "files_mib": round(sum(path.stat().st_size for path in cached.paths) / MEBIBYTE, 1),
    }


def versions() -> dict[str, str]:
    """What else the rates depend on."""
    device = training_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    found = {
        "model_device": name,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
        "timm": timm.__version__,
    }
    return {**found, "command": shlex.join(["python", *sys.argv])}


def loader_rows(
    kinds: Sequence[tuple[str, int]], times: Sequence[dict[str, float]], about: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row for each loader and number of workers, whose times are of a round through all images."""
    round_ms = {kind: time_of["round_ms"] for kind, time_of in zip(kinds, times, strict=True)}
    rows = []
    for (name, workers), time_of in zip(kinds, times, strict=True):
        images_s = 1e3 * about["images"] / time_of["round_ms"]
        row = {"loader": name, "workers": workers, "images_s": round(images_s, 1)}
        row["of_timm"] = round(round_ms["timm", workers] / time_of["round_ms"], 3)
        # Without workers the training waits for the loader, however fast that is.
        row["workers_to_feed"] = math.ceil(about["model_images_s"] / images_s * workers) if workers else None
        rows.append(row | time_of | about)
    return rows


def loader_table(rows: Sequence[dict[str, Any]]) -> Table:
    """A line for each loader: images a second, how many times timm's that is, how many workers feed the training."""
    about, counts = rows[0], sorted({row["workers"] for row in rows})
    table = Table(
        title="images a second, in brackets / timm's",
        caption=f"{about['model']} takes {about['model_images_s']} images a second on {about['model_device']}\n"
        f"the cache of {about['images']} images: {about['cache_mib']} MiB, the files {about['files_mib']}; "
        f"built in {about['build_s']} s, opened in {about['open_s']} s",
    )
    table.add_column("loader")
    for title in (*(f"num_workers {count}" for count in counts), "workers that feed the model"):
        table.add_column(title, justify="right")
    for name in dict.fromkeys(row["loader"] for row in rows):
        chosen = [row for row in rows if row["loader"] == name]
        cells = [f"{row['images_s']:,.1f} ({row['of_timm']:.2f})" for row in chosen]
        table.add_row(LOADERS[name], *cells, str(chosen[-1]["workers_to_feed"]))
    return table
