"""Compare exported files of trained models with PyTorch: probabilities, classes, accuracy and size.

    python recipes/benchmarks/exported.py --roots '{cub: /work/shared/data/cub100}'

Every model is exported in float32, float16 and 8-bit integers, with ranges from training images. Noise of the model's
input size gives the largest difference of a probability from PyTorch's in float32. On the test images of the model's
dataset, at each resolution of a grid, all levels see the same pixels in all runtimes: a CSV row for each level has the
accuracy, and the fraction of images with PyTorch's class. At full size the whole predictor is compared as well, with
its own resizing: the fraction of images with the same trusted class. A dataset that is not there is left out, with a
line; its rows are of noise alone.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image

import c2f_zoo
from c2f_zoo.config import format_resolution
from c2f_zoo.data import LabelledImages, create_dataset, create_transform, labels_of, load_image
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.inference.export import export_model
from c2f_zoo.inference.onnx import OnnxPredictor
from c2f_zoo.inference.predictor import Predictor, load_trained
from c2f_zoo.inference.quantize import MAX_IMAGES, quantize_int8
from c2f_zoo.io.files import write_csv
from c2f_zoo.model import C2FModel
from c2f_zoo.paths import expand
from c2f_zoo.training.launch import error_message, recipe_errors
from c2f_zoo.zoo import find_weights

Row = dict[str, Any]
DTYPES = ("float32", "float16", "int8")
PYTORCH = "PyTorch"
NOISE = 8  # images


def main(
    models: list[str] | None = None,
    roots: dict[str, str] | None = None,
    grids: dict[str, list[int | None]] | None = None,
    every: int = 1,
    batch_size: int = 32,
    output: str = "runs/exported.csv",
) -> None:
    """Compare models, and write a CSV row for each type, resolution and level.

    Args:
        models: names of trained weights. Default: all bundled.
        roots: dataset -> the folder that replaces its `root`.
        grids: dataset -> resolutions in pixels, null for full size. Default: full size and the levels' own.
        every: only every `every`-th test image is scored, starting with the first.
        batch_size: number of images of a forward pass.
        output: the CSV file to create or replace.
    """
    rows: list[Row] = []
    for name in models or c2f_zoo.list_models(pretrained=True):
        model, splits = load_trained(name).eval(), open_splits(name, roots or {})
        with tempfile.TemporaryDirectory() as folder:
            files = export(model, Path(folder), None if splits is None else splits[0])
            about = {dtype: compare_noise(model, file) for dtype, file in files.items()}
            if splits is None:
                rows += [{"model": name, "dtype": dtype, **row} for dtype, row in about.items()]
                continue
            dataset = splits[1]
            indices = range(0, len(dataset), every)
            trusted = compare_trusted(model, files, dataset, indices, batch_size)
            for resolution in (grids or {}).get(dataset_name(name)) or own_grid(model):
                for row in score(model, files, dataset, indices, resolution, batch_size):
                    row |= {"same_trusted": trusted[row["dtype"]]} if resolution is None else {}
                    rows.append({"model": name, "dataset": dataset_name(name), **row, **about.get(row["dtype"], {})})
                    print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    path, command = expand(output), " ".join(["python", "recipes/benchmarks/exported.py", *sys.argv[1:]])
    path.parent.mkdir(parents=True, exist_ok=True)
    versions = {package: version(package) for package in ("onnx", "onnxruntime")}
    write_csv(path, [{**row, "command": command, **describe_machine(), **versions} for row in rows])
    print(f"{len(rows)} rows in {path}")


def dataset_name(name: str) -> str:
    return find_weights(name).metrics[0].dataset


def open_splits(name: str, roots: Mapping[str, str]) -> tuple[LabelledImages, LabelledImages] | None:
    """Return the training and test images of a model's dataset; None, with a line, if they are not there."""
    metrics = find_weights(name).metrics[0]
    options = {**metrics.dataset_options, **({"root": roots[metrics.dataset]} if metrics.dataset in roots else {})}
    try:
        train, test = (create_dataset(metrics.dataset, split, **options) for split in ("train", metrics.split))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"{name}: noise alone: {error_message(error)}", flush=True)
        return None
    return train, test


def own_grid(model: C2FModel) -> list[int | None]:
    """Return full size and the resolutions of the levels, falling."""
    return [None, *sorted({pixels for pixels in model.config.resolutions.values() if pixels}, reverse=True)]


