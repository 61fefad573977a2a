"""Measure the latency of trained models: PyTorch eager and compiled, and exported files in onnxruntime.

    python recipes/benchmarks/latency.py
    python recipes/benchmarks/latency.py --models [runs/birds] --threads 1 --batches [1]

Each runtime has a process of its own; their calls are interleaved, and medians are written. All predict the
log-probabilities of all levels from one view. The images are noise, and those that choose the ranges of 8-bit integers
have the spectrum of photos: neither changes the time. The CSV file is replaced when all models are measured.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

import c2f_zoo
from c2f_zoo.evaluation.measuring import run_interleaved
from c2f_zoo.evaluation.photos import draw_photo
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.inference.export import LogProbabilities, export_model
from c2f_zoo.inference.exported import METADATA_KEY, ExportedModel
from c2f_zoo.inference.onnx import open_session
from c2f_zoo.inference.predictor import load_trained
from c2f_zoo.inference.quantize import quantize_int8
from c2f_zoo.io.files import write_csv
from c2f_zoo.paths import expand
from c2f_zoo.registry import check_names
from c2f_zoo.training.launch import recipe_errors

Call = Callable[[], object]
RUNTIMES = ("eager", "compiled", "onnx float32", "onnx int8")
QUANTIZING = [draw_photo((340, 227), seed=number) for number in range(16)]


def main(
    models: list[str] | None = None,
    runtimes: tuple[str, ...] = RUNTIMES,
    batches: tuple[int, ...] = (1, 32),
    threads: int | None = None,
    repeats: int = 15,
    output: str = "runs/latency.csv",
) -> None:
    """Measure models, and write a CSV row for each runtime and batch.

    Args:
        models: names of trained weights or folders of models, see `Predictor.from_pretrained`. Default: all bundled.
        runtimes: some of the runtimes `eager`, `compiled`, `onnx float32` and `onnx int8`.
        batches: numbers of images of a call.
        threads: number of threads of each runtime. Default: one for each usable core.
        repeats: number of timed calls; the medians are written.
        output: the CSV file to create or replace.
    """
    check_names("runtime", runtimes, RUNTIMES)
    threads = threads or torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    for name in models or c2f_zoo.list_models(pretrained=True):
        with tempfile.TemporaryDirectory() as folder:
            files = export(name, Path(folder))
            setups = [partial(calls_of, runtime, name, files, tuple(batches), threads) for runtime in runtimes]
            medians = run_interleaved(setups, repeats)
        for runtime, found in zip(runtimes, medians, strict=True):
            rows += [row_of(name, runtime, batch, found, threads, repeats) for batch in batches]
    path = expand(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, rows)
    print(f"{len(rows)} rows in {path}")


def export(name: str, folder: Path) -> dict[str, Path]:
    """Export a model in float32 and in 8-bit integers; return the files by runtime."""
    files = {"onnx float32": folder / "float32.onnx", "onnx int8": folder / "int8.onnx"}
    export_model(load_trained(name), files["onnx float32"])
    quantize_int8(files["onnx float32"], files["onnx int8"], QUANTIZING)
    return files


def calls_of(
    runtime: str, name: str, files: dict[str, Path], batches: tuple[int, ...], threads: int
) -> dict[str, Call]:
    """Return the forward passes of a runtime, by their number of images."""
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # which open_session reads
    session = open_session(files.get(runtime, files["onnx float32"]))
    exported = ExportedModel.from_json(session.get_modelmeta().custom_metadata_map[METADATA_KEY], name)
    size = exported.config.preprocessing.input_size
    images = {batch: torch.rand(batch, *size) for batch in batches}
    if runtime in files:
        feeds = {batch: dict.fromkeys(exported.inputs, x.numpy()) for batch, x in images.items()}
        return {f"{batch}": partial(session.run, None, feed) for batch, feed in feeds.items()}
    network: Any = LogProbabilities(load_trained(name), exported)
    inputs = {batch: [x] * len(exported.inputs) for batch, x in images.items()}
    if runtime == "compiled":
        network = torch.compile(network, dynamic=False)
    return {f"{batch}": partial(infer, network, x) for batch, x in inputs.items()}


@torch.inference_mode()
def infer(network: Callable[..., object], inputs: list[torch.Tensor]) -> object:
    return network(*inputs)


def row_of(
    name: str, runtime: str, batch: int, medians: dict[str, float], threads: int, repeats: int
) -> dict[str, Any]:
    """Return the row of a runtime and batch, and print it."""
    milliseconds = medians[f"{batch}"]
    row = {"model": name, "runtime": runtime, "batch": batch, "threads": threads, "repeats": repeats}
    row |= {"ms": milliseconds, "images_s": round(1e3 * batch / milliseconds, 1), "mm_gflops": medians["mm_gflops"]}
    print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    command = " ".join(["python", "recipes/benchmarks/latency.py", *sys.argv[1:]])
    return {**row, "command": command, **describe_machine(), "onnxruntime": version("onnxruntime")}


if __name__ == "__main__":
    with recipe_errors("latency.py"):
        auto_cli(main)
