"""What all predictors of images share, whatever runs the network; it needs no PyTorch."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
from PIL import Image

from c2f_zoo.config import ModelConfig
from c2f_zoo.images.reading import ImageLike, is_tensor, prepare_image
from c2f_zoo.images.sizes import crop_box_of
from c2f_zoo.inference.calibration import Calibration
from c2f_zoo.inference.detail import visible_detail
from c2f_zoo.inference.fusion import fuse
from c2f_zoo.inference.image_files import list_image_files
from c2f_zoo.inference.interpretation import Interpreter
from c2f_zoo.inference.prediction import Box, Prediction
from c2f_zoo.paths import expand

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedImage:
    """An image as the model's input.

    Attributes:
        views: for each distinct resolution the input (channels, height, width), a tensor or an array.
        detail: the visible detail in pixels; 0 if the model has no calibration.
        file: the image's file; empty if it has none.
        crop: the part of the image that is the input, see `crop_box_of`.
    """

    views: Mapping[int | None, Any]
    detail: float
    file: str = ""
    crop: Box = (0.0, 0.0, 1.0, 1.0)


class ImagePredictor:
    """Base class of predictors: images of any kind to predictions.

    A subclass defines `views_of`, `head_log_probs` and `identity`.

    Args:
        config: the model's configuration.
        levels_are_marginals: see `Head`.
        calibration: the model's calibration, or None.
        batch_size: see `Predictor`.
        **options: `risk`, `only`, `species_list` and `level`, see `Predictor`.

    Attributes:
        config: the model's configuration.
        tree: the class tree, down to the finest predicted level.
        levels: the levels of a prediction, coarse to fine.
        calibration: the model's calibration, or None.
        restriction: the possible classes; None for all.
        risk: the promised risk; None for the calibration's own.
    """

    def __init__(
        self,
        config: ModelConfig,
        levels_are_marginals: bool,
        calibration: Calibration | None,
        batch_size: int,
        **options: Any,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
        self.config, self.batch_size = config, batch_size
        tree = config.hierarchy.truncate(config.levels[-1])
        self._interpret = Interpreter(tree, config.levels, levels_are_marginals, calibration, **options)
        self.tree, self.levels, self.calibration = tree, self._interpret.levels, calibration
        self.restriction, self.risk = self._interpret.restriction, self._interpret.risk

    def views_of(self, image: Image.Image) -> Mapping[int | None, Any]:
        """Return the network's input (channels, height, width) at each distinct resolution, from an RGB image."""
        raise NotImplementedError(f"{type(self).__name__} defines no views_of(image)")

    def head_log_probs(self, images: Sequence[PreparedImage]) -> dict[str, np.ndarray]:
        """Return log-probabilities float64 (N, classes) of the levels that the model predicts.

        Raises:
            ValueError: they are not finite.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no head_log_probs(images)")

    def predict_log_probs(
        self, images: Sequence[PreparedImage]
    ) -> tuple[dict[str, np.ndarray], Sequence[Mapping[str, Box] | None]]:
        """Return `head_log_probs`, and the boxes of each image, see `Prediction`."""
        return self.head_log_probs(images), [None] * len(images)

    def identity(self) -> dict[str, str]:
        """Return digests of the model's weights, configuration and calibration, by name."""
        raise NotImplementedError(f"{type(self).__name__} defines no identity()")

    @overload
    def __call__(self, image: list[ImageLike]) -> list[Prediction]: ...

    @overload
    def __call__(self, image: ImageLike) -> Prediction: ...

    def __call__(self, image: ImageLike | list[ImageLike]) -> Prediction | list[Prediction]:
        """Predict an image, or several.

        Args:
            image: a path, an open file, a PIL image, an array or a tensor, of any size and mode; see
                `c2f_zoo.data.prepare_image`, which converts it like the images of a training. Or several: a list of
                these, a folder, or a tensor (N, channels, height, width).

        Returns:
            A prediction, or a list of them. Those of a folder are sorted by file, including its subfolders; the log
            says what is left out there.

        Raises:
            FileNotFoundError: a file does not exist, or a folder has no images.
            ValueError: an image cannot be read or converted, or the model's outputs are not finite.
        """
        if is_tensor(image) and image.ndim == 4:
            return self.predict_batch(list(image))
        if isinstance(image, (str, os.PathLike)) and expand(image).is_dir():
            found = list_image_files([expand(image)])
            for note in (*found.notes, *found.unreadable):
                _logger.warning("%s: %s", image, note)
            return self.predict_batch(found.files)
        return self.predict_batch(image) if isinstance(image, list) else self.predict_batch([image])[0]

    def predict_batch(self, images: Sequence[ImageLike | PreparedImage]) -> list[Prediction]:
        """Predict images of any kinds, sizes and modes; errors as in `__call__`."""
        predictions = []
        for start in range(0, len(images), self.batch_size):
            prepared = [self.prepare(image) for image in images[start : start + self.batch_size]]
            log_probs, boxes = self.predict_log_probs(prepared)
            found = self._interpret(log_probs, [[image.detail] for image in prepared])
            predictions += [
                replace(one, file=image.file, boxes=of_image)
                for one, image, of_image in zip(found, prepared, boxes, strict=True)
            ]
        return predictions

    def group(self, images: Sequence[ImageLike]) -> Prediction:
        """Predict an object from several images of it.

        The mean of their log-probabilities is normalized again (`fuse`). Of the images' thresholds the highest counts.
        The promised risk was calibrated for single images.

        Args:
            images: one or more images of the same object; errors as in `__call__`.

        Examples:
            >>> predictor = Predictor(create_model("mlph_tiny_critters", pretrained=True))
            >>> predictor.group([np.ones((96, 96)), np.ones((64, 64))]).provenance.images
            2
        """
        if not images:
            raise ValueError("a group has no images; pass one or more of the same object")
        prepared = [self.prepare(image) for image in images]
        starts = range(0, len(images), self.batch_size)
        parts = [self._log_probs(prepared[start : start + self.batch_size]) for start in starts]
        fused = {level: fuse(np.concatenate([part[level] for part in parts])) for level in self.config.levels}
        return self._interpret(fused, [[image.detail for image in prepared]])[0]

    def prepare(self, image: ImageLike | PreparedImage) -> PreparedImage:
        """Read, convert and transform an image; threads may do this ahead of `predict_batch`.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the image cannot be read or converted.
        """
        if isinstance(image, PreparedImage):
            return image
        rgb = prepare_image(image)
        detail = visible_detail(rgb, self.config.preprocessing.resize) if self.calibration else 0.0
        file = os.fspath(image) if isinstance(image, (str, os.PathLike)) else ""
        return PreparedImage(self.views_of(rgb), detail, file, crop_box_of(self.config.preprocessing, *rgb.size))

    def _log_probs(self, images: Sequence[ImageLike | PreparedImage]) -> dict[str, np.ndarray]:
        """Return log-probabilities float64 (N, classes) of the levels that the model predicts."""
        return self.head_log_probs([self.prepare(image) for image in images])