def export(model: C2FModel, folder: Path, dataset: LabelledImages | None) -> dict[str, Path]:
    """Export a model in every type; in 8-bit integers only with training images."""
    files = {dtype: folder / f"{dtype}.onnx" for dtype in DTYPES if dataset is not None or dtype != "int8"}
    for dtype in ("float32", "float16"):
        export_model(model, files[dtype], dtype=dtype)
    if dataset is not None:
        count = min(MAX_IMAGES, len(dataset))
        images = [load_image(dataset, number * len(dataset) // count) for number in range(count)]
        quantize_int8(files["float32"], files["int8"], images)
    return files


def compare_noise(model: C2FModel, file: Path) -> Row:
    """Return the largest difference of a probability of noise, and the file's size in MB."""
    predictor = OnnxPredictor(file)
    noise = torch.randn(NOISE, *model.config.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    expected = pytorch_log_probs(model, predictor, noise)
    found = onnx_log_probs(predictor, noise)
    difference = max(float(np.abs(np.exp(found[level]) - np.exp(z)).max()) for level, z in expected.items())
    return {"noise_difference": f"{difference:.1e}", "megabytes": round(file.stat().st_size / 1e6, 2)}


@torch.inference_mode()
def pytorch_log_probs(model: C2FModel, predictor: OnnxPredictor, x: torch.Tensor) -> dict[str, np.ndarray]:
    """Return log-probabilities (N, classes) of each level, computed as in the float32 file."""
    logits = {level: z for levels in predictor.exported.inputs.values() for level, z in model(x, levels).items()}
    return {level: z.numpy() for level, z in model.log_probs(logits).items()}


def onnx_log_probs(predictor: OnnxPredictor, x: torch.Tensor) -> dict[str, np.ndarray]:
    feed = dict.fromkeys(predictor.exported.inputs, x.numpy())
    return dict(zip(predictor.config.levels, predictor.session.run(list(predictor.config.levels), feed), strict=True))


def score(
    model: C2FModel,
    files: Mapping[str, Path],
    dataset: LabelledImages,
    indices: Sequence[int],
    resolution: int | None,
    batch_size: int,
) -> list[Row]:
    """Return a row for PyTorch and each file, and each level, from the same pixels."""
    predictors = {dtype: OnnxPredictor(file) for dtype, file in files.items()}
    transform = create_transform(model.config.preprocessing, resolution, train=False)
    runtimes = {PYTORCH: partial(pytorch_log_probs, model, predictors["float32"])}
    runtimes |= {dtype: partial(onnx_log_probs, predictor) for dtype, predictor in predictors.items()}
    classes: dict[tuple[str, str], list[int]] = defaultdict(list)
    for start in range(0, len(indices), batch_size):
        batch = [load_image(dataset, index) for index in indices[start : start + batch_size]]
        x = torch.stack([transform(image) for image in batch])
        for runtime, predict in runtimes.items():
            for level, z in predict(x).items():
                classes[runtime, level] += z.argmax(axis=1).tolist()
    labels, rows = labels_of(dataset)[list(indices)].numpy(), []
    for (runtime, level), found in classes.items():
        right = np.array(found) == labels[:, model.hierarchy.depth(level)]
        same = np.array(found) == np.array(classes[PYTORCH, level])
        about = {"resolution": resolution, "seen_at": format_resolution(resolution), "level": level}
        fractions = {"accuracy": round(float(right.mean()), 5), "same": round(float(same.mean()), 5)}
        rows.append({"dtype": runtime, **about, "images": len(found), **fractions})
    return rows


def compare_trusted(
    model: C2FModel, files: Mapping[str, Path], dataset: LabelledImages, indices: Sequence[int], batch_size: int
) -> dict[str, float]:
    """Return for each file the fraction of images with the trusted class of `Predictor`, nothing included."""
    predictors: dict[str, Any] = {PYTORCH: Predictor(model, batch_size=batch_size)}
    predictors |= {dtype: OnnxPredictor(file, batch_size=batch_size) for dtype, file in files.items()}
    same: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(indices), batch_size):
        images: list[Image.Image] = [load_image(dataset, index) for index in indices[start : start + batch_size]]
        found = {}
        for runtime, predictor in predictors.items():
            found[runtime] = [one.trusted and one.trusted[:2] for one in predictor(images)]
        for runtime, trusted in found.items():
            same[runtime] += [a == b for a, b in zip(trusted, found[PYTORCH], strict=True)]
    return {runtime: round(float(np.mean(of)), 5) for runtime, of in same.items()}


if __name__ == "__main__":
    with recipe_errors("exported.py"):
        auto_cli(main)
