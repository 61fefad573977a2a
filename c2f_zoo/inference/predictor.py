"""From an image to a path in the tree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from c2f_zoo.data.transforms import create_transform
from c2f_zoo.decoding import decode, marginalize
from c2f_zoo.model import C2FModel


@dataclass(frozen=True)
class Prediction:
    """A path in the tree, coarse to fine.

    Attributes:
        path: for each level (level, class name, probability in [0, 1]). A probability is the level's own: what the
            head gives for it, or where the model does not answer it, the sum over its children. Where an image may
            stop at a class (the head `hex`), the probabilities of a level sum to less than 1.
    """

    path: list[tuple[str, str, float]]

    def __str__(self) -> str:
        return " > ".join(f"{name} ({probability:.2f})" for _, name, probability in self.path)


class Predictor:
    """Names what is in an image, at every level of the tree.

    Each level sees the image at the resolution that the model was trained to see it at for that level.
    The answer is the path with the greatest product of the levels' probabilities (the decoding `joint`), so that it
    always is a path in the tree. It ends at the finest level that the model answers.

    Args:
        model: the model; it is put into evaluation mode.

    Examples:
        >>> model = create_model("mlph", backbone="resnet18", hierarchy="critters", input_size=64)
        >>> prediction = Predictor(model)(Image.new("RGB", (96, 96)))
        >>> [level for level, name, probability in prediction.path]
        ['family', 'genus', 'species']
    """

    def __init__(self, model: C2FModel) -> None:
        self.model = model.eval()
        self._transforms = {
            level: create_transform(model.config.preprocessing, model.config.resolutions.get(level), train=False)
            for level in model.levels
        }

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> Prediction:
        """Predicts for one image of any size and mode."""
        tree = self.model.hierarchy
        probabilities = self._probabilities(image.convert("RGB"))
        answered = {level: probabilities[level].log()[None] for level in self.model.levels}
        labels = decode(answered, tree, "joint")[0].tolist()
        return Prediction(
            [
                (level, tree.class_names(level)[label], float(probabilities[level][label]))
                for level, label in zip(tree.levels, labels, strict=True)
                if level in probabilities
            ]
        )

    def _probabilities(self, image: Image.Image) -> dict[str, Tensor]:
        """Float64 probabilities (classes,) of each level that is answered, or follows from one that is."""
        weight = next(self.model.parameters())
        logits = {}
        for level, transform in self._transforms.items():
            x = transform(image)[None].to(weight.device, weight.dtype)
            logits[level] = self.model(x, (level,))[level].double()
        log_probs = marginalize(self.model.log_probs(logits), self.model.hierarchy)
        return {level: z[0].exp().cpu() for level, z in log_probs.items()}
