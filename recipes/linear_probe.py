"""The baseline of train.py: linear classifiers on a frozen backbone's average-pooled features.

    python recipes/linear_probe.py --config recipes/configs/cub_probe_lite0.yaml

Each level has a classifier of its own and sees images at its own resolution, as in train.py, with the same split.
Features are taken once, from centre crops, and standardised; logistic regression is fitted by L-BFGS to the end. The
penalty is chosen on the validation part, and the test images are scored once.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor
from torch.utils.data import DataLoader

from c2f_zoo.data import LabelledImages, TransformedImages, create_dataset, create_transform, train_and_val
from c2f_zoo.model import C2FModel
from c2f_zoo.zoo.create import create_model

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def main(
    dataset: str,
    dataset_options: dict[str, Any],
    model_options: dict[str, Any],
    resolutions: dict[str, int | None],
    val_fraction: float = 0.1,
    seed: int = 0,
    output: str = "probe.csv",
) -> None:
    """Fits and scores a linear probe.

    Args:
        dataset: one of `c2f-zoo list datasets`.
        dataset_options: what the dataset takes further.
        model_options: what `create_model` takes further: backbone, taps, weights.
        resolutions: for each level the shorter side in pixels to shrink images to; null or missing: none.
        val_fraction: share of each class's training images that chooses the penalty.
        seed: seed of the split.
        output: the CSV file to write.
    """
    train_set, train_indices, val_indices = train_and_val(dataset, val_fraction, seed, **dataset_options)
    test_set = create_dataset(dataset, "test", **dataset_options)
    model = create_model("mlph", hierarchy=train_set.hierarchy, pooling="avg", **model_options).eval()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rows = []
    for level in model.levels:
        train_x, train_y = extract(model, train_set, train_indices, level, resolutions.get(level))
        val_x, val_y = extract(model, train_set, val_indices, level, resolutions.get(level))
        test_x, test_y = extract(model, test_set, list(range(len(test_set))), level, resolutions.get(level))
        mean, std = train_x.mean(dim=0), train_x.std(dim=0) + 1e-6
        fits = [fit((train_x - mean) / std, train_y, penalty) for penalty in PENALTIES]
        scores = [accuracy(weights, (val_x - mean) / std, val_y) for weights in fits]
        best = max(range(len(fits)), key=scores.__getitem__)
        score = accuracy(fits[best], (test_x - mean) / std, test_y)
        row = {"level": level, "resolution": resolutions.get(level), "penalty": PENALTIES[best]}
        rows.append(row | {"val_accuracy": scores[best], "accuracy": score, "images": len(test_y)})
        print(f"{level}: test accuracy {100 * score:.1f} %, validation {100 * scores[best]:.1f} %", flush=True)
    with open(Path(output), "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@torch.no_grad()
def extract(
    model: C2FModel, dataset: LabelledImages, indices: list[int], level: str, resolution: int | None
) -> tuple[Tensor, Tensor]:
    """Pooled features (n, D) of centre crops at one resolution, and the labels (n,) of one level."""
    transform = create_transform(model.config.preprocessing, resolution, train=False)
    features, labels = [], []
    for images, targets, *_ in DataLoader(TransformedImages(dataset, transform, indices), 32):
        features.append(model.forward_pool(model.forward_features(images)))
        labels.append(targets[:, model.hierarchy.depth(level)])
    return torch.cat(features), torch.cat(labels)


def fit(x: Tensor, y: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with an l2 penalty on the weights."""
    weight = torch.zeros(x.shape[1], int(y.max()) + 1, requires_grad=True)
    bias = torch.zeros(weight.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, y) + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return weight.detach(), bias.detach()


def accuracy(weights: tuple[Tensor, Tensor], x: Tensor, y: Tensor) -> float:
    weight, bias = weights
    return ((x @ weight + bias).argmax(dim=1) == y).double().mean().item()


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
