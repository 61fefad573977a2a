"""Probes: classifiers of frozen features, fitted by L-BFGS.

The penalty on the weights is chosen by validation accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from c2f_zoo.data import LabelledImages, TransformedImages, create_transform
from c2f_zoo.heads import create_head
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.losses import cross_entropy
from c2f_zoo.metrics import TreeMetrics
from c2f_zoo.model import C2FModel

Features = Mapping[str, Tensor]  # level -> (n, D), of the same images at that level's resolution
Classifier = Callable[[Features], dict[str, Tensor]]  # returns level -> log-probabilities (n, classes)


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of images and their labels.

    Args:
        features: level -> features (n, D).
        labels: int64 labels (n, levels of the tree); -1 where unknown.
    """

    features: Features
    labels: Tensor

    def select(self, indices: Sequence[int]) -> LabelledFeatures:
        """Return the features and labels of some images."""
        return LabelledFeatures({level: x[indices] for level, x in self.features.items()}, self.labels[indices])


@dataclass(frozen=True)
class Probe:
    """A fitted classifier.

    Args:
        classify: a function of features that returns log-probabilities.
        penalties: the chosen penalty of each level.
        val_accuracy: the validation accuracy of each level, in [0, 1].
    """

    classify: Classifier
    penalties: Mapping[str, float]
    val_accuracy: Mapping[str, float]

    @property
    def mean_val_accuracy(self) -> float:
        """The mean of the levels' validation accuracies."""
        return sum(self.val_accuracy.values()) / len(self.val_accuracy)


class Standardize(nn.Module):
    """Standardization by the mean and the standard deviation of given features.

    Args:
        x: features (n, D).

    Examples:
        >>> Standardize(torch.tensor([[1.0], [2.0], [3.0]]))(torch.tensor([[4.0]]))
        tensor([[2.0000]])
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.mean, self.std = x.mean(dim=0), x.std(dim=0) + 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


@torch.no_grad()
def extract_features(
    model: C2FModel, dataset: LabelledImages, resolutions: Mapping[str, int | None]
) -> dict[str, Tensor]:
    """Extract pooled features of all images, for each level at its resolution.

    Images are center-cropped.

    Args:
        model: the model, in evaluation mode; its head is not used.
        dataset: the dataset.
        resolutions: level -> resolution in pixels. None or missing: full size.

    Returns:
        level -> features (images, D); levels of the same resolution share a tensor.
    """
    features: dict[int | None, Tensor] = {}
    for resolution in {resolutions.get(level) for level in model.levels}:
        transform = create_transform(model.config.preprocessing, resolution, train=False)
        loader = DataLoader(TransformedImages(dataset, transform), 32)
        view = model.config.nearest_level(resolution)
        maps = (model.forward_features(images, view) for images, *_ in loader)
        features[resolution] = torch.cat([model.forward_pool(y) for y in maps])
    return {level: features[resolutions.get(level)] for level in model.levels}


def probe_head(
    name: str,
    train: LabelledFeatures,
    val: LabelledFeatures,
    tree: Hierarchy,
    penalties: Sequence[float],
    max_iter: int,
    seed: int,
) -> Probe:
    """Fit a head with each penalty and keep the one with the best validation accuracy.

    The validation accuracy is the mean over the levels.

    Args:
        name: name of the head.
        train: the training images.
        val: the validation images.
        tree: the class tree.
        penalties: the penalties to choose from, on the sum of squared weights.
        max_iter: iterations of L-BFGS.
        seed: seed of the head's initial weights.
    """
    # One mean and deviation for all levels, since a head may use one classifier for several levels.
    standardize = Standardize(torch.cat(list(train.features.values())))
    train_x = {level: standardize(x) for level, x in train.features.items()}
    probes = []
    for penalty in penalties:
        head = fit_head(name, train_x, train.labels, tree, penalty, max_iter, seed)
        classify = partial(_classify_by_head, head, standardize)
        probes.append(Probe(classify, dict.fromkeys(tree.levels, penalty), level_accuracies(classify, val, tree)))
    return max(probes, key=lambda probe: probe.mean_val_accuracy)


def fit_head(
    name: str, features: Features, labels: Tensor, tree: Hierarchy, penalty: float, max_iter: int, seed: int
) -> nn.Module:
    """Fit a head to all levels, with an l2 penalty on its weight matrices.

    The loss is the sum of the levels' cross-entropies.

    Args:
        name: name of the head.
        features: standardized features (n, D) of each level.
        labels: int64 labels (n, levels); -1 where unknown.
        tree: the class tree.
        penalty: factor of the sum of squared weights.
        max_iter: iterations of L-BFGS.
        seed: seed of the initial weights.
    """
    torch.manual_seed(seed)
    head = create_head(name, next(iter(features.values())).shape[1], tree, tree.levels)
    weights = [parameter for parameter in head.parameters() if parameter.ndim > 1]

    def loss() -> Tensor:
        log_probs = head_log_probs(head, features)
        losses = [
            cross_entropy(log_probs[level], labels[:, depth], tree.truncate(level))
            for depth, level in enumerate(tree.levels)
        ]
        return torch.stack(losses).sum() + penalty * torch.stack([weight.square().sum() for weight in weights]).sum()

    minimize(loss, list(head.parameters()), max_iter)
    return head.requires_grad_(False)


def head_log_probs(head: nn.Module, features: Features) -> dict[str, Tensor]:
    """Compute each level's log-probabilities (n, classes) from its own features."""
    logits = {level: head(x, (level,))[level] for level, x in features.items()}
    return head.log_probs(logits)  # type: ignore[operator]


