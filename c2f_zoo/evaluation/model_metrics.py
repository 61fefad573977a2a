"""All metrics of a model's predictions, each level at its own resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from c2f_zoo.config import format_resolution
from c2f_zoo.decoding import decode, marginalize
from c2f_zoo.evaluation.confusion import has_confusion
from c2f_zoo.inference.resolutions import own_resolutions
from c2f_zoo.metrics import LCAHeights, TopKAccuracy, TreeMetrics
from c2f_zoo.model import C2FModel


class ModelMetrics:
    """All metrics of a model's predictions, accumulated over batches.

    They cover the levels of the tree down to the finest predicted level.

    Args:
        model: the model.
        decodings: names of decodings.
        device: the device of the predictions.

    Examples:
        >>> model = create_model("mlph_tiny_critters").eval()
        >>> metrics = ModelMetrics(model, ["joint"], torch.device("cpu"))
        >>> image = torch.zeros(1, *model.config.preprocessing.input_size)
        >>> log_probs = model.log_probs(model(image))
        >>> metrics.update(dict.fromkeys([None, 32, 12], log_probs), target=torch.tensor([[0, 1, 3]]))
        >>> sum(metrics.compute()["lca_heights"]["joint"])
        1
    """

    def __init__(self, model: C2FModel, decodings: Sequence[str], device: torch.device) -> None:
        self.tree = model.hierarchy.truncate(model.levels[-1])
        self.predicted = model.levels
        self.own = own_resolutions(model)
        self.tree_metrics = TreeMetrics(self.tree, decodings).to(device)
        self.heights = {decoding: LCAHeights(self.tree).to(device) for decoding in decodings}
        self.accuracy = {
            (level, resolution): TopKAccuracy(self.tree.truncate(level)).to(device)
            for level in self.tree.levels
            for resolution in self.resolutions
        }
        self.confusions = {
            level: MulticlassConfusionMatrix(count, ignore_index=-1).to(device)
            for level, count in self.tree.num_classes.items()
            if has_confusion(count)
        }

    @property
    def resolutions(self) -> list[int | None]:
        """The distinct resolutions, the leaf level's first."""
        return list(dict.fromkeys(reversed(self.own.values())))

    def update(self, log_probs: Mapping[int | None, Mapping[str, Tensor]], target: Tensor) -> None:
        """Add a batch.

        Args:
            log_probs: resolution -> level -> log-probabilities (N, classes), for the predicted levels.
            target: int64 labels (N, levels of the tree); -1 where unknown.
        """
        own = {level: log_probs[self.own[level]][level] for level in self.predicted}
        self.tree_metrics.update(own, target)
        for decoding, heights in self.heights.items():
            heights.update(decode(own, self.tree, decoding), target)
        cut = self.tree.cut_repeats(target)
        for depth, (level, z) in enumerate(marginalize(own, self.tree).items()):
            if level in self.confusions:
                self.confusions[level].update(z.argmax(dim=1), cut[:, depth])
        for resolution, at_resolution in log_probs.items():
            for depth, (level, z) in enumerate(marginalize(at_resolution, self.tree).items()):
                self.accuracy[level, resolution].update(z, target[:, depth])

    def compute(self) -> dict[str, Any]:
        """Compute the metrics over all processes; all must call this method.

        Returns:
            The content of `metrics.json`: levels with their numbers of classes, predicted levels, resolutions, metrics
            that do not depend on the decoding, metrics of each decoding, numbers of images at each height, and accuracy
            by level and resolution.
        """
        decodings = {decoding: self.tree_metrics.report(decoding) for decoding in self.heights}
        return {
            "levels": self.tree.num_classes,
            "predicted": list(self.predicted),
            "resolutions": {level: format_resolution(resolution) for level, resolution in self.own.items()},
            "any_decoding": self.tree_metrics.report(),
            "decodings": decodings,
            "lca_heights": {decoding: heights.compute().tolist() for decoding, heights in self.heights.items()},
            "accuracy_by_resolution": {
                level: {format_resolution(resolution): value for resolution, value in cells.items()}
                for level, cells in self.compute_accuracy().items()
            },
        }

    def compute_accuracy(self) -> dict[str, dict[int | None, float]]:
        """Compute each level's accuracy at each resolution, over all processes."""
        return {
            level: {at: float(self.accuracy[level, at].compute()) for at in self.resolutions}
            for level in self.tree.levels
        }

    def compute_confusions(self) -> dict[str, Tensor]:
        """Compute confusion matrices (classes, classes), over all processes.

        Levels with one class or more than 2000 are left out.
        """
        return {level: matrix.compute().cpu() for level, matrix in self.confusions.items()}
