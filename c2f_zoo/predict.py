"""From a picture to a path in the tree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from c2f_zoo.data.transforms import create_transform
from c2f_zoo.model import C2FModel


@dataclass(frozen=True)
class Prediction:
    """A path in the tree, coarse to fine.

    Attributes:
        path: for each level (level, class name, probability in [0, 1]). A probability is the level's own:
            what its classifier gives, or where the model has none for it, the sum over its finest classes.
    """

    path: list[tuple[str, str, float]]

    def __str__(self) -> str:
        return " > ".join(f"{name} ({probability:.2f})" for _, name, probability in self.path)


class Predictor:
    """Names what is in a picture, at every level of the tree.

    Each level sees the picture at the resolution that the model was trained to see it at for that level.
    The answer is the path with the greatest product of the levels' probabilities, so that it always is a
    path in the tree.

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
        """Predicts for one picture of any size and mode."""
        tree = self.model.hierarchy
        probabilities = self._probabilities(image.convert("RGB"))
        fine = torch.arange(tree.num_classes[tree.finest])
        ancestors = {level: tree.to_parent(fine, level) for level in tree.levels}
        scores = sum(
            (probabilities[level].log()[ancestors[level]] for level in self.model.levels),
            start=torch.zeros(len(fine)),
        )
        best = int(scores.argmax())
        labels = [int(ancestors[level][best]) for level in tree.levels]
        return Prediction(
            [
                (level, tree.class_names(level)[label], float(probabilities[level][label]))
                for level, label in zip(tree.levels, labels, strict=True)
                if level in probabilities
            ]
        )

    def _probabilities(self, image: Image.Image) -> dict[str, Tensor]:
        weight = next(self.model.parameters())
        tree = self.model.hierarchy
        found = {}
        for level, transform in self._transforms.items():
            x = transform(image)[None].to(weight.device, weight.dtype)
            found[level] = self.model(x, (level,))[level][0].double().softmax(0).cpu()
        if tree.finest in found:
            fine = torch.arange(tree.num_classes[tree.finest])
            for level in tree.levels:
                if level not in found:
                    sums = torch.zeros(tree.num_classes[level], dtype=torch.float64)
                    found[level] = sums.index_add(0, tree.to_parent(fine, level), found[tree.finest])
        return found
