"""Calibration: temperatures and thresholds against brute force, the promise by simulation, and the file."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from c2f_zoo import create_model
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.inference.calibration import (
    Calibration,
    calibrate,
    calibrated,
    conformal_threshold,
    fit_temperature,
    group_edges,
    group_thresholds,
    images_needed,
    smallest_thresholds,
)
from c2f_zoo.inference.nodes import NodeProbabilities, Nodes, sum_over_leaves
from c2f_zoo.inference.trust import RULES
from c2f_zoo.io import hub
from c2f_zoo.io.card import model_card
from c2f_zoo.io.weights import CALIBRATION_FILE, digest_weights
from c2f_zoo.model import C2FModel

ROWS = [("x", "p", "1"), ("x", "p", "2"), ("x", "q", "3"), ("y", "r", "4"), ("y", "r", "5"), ("y", "r", "6")]
TREE = Hierarchy.from_rows(("a", "b", "c"), ROWS)
NODES = Nodes(TREE)
RULE_OPTIONS = {"nominal": {"resolutions": {"a": 10, "b": 30, "c": 50}}}


def draw(count: int, seed: int = 0) -> tuple[NodeProbabilities, np.ndarray]:
    """Return random probabilities, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    leaf = rng.dirichlet(np.full(6, 0.5), count)
    labels = (leaf.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1).clip(max=5)
    return NodeProbabilities(NODES, sum_over_leaves(leaf, NODES), rng.integers(5, 60, count)), labels


@pytest.fixture
def calibration() -> Calibration:
    """A calibration for risks of 20 and 10 %, in five groups."""
    p, labels = draw(400)
    detail = np.arange(400) % 5 * 10.0 + 10
    risks, edges = (0.2, 0.1), (20.0, 30.0, 40.0, 50.0)
    thresholds, images, overall = calibrate(RULES["climb"], p, labels, detail, risks, edges)
    return Calibration("climb", "sum", {"c": 1.5}, 0.1, risks, edges, thresholds, images, overall)


class TestTemperature:
    @pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
    def test_it_minimizes_the_negative_log_likelihood(self, true: float) -> None:
        rng = np.random.default_rng(1)
        z = rng.normal(size=(3000, 5)) * 3
        shown = np.exp(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))
        labels = (shown.cumsum(axis=1) < rng.random((3000, 1))).sum(axis=1).clip(max=4)
        found = fit_temperature(z * true, labels)

        def loss(temperature: float) -> float:
            logits = torch.tensor(z * true / temperature)
            return torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).item()

        assert loss(found) <= min(loss(t) for t in np.geomspace(0.1, 10, 401)) + 1e-6
        assert found == pytest.approx(true, rel=0.1)

    def test_unknown_labels_are_left_out(self) -> None:
        z = np.log([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.2, 0.8]])
        temperature = fit_temperature(z, np.array([0, 0, 0, 1, -1]))
        assert 9 ** (1 / temperature) == pytest.approx(3, abs=1e-6)  # odds of 3 to 1
        with pytest.raises(ValueError, match="no image has a label"):
            fit_temperature(z, np.full(5, -1))

    def test_bounds_where_all_or_none_are_right(self) -> None:
        z = np.log([[0.9, 0.1]])
        assert fit_temperature(z, np.array([0])) == pytest.approx(0.05, rel=0.1)  # rounding ends the bisection early
        assert fit_temperature(z, np.array([1])) == pytest.approx(20, rel=0.1)


@pytest.mark.parametrize("name", RULES.names())
def test_the_smallest_threshold_is_where_a_rule_becomes_right_for_good(name: str) -> None:
    p, labels = draw(60)
    chain = RULES[name](p, **RULE_OPTIONS.get(name, {}))
    found = smallest_thresholds(chain, NODES, labels)
    finite = chain.until[np.isfinite(chain.until)]
    trials = np.sort(np.concatenate([finite, np.nextafter(finite, np.inf), [-1.0, 1e9]]))
    right = np.stack([NODES.are_right(chain.choose(t), labels) for t in trials])
    for image in range(60):
        wrong = trials[~right[:, image]]
        assert np.array_equal(right[:, image], trials > found[image]) or (
            wrong.size and wrong.max() == found[image]  # right, wrong and right again: the last change counts
        )


