"""The training loop against loops written by hand, and its options against the plain run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import default_collate

from c2f_zoo import C2FModel, create_dataset
from c2f_zoo.data import HideLabels, LabelledImages, TransformedImages, labels_of
from c2f_zoo.data.augment import Augmentation, create_crop
from c2f_zoo.data.views import Views
from c2f_zoo.io.files import read_csv
from c2f_zoo.losses import cross_entropy
from c2f_zoo.training.batches import EpochBatches, SeededItems
from c2f_zoo.training.objective import create_objective
from c2f_zoo.training.options import Stage, TrainOptions
from c2f_zoo.training.setup import build_model
from c2f_zoo.training.stages import fit

LEVELS = ("species", "genus", "family")

pytestmark = pytest.mark.slow


def options(**values: Any) -> TrainOptions:
    """Return options of a short run without batch norm."""
    defaults: dict[str, Any] = {
        "dataset": "critters",
        "model": "mlph",
        "model_options": {"backbone": "test_convnext", "input_size": 32, "pooling": "avg"},
        "resolutions": {"species": None, "genus": 16, "family": 8},
        "stages": [Stage(epochs=1, lr=0.02, backbone_lr=0.005)],
        "batch_size": 12,
    }
    return TrainOptions(**defaults | values)


@pytest.fixture(scope="module")
def critters() -> LabelledImages:
    return create_dataset("critters", "train", per_class=1)


def build(chosen: TrainOptions, dataset: LabelledImages) -> C2FModel:
    torch.manual_seed(0)
    return build_model(chosen, dataset.hierarchy)


def accuracy_of(model: Any, *, levels: tuple[str, ...]) -> tuple[dict[str, float], list[int]]:
    return dict.fromkeys(levels, 0.5), []


def train(chosen: TrainOptions, dataset: LabelledImages, output: Path) -> C2FModel:
    model = build(chosen, dataset)
    output.mkdir(exist_ok=True)
    validate = partial(accuracy_of, levels=model.levels)
    objective, accelerator = create_objective(chosen, model), Accelerator(cpu=True)
    fit(model, dataset, range(len(dataset)), objective, validate, chosen, output, accelerator)
    return model


def batches_of(chosen: TrainOptions, model: C2FModel, dataset: LabelledImages) -> Iterator[tuple[Views, Any, Tensor]]:
    """Yield the views, the crops and the labels of each batch of the first epoch."""
    preprocessing = model.config.preprocessing
    views = Views(preprocessing, chosen.resolutions)
    images = TransformedImages(dataset, create_crop(preprocessing, Augmentation(), views.num_draws))
    items = SeededItems(images)
    for keys in EpochBatches(len(dataset), chosen.batch_size, chosen.seed):
        crop, labels, _, _ = default_collate([items[key] for key in keys])
        yield views, crop, labels


def assert_same_training(found: C2FModel, expected: C2FModel, start: C2FModel) -> None:
    """Assert that two trainings from the same weights moved each tensor to the same place."""
    for name, before in start.state_dict().items():
        moved, off = expected.state_dict()[name] - before, found.state_dict()[name] - expected.state_dict()[name]
        assert off.norm() <= 2e-3 * moved.norm(), f"{name}: off by {off.norm()} after a way of {moved.norm()}"


def mean_loss(model: C2FModel, images: Tensor, labels: Tensor, level: str) -> Tensor:
    log_probs = model.log_probs(model(images, levels=(level,)))[level]
    return -log_probs[torch.arange(len(labels)), labels[:, model.hierarchy.depth(level)]].mean()


def steps_by_hand(chosen: TrainOptions, model: C2FModel, dataset: LabelledImages) -> Iterator[Tensor]:
    """Yield the losses of the steps of an epoch."""
    batches = list(batches_of(chosen, model, dataset))
    if chosen.objective == "joint":
        for views, crop, labels in batches:
            yield sum(mean_loss(model, views(crop, level), labels, level) for level in LEVELS)  # type: ignore[misc]
    elif chosen.objective == "any_resolution":
        for views, crop, labels in batches:
            images = views.at_random(crop)
            yield sum(mean_loss(model, images, labels, level) for level in LEVELS)  # type: ignore[misc]
    else:
        for number in range(len(batches) + 2):
            for lag, level in enumerate(LEVELS):
                if 0 <= number - lag < len(batches):
                    views, crop, labels = batches[number - lag]
                    yield mean_loss(model, views(crop, level), labels, level)


@pytest.mark.parametrize("objective", ["in_turn", "joint", "any_resolution"])
def test_an_epoch_is_that_of_a_loop_by_hand(objective: str, critters: LabelledImages, tmp_path: Path) -> None:
    chosen = options(objective=objective, clip_grad=0.5, momentum=0.8, weight_decay=0.01)
    found = train(chosen, critters, tmp_path)
    model = build(chosen, critters).train()
    head = [*model.pooling.parameters(), *model.head.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": head, "lr": 0.02},
        {"params": list(model.backbone.parameters()), "lr": 0.005},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.8, weight_decay=0.01)
    losses = []
    for loss in steps_by_hand(chosen, model, critters):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert_same_training(found, model, build(chosen, critters))
    rows = read_csv(tmp_path / "steps.csv")
    by_step: dict[str, float] = {}
    for row in rows:
        by_step[row["step"]] = by_step.get(row["step"], 0.0) + float(row["loss"])
    assert list(by_step.values()) == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("objective", ["in_turn", "joint", "any_resolution"])
def test_accumulated_batches_are_one_large_batch(objective: str, critters: LabelledImages, tmp_path: Path) -> None:
    # Images without a label at the finest level: a mean of means would weigh them wrongly.
    mixed = HideLabels(critters, "genus", range(0, 36, 3))
    assert (labels_of(mixed)[:, 2] < 0).sum() == 12
    chosen = options(objective=objective, model_options={**options().model_options, "head": "marginal"})
    large = train(replace(chosen, batch_size=12), mixed, tmp_path / "large")
    small = train(replace(chosen, batch_size=4, accumulate=3), mixed, tmp_path / "small")
    assert_same_training(small, large, build(chosen, mixed))


def test_gradients_of_mixed_images_are_those_of_both_labels(critters: LabelledImages) -> None:
    from c2f_zoo.training.mixing import mixup

    chosen = options()
    model = build(chosen, critters)
    views, crop, labels = next(batches_of(chosen, model, critters))
    mixture = mixup(views(crop, "genus"), 1.0)
    found = create_objective(chosen, model)(model, mixture.images, labels, ("genus",), None, mixture)["genus"]
    log_probs, tree = model.log_probs(model(mixture.images))["genus"], model.hierarchy.truncate("genus")
    first, second = (cross_entropy(log_probs, kind[:, 1], tree) for kind in (labels, labels[mixture.partners]))
    torch.testing.assert_close(found, mixture.weight * first + (1 - mixture.weight) * second)
    assert 0 < mixture.weight < 1


def test_the_average_of_the_weights_is_saved_and_published(critters: LabelledImages, tmp_path: Path) -> None:
    chosen = options(objective="joint", stages=[Stage(epochs=2, lr=0.2)], save_every="1 steps", keep=100, ema=0.4)
    train(chosen, critters, tmp_path)
    # One step makes a round: there is a checkpoint after each step.
    steps = [C2FModel.from_pretrained(path).state_dict() for path in sorted(tmp_path.glob("checkpoint-*"))]
    assert len(steps) == 1 + 6
    average = dict(steps[0])
    for number, weights in enumerate(steps[1:4], start=1):  # both epochs score 0.5, so that the first is the best
        decay = min(0.4, 1 - number ** (-2 / 3))
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
    published = C2FModel.from_pretrained(tmp_path).state_dict()
    for name, expected in average.items():
        torch.testing.assert_close(published[name], expected, msg=lambda text, n=name: f"{n}: {text}")


def test_a_loss_that_is_not_finite_ends_the_run_and_names_what_is_left(
    critters: LabelledImages, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"the loss of .* is nan in epoch 1, by step 9; start a new run with a lower learning rate or"
    ):
        train(options(stages=[Stage(epochs=1, lr=1e30)]), critters, tmp_path)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-00000000"]
