"""Measure `c2f-zoo predict` against a bare loop over the same images with the same model.

    python recipes/benchmarks/predict.py
    python recipes/benchmarks/predict.py --model runs/birds --folder photos

The bare loop reads an image, transforms it and predicts a batch, one after the other, without trust. `c2f-zoo predict`
also measures the visible detail, chooses the trusted class and writes a CSV file, and reads ahead in threads. Both
alternate in one process; wall-clock time is compared, since the command may use all cores.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from c2f_zoo.data import read_image
from c2f_zoo.data.transforms import create_transform
from c2f_zoo.evaluation.photos import draw_photo
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.inference.image_files import list_image_files
from c2f_zoo.inference.predict_files import predict_files
from c2f_zoo.inference.predictor import Predictor
from c2f_zoo.io.files import write_csv
from c2f_zoo.io.freed_memory import keep_freed_memory
from c2f_zoo.paths import expand

PHOTO = (340, 227)  # pixels


def main(
    model: str = "mlph_tf_efficientnet_lite0_cub100",
    folder: str | None = None,
    images: int = 128,
    repeats: int = 5,
    output: str = "runs/benchmark-predict.csv",
) -> None:
    """Measure both, and write a CSV row for each.

    Args:
        model: the model, as in `c2f-zoo predict`.
        folder: the images; default: `images` drawn JPEG files with the statistics of photos.
        images: number of drawn images.
        repeats: number of runs of each; the medians are reported.
        output: the CSV file to create or replace.
    """
    keep_freed_memory()  # as the command does
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    predictor = Predictor.from_pretrained(model)
    with tempfile.TemporaryDirectory() as temporary:
        photos = expand(folder) if folder else draw(Path(temporary) / "photos", images)
        files = list_image_files([photos]).files
        runs = {
            "bare loop": lambda: predict_bare(predictor, files),
            "c2f-zoo predict": lambda: predict_files(
                predictor, [photos], csv=Path(temporary) / f"{time.time_ns()}.csv"
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(repeats + 1):
            for name, run in sorted(runs.items(), reverse=repeat % 2 == 1):  # neither is always the first
                start = time.perf_counter()
                run()
                if repeat > 0:  # the first one warms up
                    seconds[name].append(time.perf_counter() - start)
    rates = {name: len(files) / statistics.median(times) for name, times in seconds.items()}
    rows: list[dict[str, Any]] = []
    for name, rate in rates.items():
        row = {"loop": name, "model": model, "images": len(files), "threads": torch.get_num_threads()}
        row |= {"images_per_second": round(rate, 1), "ratio": round(rate / rates["bare loop"], 3), "repeats": repeats}
        rows.append({**row, **describe_machine()})
        print(row)
    expand(output).parent.mkdir(parents=True, exist_ok=True)
    write_csv(output, rows)


def draw(folder: Path, images: int) -> Path:
    """Draw JPEG files into a new folder."""
    folder.mkdir()
    for number in range(images):
        draw_photo(PHOTO, seed=number).save(folder / f"{number:04}.jpg", quality=90)
    return folder


@torch.inference_mode()
def predict_bare(predictor: Predictor, files: list[Path]) -> list[int]:
    """Predict the most probable leaf class of each file, in batches of the predictor's size."""
    model, found = predictor.model, []
    transform = create_transform(model.config.preprocessing, None, train=False)
    for start in range(0, len(files), predictor.batch_size):
        batch = torch.stack([transform(read_image(file)) for file in files[start : start + predictor.batch_size]])
        found += model(batch, model.levels)[model.levels[-1]].argmax(dim=1).tolist()
    return found


if __name__ == "__main__":
    auto_cli(main)