class TestThreshold:
    @pytest.mark.parametrize(("n", "risk"), [(9, 0.1), (19, 0.1), (20, 0.05), (99, 0.01), (7, 0.5)])
    def test_its_rank_is_that_of_split_conformal_prediction(self, n: int, risk: float) -> None:
        """By counting: of n + 1 exchangeable values, the new one is at most the chosen one in enough of all ranks."""
        values = np.random.default_rng(0).permutation(n).astype(float)
        threshold = conformal_threshold(values, risk)
        covered = math.ceil(threshold)  # values 0, 1, ... below the threshold
        assert covered / (n + 1) >= 1 - risk - 1e-12
        assert (covered - 1) / (n + 1) < 1 - risk

    @pytest.mark.parametrize("risk", [0.5, 0.1, 0.05, 0.02, 0.01, 1 / 3])
    def test_too_few_images_are_an_error_that_says_how_many_are_needed(self, risk: float) -> None:
        needed = images_needed(risk)
        conformal_threshold(np.zeros(needed), risk)
        with pytest.raises(ValueError, match=f"needs {needed} calibration images"):
            conformal_threshold(np.zeros(needed - 1), risk)
        assert needed == next(n for n in itertools.count(0) if (n + 1) * (1 - risk) <= n + 1e-9)

    def test_an_always_right_rule_needs_no_threshold(self) -> None:
        assert conformal_threshold(np.full(20, -np.inf), 0.1) == 0

    def test_a_rule_that_is_wrong_at_every_threshold_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="wrong at every threshold"):
            conformal_threshold(np.full(20, np.inf), 0.1)

    @pytest.mark.parametrize("risk", [0.3, 0.1])
    def test_the_promise_holds_on_average(self, risk: float) -> None:
        """Also for probabilities that are badly calibrated: the labels come from their square roots."""
        p, _ = draw(4000)
        rng = np.random.default_rng(2)
        flat = np.sqrt(p.levels[-1])
        flat /= flat.sum(axis=1, keepdims=True)
        labels = (flat.cumsum(axis=1) < rng.random((4000, 1))).sum(axis=1).clip(max=5)
        chain = RULES["climb"](p)
        values, rights = smallest_thresholds(chain, NODES, labels), []
        for _ in range(300):
            order = rng.permutation(4000)[:400]
            threshold = conformal_threshold(values[order[:100]], risk)
            rights.append(NODES.are_right(chain.choose(threshold), labels)[order[100:]].mean())
        error = np.std(rights) / math.sqrt(len(rights))
        assert 1 - risk - 4 * error < np.mean(rights) < 1 - risk + 1 / 101 + 4 * error


class TestGroups:
    @pytest.mark.parametrize(("groups", "edges"), [(1, ()), (2, (48,)), (5, (32, 48, 80, 227)), (8, (32, 48, 80, 227))])
    def test_images_of_the_same_detail_stay_together(self, groups: int, edges: tuple[float, ...]) -> None:
        assert group_edges(np.repeat([20.0, 32.0, 48.0, 80.0, 227.0], 300), groups) == edges

    @pytest.mark.parametrize("groups", [2, 5, 8])
    @pytest.mark.parametrize("count", [8, 399, 400])
    def test_groups_are_of_equal_size(self, count: int, groups: int) -> None:
        detail = np.random.default_rng(count).lognormal(3, 1, count)
        counts = np.bincount(np.searchsorted(group_edges(detail, groups), detail, side="right"))
        assert len(counts) == groups
        assert counts.max() - counts.min() <= 1

    def test_a_group_has_the_largest_threshold_of_three_adjacent_ones(self, calibration: Calibration) -> None:
        p, labels = draw(400)
        groups, of_triple = np.arange(400) % 5, {}
        for triple in ((0, 1, 2), (1, 2, 3), (2, 3, 4)):
            part = np.isin(groups, triple)
            values = smallest_thresholds(RULES["climb"](p.take(part)), NODES, labels[part])
            of_triple[triple] = [conformal_threshold(values, risk) for risk in (0.2, 0.1)]
        for group in range(5):
            own = [thresholds for triple, thresholds in of_triple.items() if group in triple]
            assert calibration.thresholds[group] == tuple(map(max, zip(*own, strict=True)))
        assert calibration.images == (80,) * 5
        assert calibration.group(np.array([9.9, 29.9, 30.0, 60.0])).tolist() == [0, 1, 2, 4]
        expected = [calibration.thresholds[0][1], calibration.thresholds[4][1]]
        assert calibration.threshold(np.array([0, 4])).tolist() == expected

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_up_to_three_groups_have_one_threshold(self, count: int) -> None:
        values = np.random.default_rng(0).random(99)
        found = group_thresholds(values, np.arange(99) % count, count, 0.1)
        assert found == [conformal_threshold(values, 0.1)] * count


