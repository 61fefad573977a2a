"""Measure the rates of our loaders and timm's in images a second.

    python recipes/benchmarks/data.py                                                          # JPEGs drawn on the fly
    python recipes/benchmarks/data.py --dataset cub --dataset_options.root /data/CUB_200_2011

The loaders run in processes of one thread each, interleaved with a process that trains a model, on the accelerator if
there is one: its rate determines the number of loader processes that a training needs. `LOADERS` describes each loader.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm.data
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

import c2f_zoo
from c2f_zoo.config import Preprocessing
from c2f_zoo.data import (
    Augmentation,
    CachedImages,
    ImageFiles,
    TransformedImages,
    Views,
    create_crop,
    create_views,
)
from c2f_zoo.evaluation.measuring import MEBIBYTE, run_interleaved
from c2f_zoo.evaluation.photos import draw_photo, draw_photos
from c2f_zoo.evaluation.provenance import describe_machine, device_name
from c2f_zoo.io.files import write_csv
from c2f_zoo.paths import expand
from c2f_zoo.training.launch import recipe_errors

# In the table's order; ratios are to "timm", which normalizes in the main process. Ours return bytes.
LOADERS = {
    "timm": "timm's loader, one view",
    "decode": "decode alone",
    "one": "ours, one view",
    "all": "ours, all views by the worker",
    "crop": "ours, a crop for all views",
    "cached": "ours, a crop for all views, from the cache",
}


def main(
    dataset: str | None = None,
    dataset_options: dict[str, Any] | None = None,
    image_size: tuple[int, int] = (500, 375),
    images: int = 128,
    input_size: int = 448,
    resolutions: list[int | None] = [None, 96, 48],  # noqa: B006  # jsonargparse shows it
    batch: int = 8,
    num_workers: list[int] = [0, 1],  # noqa: B006
    loaders: list[str] | None = None,
    model: str = "mlph_tf_efficientnet_lite0_cub",
    model_batch: int = 4,
    repeats: int = 5,
    output: str = "runs/benchmark-data.csv",
) -> None:
    """Measure loaders and a training step.

    The CSV file has a row for each loader and number of workers.

    Args:
        dataset: a dataset of files; default: JPEGs drawn on the fly.
        dataset_options: additional keyword arguments of the dataset, e.g. `{root: /data/CUB_200_2011}`.
        image_size: width and height of the drawn JPEGs.
        images: number of images, a multiple of `batch`.
        input_size: height and width of a view.
        resolutions: resolution of each view; null for full size. The loader of one view uses the first.
        batch: number of images in a batch.
        num_workers: numbers of loader processes; 0: the main process.
        loaders: names in `LOADERS`; default: all. timm's is always measured as the baseline.
        model: the model to train, with a step for each view, at its finest levels.
        model_batch: number of images in a training batch.
        repeats: number of timed rounds through all images; the median is reported.
        output: the CSV file to create or replace.
    """
    if images % batch:
        raise SystemExit(f"--images {images} is not a multiple of --batch {batch}")
    kinds = [(name, workers) for workers in num_workers for name in dict.fromkeys(["timm", *(loaders or LOADERS)])]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "classes", "image")
        folder.mkdir(parents=True)
        fill_folder(folder, images, image_size, dataset, dataset_options or {})
        about = measure_cache(folder, input_size)
        rounds: list[Callable[[], dict[str, Callable[[], object]]]] = [
            partial(loader_round, name, folder, workers, batch, input_size, resolutions) for name, workers in kinds
        ]
        rounds.append(partial(make_views, batch, input_size, resolutions))
        training_round = partial(training_step, model, model_batch, input_size, len(resolutions))
        *times, views, training = run_interleaved([*rounds, training_round], repeats)
    about |= {"images": images, "input_size": input_size, "resolutions": json.dumps(resolutions), "batch": batch}
    about |= {name: round(views[name] / batch, 2) for name in ("views_ms", "normalize_ms")}
    about |= {"model": model, "model_images_s": round(1e3 * model_batch / training["round_ms"], 2)}
    about |= {"model_device": device_name(training_device()), "pillow": version("pillow"), **describe_machine()}
    about |= {"command": shlex.join(["python", *sys.argv])}
    rows = loader_rows(kinds, times, about)
    expand(output).parent.mkdir(parents=True, exist_ok=True)
    write_csv(output, rows)
    Console(width=150).print(loader_table(rows))
    print(f"written to {output}")


def fill_folder(folder: Path, count: int, size: tuple[int, int], dataset: str | None, options: dict[str, Any]) -> None:
    """Fill the folder with drawn JPEGs, or with links to a dataset's files."""
    if dataset is None:
        draw_photos(folder, size, count)
    else:
        opened: Any = c2f_zoo.create_dataset(dataset, "train", **options)
        link_images(folder, opened.paths, count)


def link_images(folder: Path, paths: Sequence[Path], count: int) -> None:
    """Link random files into a folder, since timm reads folders only."""
    chosen = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))[:count]
    if len(chosen) < count:
        raise SystemExit(f"the dataset has {len(paths)} images, fewer than --images {count}")
    for number, index in enumerate(chosen.tolist()):
        (folder / f"{number:05}{paths[index].suffix}").symlink_to(paths[index].resolve())


