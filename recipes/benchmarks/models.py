"""Measure models: parameters, multiply-adds, images a second, latency and memory, on the CPU or a GPU.

    python recipes/benchmarks/models.py                                          # every named model, on the CPU
    python recipes/benchmarks/models.py --device cuda --precision bf16 --batch 64
    python recipes/benchmarks/models.py --poolings_on tf_efficientnet_lite0      # every pooling, on one backbone

Models have random weights, and a forward pass predicts all their levels from one view. The CSV file is written after
each model, and a model that has a row of the same settings is not measured again. Each model runs in new processes. On
the CPU, one measures time, with interleaved calls, and another memory, read from the operating system (Linux). On a
GPU, models and images are channels-last.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor

import c2f_zoo
from c2f_zoo.evaluation.device_measuring import PRECISIONS, autocast, count_flops, tf32, time_and_memory
from c2f_zoo.evaluation.measuring import MEBIBYTE, peak_bytes, run_in_new_process, run_interleaved
from c2f_zoo.evaluation.provenance import describe_machine, device_name
from c2f_zoo.hierarchy import open_hierarchy
from c2f_zoo.io.files import read_csv, write_csv
from c2f_zoo.model import C2FModel
from c2f_zoo.paths import expand
from c2f_zoo.pooling import POOLINGS, describe_pooling
from c2f_zoo.registry import check_names
from c2f_zoo.training.launch import error_message, recipe_errors
from c2f_zoo.zoo import METHODS, num_taps_of
from c2f_zoo.zoo.resolve import resolve

Row = dict[str, Any]
# The other parts of the models of `poolings_on`.
HIERARCHY, INPUT_SIZE, DIM = "cub100", 224, 1024
OWN_DIM = ("isqrt_cov",)  # its dim is a number of channels, and their pairs are the features


@dataclass(frozen=True)
class Case:
    """A model at one setting; `options` are keyword arguments of `create_model`."""

    name: str
    options: Mapping[str, Any]
    batch: int
    device: str
    precision: str


def main(
    names: list[str] | None = None,
    poolings_on: str | None = None,
    batch: int = 8,
    device: str = "cpu",
    precision: str = "fp32",
    repeats: int = 5,
    output: str | None = None,
) -> None:
    """Measure models, and write a CSV row for each.

    Args:
        names: names of models, as in `create_model`, or of poolings; default: all.
        poolings_on: a backbone; measure poolings on it instead of named models, at d = 1024 on images of 224 x 224
            pixels, with all levels of the tree cub100.
        batch: number of images of a batch, for images a second and memory.
        device: `cpu`, `cuda` or `cuda:N`.
        precision: `fp32`, `tf32` or `bf16` (autocast).
        repeats: number of timed calls on the CPU; medians are reported.
        output: the CSV file to create or continue; default: a file in `runs` that is named after the device.
    """
    if not re.fullmatch("cpu|cuda(:[0-9]+)?", device):
        raise ValueError(f"device {device!r} is unsupported; choose cpu or cuda")
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} needs a GPU, and PyTorch found none")
    check_names("precision", [precision], PRECISIONS)
    if poolings_on:
        models = [pooling_model(name, poolings_on) for name in names or c2f_zoo.list_poolings()]
    else:
        models = [(name, {}) for name in names or c2f_zoo.list_models()]
    path = expand(output or default_output(poolings_on, device))
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = read_csv(path) if path.exists() else []
    left_out = 0
    for name, options in models:
        case = Case(name, options, batch, device, precision)
        try:
            if is_finished(case, rows):
                continue
            row = measure(case, repeats)
        except (ValueError, RuntimeError) as error:  # of one model: the others are measured
            print(f"left out: {name} {options.get('pooling', '')}: {error_message(error)}", flush=True)
            left_out += 1
            continue
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        write_csv(path, [*rows, row])
        rows = read_csv(path)
    print(f"{len(rows)} rows in {path}; {left_out} of {len(models)} models are left out")


def pooling_model(pooling: str, backbone: str) -> tuple[str, Row]:
    """Return the arguments of `create_model`, a name and options, for a pooling on a backbone."""
    takes_dim = "dim" in inspect.signature(POOLINGS[pooling]).parameters and pooling not in OWN_DIM
    # The pooling's own method, or else one with as many taps.
    methods = sorted(METHODS.names(), key=lambda name: METHODS[name].pooling != pooling)
    method = next(name for name in methods if METHODS[name].num_taps == num_taps_of(pooling))
    options = {
        "pooling": pooling,
        "pooling_options": {"dim": DIM} if takes_dim else {},
        "levels": open_hierarchy(HIERARCHY).levels,
        "input_size": INPUT_SIZE,
    }
    return f"{method}_{backbone}_{HIERARCHY}", options


def default_output(backbone: str | None, device: str) -> str:
    words = [f"poolings {backbone}" if backbone else "models", device_name(device)]
    return f"runs/{re.sub('[^a-z0-9_]+', '-', ' '.join(words).lower()).strip('-')}.csv"


def is_finished(case: Case, rows: list[dict[str, str]]) -> bool:
    """Return whether rows of a file have one of the same settings."""
    wanted = {key: "" if value is None else str(value) for key, value in settings_of(case).items()}
    return any(wanted.items() <= row.items() for row in rows)


def settings_of(case: Case) -> Row:
    """Return the columns that name a measurement; nothing is built."""
    config = resolve(case.name, case.options)
    return {
        "model": case.name,
        "pooling": config.pooling,
        "dim": config.pooling_options.get("dim"),
        "input_size": config.preprocessing.input_size[-1],
        "batch": case.batch,
        "precision": case.precision,
        "threads": torch.get_num_threads(),
        "device": device_name(case.device),
    }


def measure(case: Case, repeats: int) -> Row:
    """Return the row of a model."""
    counts = count(c2f_zoo.create_model(case.name, **case.options))
    if torch.device(case.device).type == "cuda":
        costs = run_in_new_process(partial(measure_device, case))
    else:
        (times,) = run_interleaved([partial(timed_calls, case)], repeats)
        costs = {**times, **run_in_new_process(partial(measure_memory, case))}
    return {
        **settings_of(case),
        **counts,
        "images_s": round(1e3 * case.batch / costs.pop("batch_ms"), 2),
        "latency_ms": costs.pop("latency_ms"),
        "compiled_latency_ms": costs.pop("compiled_latency_ms", None),
        **costs,
        "command": " ".join(["python", "recipes/benchmarks/models.py", *sys.argv[1:]]),
        **describe_machine(case.device),
    }


def count(model: C2FModel) -> Row:
    """Count a model's features, parameters, and multiply-adds for one image.

    Those of backbone and head are of convolutions and matrix products, those of the pooling as `describe_pooling`
    counts them; None if it cannot.
    """
    config, shapes = model.config, model.backbone.map_shapes
    sizes = {(height, width) for _, height, width in shapes}
    pooling = describe_pooling(config.pooling, model.backbone.out_channels, max(sizes), **config.pooling_options)
    of_pooling = None if pooling.uncounted or len(sizes) > 1 else pooling.multiply_adds
    model.eval()
    with torch.no_grad():
        flops = count_flops(lambda: model.forward_features(torch.rand(1, *config.preprocessing.input_size)))
        flops += count_flops(lambda: model.forward_head(torch.rand(1, pooling.out_features)))
    return {
        "features": pooling.out_features,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "pooling_parameters": pooling.parameters,
        "multiply_adds": None if of_pooling is None else flops // 2 + of_pooling,
        "pooling_multiply_adds": of_pooling,
    }


def timed_calls(case: Case) -> dict[str, Callable[[], None]]:
    """Return the forward passes whose time is measured: of a batch, and of one image, also compiled."""
    return inference_calls(case, *build(case))


def measure_memory(case: Case) -> Row:
    """Measure peaks of the process's memory in MiB: of a forward pass, and of a training step.

    Both are beyond images, weights and, for the step, the gradients of an earlier step.
    """
    model, images = build(case)
    infer(case, model, images[:1])  # libraries allocate some memory once
    peaks = {"peak_mib": peak_bytes(lambda: infer(case, model, images))}
    model.train()
    train(case, model, images[:2])
    peaks["peak_step_mib"] = peak_bytes(lambda: train(case, model, images))
    return {name: round(count / MEBIBYTE, 1) for name, count in peaks.items()}


def measure_device(case: Case) -> Row:
    """Measure times and peaks of the device's memory; peaks as in `measure_memory`, and None on a CPU."""
    model, images = build(case)
    device = images.device
    costs = {name: time_and_memory(call, device) for name, call in inference_calls(case, model, images).items()}
    model.train()
    step = time_and_memory(lambda: train(case, model, images), device)
    peaks = {"peak_mib": costs["batch_ms"]["peak_mib"], "peak_step_mib": step["peak_mib"]}
    return {**{name: cost["ms"] for name, cost in costs.items()}, **peaks}