class TestProbabilities:
    def test_sums_are_those_of_the_leaf_level_with_its_temperature(self) -> None:
        z = np.random.default_rng(0).normal(size=(4, 6))
        p = calibrated({"c": z}, TREE, "sum", {"c": 2.0})
        leaf = torch.tensor(z / 2).softmax(dim=1).numpy()
        np.testing.assert_allclose(p.levels[2], leaf, atol=1e-12)
        np.testing.assert_allclose(
            p.levels[1], np.stack([leaf[:, :2].sum(1), leaf[:, 2], leaf[:, 3:].sum(1)], 1), atol=1e-12
        )

    def test_levels_have_their_own_heads_and_temperatures(self) -> None:
        rng = np.random.default_rng(0)
        z = {level: rng.normal(size=(4, count)) for level, count in TREE.num_classes.items()}
        p = calibrated(z, TREE, "levels", {"b": 3.0})
        for found, level, temperature in zip(p.levels, TREE.levels, (1, 3, 1), strict=True):
            np.testing.assert_allclose(found, torch.tensor(z[level] / temperature).softmax(dim=1).numpy(), atol=1e-12)

    def test_impossible_classes_stay_impossible(self) -> None:
        z = np.array([[0.0, -np.inf, -np.inf, -np.inf, -np.inf, -np.inf]])
        assert calibrated({"c": z}, TREE, "sum", {"c": 0.5}).levels[0].tolist() == [[1.0, 0.0]]


