"""Quantization of exported ONNX files to 8-bit integers."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from c2f_zoo.images.array_transform import ArrayTransform
from c2f_zoo.images.reading import ImageLike, prepare_image
from c2f_zoo.inference.export import import_onnx
from c2f_zoo.inference.exported import METADATA_KEY
from c2f_zoo.inference.onnx import OnnxPredictor
from c2f_zoo.io.files import atomic_write
from c2f_zoo.paths import expand

_logger = logging.getLogger(__name__)

MAX_IMAGES = 256
FIRST = 3  # convolutions that stay float32, since all others inherit their errors: docs/results/exported.csv
QUANTIZED = ("Conv",)  # the sums of products and the roots of a pooling, and the head, stay in float32


def quantize_int8(source: str | os.PathLike[str], target: str | os.PathLike[str], images: Sequence[ImageLike]) -> None:
    """Quantize the convolutions of an exported ONNX file to 8-bit integers.

    Weights are int8, with a scale for each channel; activations are uint8, with the range that images show, at full
    size and at the levels' own resolutions in turn (onnxruntime's static quantization, in the format QDQ). The first
    three convolutions, whose errors all others inherit, and inputs and outputs stay float32. Accuracy drops: measure
    it.

    Args:
        source: a float32 file of `export_model`.
        target: the file to create or replace.
        images: images of the kind that will be predicted, 50 or more; of more than 256, evenly spaced ones are used.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
        ValueError: there are no images, one is unreadable, or the source is no float32 file of `export_model`.
    """
    onnx = import_onnx()
    predictor = OnnxPredictor(source)
    if predictor.exported.dtype != "float32":
        raise ValueError(f"{source} is {predictor.exported.dtype}; quantize a float32 file")
    if not images:
        raise ValueError("there are no images to quantize with; pass 50 or more")
    if len(images) > MAX_IMAGES:
        _logger.warning("%d of %d images are used to quantize", MAX_IMAGES, len(images))
        images = [images[number * len(images) // MAX_IMAGES] for number in range(MAX_IMAGES)]
    with tempfile.TemporaryDirectory() as folder:
        quantized = _quantize(expand(source), Path(folder), _feeds(predictor, images))
        model = onnx.load(quantized)
    text = replace(predictor.exported, dtype="int8").to_json()
    onnx.helper.set_model_props(model, {METADATA_KEY: text})
    atomic_write(expand(target), lambda part: part.write_bytes(model.SerializeToString()))


def _feeds(predictor: OnnxPredictor, images: Sequence[ImageLike]) -> Iterator[dict[str, np.ndarray]]:
    """Yield the network's inputs for each image; a network of one input sees them at all resolutions, in turn."""
    config, inputs = predictor.config, predictor.exported.inputs
    resolutions = dict.fromkeys([None, *config.resolutions.values()])
    transforms = [ArrayTransform(config.preprocessing, resolution) for resolution in resolutions]
    for number, image in enumerate(images):
        rgb = prepare_image(image)
        if len(inputs) == 1:
            yield dict.fromkeys(inputs, transforms[number % len(transforms)](rgb)[None])
        else:
            views = predictor.views_of(rgb)
            yield {view.input: views[view.resolution][None] for view in predictor.exported.views}


def _first_convolutions(model: Any) -> list[str]:
    """Return the names of the convolutions that stay float32: the first ones of each input, in the graph's order."""
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    return names[: FIRST * len(model.graph.input)]


def _quantize(source: Path, folder: Path, feeds: Iterator[dict[str, np.ndarray]]) -> Path:
    """Quantize a file into a folder; return the new file."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(feeds, None)

    prepared, target = folder / "prepared.onnx", folder / "quantized.onnx"
    # The exporter's shapes are known already, and its symbolic inference does not know all operators.
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(QUANTIZED),
        nodes_to_exclude=_first_convolutions(onnx.load(prepared)),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return target
