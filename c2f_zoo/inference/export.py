"""Export of models to ONNX and `torch.export`, with all that a predictor needs."""

from __future__ import annotations

import copy
import io
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import c2f_zoo
from c2f_zoo.inference.calibration import Calibration
from c2f_zoo.inference.exported import EXTRA_FILE, METADATA_KEY, ExportedModel, select_views
from c2f_zoo.inference.predictor import Predictor
from c2f_zoo.io.files import atomic_write
from c2f_zoo.model import C2FModel
from c2f_zoo.paths import expand
from c2f_zoo.registry import check_names

_logger = logging.getLogger(__name__)

FORMATS = ("onnx", "torch_export")
WEIGHT_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class LogProbabilities(nn.Module):
    """The network of an exported file: images to log-probabilities.

    Args:
        model: the model; it is copied.
        exported: the metadata: inputs, levels and the type in which to compute.
    """

    def __init__(self, model: C2FModel, exported: ExportedModel) -> None:
        super().__init__()
        self.dtype = WEIGHT_DTYPES[exported.dtype]
        self.model = copy.deepcopy(model).to(self.dtype).eval()
        self.inputs, self.levels = list(exported.inputs.values()), exported.config.levels

    def forward(self, *images: Tensor) -> tuple[Tensor, ...]:
        """Return log-probabilities float32 (N, classes) of each level.

        Args:
            images: for each input the images float32 (N, channels, height, width), normalized.
        """
        logits: dict[str, Tensor] = {}
        for x, levels in zip(images, self.inputs, strict=True):
            logits |= self.model(x.to(self.dtype), levels)
        log_probs = self.model.log_probs(logits)
        return tuple(log_probs[level].float() for level in self.levels)


def export_model(
    model: C2FModel,
    file: str | os.PathLike[str],
    format: str = "onnx",
    levels: Sequence[str] | None = None,
    dtype: str = "float32",
    any_size: bool = False,
) -> ExportedModel:
    """Export a model to a file, with its metadata; the number of images of a batch stays open.

    The inputs are normalized images float32 (N, channels, height, width), the outputs the log-probabilities float32
    (N, classes) of each level, under the level's name. The metadata are JSON: `ExportedModel.to_json`.

    Args:
        model: the model; it is put into evaluation mode.
        file: the file to create or replace.
        format: `"onnx"`, with the metadata in `metadata_props["c2f_zoo"]`, or `"torch_export"`, with them in the extra
            file `c2f_zoo.json`.
        levels: the levels to export. Default: all that the model predicts.
        dtype: `"float32"`, or `"float16"` for weights and computations in half precision.
        any_size: leave height and width open, where the network allows it. Accuracy is that of the model's own size.

    Returns:
        The metadata.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: a name is unknown, or the network cannot be exported.

    Examples:
        >>> model = create_model("mlph_tiny_critters", pretrained=True)
        >>> exported = export_model(model, "critters.pt2", "torch_export", levels=["species"])
        >>> exported.views
        (View(input='images', resolution=None, levels=('species',)),)
    """
    check_names("format", [format], FORMATS)
    check_names("dtype", [dtype], WEIGHT_DTYPES)
    check_names("level", levels or (), model.levels)
    if format == "onnx":
        import_onnx()
    exported = _describe(model, levels or model.levels, dtype)
    network = LogProbabilities(model, exported)
    size = model.config.preprocessing.input_size
    images = tuple(torch.rand(2, *size) for _ in exported.inputs)
    try:
        program = _trace(network, images, any_size)
        content = _to_onnx(program, exported) if format == "onnx" else _to_archive(program, exported)
    except Exception as error:  # of any kind, from the network's code or PyTorch's
        hint, reason = "; leave its size fixed" if any_size else "", str(error).strip().partition("\n")[0]
        raise ValueError(f"{model.config.backbone} cannot be exported to {format}: {reason}{hint}") from error
    atomic_write(expand(file), lambda part: part.write_bytes(content))
    return exported


def import_onnx() -> Any:
    """Return the module `onnx`, with what PyTorch's exporter needs installed too.

    Raises:
        ImportError: onnx or onnxscript is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"ONNX files need onnx and onnxscript: pip install 'c2f_zoo[onnx]' ({error})") from error
    return onnx


def _describe(model: C2FModel, levels: Sequence[str], dtype: str) -> ExportedModel:
    """Return the metadata of an export of some levels."""
    predictor = Predictor(model)
    config = replace(model.config, levels=tuple(level for level in model.levels if level in levels))
    calibration = predictor.calibration
    if calibration is not None and not _keeps_calibration(calibration, model.levels, config.levels):
        _logger.warning(
            "the calibration needs levels that are not exported and is left out: no prediction of the file says how "
            "far it can be trusted; export all levels"
        )
        calibration = None
    one_input = config.batch_norm == "shared"
    views = select_views(predictor.levels_at, config.levels, one_input)
    marginals = model.head.levels_are_marginals
    return ExportedModel(config, views, marginals, calibration, dtype, c2f_zoo.__version__)


def _keeps_calibration(calibration: Calibration, predicted: Sequence[str], exported: Sequence[str]) -> bool:
    """Return whether the exported levels have all probabilities that were calibrated."""
    if calibration.probabilities == "sum":
        return exported[-1] == predicted[-1]
    return tuple(exported) == tuple(predicted)


def _trace(network: nn.Module, images: tuple[Tensor, ...], any_size: bool) -> torch.export.ExportedProgram:
    shape: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if any_size:
        shape |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, about its own code
        return torch.export.export(network, images, dynamic_shapes=(tuple(shape for _ in images),), strict=False)


def _to_onnx(program: torch.export.ExportedProgram, exported: ExportedModel) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"input_names": list(exported.inputs), "output_names": list(exported.config.levels)}
        converted = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    assert converted is not None, "a program is returned if no file is given"
    converted.model.metadata_props[METADATA_KEY] = exported.to_json()
    return bytes(converted.model_proto.SerializeToString())


def _to_archive(program: torch.export.ExportedProgram, exported: ExportedModel) -> bytes:
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={EXTRA_FILE: exported.to_json()})
    return content.getvalue()


def largest_difference(model: C2FModel, exported: ExportedModel, file: str | os.PathLike[str], images: Tensor) -> float:
    """Return the largest difference of a probability from that of the model in float32.

    Args:
        model: the model.
        exported: the file's metadata.
        file: the ONNX file.
        images: normalized images (N, channels, height, width), the same for every input.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    from c2f_zoo.inference.onnx import open_session

    session = open_session(file)
    found = session.run(list(exported.config.levels), dict.fromkeys(exported.inputs, images.numpy()))
    with torch.no_grad():
        network = LogProbabilities(model, replace(exported, dtype="float32"))
        expected = network(*[images] * len(exported.inputs))
    return max(float(np.abs(np.exp(a) - np.exp(b.numpy())).max()) for a, b in zip(found, expected, strict=True))
