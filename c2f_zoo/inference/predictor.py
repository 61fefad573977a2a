"""Prediction of paths in the class tree, and of the part that can be trusted."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from c2f_zoo.backbones.part_rcnn import REGIONS, record_boxes
from c2f_zoo.data.transforms import create_transform
from c2f_zoo.inference.calibration import Calibration
from c2f_zoo.inference.image_predictor import ImagePredictor, PreparedImage
from c2f_zoo.inference.prediction import Box
from c2f_zoo.inference.resolutions import levels_by_resolution, own_resolutions
from c2f_zoo.io.files import digest_text
from c2f_zoo.io.weights import digest_weights
from c2f_zoo.model import C2FModel, calibration_of
from c2f_zoo.ops import check_finite, widest_dtype
from c2f_zoo.paths import expand
from c2f_zoo.registry import unknown_name
from c2f_zoo.zoo import MODELS, WEIGHTS, split_tag
from c2f_zoo.zoo.create import create_model

_SOURCES = ("hf-hub:", "local-dir:")


class Predictor(ImagePredictor):
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

    Attributes:
        model: the model.
        levels_at: the forward passes: resolution -> the levels that are predicted at it.

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
        self.model = model.eval()
        options = {"risk": risk, "only": only, "species_list": species_list, "level": level}
        calibration = _find_calibration(model)
        super().__init__(model.config, model.head.levels_are_marginals, calibration, batch_size, **options)
        self.levels_at = levels_by_resolution(model)
        if calibration is not None and calibration.probabilities == "sum":
            self.levels_at = {own_resolutions(model)[self.tree.finest]: model.levels}
        self._transforms = {
            resolution: create_transform(model.config.preprocessing, resolution, train=False)
            for resolution in self.levels_at
        }

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

    def views_of(self, image: Image.Image) -> dict[int | None, Tensor]:
        """Return the network's input (channels, height, width) at each distinct resolution, from an RGB image."""
        return {resolution: transform(image) for resolution, transform in self._transforms.items()}

    @torch.inference_mode()
    def head_log_probs(self, images: Sequence[PreparedImage]) -> dict[str, np.ndarray]:
        """Return log-probabilities float64 (N, classes) of the levels that the model predicts.

        Raises:
            ValueError: the model's outputs are not finite.
        """
        weight = next(self.model.parameters())
        logits: dict[str, Tensor] = {}
        for resolution, levels in self.levels_at.items():
            x = torch.stack([image.views[resolution] for image in images])
            logits |= self.model(x.to(weight.device, weight.dtype), levels)
        check_finite(logits)
        logits = {level: logits[level].to(widest_dtype(weight.device)) for level in self.model.levels}
        return {level: z.cpu().double().numpy() for level, z in self.model.log_probs(logits).items()}

    def predict_log_probs(
        self, images: Sequence[PreparedImage]
    ) -> tuple[dict[str, np.ndarray], Sequence[Mapping[str, Box] | None]]:
        """Return `head_log_probs`, and the boxes of each image, see `Prediction`."""
        with record_boxes() as localized:
            log_probs = self.head_log_probs(images)
        return log_probs, self._boxes(localized, images)

    def _boxes(
        self, localized: Sequence[Tensor], images: Sequence[PreparedImage]
    ) -> Sequence[Mapping[str, Box] | None]:
        """Return the boxes of the localized regions in each image; None if the model does not localize.

        Args:
            localized: for each resolution the boxes (N, 3, 4) in the model's input. Those of the finest level count.
            images: the N images.
        """
        finest = [self.model.levels[-1] in levels for levels in self.levels_at.values()].index(True)
        if not localized:
            return [None] * len(images)
        found = []
        for boxes, image in zip(localized[finest].tolist(), images, strict=True):
            left, top, right, bottom = image.crop
            x, y = (right - left), (bottom - top)
            inside = [(left + a * x, top + b * y, left + c * x, top + d * y) for a, b, c, d in boxes]
            found.append(dict(zip(REGIONS, inside, strict=True)))
        return found

    def identity(self) -> dict[str, str]:
        """Return digests of the model's weights, configuration and calibration, by name."""
        return {
            "weights": digest_weights(self.model.state_dict()),
            "configuration": digest_text(self.model.config.to_json()),
            "calibration": digest_text(json.dumps(self.model.calibration, sort_keys=True)),
        }


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