def _classify_by_head(head: nn.Module, standardize: Standardize, features: Features) -> dict[str, Tensor]:
    return head_log_probs(head, {level: standardize(x) for level, x in features.items()})


def probe_linear(
    train: LabelledFeatures, val: LabelledFeatures, tree: Hierarchy, penalties: Sequence[float], max_iter: int
) -> Probe:
    """Fit a logistic regression for each level, each with its best penalty.

    Args:
        train: the training images.
        val: the validation images.
        tree: the class tree.
        penalties: the penalties to choose from, on the sum of squared weights.
        max_iter: iterations of L-BFGS.
    """
    classifiers: dict[str, nn.Module] = {}
    chosen: dict[str, float] = {}
    best: dict[str, float] = {}
    for depth, (level, count) in enumerate(tree.num_classes.items()):
        standardize = Standardize(train.features[level])
        x, known = standardize(train.features[level]), train.labels[:, depth] >= 0
        for penalty in penalties:
            linear = fit_logistic_regression(x[known], train.labels[known, depth], count, penalty, max_iter)
            classifier = nn.Sequential(standardize, linear, nn.LogSoftmax(dim=1))
            accuracy = _accuracy(classifier(val.features[level]), tree.cut_repeats(val.labels)[:, depth])
            if level not in best or accuracy > best[level]:
                classifiers[level], chosen[level], best[level] = classifier, penalty, accuracy
    return Probe(partial(_classify_each, classifiers), chosen, best)


def fit_logistic_regression(x: Tensor, labels: Tensor, num_classes: int, penalty: float, max_iter: int) -> nn.Linear:
    """Fit a multinomial logistic regression with an l2 penalty on its weights.

    Args:
        x: standardized features (n, D).
        labels: int64 labels (n,), all known.
        num_classes: number of classes.
        penalty: factor of the sum of squared weights.
        max_iter: iterations of L-BFGS.
    """
    linear = nn.Linear(x.shape[1], num_classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    minimize(
        lambda: F.cross_entropy(linear(x), labels) + penalty * linear.weight.square().sum(),
        list(linear.parameters()),
        max_iter,
    )
    return linear.requires_grad_(False)


def _classify_each(classifiers: Mapping[str, nn.Module], features: Features) -> dict[str, Tensor]:
    return {level: classify(features[level]) for level, classify in classifiers.items()}


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    known = labels >= 0
    return (scores.argmax(dim=1) == labels)[known].double().mean().item()


def minimize(loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], max_iter: int) -> None:
    """Minimize a loss by L-BFGS, without a learning rate.

    Args:
        loss: a function that computes the loss.
        parameters: the parameters.
        max_iter: maximum number of iterations.
    """
    optimizer = torch.optim.LBFGS(parameters, max_iter=max_iter, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]


def score_probe(classify: Classifier, images: LabelledFeatures, tree: Hierarchy) -> TreeMetrics:
    """Compute all metrics of a classifier."""
    metrics = TreeMetrics(tree)
    metrics.update(classify(images.features), images.labels)
    return metrics


def level_accuracies(classify: Classifier, images: LabelledFeatures, tree: Hierarchy) -> dict[str, float]:
    """Compute the accuracy of each level's most probable class, in [0, 1]."""
    log_probs = classify(images.features)
    labels = tree.cut_repeats(images.labels)
    return {level: _accuracy(log_probs[level], labels[:, depth]) for depth, level in enumerate(tree.levels)}
