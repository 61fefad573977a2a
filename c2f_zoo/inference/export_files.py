"""The work of `c2f-zoo export`: a trained model to a file, checked against the model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from c2f_zoo.inference.export import export_model, largest_difference
from c2f_zoo.inference.exported import ExportedModel
from c2f_zoo.inference.image_files import list_image_files
from c2f_zoo.inference.predictor import load_trained
from c2f_zoo.inference.quantize import quantize_int8
from c2f_zoo.paths import expand

CHECKED_IMAGES = 3


def export_file(
    name: str,
    file: Path,
    format: str = "onnx",
    levels: Sequence[str] | None = None,
    dtype: str = "float32",
    any_size: bool = False,
    int8: Path | None = None,
) -> str:
    """Export a trained model; return a line on the file.

    Args:
        name: the model, see `Predictor.from_pretrained`.
        file: see `export_model`, as the others.
        format: see `export_model`.
        levels: see `export_model`.
        dtype: see `export_model`.
        any_size: see `export_model`.
        int8: a folder of images to quantize with; see `quantize_int8`.

    Raises:
        FileNotFoundError: the model or the folder does not exist, or has no images.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: a name is unknown, the network cannot be exported, or `int8` and another option exclude each other.
    """
    if int8 is not None and (format, dtype) != ("onnx", "float32"):
        raise ValueError(f"int8 excludes the format {format} with {dtype}; leave out --format and --dtype")
    images = [] if int8 is None else list_image_files([expand(int8)]).files
    model = load_trained(name)
    if int8 is None:
        exported = export_model(model, file, format, levels, dtype, any_size)
        kind = dtype
    else:
        kind = f"int8 from {len(images)} images"
        with tempfile.TemporaryDirectory() as folder:
            exported = export_model(model, Path(folder, "float32.onnx"), "onnx", levels, any_size=any_size)
            quantize_int8(Path(folder, "float32.onnx"), file, images)
    line = f"written to {file}: {', '.join(exported.config.levels)}, {kind}, {_describe_inputs(exported)}"
    if format != "onnx":
        return line
    size = model.config.preprocessing.input_size
    noise = torch.randn(CHECKED_IMAGES, *size, generator=torch.Generator().manual_seed(0))
    difference = largest_difference(model, exported, file, noise)
    return f"{line}; probabilities of noise differ from PyTorch's in float32 by at most {difference:.1e}"


def _describe_inputs(exported: ExportedModel) -> str:
    channels, height, width = exported.config.preprocessing.input_size
    return f"{' and '.join(exported.inputs)} (N, {channels}, {height}, {width})"