class TestFile:
    def test_json_and_back(self, calibration: Calibration) -> None:
        assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"rule": "clim"}, "clim"),
            ({"probabilities": "mean"}, "mean"),
            ({"risk": 0.3}, "risk is 0.3"),
            ({"risks": (0.0, 0.1)}, "risks is"),
            ({"edges": (-1.0,)}, "edges is"),
            ({"images": (3,)}, "images is"),
            ({"temperatures": {"c": 0.0}}, "temperatures is"),
            ({"thresholds": ((0.1, math.nan), (0.2, 0.3))}, "thresholds is"),
            ({"thresholds": ((0.1, 0.2),)}, "thresholds is"),
            ({"thresholds": ["12", "12"]}, "'1' is not a number"),
            ({"thresholds": 5}, "not iterable"),
            ({"overall": (0.1, math.inf)}, "overall is"),
            ({"edges": (math.inf,)}, "edges is"),
            ({"images": (0, 1)}, "images is"),
            ({"images": (math.inf, 1)}, "infinity"),
            ({"risk": 10**400}, "too large"),
            ({"risk": True}, "True' is not a number"),
            ({"rule": 5}, "rule is 5"),
            ({"about": "x"}, "about is x"),
            ({"weights": 3}, "weights is 3"),
            ({"reliability": {"c": 1}}, "'int' object"),
            ({"temperatures": [["c", 1]]}, "'list' object"),
            ({"version": 2}, "version 2"),
        ],
    )
    def test_invalid_values_are_named(self, calibration: Calibration, changes: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Calibration.from_dict({**calibration.to_dict(), **changes})

    def test_long_values_are_shortened(self, calibration: Calibration) -> None:
        with pytest.raises(ValueError, match="edges is") as info:
            Calibration.from_dict({**calibration.to_dict(), "edges": [1] * 10**5})
        assert len(str(info.value)) < 500

    @pytest.mark.parametrize("key", ["rule", "thresholds", "edges", "temperatures"])
    def test_missing_values_are_named(self, calibration: Calibration, key: str) -> None:
        data = calibration.to_dict()
        del data[key]
        with pytest.raises(ValueError, match=key):
            Calibration.from_dict(data)

    @pytest.mark.parametrize("data", [[], {"weights": 1, "other": 2}, "text"])
    def test_other_data_are_refused(self, data: object) -> None:
        with pytest.raises(ValueError, match="c2f-zoo calibrate"):
            Calibration.from_dict(data)  # type: ignore[arg-type]

    def test_an_unknown_risk_lists_the_known(self, calibration: Calibration) -> None:
        with pytest.raises(ValueError, match=r"risk of 0.05; choose one of 0.2, 0.1"):
            calibration.threshold(np.array([0]), 0.05)


class TestSavedModels:
    @pytest.fixture
    def model(self, calibration: Calibration) -> C2FModel:
        model = create_model("mlph", backbone="test_resnet", hierarchy="fashion_mnist", input_size=32)
        model.calibration = json.loads(
            json.dumps(replace(calibration, weights=digest_weights(model.state_dict())).to_dict())
        )
        return model

    @pytest.mark.slow
    def test_a_save_carries_the_calibration(self, model: C2FModel, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        assert C2FModel.from_pretrained(tmp_path).calibration == model.calibration
        model.half().save_pretrained(tmp_path / "half")  # half precision keeps it
        assert C2FModel.from_pretrained(tmp_path / "half").calibration == model.calibration

    def test_other_weights_lose_it(self, model: C2FModel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        model.save_pretrained(tmp_path)
        with torch.no_grad():
            next(model.parameters()).add_(1)
        model.save_pretrained(tmp_path)
        assert "c2f-zoo calibrate" in caplog.text
        assert not (tmp_path / CALIBRATION_FILE).exists()
        assert C2FModel.from_pretrained(tmp_path).calibration is None

    def test_weights_that_were_replaced_are_noticed(
        self, model: C2FModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        model.save_pretrained(tmp_path)
        kept = (tmp_path / CALIBRATION_FILE).read_bytes()
        create_model("mlph", backbone="test_resnet", hierarchy="fashion_mnist", input_size=32).save_pretrained(tmp_path)
        (tmp_path / CALIBRATION_FILE).write_bytes(kept)
        assert C2FModel.from_pretrained(tmp_path).calibration is None
        assert "of other weights" in caplog.text

    @pytest.mark.parametrize("text", ["{", "[1]", "[" * 10**5, " " * (2**20 + 1)])
    def test_a_damaged_file_is_named(self, model: C2FModel, tmp_path: Path, text: str) -> None:
        model.save_pretrained(tmp_path)
        (tmp_path / CALIBRATION_FILE).write_text(text)
        with pytest.raises(ValueError, match=CALIBRATION_FILE):
            C2FModel.from_pretrained(tmp_path)

    def test_the_card_of_a_pushed_model_is_that_of_its_files(
        self, model: C2FModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A calibration of other weights is not pushed, and not described."""

        def keep(folder: str, *args: object, **options: object) -> str:
            shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
            return "url"

        monkeypatch.setattr(hub, "push", keep)
        model.push_to_hub("me/model")
        assert (tmp_path / CALIBRATION_FILE).is_file()
        assert "at most 10 % get a wrong class" in (tmp_path / "README.md").read_text(encoding="utf-8")
        (tmp_path / CALIBRATION_FILE).unlink()
        with torch.no_grad():
            next(model.parameters()).add_(1)
        model.push_to_hub("me/model")
        assert not (tmp_path / CALIBRATION_FILE).exists()
        assert "The model is not calibrated" in (tmp_path / "README.md").read_text(encoding="utf-8")

    @pytest.mark.parametrize("changes", [{"images": [1]}, {"about": "x"}, {"thresholds": 5}, {"risks": None}])
    def test_the_card_of_an_invalid_calibration_is_an_error(self, model: C2FModel, changes: dict[str, object]) -> None:
        calibration = {**(model.calibration or {}), **changes}
        with pytest.raises(ValueError, match="invalid calibration"):
            model_card(model.config, "me/model", calibration=calibration)
        with pytest.raises(ValueError, match="invalid calibration"):
            model_card(model.config, "me/model", calibration={"weights": "0"})
