"""Compare every head and every decoding on frozen features of one backbone.

    python recipes/ablation.py --config recipes/configs/ablation_heads.yaml                                 # critters
    python recipes/ablation.py --config recipes/configs/ablation_heads.yaml --dataset cub --dataset_options.root FOLDER

As in train.py every level is seen at its own resolution, with the same split. The backbone's last features, averaged,
are taken once, from centre crops, and standardised; a head is then fitted to all levels at once (the sum of their
cross-entropies) by L-BFGS, which has no learning rate to choose. The penalty on its weights is chosen on the validation
part; the test images are scored once, with every metric of `c2f_zoo.metrics`, under every decoding.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader
from train import write_csv

from c2f_zoo.data import LabelledImages, TransformedImages, create_dataset, create_transform, labels_of, train_and_val
from c2f_zoo.decoding import DECODINGS
from c2f_zoo.heads import Head, create_head, list_heads
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.losses import cross_entropy
from c2f_zoo.metrics import TreeMetrics, metric_info
from c2f_zoo.model import C2FModel
from c2f_zoo.zoo.create import create_model

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
FIRST_COLUMNS = ("head", "decoding", "penalty", "val_accuracy", "images")
Features = dict[str, Tensor]  # for each level (n, D), of the same images at that level's resolution


def main(
    dataset: str,
    dataset_options: dict[str, Any],
    model_options: dict[str, Any],
    resolutions: dict[str, int | None],
    heads: list[str] | None = None,
    val_fraction: float = 0.1,
    max_iter: int = 100,
    seed: int = 0,
    output: str = "runs/ablation-heads.csv",
) -> None:
    """Fits and scores every head.

    Args:
        dataset: one of `c2f-zoo list datasets`.
        dataset_options: what the dataset takes further.
        model_options: what `create_model` takes further: backbone, taps, weights.
        resolutions: for each level the shorter side in pixels to shrink images to; null or missing: none.
        heads: which; default all.
        val_fraction: share of each class's training images that chooses the penalty.
        max_iter: iterations of L-BFGS.
        seed: seed of the split and of the heads' weights.
        output: the CSV file to write.
    """
    train_set, train_indices, val_indices = train_and_val(dataset, val_fraction, seed, **dataset_options)
    test_set = create_dataset(dataset, "test", **dataset_options)
    model = create_model("mlph", hierarchy=train_set.hierarchy, pooling="avg", **model_options).eval()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    labels, test_labels = labels_of(train_set), labels_of(test_set)
    known = extract(model, train_set, resolutions)
    mean, std = moments({level: x[train_indices] for level, x in known.items()})
    known = {level: (x - mean) / std for level, x in known.items()}
    train_x, val_x = ({level: x[part] for level, x in known.items()} for part in (train_indices, val_indices))
    test_x = {level: (x - mean) / std for level, x in extract(model, test_set, resolutions).items()}

    rows: list[dict[str, Any]] = []
    for name in heads or list_heads():
        fits = [
            fit(name, train_x, labels[train_indices], model.hierarchy, penalty, max_iter, seed) for penalty in PENALTIES
        ]
        scores = [mean_accuracy(score(head, val_x, labels[val_indices], model.hierarchy)) for head in fits]
        best = max(range(len(fits)), key=scores.__getitem__)
        metrics = score(fits[best], test_x, test_labels, model.hierarchy)
        for how in DECODINGS.load_all():
            first = (name, how, PENALTIES[best], scores[best], len(test_set))
            rows.append({**dict(zip(FIRST_COLUMNS, first, strict=True)), **metrics.report(how), **metrics.report()})
        print(f"{name}: penalty {PENALTIES[best]:g}, validation accuracy {100 * scores[best]:.1f} %", flush=True)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    write_csv(Path(output), rows)
    print_tables(rows, metrics.report(next(iter(DECODINGS.load_all()))))
    print(f"written to {output}")


@torch.no_grad()
def extract(model: C2FModel, dataset: LabelledImages, resolutions: dict[str, int | None]) -> Features:
    """Pooled features (n, D) of all images' centre crops, for each level at its resolution."""
    at: dict[int | None, Tensor] = {}
    for resolution in {resolutions.get(level) for level in model.levels}:
        transform = create_transform(model.config.preprocessing, resolution, train=False)
        loader = DataLoader(TransformedImages(dataset, transform), 32)
        at[resolution] = torch.cat([model.forward_pool(model.forward_features(images)) for images, *_ in loader])
    return {level: at[resolutions.get(level)] for level in model.levels}


def moments(features: Features) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over all levels: a head may read several of them by one classifier."""
    everything = torch.cat(list(features.values()))
    return everything.mean(dim=0), everything.std(dim=0) + 1e-6


def fit(
    name: str, features: Features, labels: Tensor, tree: Hierarchy, penalty: float, max_iter: int, seed: int
) -> Head:
    """A head, fitted to the sum of all levels' cross-entropies with an l2 penalty on its weight matrices."""
    torch.manual_seed(seed)
    head = create_head(name, next(iter(features.values())).shape[1], tree, tree.levels)
    trees = {level: tree.truncate(level) for level in tree.levels}
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=max_iter, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        log_probs = answers(head, features)
        losses = [
            cross_entropy(log_probs[level], labels[:, depth], trees[level]) for depth, level in enumerate(tree.levels)
        ]
        weights = [parameter for parameter in head.parameters() if parameter.ndim > 1]
        loss = torch.stack(losses).sum() + penalty * torch.stack([weight.square().sum() for weight in weights]).sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return head


def answers(head: Head, features: Features) -> dict[str, Tensor]:
    """Log-probabilities of each level, each from its own features."""
    logits = {level: head(x, (level,))[level] for level, x in features.items()}
    return head.log_probs(logits)


@torch.no_grad()
def score(head: Head, features: Features, labels: Tensor, tree: Hierarchy) -> TreeMetrics:
    metrics = TreeMetrics(tree)
    metrics.update(answers(head, features), labels)
    return metrics


def mean_accuracy(metrics: TreeMetrics) -> float:
    """Over the levels, each by itself."""
    report = metrics.report()
    scores = [report[f"{level}/top1"] for level in metrics.hierarchy.levels]
    return sum(scores) / len(scores)


def print_tables(rows: list[dict[str, Any]], of_decoding: Collection[str]) -> None:
    """A table for each head: shares in %, heights in levels of the tree."""
    for name in dict.fromkeys(row["head"] for row in rows):
        chosen = [row for row in rows if row["head"] == name]
        table = Table(title=f"{name}, {chosen[0]['images']} test images: shares in %, heights in levels of the tree")
        table.add_column("metric")
        for title in ("any decoding", *DECODINGS.load_all()):
            table.add_column(title, justify="right")
        for key in list(chosen[0])[len(FIRST_COLUMNS) :]:
            cells = [shown(key, row[key]) for row in chosen]
            table.add_row(key, *(["", *cells] if key in of_decoding else cells[:1]))
        Console(width=110).print(table)


def shown(metric: str, value: float) -> str:
    return f"{value:.3f}" if metric_info(metric).unit == "levels" else f"{100 * value:.1f}"


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
