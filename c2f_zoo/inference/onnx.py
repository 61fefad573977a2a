"""Prediction by exported ONNX files, with onnxruntime and without PyTorch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from c2f_zoo.images.array_transform import ArrayTransform
from c2f_zoo.inference.exported import METADATA_KEY, ExportedModel
from c2f_zoo.inference.image_predictor import ImagePredictor, PreparedImage
from c2f_zoo.io.files import checksum_of
from c2f_zoo.paths import expand


class OnnxPredictor(ImagePredictor):
    """A predictor that runs an exported ONNX file: the same predictions as `Predictor`, without PyTorch.

    Path, trust, restrictions and groups are those of `Predictor`. Images are resized by Pillow, see `ArrayTransform`,
    so that a probability differs slightly from `Predictor`'s. Nothing of the file is executed but the network: the
    metadata are validated.

    Args:
        file: an ONNX file of `c2f-zoo export`.
        risk: see `Predictor`, as the others.
        only: see `Predictor`.
        species_list: see `Predictor`.
        level: see `Predictor`.
        batch_size: see `Predictor`.

    Attributes:
        exported: the file's metadata.
        session: the opened file, an `onnxruntime.InferenceSession`.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: onnxruntime is not installed.
        ValueError: it is no ONNX file of `c2f-zoo export`, or as in `Predictor`.

    Examples:
        >>> from c2f_zoo.inference.export import export_model
        >>> _ = export_model(create_model("mlph_tiny_critters", pretrained=True), "critters.onnx")
        >>> image, label = create_dataset("critters", "test", per_class=1)[7]
        >>> OnnxPredictor("critters.onnx")(image).trusted[:2]
        ('species', 'Tessula ocellata')
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        *,
        risk: float | None = None,
        only: str | Sequence[str] | None = None,
        species_list: str | os.PathLike[str] | None = None,
        level: str | None = None,
        batch_size: int = 32,
    ) -> None:
        self.file = expand(file)
        self.session = open_session(self.file)
        self.exported = read_metadata(self.session, str(file))
        options = {"risk": risk, "only": only, "species_list": species_list, "level": level}
        config, marginals = self.exported.config, self.exported.levels_are_marginals
        super().__init__(config, marginals, self.exported.calibration, batch_size, **options)
        resolutions = [view.resolution for view in self.exported.views]
        self._transforms = {resolution: ArrayTransform(config.preprocessing, resolution) for resolution in resolutions}

    def views_of(self, image: Image.Image) -> dict[int | None, np.ndarray]:
        """Return the network's input (channels, height, width) at each distinct resolution, from an RGB image."""
        return {resolution: transform(image) for resolution, transform in self._transforms.items()}

    def head_log_probs(self, images: Sequence[PreparedImage]) -> dict[str, np.ndarray]:
        """Return log-probabilities float64 (N, classes) of the levels that the file predicts.

        Raises:
            ValueError: the outputs are not finite.
        """
        found: dict[str, np.ndarray] = {}
        for feed, levels in self.feeds([image.views for image in images]):
            for level, z in zip(levels, self.session.run(levels, feed), strict=True):
                _check_finite(level, z)
                found[level] = z.astype(np.float64)
        return {level: found[level] for level in self.config.levels}

    def feeds(self, images: Sequence[Mapping[int | None, np.ndarray]]) -> list[tuple[dict[str, np.ndarray], list[str]]]:
        """Return the inputs of each run of the network on a batch, with the levels that it predicts.

        Args:
            images: the views of each image, see `views_of`.
        """
        views = self.exported.views
        batches = [np.stack([image[view.resolution] for image in images]) for view in views]
        runs = [({view.input: batch}, list(view.levels)) for view, batch in zip(views, batches, strict=True)]
        if len(self.exported.inputs) == 1:
            return runs
        return [({name: x for feed, _ in runs for name, x in feed.items()}, list(self.config.levels))]

    def identity(self) -> dict[str, str]:
        """Return the digest of the file, which has the weights, the configuration and the calibration."""
        return {"file": checksum_of(self.file)}


def open_session(file: str | os.PathLike[str]) -> Any:
    """Open an ONNX file with onnxruntime, on a CPU.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: onnxruntime is not installed.
        ValueError: it is no ONNX file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "ONNX files need onnxruntime: pip install 'c2f_zoo[onnx]', or pip install onnxruntime"
        ) from error
    path = expand(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {file}; make one with `c2f-zoo export MODEL -o {file}`")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; they are raised too
    if threads := os.environ.get("OMP_NUM_THREADS"):  # which onnxruntime does not read
        options.intra_op_num_threads = int(threads)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class but this
        raise ValueError(f"{file} is no ONNX file that onnxruntime runs: {error}") from error


def read_metadata(session: Any, name: str) -> ExportedModel:
    """Return the metadata of an exported file, and check that the network has its inputs and outputs.

    Args:
        session: the opened file.
        name: the file's name, for messages.

    Raises:
        ValueError: the file is no export of `c2f-zoo export`, or the metadata are invalid or of another network.
    """
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise ValueError(f"{name} has no metadata of c2f_zoo; make a file with `c2f-zoo export MODEL -o {name}`")
    exported = ExportedModel.from_json(text, name)
    inputs, outputs = ({one.name for one in of} for of in (session.get_inputs(), session.get_outputs()))
    if inputs != set(exported.inputs) or outputs != set(exported.config.levels):
        found = f"inputs {sorted(inputs)} and outputs {sorted(outputs)}"
        expected = f"{sorted(exported.inputs)} and {sorted(exported.config.levels)}"
        raise ValueError(f"{name} has the {found}; its metadata name {expected}. Export the model again")
    return exported


def _check_finite(level: str, z: np.ndarray) -> None:
    bad = int((~np.isfinite(z).all(axis=1)).sum())
    if bad:
        raise ValueError(
            f"the model's outputs at {level!r} are not finite for {bad} of {len(z)} images: its weights are damaged, "
            "or too large for its dtype; export it in float32"
        )