def measure_cache(folder: Path, input_size: int) -> dict[str, Any]:
    """Measure the time to build and to open the cache, and its size."""
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


def open_images(folder: Path) -> ImageFiles:
    paths = sorted(folder.iterdir())
    return ImageFiles(paths, [0] * len(paths), c2f_zoo.Hierarchy(("class",), (("image",),), ()))


def open_cache(folder: Path, input_size: int) -> CachedImages:
    preprocessing = preprocessing_of(input_size)
    cache = folder.parents[1] / "cache"  # outside the folder that timm reads
    return CachedImages(open_images(folder), cache, preprocessing.resize, preprocessing.interpolation)


def preprocessing_of(input_size: int) -> Preprocessing:
    return Preprocessing(input_size=(3, input_size, input_size))


def loader_round(
    name: str, folder: Path, workers: int, batch: int, input_size: int, resolutions: Sequence[int | None]
) -> dict[str, Callable[[], object]]:
    """Return a round through the images of a folder with one of `LOADERS`."""
    torch.set_num_threads(1)
    batches = open_loader(name, folder, workers, batch, input_size, resolutions)
    return {"round_ms": lambda: [None for _ in batches]}


def open_loader(
    name: str, folder: Path, workers: int, batch: int, input_size: int, resolutions: Sequence[int | None]
) -> Iterable[Any]:
    """Open one of `LOADERS` over the images of a folder."""
    if name == "timm":
        return timm.data.create_loader(
            timm.data.create_dataset("", root=str(folder.parent)),
            (3, input_size, input_size),
            batch,
            is_training=True,
            num_workers=workers,
            device=torch.device("cpu"),
        )
    preprocessing = preprocessing_of(input_size)
    views_at = {str(depth): at for depth, at in enumerate(resolutions[:1] if name == "one" else resolutions)}
    transform: Callable[[Image.Image], Any] = skip_transform
    if name in ("one", "all"):
        transform = create_views(preprocessing, views_at, train=True, normalize=False)
    elif name != "decode":
        transform = create_crop(preprocessing, Augmentation(), Views(preprocessing, views_at).num_draws)
    opened = open_cache(folder, input_size) if name == "cached" else open_images(folder)
    images = TransformedImages(opened, transform, shorter_side=preprocessing.resize)
    return DataLoader(images, batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)


def skip_transform(image: Image.Image) -> int:
    return 0


def make_views(batch: int, input_size: int, resolutions: Sequence[int | None]) -> dict[str, Callable[[], object]]:
    """Return calls that make, or only normalize, all views of a batch where the model is trained."""
    torch.set_num_threads(1)
    preprocessing, device = preprocessing_of(input_size), training_device()
    views = Views(preprocessing, {str(depth): at for depth, at in enumerate(resolutions)}).to(device)
    crop = create_crop(preprocessing, Augmentation(), views.num_draws)(draw_photo((500, 375)))
    crops = {name: torch.stack([value] * batch).to(device) for name, value in crop.items()}

    def run(function: Callable[[str], Tensor]) -> None:
        for key in views.resolutions:
            function(key)[0, 0, 0, 0].item()  # waits for the GPU

    return {
        "views_ms": lambda: run(lambda key: views(crops, key)),
        "normalize_ms": lambda: run(lambda key: views.normalize(crops["image"])),
    }


def training_step(name: str, batch: int, input_size: int, views: int) -> dict[str, Callable[[], object]]:
    """Return a training step at each of the finest levels, as in train.py."""
    device = training_device()
    model = c2f_zoo.create_model(name, input_size=input_size)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.rand(batch, 3, input_size, input_size, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)

    def step() -> None:
        for level in reversed(model.levels[-views:]):
            loss = F.cross_entropy(model(images, levels=(level,))[level], labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        loss.item()  # waits for the GPU

    return {"round_ms": step}


def training_device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def loader_rows(
    kinds: Sequence[tuple[str, int]], times: Sequence[dict[str, float]], about: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return a row for each loader and number of workers.

    Rates are in images a second, relative to timm's loader, and relative to the training.
    """
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
    """Build the table of the loaders' rates and the workers that a training needs."""
    about, counts = rows[0], sorted({row["workers"] for row in rows})
    table = Table(
        title="images a second, in brackets / timm's",
        caption=f"{about['model']} trains on {about['model_images_s']} images a second on {about['model_device']}\n"
        f"there, the views of a crop take {about['views_ms']} ms an image, normalization {about['normalize_ms']} ms\n"
        f"the cache of {about['images']} images: {about['cache_mib']} MiB, the files {about['files_mib']}; "
        f"built in {about['build_s']} s, opened in {about['open_s']} s",
    )
    table.add_column("loader")
    for title in (*(f"num_workers {count}" for count in counts), "workers that a training needs"):
        table.add_column(title, justify="right")
    for name in dict.fromkeys(row["loader"] for row in rows):
        chosen = [row for row in rows if row["loader"] == name]
        cells = [f"{row['images_s']:,.1f} ({row['of_timm']:.2f})" for row in chosen]
        table.add_row(LOADERS[name], *cells, str(chosen[-1]["workers_to_feed"]))
    return table


if __name__ == "__main__":
    with recipe_errors("data.py"):
        auto_cli(main)
