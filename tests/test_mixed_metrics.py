"""Scoring at mixed resolutions against single images, with and without a calibration; plots."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import SMALL
from PIL import Image
from test_trust import UNBALANCED, some_probabilities
from test_trust_metrics import some_labels

from c2f_zoo import C2FModel, create_dataset, create_model
from c2f_zoo.data import HideLabels, LabelledImages, create_transform
from c2f_zoo.evaluation.labels import labels_in
from c2f_zoo.evaluation.mixed_metrics import choose_grid, draw_resolutions, score_mixed
from c2f_zoo.evaluation.trust_curves import Steps, curve, measures, operating_point
from c2f_zoo.evaluation.trust_plots import plot_reliability, plot_risk_coverage
from c2f_zoo.inference.calibration import Calibration
from c2f_zoo.inference.nodes import NodeProbabilities, Nodes, sum_over_leaves
from c2f_zoo.inference.trust import RULES, list_rules

GRID = (None, 24, 8)
NEEDED = {"family": 8, "genus": 24, "species": 64}  # at full size the input's size


def critters_model(levels: list[str] | None = None) -> C2FModel:
    torch.manual_seed(0)
    options: dict[str, Any] = {**SMALL, "hierarchy": "critters", "resolutions": {"family": 8, "genus": 24}}
    model = create_model("mlph", levels=levels, **{**options, "input_size": 64})
    for parameter in model.head.parameters():  # otherwise it predicts one class for all images
        torch.nn.init.normal_(parameter)
    return model.eval()


def score(model: C2FModel, dataset: LabelledImages, folder: Path) -> dict[str, Any]:
    target = labels_in(model.hierarchy, dataset)
    return score_mixed(model, dataset, target, GRID, Accelerator(cpu=True), folder, batch_size=5)


@torch.no_grad()
def log_probs_of_single_images(model: C2FModel, dataset: LabelledImages) -> dict[str, np.ndarray]:
    rows: dict[str, list[np.ndarray]] = {level: [] for level in model.levels}
    drawn = {index: at for at, indices in draw_resolutions(GRID, len(dataset)).items() for index in indices}
    for index in range(len(dataset)):
        x = create_transform(model.config.preprocessing, drawn[index], train=False)(dataset[index][0])[None]
        for level, z in model.log_probs(model(x)).items():
            rows[level].append(z[0].double().numpy())
    return {level: np.stack(found) for level, found in rows.items()}


@pytest.fixture(scope="module")
def dataset() -> LabelledImages:
    return create_dataset("critters", "test", per_class=1)


@pytest.mark.slow
def test_the_section_equals_that_of_single_images(dataset: LabelledImages, tmp_path: Path) -> None:
    model = critters_model()
    section, nodes = score(model, dataset, tmp_path), Nodes(model.hierarchy)
    drawn = draw_resolutions(GRID, 36)
    assert section["images_at"] == {"full size": len(drawn[None]), "24 px": len(drawn[24]), "8 px": len(drawn[8])}
    leaf = np.exp(log_probs_of_single_images(model, dataset)["species"])
    sizes = np.zeros(36, dtype=int)
    for resolution, indices in drawn.items():
        sizes[indices] = resolution or 64
    p = NodeProbabilities(nodes, sum_over_leaves(leaf, nodes), sizes)
    labels = np.arange(36)
    assert list(section["rules"]) == list_rules()
    for rule, found in section["rules"].items():
        chain = RULES[rule](p, **({"resolutions": NEEDED} if rule == "nominal" else {}))
        steps = Steps.of(chain, p, labels)
        assert found == pytest.approx({"images": 36, "unknown": 0, **measures(steps)}, abs=1e-6, nan_ok=True)
        if rule in ("fixed", "nominal"):
            point, expected = section["operating_points"][rule], operating_point(steps, 1.0)
            assert (point["accuracy"], point["coverage"]) == pytest.approx((expected.accuracy, expected.coverage))
            assert point["levels"] == pytest.approx(expected.levels)
    for level, values, truth in zip(model.levels, p.levels, nodes.leaf_paths.T, strict=True):
        diagram = section["reliability"][level]
        accuracy = np.dot(diagram["accuracy"], diagram["images"]) / 36
        assert accuracy == pytest.approx((values.argmax(axis=1) == truth).mean())
        assert np.dot(diagram["confidence"], diagram["images"]) / 36 == pytest.approx(values.max(axis=1).mean())
    for name in ("risk_coverage.png", "reliability.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300


@pytest.mark.slow
def test_a_calibration_is_applied(dataset: LabelledImages, tmp_path: Path) -> None:
    model = critters_model()
    calibration = Calibration(
        rule="climb",
        probabilities="levels",
        temperatures={"genus": 4.0, "species": 2.0},
        risk=0.1,
        risks=(0.1, 0.05),
        edges=(),
        thresholds=((0.3, 0.6),),
        images=(300,),
        overall=(0.3, 0.6),
    )
    model.calibration = calibration.to_dict()
    section = score(model, dataset, tmp_path)
    assert (section["probabilities"], section["temperatures"]) == ("levels", {"genus": 4.0, "species": 2.0})
    levels = []
    for level, z in log_probs_of_single_images(model, dataset).items():
        powers = np.exp(z / {"family": 1, "genus": 4, "species": 2}[level])
        levels.append(powers / powers.sum(axis=1, keepdims=True))
    paths = [model.hierarchy.ancestors(torch.tensor(leaf)).tolist() for leaf in range(36)]
    products = [levels[0][:, a] * levels[1][:, b] * levels[2][:, c] for a, b, c in paths]
    p = NodeProbabilities(Nodes(model.hierarchy), tuple(levels), leaf=np.argmax(products, axis=0))
    steps = Steps.of(RULES["climb"](p), p, np.arange(36))
    assert section["rules"]["climb"]["haurc"] == pytest.approx(measures(steps)["haurc"], abs=1e-6)
    for name, threshold in (("calibrated, risk 10 %", 0.3), ("calibrated, risk 5 %", 0.6)):
        expected = operating_point(steps, threshold)
        assert section["operating_points"][name]["coverage"] == pytest.approx(expected.coverage)


@pytest.mark.slow
def test_labels_of_mixed_depth_and_a_model_of_coarser_levels(dataset: LabelledImages, tmp_path: Path) -> None:
    section = score(critters_model(["genus"]), dataset, tmp_path)
    assert list(section["reliability"]) == ["family", "genus"]
    assert section["rules"]["climb"]["images"] == 36
    section = score(critters_model(), HideLabels(dataset, "genus", range(9)), tmp_path)
    assert (section["rules"]["climb"]["images"], section["rules"]["climb"]["unknown"]) == (27, 9)
    assert sum(section["reliability"]["genus"]["images"]) == 36
    section = score(critters_model(), HideLabels(dataset, "genus", range(36)), tmp_path / "none")
    assert section["rules"] == {} and section["operating_points"] == {}
    assert math.isnan(section["reliability"]["species"]["ece"])
    assert [path.name for path in (tmp_path / "none").iterdir()] == ["reliability.png"]


def test_grids() -> None:
    model = critters_model()
    assert choose_grid(model) == (None, 24, 8)
    assert choose_grid(model, [48, 20]) == (48, 20)
    with pytest.raises(ValueError, match=r"invalid resolution grid \[20, 48\]; it must decrease"):
        choose_grid(model, [20, 48])
    with pytest.raises(ValueError, match=r"invalid resolution grid \[\]"):
        choose_grid(model, [])


def test_each_image_gets_one_resolution_always_the_same() -> None:
    drawn = draw_resolutions(GRID, 3000)
    assert sorted(index for indices in drawn.values() for index in indices) == list(range(3000))
    assert all(900 < len(indices) < 1100 for indices in drawn.values())
    assert drawn == draw_resolutions(GRID, 3000)
    # The first images of a larger dataset get the same ones.
    assert {at: [index for index in indices if index < 100] for at, indices in drawn.items()} == draw_resolutions(
        GRID, 100
    )


def test_plots(tmp_path: Path) -> None:
    p = some_probabilities(UNBALANCED, "sums", n=60)
    steps = {rule: Steps.of(RULES[rule](p), p, some_labels(p)) for rule in ("climb", "darts", "leaf_or_nothing")}
    points = {"climb, $x^$": operating_point(steps["climb"], 0.5)}
    plot_risk_coverage({rule: curve(one) for rule, one in steps.items()}, tmp_path / "a.png", points, "$title^$")
    diagram = {"ece": 0.1, "confidence": [0.3, 0.9], "accuracy": [0.5, 0.8], "images": [3, 40]}
    empty = {"ece": math.nan, "confidence": [], "accuracy": [], "images": []}
    plot_reliability({"genus $": diagram, "species": empty}, tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300
            assert len(np.unique(np.asarray(image.convert("L")))) > 20, "something is drawn"
