"""Prediction of paths in the class tree, and of the part that can be trusted."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor

from c2f_zoo.backbones.part_rcnn import REGIONS, record_boxes
from c2f_zoo.data.images import ImageLike, prepare_image
from c2f_zoo.data.transforms import create_transform, crop_box_of
from c2f_zoo.decoding import decode, marginalize
from c2f_zoo.inference.calibration import Calibration
from c2f_zoo.inference.detail import visible_detail
from c2f_zoo.inference.fusion import fuse
from c2f_zoo.inference.image_files import list_image_files
from c2f_zoo.inference.nodes import Nodes, restrict
from c2f_zoo.inference.prediction import Box, Prediction, Provenance, Step
from c2f_zoo.inference.resolutions import levels_by_resolution, own_resolutions
from c2f_zoo.inference.restriction import find_restriction, mask_impossible
from c2f_zoo.inference.trusted import Trusted, find_trusted
from c2f_zoo.model import C2FModel, calibration_of
from c2f_zoo.ops import check_finite, widest_dtype
from c2f_zoo.paths import expand
from c2f_zoo.registry import unknown_name
from c2f_zoo.zoo import MODELS, WEIGHTS, split_tag
from c2f_zoo.zoo.create import create_model

_logger = logging.getLogger(__name__)

_SOURCES = ("hf-hub:", "local-dir:")


@dataclass(frozen=True)
class PreparedImage:
    """An image as the model's input.

    Attributes:
        views: for each distinct resolution the input (channels, height, width).
        detail: the visible detail in pixels; 0 if the model has no calibration.
        file: the image's file; empty if it has none.
        crop: the part of the image that is the input, see `crop_box_of`.
    """

    views: Mapping[int | None, Tensor]
    detail: float
    file: str = ""
    crop: Box = (0.0, 0.0, 1.0, 1.0)


class Predictor:
    """A predictor of images' paths in the class tree, and of the level down to which they can be trusted.

    Each level sees the image at its own resolution, with one forward pass for each distinct resolution; all levels see
    it at that of the leaf level if the calibration's probabilities are `"sum"`, i.e. if the model is better so. The
    path is that of the tree with the greatest product of the levels' probabilities (the decoding `joint`). It ends at
    the finest predicted level, or in a tree whose `ragged` is `"stop"` at the last class of its branch.

    The model's calibration says which class can be trusted: its rule chooses one, with the threshold for the visible
    detail of the image. A model without calibration predicts the path alone, with a note. A predictor may be used by
    several threads at once.

    Args:
        model: the model; it is put into evaluation mode.
        risk: the promised risk, the fraction of trusted classes that may be wrong: one of the calibration's. Default:
            the calibration's own.
        only: the name of a class of any level, or several: predictions are restricted to the leaf classes under them,
            and their probabilities normalized again.
        species_list: a text file with such names, one a line; see `find_restriction`.
        level: the finest level to predict. Default: the model's finest.
        batch_size: the largest number of images of a forward pass; predictions do not depend on it.

    Raises:
        FileNotFoundError: the list does not exist.
        ValueError: a name, the level or the risk is unknown, or the calibration is invalid.

    Examples:
        >>> model = create_model("mlph", backbone="resnet18", hierarchy="critters", input_size=64)
        >>> predictor = Predictor(model)
        >>> prediction = predictor(Image.new("RGB", (96, 96)))
        >>> [level for level, name, probability in prediction.path]
        ['family', 'genus', 'species']
        >>> len(predictor([torch.rand(3, 96, 96), Image.new("L", (120, 80))]))
        2
    """

    def __init__(
        self,
        model: C2FModel,
        *,
        risk: float | None = None,
        only: str | Sequence[str] | None = None,
        species_list: str | os.PathLike[str] | None = None,
        level: str | None = None,
        batch_size: int = 32,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
        self.model = model.eval()
        self.tree = model.hierarchy.truncate(model.levels[-1])  # what the model predicts
        depth = self.tree.depth(self.tree.finest if level is None else level)
        self.levels = self.tree.levels[: depth + 1]
        self.risk, self.batch_size = risk, batch_size
        self.calibration = _find_calibration(model)
        self.restriction = find_restriction(self.tree, only, species_list)
        self._nodes = Nodes(self.tree)
        self._levels_at = levels_by_resolution(model)
        if self.calibration is not None and self.calibration.probabilities == "sum":
            self._levels_at = {own_resolutions(model)[self.tree.finest]: model.levels}
        self._transforms = {
            resolution: create_transform(model.config.preprocessing, resolution, train=False)
            for resolution in self._levels_at
        }
        self._check_risk()
        for note in () if self.restriction is None else self.restriction.notes:
            _logger.warning("%s", note)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        risk: float | None = None,
        only: str | Sequence[str] | None = None,
        species_list: str | os.PathLike[str] | None = None,
        level: str | None = None,
        batch_size: int = 32,
    ) -> Predictor:
        """Load a trained model and return its predictor.

        Args:
            name: a name with trained weights (`list_models(pretrained=True)`), the folder of a run or of a saved model,
                or `"hf-hub:OWNER/MODEL"`.
            risk: see `Predictor`, as the others.
            only: see `Predictor`.
            species_list: see `Predictor`.
            level: see `Predictor`.
            batch_size: see `Predictor`.

        Raises:
            FileNotFoundError: the folder does not exist, or is no saved model.
            ValueError: the name is unknown or has no trained weights, or as in `Predictor`.

        Examples:
            >>> Predictor.from_pretrained("mlph_tiny_critters", level="genus").levels
            ('family', 'genus')
        """
        model = load_trained(name)
        return cls(model, risk=risk, only=only, species_list=species_list, level=level, batch_size=batch_size)

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
        if isinstance(image, Tensor) and image.ndim == 4:
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
            with record_boxes() as localized:
                log_probs = self._log_probs(prepared)
            found = self._interpret(log_probs, [[image.detail] for image in prepared])
            predictions += [
                replace(one, file=image.file, boxes=boxes)
                for one, image, boxes in zip(found, prepared, self._boxes(localized, prepared), strict=True)
            ]
        return predictions

    def group(self, images: Sequence[ImageLike]) -> Prediction:
        """Predict an object from several images of it.

        The mean of their log-probabilities is normalized again (`fuse`). Of the images' thresholds the highest counts.
        The promised risk was calibrated for single images.

        Args:
            images: one or more images of the same object; errors as in `__call__`.

        Examples:
            >>> model = create_model("mlph", backbone="resnet18", hierarchy="critters", input_size=64)
            >>> Predictor(model).group([torch.rand(3, 96, 96), torch.rand(3, 64, 64)]).provenance.images
            2
        """
        if not images:
            raise ValueError("a group has no images; pass one or more of the same object")
        prepared = [self.prepare(image) for image in images]
        starts = range(0, len(images), self.batch_size)
        parts = [self._head_log_probs(prepared[start : start + self.batch_size]) for start in starts]
        fused = {level: fuse(torch.cat([part[level] for part in parts])) for level in self.model.levels}
        log_probs = marginalize(fused, self.model.hierarchy)
        return self._interpret(log_probs, [[image.detail for image in prepared]])[0]

    @property
    def levels_at(self) -> Mapping[int | None, tuple[str, ...]]:
        """The forward passes of an image: resolution -> the levels predicted at it."""
        return self._levels_at

    def prepare(self, image: ImageLike | PreparedImage) -> PreparedImage:
        """Read, convert and transform an image; threads may do this ahead of `predict_batch`.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the image cannot be read or converted.
        """
        if isinstance(image, PreparedImage):
            return image
        rgb = prepare_image(image)
        views = {resolution: transform(rgb) for resolution, transform in self._transforms.items()}
        detail = visible_detail(rgb, self.model.config.preprocessing.resize) if self.calibration else 0.0
        file = os.fspath(image) if isinstance(image, (str, os.PathLike)) else ""
        return PreparedImage(views, detail, file, crop_box_of(self.model.config.preprocessing, *rgb.size))

    def _boxes(
        self, localized: Sequence[Tensor], images: Sequence[PreparedImage]
    ) -> Sequence[Mapping[str, Box] | None]:
        """Return the boxes of the localized regions in each image; None if the model does not localize.

        Args:
            localized: for each resolution the boxes (N, 3, 4) in the model's input. Those of the finest level count.
            images: the N images.
        """
        finest = [self.model.levels[-1] in levels for levels in self._levels_at.values()].index(True)
        if not localized:
            return [None] * len(images)
        found = []
        for boxes, image in zip(localized[finest].tolist(), images, strict=True):
            left, top, right, bottom = image.crop
            x, y = (right - left), (bottom - top)
            inside = [(left + a * x, top + b * y, left + c * x, top + d * y) for a, b, c, d in boxes]
            found.append(dict(zip(REGIONS, inside, strict=True)))
        return found

    def _check_risk(self) -> None:
        """Check that the model keeps the promise; a model without calibration gets a note."""
        if self.calibration is not None:
            self.calibration.threshold(np.zeros(1, dtype=np.int64), self.risk)
        elif self.risk is not None:
            raise ValueError(f"the model has no calibration and promises no risk ({self.risk:g}): c2f-zoo calibrate")
        else:
            _logger.warning(
                "the model has no calibration, so that no prediction says how far it can be trusted; run "
                "`c2f-zoo calibrate` with validation images"
            )

    def _log_probs(self, images: Sequence[ImageLike | PreparedImage]) -> dict[str, Tensor]:
        """Return float64 log-probabilities (N, classes) of the predicted levels and above."""
        return marginalize(self._head_log_probs([self.prepare(image) for image in images]), self.model.hierarchy)

    @torch.inference_mode()
    def _head_log_probs(self, images: Sequence[PreparedImage]) -> dict[str, Tensor]:
        """Return float64 log-probabilities (N, classes) of the predicted levels."""
        weight = next(self.model.parameters())
        logits: dict[str, Tensor] = {}
        for resolution, levels in self._levels_at.items():
            x = torch.stack([image.views[resolution] for image in images])
            logits |= self.model(x.to(weight.device, weight.dtype), levels)
        check_finite(logits)
        logits = {level: logits[level].to(widest_dtype(weight.device)) for level in self.model.levels}
        return {level: z.cpu().double() for level, z in self.model.log_probs(logits).items()}

    def _interpret(self, log_probs: Mapping[str, Tensor], details: Sequence[Sequence[float]]) -> list[Prediction]:
        """Return the prediction of each object, from log-probabilities (N, classes) of the predicted levels and above.

        Args:
            log_probs: the log-probabilities.
            details: for each object the visible detail of its images.
        """
        arrays = {level: log_probs[level].numpy() for level in self.tree.levels}
        p, leaves = {level: np.exp(z) for level, z in arrays.items()}, None
        if self.restriction is not None:
            leaves = self.restriction.leaves
            heads = self.model.levels[-1:] if self.model.head.levels_are_marginals else self.model.levels
            own = [self.tree.depth(level) for level in heads]
            p = dict(zip(p, restrict(list(p.values()), leaves, self._nodes, own), strict=True))
            log_probs = mask_impossible(log_probs, leaves, self._nodes)
        labels = decode({level: log_probs[level] for level in self.model.levels}, self.tree, "joint").numpy()
        trusted = None
        if self.calibration is not None:
            trusted = find_trusted(self.calibration, arrays, self.tree, details, self.risk, leaves)
        return [
            self._prediction(number, path, {level: one[number] for level, one in p.items()}, trusted, len(own))
            for number, (path, own) in enumerate(zip(labels, details, strict=True))
        ]

    def _prediction(
        self, number: int, path: np.ndarray, p: Mapping[str, np.ndarray], trusted: Trusted | None, images: int
    ) -> Prediction:
        """Return the prediction of the object `number`."""
        restriction = None if self.restriction is None else self.restriction.text
        shown = {level: p[level] for level in self.levels}
        found = Prediction(self._steps(path, list(p.values())), tree=self.tree, probabilities=shown)
        if trusted is None or self.calibration is None:
            return replace(found, provenance=Provenance(images=images, restriction=restriction))
        calibrated = [level[number] for level in trusted.p.levels]
        steps, safe = self._steps(path, calibrated), trusted.p.nodes.paths[trusted.nodes[number]]
        trusted_path = self._steps(safe, calibrated)
        common = next((n for n, (a, b) in enumerate(zip(path, safe, strict=True)) if a != b), len(path))
        provenance = Provenance(
            rule=self.calibration.rule,
            risk=self.calibration.risk if self.risk is None else self.risk,
            threshold=float(trusted.threshold[number]),
            detail=float(trusted.detail[number]),
            group=int(trusted.group[number]),
            calibration_version=self.calibration.version,
            calibrated_on=str(self.calibration.about.get("date", "")),
            images=images,
            restriction=restriction,
        )
        return replace(found, trusted_path=trusted_path, guess=steps[common:], provenance=provenance)

    def _steps(self, path: np.ndarray, p: Sequence[np.ndarray]) -> list[Step]:
        """Return a path of labels, -1 below its end, down to the finest shown level and without repeats."""
        return [
            (level, self.tree.classes[depth][label], float(p[depth][label]))
            for depth, (level, label) in enumerate(zip(self.levels, path, strict=False))
            if label >= 0 and label not in self.tree.left_out[depth]
        ]


def _find_calibration(model: C2FModel) -> Calibration | None:
    """Return a model's calibration, or None with a note if the weights have changed since."""
    if model.calibration is None:
        return None
    found = Calibration.from_dict(model.calibration)
    found.check_levels(model.levels)
    is_known = bool(found.weights)  # a calibration made by hand names no weights
    return found if not is_known or calibration_of(model.state_dict(), model.calibration, "the model") else None


def load_trained(name: str | os.PathLike[str]) -> C2FModel:
    """Load a trained model: by the name of its weights, from a folder, or from the Hugging Face Hub.

    Args:
        name: see `Predictor.from_pretrained`.

    Raises:
        FileNotFoundError: the folder is no saved model.
        ValueError: the name is unknown or has no trained weights.

    Examples:
        >>> load_trained("mlph_tiny_critters").levels
        ('family', 'genus', 'species')
    """
    name = os.fspath(name)
    if name.startswith(_SOURCES):
        return create_model(name)
    folder = expand(name)
    if folder.is_dir():
        return create_model(f"local-dir:{folder}")
    if split_tag(name)[0] in MODELS:
        return create_model(name, pretrained=True)
    if Path(name).name == name:
        raise ValueError(f"there is no folder {name!r}, and it is an {unknown_name('model', name, _trained_names())}")
    return create_model(f"local-dir:{folder}")  # names the folder in its error


def _trained_names() -> list[str]:
    return [*WEIGHTS.names(), *MODELS.names()]
