"""Measure how well `visible_detail` finds the true size of photos that were shrunk and enlarged.

    python recipes/benchmarks/detail.py --roots '[../shared/data/cub100, ../shared/data/cub50]'

Training photos of CUB-200-2011 are shrunk to known sizes, half of them by areas, half by Lanczos, and enlarged in
several ways, some with JPEG compression or noise. For each way, and all together, a CSV row has the rank correlation
of the estimate and the true size, and at each size the median and the 10 and 90 % quantiles of their ratio.
"""

from __future__ import annotations

import io
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image
from torchmetrics.functional import spearman_corrcoef

from c2f_zoo.data import create_dataset
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.inference.detail import visible_detail
from c2f_zoo.io.files import write_csv
from c2f_zoo.paths import expand
from c2f_zoo.training.launch import recipe_errors

SIZES = (20, 28, 40, 57, 80, 113, 160, 227)
Filter = Image.Resampling
# How the small square becomes the image to estimate.
WAYS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "left small": lambda small: small,
    "bicubic 227": lambda small: resize(small, 227, Filter.BICUBIC),
    "bilinear 500": lambda small: resize(small, 500, Filter.BILINEAR),
    "lanczos 500": lambda small: resize(small, 500, Filter.LANCZOS),
    "nearest 500": lambda small: resize(small, 500, Filter.NEAREST),
    "area 227": lambda small: resize(small, 227, Filter.BOX),
    "bicubic 500, jpeg 85": lambda small: compress(resize(small, 500, Filter.BICUBIC), 85),
    "bicubic 227, jpeg 50": lambda small: compress(resize(small, 227, Filter.BICUBIC), 50),
    "nearest 500, jpeg 85": lambda small: compress(resize(small, 500, Filter.NEAREST), 85),
    "jpeg 85, bicubic 500": lambda small: resize(compress(small, 85), 500, Filter.BICUBIC),
    "bicubic 227, noise 4": lambda small: add_noise(resize(small, 227, Filter.BICUBIC), 4),
}


def main(roots: list[str], photos: int = 150, size: int = 224, seed: int = 1, output: str = "runs/detail.csv") -> None:
    """Estimate the detail of training photos, and write a CSV row for each way of enlarging.

    Args:
        roots: folders of CUB-200-2011 or of subsets.
        photos: number of photos drawn from each; those smaller than a size are left out there.
        size: shorter side at which a model sees an image.
        seed: of the drawn photos.
        output: the CSV file to create or replace.
    """
    expand(output).parent.mkdir(parents=True, exist_ok=True)
    about = {"command": shlex.join(["python", *sys.argv]), **describe_machine()}
    rows: list[dict[str, Any]] = []
    for root in roots:
        for way, found in measure(root, photos, size, seed).items():
            rows.append({"data": Path(root).name, "way": way, "photos": photos, **summarize(found, size), **about})
            print(", ".join(f"{key} {value}" for key, value in list(rows[-1].items())[:8]), flush=True)
        write_csv(output, rows)
    print(f"written to {output}")


def measure(root: str, photos: int, size: int, seed: int) -> dict[str, list[tuple[int, float, float]]]:
    """Return (true size, estimate, seconds of processor time) of each photo at each size, for each way."""
    dataset = create_dataset("cub", "train", root=root)
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:photos]
    found = defaultdict(list)
    for count, number in enumerate(chosen):
        photo = dataset[int(number)][0]
        for shown in SIZES:
            if min(photo.size) >= shown:
                small = resize(photo, shown, (Filter.BOX, Filter.LANCZOS)[count % 2])
                for way, enlarge in WAYS.items():
                    image, start = enlarge(small), time.process_time()
                    found[way].append((shown, visible_detail(image, size), time.process_time() - start))
    return {**found, "all": [item for items in found.values() for item in items]}


def summarize(found: list[tuple[int, float, float]], size: int) -> dict[str, float]:
    """Return the rank correlation, the median time, and quantiles of estimate / min(true size, size) at each size."""
    shown, detail, seconds = np.array(found).T
    ranks = spearman_corrcoef(torch.tensor(np.log(detail)), torch.tensor(np.log(shown))).item()
    row = {"rank_correlation": round(ranks, 4), "median_ms": round(1000 * float(np.median(seconds)), 2)}
    for true in SIZES:
        if (shown == true).any():
            low, median, high = np.quantile(detail[shown == true] / min(true, size), [0.1, 0.5, 0.9]).round(3).tolist()
            row |= {f"median_{true}": median, f"low_{true}": low, f"high_{true}": high}
    return row


def resize(image: Image.Image, shorter: int, filter: Filter) -> Image.Image:
    width, height = (round(side * shorter / min(image.size)) for side in image.size)
    return image.resize((width, height), filter)


def compress(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def add_noise(image: Image.Image, deviation: float) -> Image.Image:
    values = np.asarray(image) + np.random.default_rng(0).normal(0, deviation, np.asarray(image).shape)
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    with recipe_errors("detail.py"):
        auto_cli(main, as_positional=False)
