"""Check that heat maps show what a model uses, and that they depend on its weights.

    python recipes/benchmarks/heat_maps.py --models '{mlph_tiny_critters: {dataset: critters}}'

**Deletion.** The hottest part of an image is blurred, and the probability of the predicted class measured again. It
must fall further than if a part of the same size and shape is blurred at a random place, or the hottest part of another
image, which is where objects usually are.

**Shuffled weights** (Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018). The weights of the head are
shuffled, then those of the pooling too, then those of the backbone, and the heat maps of the same class computed again.
Their rank correlation with those of the trained model must fall to that of two different images.

Each check writes a CSV file, with intervals of 95 % by the bootstrap over images.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor

from c2f_zoo.data import create_dataset
from c2f_zoo.evaluation.ablation_summary import estimate_mean
from c2f_zoo.evaluation.heat_map_checks import (
    STEPS,
    hide,
    hottest,
    rank_correlations,
    shift,
    shuffle_weights,
    sum_heat,
)
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.inference.heat_maps import ATTRIBUTIONS, heat_of
from c2f_zoo.inference.predictor import Predictor
from c2f_zoo.io.files import write_csv
from c2f_zoo.io.freed_memory import keep_freed_memory
from c2f_zoo.model import C2FModel
from c2f_zoo.paths import expand
from c2f_zoo.training.launch import recipe_errors

ALL_TAPS = "all"
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """The options.

    Args:
        models: name of trained weights or folder -> `dataset`, and additional keyword arguments of the dataset.
        split: the split of the images.
        images: number of images that are drawn for each model.
        fraction: fraction of the pixels to blur.
        bootstrap: number of resamples for the intervals.
        batch_size: number of images in a batch.
        seed: seed of images, places, shuffled weights and resamples.
        output: folder of the CSV files.
    """

    models: dict[str, dict[str, Any]]
    split: str = "test"
    images: int = 300
    fraction: float = 0.2
    bootstrap: int = 2000
    batch_size: int = 50
    seed: int = 0
    output: str = "runs/heat-maps"


@dataclass(frozen=True)
class Level:
    """A level of a model, with the images as it sees them."""

    model: C2FModel
    name: str
    x: Tensor
    batch_size: int

    @cached_property
    def labels(self) -> Tensor:
        """The most probable class of each image, int64 (N,)."""
        return self.log_probs(self.x).argmax(dim=1)

    @torch.inference_mode()
    def log_probs(self, x: Tensor) -> Tensor:
        """Compute log-probabilities (N, classes)."""
        classifier = self.model.at_level(self.name).eval()
        parts = [self.model.log_probs({self.name: classifier(part)})[self.name] for part in x.split(self.batch_size)]
        return torch.cat(parts)

    def probability(self, x: Tensor) -> np.ndarray:
        """Compute the probability of each image's class (N,)."""
        return self.log_probs(x).exp().gather(1, self.labels[:, None])[:, 0].double().numpy()

    def heat(self, attribution: str, model: C2FModel | None = None) -> dict[str, Tensor]:
        """Compute the heat maps (N, H, W) of each tap and of all, of this model or another with its classes."""
        classifier = (model or self.model).at_level(self.name).eval()
        batches = zip(self.x.split(self.batch_size), self.labels.split(self.batch_size), strict=True)
        parts = [heat_of(classifier, x, labels, attribution) for x, labels in batches]
        taps = {tap: torch.cat([part[tap] for part in parts]) for tap in parts[0]}
        return {**taps, ALL_TAPS: sum_heat(list(taps.values()))} if len(taps) > 1 else taps


def main(options: Options) -> None:
    """Check the heat maps of every model.

    Args:
        options: the options.
    """
    keep_freed_memory()
    folder, about = expand(options.output), {"command": shlex.join(["python", *sys.argv]), **describe_machine()}
    folder.mkdir(parents=True, exist_ok=True)
    deletion: list[Row] = []
    shuffled: list[Row] = []
    for name, data in options.models.items():
        common = {"model": name, "dataset": data["dataset"], "split": options.split}
        for level in read_levels(name, data, options):
            same = {**common, "level": level.name, "images": len(level.x)}
            deletion += [{**same, **row, **about} for row in check_deletion(level, options)]
            write_csv(folder / "heat-maps-deletion.csv", deletion)
            shuffled += [{**same, **row, **about} for row in check_shuffled(level, options)]
            write_csv(folder / "heat-maps-shuffled.csv", shuffled)
    print(f"heat-maps-deletion.csv and heat-maps-shuffled.csv are in {folder}")


def read_levels(name: str, data: Mapping[str, Any], options: Options) -> Iterator[Level]:
    """Yield each level of a model, with images drawn from a dataset at the level's resolution."""
    predictor = Predictor.from_pretrained(name)
    dataset_options = {key: value for key, value in data.items() if key != "dataset"}
    dataset = create_dataset(data["dataset"], options.split, **dataset_options)
    chosen = np.random.default_rng(options.seed).permutation(len(dataset))[: options.images]
    prepared = [predictor.prepare(dataset[int(number)][0]) for number in chosen]
    for resolution, names in predictor.levels_at.items():
        x = torch.stack([image.views[resolution] for image in prepared])
        for level in names:
            yield Level(predictor.model, level, x, options.batch_size)


def check_deletion(level: Level, options: Options) -> Iterator[Row]:
    """Yield how far the probability falls for each attribution and tap, and the paired differences."""
    size = (level.x.shape[2], level.x.shape[3])
    before = level.probability(level.x)
    for attribution in ATTRIBUTIONS:
        for tap, heat in level.heat(attribution).items():
            masks = hottest(heat, size, options.fraction)
            places = {
                "hottest": masks,
                "random": shift(masks, torch.Generator().manual_seed(options.seed)),
                "other_image": masks.roll(1, 0),
            }
            fall = {place: before - level.probability(hide(level.x, mask)) for place, mask in places.items()}
            values = fall | {f"minus_{other}": fall["hottest"] - fall[other] for other in ("random", "other_image")}
            row: Row = {"attribution": attribution, "tap": tap, "fraction": options.fraction}
            row["before"] = round(float(before.mean()), 4)
            for key, one in values.items():
                row |= columns(key, one, options)
            print(level.name, row, flush=True)
            yield row


def check_shuffled(level: Level, options: Options) -> Iterator[Row]:
    """Yield the rank correlation of heat maps with those of shuffled weights, and with those of another image."""
    trained = level.heat("products")
    others = {step: level.heat("products", shuffle_weights(level.model, step, options.seed)) for step in STEPS}
    others["none; another image"] = {tap: heat.roll(1, 0) for tap, heat in trained.items()}
    for step, heat in others.items():
        for tap in trained:
            found = np.array(rank_correlations(trained[tap], heat[tap]))
            row = {"tap": tap, "shuffled": step, **columns("value", found, options)}
            print(level.name, row, flush=True)
            yield row


def columns(name: str, values: np.ndarray, options: Options) -> Row:
    """Return a mean and the ends of its interval."""
    found = estimate_mean(values, options.bootstrap, options.seed)
    return {name: round(found.value, 4), f"{name}_low": round(found.low, 4), f"{name}_high": round(found.high, 4)}


if __name__ == "__main__":
    with recipe_errors("heat_maps.py"):
        main(auto_cli(Options, as_positional=False))