def build(case: Case) -> tuple[C2FModel, Tensor]:
    """Return the model in evaluation mode, and a batch of random images."""
    torch.manual_seed(0)
    model = c2f_zoo.create_model(case.name, **case.options).eval()
    images = torch.rand(case.batch, *model.config.preprocessing.input_size)
    if torch.device(case.device).type == "cpu":
        return model, images
    model.to(case.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, images.to(case.device, memory_format=torch.channels_last)


def inference_calls(case: Case, model: C2FModel, images: Tensor) -> dict[str, Callable[[], None]]:
    """Return forward passes by name; without the compiled one if the model does not compile."""
    calls: dict[str, Callable[[], None]] = {
        "batch_ms": partial(infer, case, model, images),
        "latency_ms": partial(infer, case, model, images[:1]),
    }
    compiled = partial(infer, case, torch.compile(model, dynamic=False), images[:1])
    try:
        compiled()
    except Exception as error:  # of Dynamo, Inductor, Triton, a missing C++ compiler, ...
        reason = error_message(error).partition("\n")[0]
        print(f"not measured compiled: {case.name}: {reason}", flush=True)
        return calls
    return {**calls, "compiled_latency_ms": compiled}


def infer(case: Case, network: Callable[[Tensor], object], images: Tensor) -> None:
    dtype, allow_tf32 = PRECISIONS[case.precision]
    with torch.no_grad(), tf32(allow_tf32), autocast(images.device, dtype):
        network(images)


def train(case: Case, model: C2FModel, images: Tensor) -> None:
    """Run the forward and backward pass of a step, with a loss at every predicted level."""
    dtype, allow_tf32 = PRECISIONS[case.precision]
    model.zero_grad()
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    with tf32(allow_tf32):
        with autocast(images.device, dtype):
            found = model(images)
        torch.stack([F.cross_entropy(logits.float(), labels) for logits in found.values()]).sum().backward()


if __name__ == "__main__":
    with recipe_errors("models.py"):
        auto_cli(main)
