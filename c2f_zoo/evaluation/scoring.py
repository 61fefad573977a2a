"""Scoring of every image exactly once, on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from c2f_zoo.data import LabelledImages, Normalize, TransformedImages, create_views
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.inference.resolutions import levels_by_resolution
from c2f_zoo.io.progress import ProgressLines
from c2f_zoo.model import C2FModel
from c2f_zoo.ops import at_least_float32, check_finite
from c2f_zoo.training.batches import ignore_signals
from c2f_zoo.training.options import TrainOptions

LevelsAt = Mapping[int | None, Sequence[str]]  # resolution -> levels to predict at it
LevelScores = Mapping[int | None, Mapping[str, Tensor]]  # resolution -> level -> (N, classes)


@dataclass(frozen=True)
class ScoredBatch:
    """A scored batch of a process.

    Attributes:
        index: the images' indices in the dataset, int64 (N,), on the CPU.
        readable: bool (N,), false for unreadable images, on the CPU.
        truth: labels (N, levels of the dataset's tree), int64, on the CPU; -1 for unknown labels and unreadable images.
        logits: resolution -> level -> logits (N, classes), on the model's device.
    """

    index: Tensor
    readable: Tensor
    truth: Tensor
    logits: dict[int | None, dict[str, Tensor]]


def score_images(
    model: nn.Module,
    dataset: LabelledImages,
    indices: Sequence[int],
    levels_at: LevelsAt,
    *,
    batch_size: int,
    accelerator: Accelerator,
    num_workers: int = 0,
    on_error: str = "raise",
    reduced: bool = False,
) -> Iterator[ScoredBatch]:
    """Score images of a dataset, with one forward pass for each distinct resolution.

    Each image is decoded once. Each process iterates over its own images; all processes must iterate to the end. With
    `batch_norm="per_level"`, the batch norm of the level with the nearest resolution serves.

    Args:
        model: a `C2FModel` on the accelerator's device, wrapped or not; it is put into evaluation mode.
        dataset: the dataset.
        indices: indices of the images in the dataset.
        levels_at: resolution in pixels (None: full size) -> levels to predict at it.
        batch_size: number of images in a batch of each process.
        accelerator: the processes.
        num_workers: number of loader processes of each scoring process.
        on_error: treatment of unreadable images, see `c2f_zoo.data.TransformedImages`.
        reduced: decode a JPEG much larger than the input at reduced size, as in training. It is several times faster,
            but pixels differ by a few 1/255 from those that `Predictor` sees.

    Raises:
        ValueError: the model's outputs are not finite.
        RuntimeError: an image was not scored exactly once.

    Examples:
        >>> model = create_model("mlph_tiny_critters")
        >>> dataset = create_dataset("critters", "test", per_class=1)
        >>> levels_at = {None: ("species",), 32: ("family", "genus")}
        >>> batches = score_images(model, dataset, [7, 9], levels_at, batch_size=2, accelerator=Accelerator(cpu=True))
        >>> batch = next(batches)
        >>> batch.index, batch.logits[32]["genus"].shape
        (tensor([7, 9]), torch.Size([2, 12]))
    """
    # Not the wrapper: it synchronizes buffers in every forward pass, but processes may have more batches than others.
    unwrapped: C2FModel = accelerator.unwrap_model(model).eval()
    with torch.no_grad():
        broadcast(list(unwrapped.buffers()))  # in training, batch norm's statistics differ between processes
    preprocessing = unwrapped.config.preprocessing
    transform = create_views(preprocessing, {at: at for at in levels_at}, train=False, normalize=False)
    normalize = Normalize(preprocessing.mean, preprocessing.std).to(accelerator.device)
    # Not accelerator.prepare: it repeats some images so that all processes have the same number.
    own = list(indices)[accelerator.process_index :: accelerator.num_processes]
    images = TransformedImages(dataset, transform, own, on_error, preprocessing.resize if reduced else None)
    hide_bar = None if accelerator.is_main_process else True  # None shows the bar on a terminal only
    seen: list[int] = []
    loader = DataLoader(images, batch_size, num_workers=num_workers, worker_init_fn=ignore_signals)
    bar = tqdm(loader, desc="scoring", disable=hide_bar, leave=False)
    is_shown = accelerator.is_main_process and bool(bar.disable)
    lines = ProgressLines("scoring", len(loader), len(own) * accelerator.num_processes, is_shown, "batches")
    for number, (views, truth, index, readable) in enumerate(bar, start=1):
        with torch.no_grad(), accelerator.autocast():  # an average of weights is not wrapped
            logits = {
                resolution: _at_least_float32(
                    unwrapped(
                        normalize(x.to(accelerator.device)),
                        levels=tuple(levels_at[resolution]),
                        view=unwrapped.config.nearest_level(resolution),
                    )
                )
                for resolution, x in views.items()
            }
        for found in logits.values():
            check_finite(found)
        seen += index.tolist()
        lines.update(number)
        yield ScoredBatch(index, readable, truth, logits)
    if sorted(seen := gather_object(seen)) != sorted(indices):
        raise RuntimeError(f"expected to score {len(indices)} images once each, but scored {len(seen)}")


def scoring_options(options: TrainOptions, accelerator: Accelerator) -> dict[str, Any]:
    """Return arguments of `score_images` from a run's options.

    Without gradients, batches can be four times as large as in training. On a CPU they are as large: larger ones leave
    its caches and are slower.
    """
    times = 1 if accelerator.device.type == "cpu" else 4
    return {
        "batch_size": times * options.batch_size // accelerator.num_processes,
        "num_workers": options.num_workers,
        "on_error": options.on_error,
        "accelerator": accelerator,
    }


@dataclass(frozen=True)
class Predictions:
    """Predicted labels of images, in the order of their indices.

    Attributes:
        hierarchy: the dataset's tree.
        index: the images' indices in the dataset, int64 (n,).
        readable: bool (n,), false for unreadable images.
        truth: labels (n, levels of the tree); -1 for unknown labels and unreadable images.
        labels: resolution -> level -> predicted labels (n,).
        probabilities: resolution -> level -> probabilities (n,) of these labels, in [0, 1]; empty if unknown.
    """

    hierarchy: Hierarchy
    index: Tensor
    readable: Tensor
    truth: Tensor
    labels: dict[int | None, dict[str, Tensor]]
    probabilities: dict[int | None, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def unreadable(self) -> list[int]:
        """The indices of the unreadable images."""
        return self.index[~self.readable].tolist()

    def accuracy(self, level: str, resolution: int | None) -> tuple[float, int]:
        """Return a level's accuracy in [0, 1], and the number of images with a label."""
        truth = self.hierarchy.cut_repeats(self.truth)[:, self.hierarchy.depth(level)]
        known = truth >= 0
        return (self.labels[resolution][level][known] == truth[known]).double().mean().item(), int(known.sum())

    def select(self, chosen: Tensor) -> Predictions:
        """Return the predictions of the images of a mask (n,), or of int64 positions."""
        labels, probabilities = (
            {at: {level: column[chosen] for level, column in found.items()} for at, found in columns.items()}
            for columns in (self.labels, self.probabilities)
        )
        rows = (self.index[chosen], self.readable[chosen], self.truth[chosen])
        return Predictions(self.hierarchy, *rows, labels, probabilities)


def predict_labels(
    model: nn.Module,
    dataset: LabelledImages,
    indices: Sequence[int],
    levels_at: LevelsAt,
    *,
    accelerator: Accelerator,
    **how: Any,
) -> Predictions:
    """Predict the labels of images of a dataset, gathered on every process.

    Args:
        model: a `C2FModel` on the accelerator's device, wrapped or not.
        dataset: the dataset.
        indices: indices of the images in the dataset.
        levels_at: resolution in pixels (None: full size) -> levels to predict at it.
        accelerator: the processes.
        **how: the other arguments of `score_images`.
    """
    log_probs = accelerator.unwrap_model(model).log_probs
    parts = [
        most_probable(
            dataset.hierarchy, batch, batch.logits, {at: log_probs(logits) for at, logits in batch.logits.items()}
        )
        for batch in score_images(model, dataset, indices, levels_at, accelerator=accelerator, **how)
    ]
    return gather_predictions(parts)


def most_probable(tree: Hierarchy, batch: ScoredBatch, scores: LevelScores, log_probs: LevelScores) -> Predictions:
    """Return the most probable class of each level, and its probability.

    Args:
        tree: the dataset's tree.
        batch: the images.
        scores: resolution -> level -> scores (N, classes), the highest for the predicted class.
        log_probs: the same for log-probabilities.
    """
    labels = {at: {level: z.argmax(dim=1) for level, z in found.items()} for at, found in scores.items()}
    probabilities = {
        at: {level: log_probs[at][level].gather(1, label[:, None])[:, 0].exp().cpu() for level, label in found.items()}
        for at, found in labels.items()
    }
    on_cpu = {at: {level: label.cpu() for level, label in found.items()} for at, found in labels.items()}
    return Predictions(tree, batch.index, batch.readable, batch.truth, on_cpu, probabilities)


def gather_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Join the predictions of all batches of all processes; all must call this function."""
    parts = gather_object(list(parts))

    def join(columns: Sequence[dict[int | None, dict[str, Tensor]]]) -> dict[int | None, dict[str, Tensor]]:
        return {
            at: {level: torch.cat([column[at][level] for column in columns]) for level in levels}
            for at, levels in columns[0].items()
        }

    index, readable, truth = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("index", "readable", "truth")
    )
    labels, probabilities = (join([getattr(part, name) for part in parts]) for name in ("labels", "probabilities"))
    joined = Predictions(parts[0].hierarchy, index, readable, truth, labels, probabilities)
    return joined.select(joined.index.argsort())


def _at_least_float32(logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {level: at_least_float32(z) for level, z in logits.items()}


def validate(
    model: nn.Module, dataset: LabelledImages, indices: Sequence[int], *, accelerator: Accelerator, **how: Any
) -> tuple[dict[str, float], list[int]]:
    """Return each level's validation accuracy at its own resolution.

    The second result is the list of indices of unreadable images.

    Args:
        model: a `C2FModel` on the accelerator's device, wrapped or not.
        dataset: the dataset that holds the validation images.
        indices: the validation images' indices in it.
        accelerator: the processes.
        **how: the other arguments of `score_images`.

    Raises:
        ValueError: no readable image has a label at some level.
    """
    levels_at = levels_by_resolution(accelerator.unwrap_model(model))
    predictions = predict_labels(model, dataset, indices, levels_at, accelerator=accelerator, reduced=True, **how)
    accuracy = {}
    for level, resolution in ((level, at) for at, levels in levels_at.items() for level in levels):
        accuracy[level], count = predictions.accuracy(level, resolution)
        if count == 0:
            raise ValueError(
                f"no readable validation image has a label at {level!r}; check the data with `c2f-zoo data check`, or "
                "choose another val_fraction"
            )
    return accuracy, predictions.unreadable


def accuracy_rows(predictions: Predictions, own: Mapping[str, int | None]) -> list[dict[str, Any]]:
    """Return a row for each resolution and level, with the accuracy.

    Args:
        predictions: the predictions.
        own: each level's own resolution.
    """
    rows = []
    for resolution, labels in predictions.labels.items():
        for level in labels:
            accuracy, images = predictions.accuracy(level, resolution)
            row = {"level": level, "resolution": resolution, "own": own[level] == resolution}
            rows.append({**row, "accuracy": accuracy, "images": images})
    return rows


def prediction_rows(
    predictions: Predictions, own: Mapping[str, int | None], dataset: LabelledImages | None = None
) -> Iterator[dict[str, Any]]:
    """Yield a row for each readable image: its file, and for each level its true and predicted class.

    Each level is predicted at its own resolution, with its probability. Unknown true classes are empty, and so are
    repeats in a tree whose `ragged` is `"stop"`.

    Args:
        predictions: the predictions.
        own: each level's own resolution.
        dataset: the dataset, for the names of its files.
    """
    tree, true_labels = predictions.hierarchy, predictions.hierarchy.cut_repeats(predictions.truth)
    paths = getattr(dataset, "paths", None)
    columns = {
        level: (found, predictions.probabilities.get(resolution, {}).get(level))
        for resolution, labels in predictions.labels.items()
        for level, found in labels.items()
        if own[level] == resolution
    }
    for at in predictions.readable.nonzero()[:, 0].tolist():
        index = int(predictions.index[at])
        row: dict[str, Any] = {"index": index} | ({"file": str(paths[index])} if paths else {})
        for level, (found, probabilities) in columns.items():
            names, depth = tree.class_names(level), tree.depth(level)
            truth, predicted = int(true_labels[at, depth]), int(found[at])
            is_left_out = predicted in tree.left_out[depth]
            row[level if level not in ("index", "file") else f"true_{level}"] = names[truth] if truth >= 0 else ""
            row[f"predicted_{level}"] = "" if is_left_out else names[predicted]
            if probabilities is not None:
                row[f"probability_{level}"] = "" if is_left_out else f"{probabilities[at].item():.4f}"
        yield row
