"""Images labelled at any level: in datasets and in training."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL
from torch import Tensor, nn

from c2f_zoo import C2FModel, Hierarchy, create_dataset, create_model, list_heads, load_hierarchy, register_dataset
from c2f_zoo.config import ModelConfig
from c2f_zoo.data import DATASETS, HideLabels, LabelledImages, labels_of, stratified_split
from c2f_zoo.heads import create_head
from c2f_zoo.io.files import read_csv
from c2f_zoo.training import launch
from c2f_zoo.training.objective import Objective, create_objective, select_targets
from c2f_zoo.training.options import Stage, TrainOptions

RECIPE = Path(__file__).parents[1] / "recipes" / "train.py"

TREE = Hierarchy.from_rows(
    ("family", "genus", "species"), [("F1", "A", "a1"), ("F1", "A", "a2"), ("F1", "B", "b"), ("F2", "C", "c")]
)
CRITTERS = load_hierarchy("critters")


def labelled(labels: list[list[int]] | Tensor, targets: list[int] | None = None) -> LabelledImages:
    """Return a dataset without images."""

    class Labelled:
        def __init__(self) -> None:
            self.hierarchy = TREE
            self.labels = labels
            self.targets = [row[-1] for row in labels] if targets is None else targets

        def __len__(self) -> int:
            return len(self.targets)

    return Labelled()  # type: ignore[return-value]


class TestLabels:
    def test_labels_default_to_ancestors_of_targets(self) -> None:
        dataset = create_dataset("critters", "train", per_class=1)
        assert torch.equal(labels_of(dataset), CRITTERS.ancestors(torch.arange(36)))

    def test_labels_may_end_at_a_coarser_level(self) -> None:
        rows = [[0, 0, 1], [0, 1, -1], [1, -1, -1], [-1, -1, -1]]
        assert labels_of(labelled(rows)).tolist() == rows
        assert labels_of(labelled(torch.tensor(rows, dtype=torch.int32))).dtype == torch.int64

    def test_labels_may_be_small_integers(self) -> None:
        rows = [[0, 0, 1], [1, 2, 3]]
        assert labels_of(labelled(torch.tensor(rows, dtype=torch.uint8))).tolist() == rows

    @pytest.mark.parametrize(
        ("rows", "error"),
        [
            (
                [[0, 0, 0], [0, 3, -1]],
                r"image 1 of the dataset has label 3, outside the tree's 3 genus classes \(0..2",
            ),
            ([[0, 0, -2]], r"image 0 of the dataset has label -2, outside the tree's 4 species classes"),
            ([[0, 0, 0], [1, -1, 3]], "image 1 of the dataset has a label at species but none at genus"),
            ([[0, 2, -1]], "image 0 of the dataset has a genus that belongs to another family"),
            ([[0, 0, 2]], "image 0 of the dataset has a species that belongs to another genus"),
            (
                [[0, 0]],
                r"labels of the dataset are torch.int64 of shape \(1, 2\); its 1 images need integers, one",
            ),
            (torch.zeros(1, 3), r"labels of the dataset are torch.float32 of shape \(1, 3\)"),
        ],
    )
    def test_errors(self, rows: list[list[int]] | Tensor, error: str) -> None:
        with pytest.raises(ValueError, match=error):
            labels_of(labelled(rows))

    def test_targets_must_agree_with_labels(self) -> None:
        with pytest.raises(
            ValueError, match=r"image 1 of the dataset has different labels at .* in targets and labels"
        ):
            labels_of(labelled([[0, 0, 0], [0, 0, -1]], targets=[0, 1]))

    def test_a_dataset_is_checked_when_it_is_opened(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))
        register_dataset("bad")(lambda split: labelled([[0, 0, 0], [1, 0, -1]]))
        with pytest.raises(
            ValueError, match="image 1 of the train split of dataset 'bad' has a genus that belongs to another fam"
        ):
            create_dataset("bad", "train")


class TestHideLabels:
    def test_labels_below_a_level_are_hidden(self) -> None:
        whole = create_dataset("critters", "train", per_class=1)
        once = HideLabels(whole, "genus", [0, 35])
        twice = HideLabels(once, "family", [35])
        assert labels_of(twice)[[0, 1, 35]].tolist() == [[0, 0, -1], [0, 0, 1], [3, -1, -1]]
        assert labels_of(once)[35].tolist() == [3, 11, -1], "the inner dataset is unchanged"
        assert twice.targets == [-1, *range(1, 35), -1]
        image, label = twice[35]
        assert (image.tobytes(), label) == (whole[35][0].tobytes(), -1)
        assert len(twice) == 36
        with pytest.raises(ValueError, match="unknown level 'genes'; did you mean 'genus'"):
            HideLabels(whole, "genes", [])
        with pytest.raises(IndexError):
            HideLabels(whole, "genus", [36])

    def test_a_split_is_stratified_by_the_deepest_label(self) -> None:
        labels = torch.tensor([[0, 0, 0]] * 10 + [[0, 0, -1]] * 5 + [[1, -1, -1]] * 20 + [[0, 1, -1]])
        first, second = stratified_split(labels, 0.2, seed=0)
        assert sorted(first + second) == list(range(36))
        assert [sum(low <= i < high for i in second) for low, high in ((0, 10), (10, 15), (15, 35))] == [2, 1, 4]
        fine = torch.randint(36, (200,))
        assert stratified_split(CRITTERS.ancestors(fine), 0.3, seed=1) == stratified_split(fine.tolist(), 0.3, seed=1)


def loss_of(objective: Objective, forward: Any, images: Tensor, labels: Tensor, level: str) -> Tensor:
    """Return the loss of one level."""
    return objective(forward, images, labels, (level,))[level]


def vector_model(head: str, features: int, tree: Hierarchy = CRITTERS) -> C2FModel:
    """Return a model of a head alone, whose images are vectors."""
    torch.manual_seed(0)
    config = ModelConfig("none", (), "none", head, tree, tree.levels)
    return C2FModel(nn.Identity(), nn.Identity(), create_head(head, features, tree, tree.levels), config)  # type: ignore[arg-type]


def options(**values: object) -> SimpleNamespace:
    """Return the options that an objective reads."""
    defaults = {"loss": "cross_entropy", "loss_options": {}, "level_weights": {}, "tree_prior": 0.0}
    return SimpleNamespace(**defaults | values)


class TestTargets:
    ROWS = torch.tensor([[0, 0, 1], [0, 1, -1], [1, -1, -1], [-1, -1, -1]])

    def test_each_image_has_its_deepest_label_at_or_above_the_level(self) -> None:
        model = vector_model("marginal", 3, TREE)
        at = {level: select_targets(self.ROWS, level, model) for level in TREE.levels}
        shown = {level: {a: y.tolist() for a, y in targets.items()} for level, targets in at.items()}
        assert shown["species"] == {"species": [1, -1, -1, -1], "genus": [-1, 1, -1, -1], "family": [-1, -1, 1, -1]}
        assert shown["genus"] == {"genus": [0, 1, -1, -1], "family": [-1, -1, 1, -1]}
        assert shown["family"] == {"family": [0, 0, 1, -1]}

    def test_only_levels_with_targets_are_selected(self) -> None:
        targets = select_targets(self.ROWS[[0, 2]], "species", vector_model("hex", 3, TREE))
        assert list(targets) == ["species", "family"]

    @pytest.mark.parametrize("head", ["levels", "disentangled"])
    def test_levels_without_marginals_ignore_labels_of_coarser_levels(self, head: str) -> None:
        targets = select_targets(self.ROWS, "species", vector_model(head, 3, TREE))
        assert {level: y.tolist() for level, y in targets.items()} == {"species": [1, -1, -1, -1]}

    def test_loss_of_a_step_by_hand(self) -> None:
        model = vector_model("marginal", 3, TREE).double()
        v = torch.randn(4, 3, dtype=torch.float64)
        p = model.head.classifier(v).softmax(dim=1)  # type: ignore[operator]
        # a2; genus B, which is b; family F2, which is c; nothing is known of the last, which is not counted.
        expected = -(p[0, 1].log() + p[1, 2].log() + p[2, 3].log()) / 3
        objective = create_objective(options(), model)
        torch.testing.assert_close(loss_of(objective, model, v, self.ROWS, "species"), expected)
        weighted = create_objective(options(level_weights={"species": 0.5}), model)
        torch.testing.assert_close(loss_of(weighted, model, v, self.ROWS, "species"), expected / 2)
        torch.testing.assert_close(
            loss_of(weighted, model, v, self.ROWS, "family"), loss_of(objective, model, v, self.ROWS, "family")
        )

    def test_the_prior_is_added_at_the_leaf_level_only(self) -> None:
        model = vector_model("levels", 3, TREE)
        with torch.no_grad():
            model.head.get_classifier("species").weight.fill_(1.0)  # type: ignore[operator]
        v = torch.randn(4, 3)
        plain, prior = (create_objective(options(tree_prior=w), model) for w in (0.0, 0.1))
        with torch.no_grad():
            difference = {
                level: float(loss_of(prior, model, v, self.ROWS, level) - loss_of(plain, model, v, self.ROWS, level))
                for level in TREE.levels
            }
        assert difference["family"] == difference["genus"] == 0
        # All weights 1. A subtree pulls its class to 1 with precision A / (A + 1) of the sum A of its children's:
        # A: 2/3, B: 1/2, F1: (7/6) / (13/6) = 7/13; C: 1/2, F2: 1/3. Half the sum of 7/13 and 1/3, for 3 features.
        assert difference["species"] == pytest.approx(0.1 * 3 * (7 / 13 + 1 / 3) / 2, rel=1e-4)

    @pytest.mark.parametrize(
        ("values", "error"),
        [
            ({"loss": "hex"}, "unknown loss 'hex'; did you mean 'hxe'"),
            (
                {"loss": "hxe", "loss_options": {"alfa": 1}},
                "unknown option of loss 'hxe': 'alfa'; did you mean 'alpha'",
            ),
            ({"loss": "hxe", "loss_options": {"alpha": -1}}, "alpha must be a finite number >= 0, not -1"),
            ({"loss": "hxe", "loss_options": {"alpha": "x"}}, "loss_options {'alpha': 'x'} do not fit 'hxe'"),
            ({"level_weights": {"specie": 1.0}}, "unknown level in level_weights: 'specie'; did you mean 'species'"),
            ({"level_weights": {"species": -1.0}}, "the weight of species is -1.0; it must be 0 or more"),
            ({"tree_prior": -1.0}, "tree_prior is -1.0; it must be 0 or more"),
        ],
    )
    def test_errors(self, values: dict[str, object], error: str) -> None:
        with pytest.raises(ValueError, match=error):
            create_objective(options(**values), vector_model("levels", 3, TREE))


@pytest.mark.parametrize("name", list_heads())
def test_every_head_learns_from_labels_of_mixed_depth(name: str) -> None:
    torch.manual_seed(0)
    model = create_model("mlph", hierarchy="critters", head=name, **SMALL)  # type: ignore[arg-type]
    labels = CRITTERS.ancestors(torch.tensor([0, 8, 17, 30]))
    labels[2, 2:], labels[3, 1:] = -1, -1
    objective = create_objective(options(), model)
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        v = model.forward_pool(model.forward_features(images))
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)

    def total() -> Tensor:
        losses = [loss_of(objective, model.forward_head, v, labels, level) for level in reversed(model.levels)]
        return torch.stack(losses).sum()

    before = total()
    before.backward()
    optimizer.step()
    after_one_step = total().item()
    assert after_one_step < before
    for _ in range(20):
        optimizer.zero_grad()
        loss = total()
        loss.backward()
        optimizer.step()
    assert loss < after_one_step


PER_CLASS, LABELLED = 30, 3


def texture_features(images: Tensor) -> Tensor:
    """Return mean and root mean square over each image of 24 random filters at each of three scales."""
    generator = torch.Generator().manual_seed(0)
    banks = []
    for _ in range(3):
        bank = torch.randn(24, 1, 7, 7, generator=generator)
        banks.append(bank - bank.mean(dim=(2, 3), keepdim=True))
    rows = []
    for chunk in images.split(16):  # small enough to stay in the cache
        responses = [F.conv2d(F.avg_pool2d(chunk, 2**i), bank).abs() for i, bank in enumerate(banks)]
        strengths = [(a.mean(dim=(2, 3)), a.square().mean(dim=(2, 3)).sqrt()) for a in responses]
        rows.append(torch.cat([x for pair in strengths for x in pair], dim=1))
    return torch.cat(rows).log()


@pytest.fixture(scope="module")
def critter_features() -> tuple[Tensor, Tensor]:
    """Return standardized features of the training images and of 20 test images of each species."""
    found = []
    for split, per_class in (("train", PER_CLASS), ("test", 20)):
        dataset = create_dataset("critters", split, per_class=per_class)
        grey = np.stack([np.asarray(dataset[i][0].convert("L"), np.float32) for i in range(len(dataset))])
        found.append(texture_features(torch.from_numpy(grey)[:, None] / 255))
    mean, std = found[0].mean(dim=0), found[0].std(dim=0) * math.sqrt(found[0].shape[1])
    return (found[0] - mean) / std, (found[1] - mean) / std


def species_accuracy(x: Tensor, labels: Tensor, test_x: Tensor) -> float:
    """Fit a marginal head with the objective of the leaf level until it converges, and return its accuracy."""
    model = vector_model("marginal", x.shape[1])
    objective = create_objective(options(), model)
    parameters = list(model.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()
    optimizer = torch.optim.LBFGS(parameters, max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = sum((p.square().sum() for p in parameters), start=torch.zeros(()))
        loss = loss_of(objective, model.forward_head, x, labels, "species") + 1e-6 * penalty
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    found = model.forward_head(test_x, ("species",))["species"].argmax(dim=1)
    return (found == torch.arange(36).repeat_interleave(20)).double().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_images_labelled_by_genus_improve_species(seed: int, critter_features: tuple[Tensor, Tensor]) -> None:
    # 3 images of each species are labelled; of the other 27 only the genus is known. Seeds 0 to 11 gave 13.2 to
    # 17.1 % of the species right without the others and 21.4 to 26.2 % with them, a gain of 6.0 to 12.9 points each.
    x, test_x = critter_features
    generator = torch.Generator().manual_seed(seed)
    few = [c * PER_CLASS + int(i) for c in range(36) for i in torch.randperm(PER_CLASS, generator=generator)[:LABELLED]]
    whole = create_dataset("critters", "train", per_class=PER_CLASS)
    mixed = HideLabels(whole, "genus", sorted(set(range(len(whole))) - set(few)))
    labels = labels_of(mixed)
    assert (labels[:, 2] >= 0).sum() == 36 * LABELLED
    without = species_accuracy(x[few], labels[few], test_x)
    assert species_accuracy(x, labels, test_x) > without + 0.04


@pytest.fixture
def mixed_critters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Register a dataset with one of two images of each species labelled by genus only; change to a new folder."""
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "usable_cores", lambda: 1)  # or later tests would have more threads

    @register_dataset("mixed_critters")
    def mixed_critters(split: str) -> LabelledImages:
        dataset = create_dataset("critters", split, per_class=2)
        return HideLabels(dataset, "genus", range(1, 72, 2))


