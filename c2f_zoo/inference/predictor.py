"""Prediction of paths in the class tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from c2f_zoo.data.images import ImageLike, prepare_image
from c2f_zoo.data.transforms import create_transform
from c2f_zoo.decoding import decode, marginalize
from c2f_zoo.hierarchy.escape import printable
from c2f_zoo.inference.resolutions import levels_by_resolution
from c2f_zoo.model import C2FModel
from c2f_zoo.ops import check_finite, widest_dtype


@dataclass(frozen=True)
class Prediction:
    """A predicted path in the class tree, coarse to fine.

    Attributes:
        path: for each level (level, class name, probability in [0, 1]). The probability comes from the head, or for a
            level that the model does not predict from the sum over the class's descendants. With the head `hex`, an
            image may stop at a class, so that the probabilities of a level sum to less than 1.
    """

    path: list[tuple[str, str, float]]

    def __str__(self) -> str:
        return " > ".join(f"{printable(name)} ({probability:.2f})" for _, name, probability in self.path)


class Predictor:
    """A predictor of images' paths in the class tree.

    Each level sees the image at its own resolution, with one forward pass for each distinct resolution. The prediction
    is the path of the tree with the greatest product of the levels' probabilities (the decoding `joint`). It ends at
    the finest predicted level, or in a tree whose `ragged` is `"stop"` at the last class of its branch.

    Args:
        model: the model; it is put into evaluation mode.

    Examples:
        >>> model = create_model("mlph", backbone="resnet18", hierarchy="critters", input_size=64)
        >>> predictor = Predictor(model)
        >>> prediction = predictor(Image.new("RGB", (96, 96)))
        >>> [level for level, name, probability in prediction.path]
        ['family', 'genus', 'species']
        >>> len(predictor([torch.rand(3, 96, 96), Image.new("L", (120, 80))]))
        2
    """

    def __init__(self, model: C2FModel) -> None:
        self.model = model.eval()
        self._levels_at = levels_by_resolution(model)
        self._transforms = {
            resolution: create_transform(model.config.preprocessing, resolution, train=False)
            for resolution in self._levels_at
        }

    @overload
    def __call__(self, image: list[ImageLike]) -> list[Prediction]: ...

    @overload
    def __call__(self, image: ImageLike) -> Prediction: ...

    def __call__(self, image: ImageLike | list[ImageLike]) -> Prediction | list[Prediction]:
        """Predict an image, or a list of images as one batch.

        Args:
            image: a path, an open file, a PIL image, an array or a tensor, of any size and mode; see
                `c2f_zoo.data.prepare_image`, which converts it like the images of a training. Or a list of these.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: an image cannot be read or converted, or the model's outputs are not finite.
        """
        return self.predict_batch(image) if isinstance(image, list) else self.predict_batch([image])[0]

    def predict_batch(self, images: Sequence[ImageLike]) -> list[Prediction]:
        """Predict images of any kinds, sizes and modes as one batch; errors as in `__call__`."""
        if not images:
            return []
        tree = self.model.hierarchy
        log_probs = self._log_probs(images)
        labels = decode({level: log_probs[level] for level in self.model.levels}, tree, "joint").tolist()
        return [
            Prediction(
                [
                    (level, tree.class_names(level)[label], float(log_probs[level][number, label].exp()))
                    for level, label, left_out in zip(tree.levels, path, tree.left_out, strict=True)
                    if level in log_probs and label not in left_out
                ]
            )
            for number, path in enumerate(labels)
        ]

    @torch.inference_mode()
    def _log_probs(self, images: Sequence[ImageLike]) -> dict[str, Tensor]:
        """Return float64 log-probabilities (N, classes) of the predicted levels and above."""
        weight = next(self.model.parameters())
        prepared = [prepare_image(image) for image in images]
        logits: dict[str, Tensor] = {}
        for resolution, levels in self._levels_at.items():
            x = torch.stack([self._transforms[resolution](image) for image in prepared])
            logits |= self.model(x.to(weight.device, weight.dtype), levels)
        check_finite(logits)
        logits = {level: logits[level].to(widest_dtype(weight.device)) for level in self.model.levels}
        log_probs = {level: z.cpu().double() for level, z in self.model.log_probs(logits).items()}
        return marginalize(log_probs, self.model.hierarchy)