def run_recipe(options: TrainOptions, name: str) -> None:
    runpy.run_path(str(RECIPE))["main"](options, name)


def recipe_options(**values: object) -> TrainOptions:
    defaults: dict[str, object] = {
        "dataset": "mixed_critters",
        "model": "mlph",
        "model_options": {"backbone": "test_convnext", "input_size": 32, "pooling_options": {"dim": 8}, "head": "hex"},
        "resolutions": {"family": 12},
        "stages": [Stage(epochs=1, lr=0.1)],
        "batch_size": 16,
        "val_fraction": 0.0,
    }
    return TrainOptions(**defaults | values)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_recipe_trains_on_labels_of_mixed_depth(mixed_critters: None, tmp_path: Path) -> None:
    chosen = {"loss": "hxe", "loss_options": {"alpha": 0.2}, "level_weights": {"family": 0.5}, "tree_prior": 1e-4}
    run_recipe(recipe_options(**chosen), "mixed")
    run = tmp_path / "runs" / "mixed-1"
    tables = {name: read_csv(run / f"{name}.csv") for name in ("metrics", "test", "test_predictions")}
    assert all(float(tables["metrics"][0][f"loss_{level}"]) > 0 for level in CRITTERS.levels)
    images = {row["level"]: row["images"] for row in tables["test"]}
    assert images == {"family": "72", "genus": "72", "species": "36"}
    predictions = tables["test_predictions"]
    assert [row["species"] == "" for row in predictions] == [i % 2 == 1 for i in range(72)]
    for row in tables["test"]:
        if row["own"] == "True":
            level = row["level"]
            right = sum(p[level] == p[f"predicted_{level}"] for p in predictions if p[level])
            assert float(row["accuracy"]) == pytest.approx(right / int(row["images"]))
    model = create_model(f"local-dir:{run}")
    assert model.config.head == "hex"


def test_a_level_without_labels_is_an_error(mixed_critters: None, tmp_path: Path) -> None:
    @register_dataset("genera")
    def genera(split: str) -> LabelledImages:
        dataset = create_dataset("critters", split, per_class=2)
        return HideLabels(dataset, "genus", range(len(dataset)))

    with pytest.raises(ValueError, match=r"no training image has a label at 'species'; .* set model_options.levels"):
        run_recipe(recipe_options(dataset="genera"), "genera")
    assert not (tmp_path / "runs").exists()
