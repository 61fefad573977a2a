"""Heat maps of what each level looked at, their figure and their sanity checks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from in_process import run_in_process
from PIL import Image

from c2f_zoo import C2FModel, Predictor, create_dataset, create_model
from c2f_zoo.cli import main
from c2f_zoo.evaluation.ablation_summary import estimate_mean
from c2f_zoo.evaluation.heat_map_checks import STEPS, hide, hottest, rank_correlations, shift, shuffle_weights, sum_heat
from c2f_zoo.evaluation.heat_map_plot import blend_heat, plot_heat_maps
from c2f_zoo.inference.heat_maps import LevelHeat, explain, heat_of
from c2f_zoo.io.files import read_csv


@pytest.fixture(scope="module")
def critters() -> Predictor:
    return Predictor.from_pretrained("mlph_tiny_critters")


@pytest.fixture(scope="module")
def critter() -> Image.Image:
    return create_dataset("critters", "test", per_class=1)[7][0]


def make(**options: object) -> C2FModel:
    """Return a small model in float64 with random weights that predicts critters."""
    return create_model("mlph", **{**SMALL, "hierarchy": "critters", **options}).double().eval()  # type: ignore[arg-type]


def test_with_average_pooling_heat_is_each_places_term_of_the_logit() -> None:
    level = make(pooling="avg", pooling_options={}).at_level("genus")
    x, labels = torch.rand(2, 3, 64, 64).double(), torch.tensor([3, 11])
    heat, linear = heat_of(level, x, labels), level.get_classifier()
    weights, start = linear.weight[labels], 0  # (N, features); the pooled maps are concatenated
    for tap, one in zip(level.backbone.taps, level.forward_features(x), strict=True):
        own = weights[:, start : start + one.shape[1]] / (one.shape[2] * one.shape[3])
        torch.testing.assert_close(heat[tap], torch.einsum("nchw,nc->nhw", one, own))
        start += one.shape[1]
    total = sum_heat(list(heat.values())).sum(dim=(1, 2)) + linear.bias[labels]
    torch.testing.assert_close(total, level(x).gather(1, labels[:, None])[:, 0])


@pytest.mark.parametrize("backbone", ["test_convnext", "test_vit", "tiny"])
def test_heat_is_the_slope_of_the_logit_if_a_place_of_the_map_grows(backbone: str) -> None:
    pooling_options = {"dim": 8, "grad_eps": 1e-9}  # the slope itself, not a bound of it
    level = make(backbone=backbone, pooling_options=pooling_options).at_level("species")
    x, labels, tap, step = torch.rand(1, 3, 64, 64).double(), torch.tensor([7]), level.backbone.taps[1], 1e-5
    heat, maps = heat_of(level, x, labels)[tap][0], level.forward_features(x)
    assert heat.shape == level.backbone.map_shapes[1][1:]
    for row, column in [(0, 0), (1, 2), (3, 1)]:
        logits = []
        for sign in (1, -1):
            changed = [one.clone() for one in maps]
            changed[1][:, :, row, column] *= 1 + sign * step
            logits.append(level.forward_head(changed)[0, 7])
        torch.testing.assert_close(heat[row, column], (logits[0] - logits[1]) / (2 * step), rtol=1e-4, atol=1e-7)


def test_grad_cam_weights_channels_by_their_mean_gradient() -> None:
    level = make(pooling="gem", pooling_options={}).at_level("family")
    x, labels = torch.rand(1, 3, 64, 64).double(), torch.tensor([2])
    maps = [one.detach().requires_grad_() for one in level.forward_features(x)]
    (gradient,) = torch.autograd.grad(level.forward_head(maps)[0, 2], maps[-1])
    expected = (maps[-1] * gradient.mean(dim=(2, 3), keepdim=True)).sum(dim=1)
    torch.testing.assert_close(heat_of(level, x, labels, "grad_cam")[level.backbone.taps[-1]], expected.detach())


def test_no_gradients_are_left_in_the_model(critters: Predictor, critter: Image.Image) -> None:
    explain(critters, critter)
    assert all(weight.grad is None for weight in critters.model.parameters())


def test_the_sum_of_taps_keeps_the_sum_of_each() -> None:
    fine, coarse = torch.rand(2, 6, 8), torch.rand(2, 3, 4)
    total = sum_heat([coarse, fine])
    assert total.shape == (2, 6, 8)
    torch.testing.assert_close(sum_heat([torch.ones(1, 2, 2), torch.zeros(1, 4, 4)]), torch.full((1, 4, 4), 0.25))
    torch.testing.assert_close(sum_heat([fine, fine]), 2 * fine)


def test_each_level_explains_its_class_of_the_predicted_path(critters: Predictor, critter: Image.Image) -> None:
    found = explain(critters, critter)
    assert found.prediction == critters(critter)
    assert [heat.step for heat in found.levels.values()] == found.prediction.path
    x = critters.prepare(critter).views[None][None]
    for level, heat in found.levels.items():
        label = critters.tree.class_names(level).index(heat.step[1])
        expected = heat_of(critters.model.at_level(level), x, torch.tensor([label]))
        for tap, values in heat.taps.items():
            np.testing.assert_allclose(values, expected[tap][0], rtol=1e-5)


def test_levels_at_their_own_resolution_and_only_those_the_model_predicts(critter: Image.Image) -> None:
    options = {"levels": ["genus", "species"], "resolutions": {"genus": 16}, "batch_norm": "per_level"}
    found = explain(Predictor(make(backbone="resnet18", **options).float()), critter)
    assert {level: heat.resolution for level, heat in found.levels.items()} == {"genus": 16, "species": None}
    assert [level for level, *_ in found.prediction.path] == ["family", "genus", "species"]
    coarse = explain(Predictor(make().float(), level="genus"), critter)
    assert list(coarse.levels) == ["family", "genus"]


def test_heat_is_placed_in_its_window() -> None:
    values = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    windows = {"a": (0.25, 0.0, 0.75, 1.0), "b": (-0.5, -0.5, 1.5, 1.5)}
    heat = LevelHeat(("kind", "disc", 0.9), None, {"a": values, "b": np.ones((2, 2))}, windows)
    inside = heat.on_image((40, 20), "a")
    assert (
        (inside[:, :10] == 0).all()
        and (inside[:, 30:] == 0).all()
        and inside.sum() == pytest.approx(values.sum(), rel=0.1)
    )
    assert np.unravel_index(inside.argmax(), (20, 40))[0] // 5 == values.argmax() // 5
    np.testing.assert_allclose(heat.on_image((40, 20), "b"), 4 / (80 * 40), rtol=1e-5)  # of which a quarter is seen
    np.testing.assert_allclose(heat.on_image((40, 20)), inside + 4 / (80 * 40), rtol=1e-5)


def test_heat_of_the_parts_is_in_the_boxes_of_the_prediction(critter: Image.Image) -> None:
    options = {"backbone": "part_rcnn", "backbone_options": {"network": "test_resnet", "cells": 4}}
    model = make(**options).float()
    localizer = model.get_submodule("backbone.body.localizer")
    for region, box in zip(range(3), (0, 40, 200), strict=True):  # the geometry chooses the boxes
        if region:
            localizer.geometry[region - 1, :, box] += 100
    image = critter.resize((120, 96))
    found = explain(Predictor(model), image)
    boxes = found.prediction.boxes
    assert boxes is not None and len(set(boxes.values())) == 3
    for heat in found.levels.values():
        assert set(heat.windows) == set(boxes)
        for region, box in boxes.items():
            assert heat.windows[region] == pytest.approx(box)


def test_blended_heat_is_brightest_where_it_is_hottest() -> None:
    grey = Image.new("RGB", (40, 20), (100, 100, 100))
    heat = np.zeros((20, 40))
    heat[3, 7], heat[5, 30], heat[10, 10] = 2, 1, -5
    changed = np.abs(np.asarray(blend_heat(grey, heat)).astype(int) - 100).sum(axis=2)
    assert changed[3, 7] > changed[5, 30] > 0 and (changed > 0).sum() == 2
    assert np.array_equal(np.asarray(blend_heat(grey, -np.ones((20, 40)))), np.asarray(grey))


def test_the_figure_has_a_row_for_each_tap_and_their_sum(
    critters: Predictor, critter: Image.Image, tmp_path: Path
) -> None:
    found = explain(critters, critter.resize((200, 100)))
    plot_heat_maps(found, critters.model.config.preprocessing, tmp_path / "why.png")
    with Image.open(tmp_path / "why.png") as figure:
        assert figure.size == (round(120 * (0.5 + 2.6 * 3)), round(120 * (0.6 + 1.4 * 4)))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """Run the command line; return its error."""
    monkeypatch.setattr(sys, "argv", ["c2f-zoo", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return str(end.value)


def test_the_command_writes_a_figure(critter: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    critter.save(tmp_path / "critter.png")
    files = [str(tmp_path / name) for name in ("critter.png", "why.png")]
    assert run(monkeypatch, "explain", "mlph_tiny_critters", files[0], "-o", files[1]) in ("0", "None")
    with Image.open(files[1]) as figure:
        assert figure.format == "PNG"
    jpeg = str(tmp_path / "why.jpg")
    error = run(monkeypatch, "explain", "mlph_tiny_critters", files[0], "-o", jpeg)
    assert error == f"c2f-zoo: cannot write {jpeg}: name a file that ends with .png"


def test_without_captum_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    error = run(monkeypatch, "explain", "mlph_tiny_critters", "critter.png", "-o", "why.png")
    assert "pip install 'c2f_zoo[explain]'" in error


def test_the_hottest_pixels_are_those_of_the_largest_values() -> None:
    heat = torch.rand(3, 4, 5)
    masks = hottest(heat, (4, 5), 0.3)
    assert masks.sum(dim=(1, 2)).tolist() == [6, 6, 6]
    for mask, values in zip(masks, heat, strict=True):
        assert values[mask].min() >= values[~mask].max()


def test_shifted_masks_have_the_same_shape() -> None:
    mask = torch.zeros(1, 6, 9, dtype=torch.bool)
    mask[0, 1:3, 2:5] = True
    moved = shift(mask, torch.Generator().manual_seed(3))[0]
    assert any(torch.equal(moved.roll((dy, dx), (0, 1)), mask[0]) for dy in range(6) for dx in range(9))
    places = {tuple(shift(mask, torch.Generator().manual_seed(seed)).nonzero().flatten().tolist()) for seed in range(9)}
    assert len(places) > 5


def test_hidden_places_are_blurred_and_others_unchanged() -> None:
    x, mask = torch.rand(1, 3, 28, 28), torch.zeros(1, 28, 28, dtype=torch.bool)
    mask[0, 5:20, 5:20] = True
    hidden = hide(x, mask)
    assert torch.equal(hidden[:, :, ~mask[0]], x[:, :, ~mask[0]])
    assert hidden[:, :, mask[0]].std() < 0.5 * x[:, :, mask[0]].std()
    torch.testing.assert_close(hide(torch.full((1, 3, 30, 50), 0.3), torch.ones(1, 30, 50) > 0)[0, 0, 0, 0].item(), 0.3)


def test_weights_are_shuffled_from_the_output_down(critters: Predictor) -> None:
    own = critters.model.state_dict()
    changed_names = []
    for step in STEPS:
        other = shuffle_weights(critters.model, step, seed=0).state_dict()
        changed = {name for name in own if not torch.equal(own[name], other[name])}
        assert all(
            torch.equal(own[name].sort().values, other[name].sort().values) for name in own if own[name].ndim == 1
        )
        changed_names.append(changed)
    assert changed_names[0] and all(name.startswith("head.") for name in changed_names[0])
    assert {name.split(".")[0] for name in changed_names[1]} == {"head", "pooling"}
    assert changed_names[0] < changed_names[1] < changed_names[2] < changed_names[3]


def test_rank_correlation_is_that_of_ranks() -> None:
    first, second = torch.rand(2, 3, 3), torch.rand(2, 3, 3)
    for a, b, found in zip(first, second, rank_correlations(first, second), strict=True):
        ranks = [np.argsort(np.argsort(one.flatten().numpy())) for one in (a, b)]
        assert found == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-6)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 400)
    found = estimate_mean(values, resamples=4000, seed=0)
    error = 1.96 * values.std() / 20
    assert (found.value, found.low, found.high) == pytest.approx(
        (values.mean(), values.mean() - error, values.mean() + error), abs=0.1 * error
    )


@pytest.mark.slow
def test_the_recipe_measures_what_the_figures_claim(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "recipes" / "benchmarks" / "heat_maps.py"
    models = "{mlph_tiny_critters: {dataset: critters, per_class: 1}}"
    code, _, error = run_in_process(
        script, ["--models", models, "--images", "18", "--bootstrap", "200", "--output", "out"], tmp_path
    )
    assert code == 0, error
    deletion = read_csv(tmp_path / "out" / "heat-maps-deletion.csv")
    assert len(deletion) == 3 * 2 * 4  # levels, attributions, taps and their sum
    (family,) = [
        row for row in deletion if (row["level"], row["attribution"], row["tap"]) == ("family", "products", "all")
    ]
    assert float(family["hottest"]) > float(family["random"]) and family["images"] == "18"
    shuffled = read_csv(tmp_path / "out" / "heat-maps-shuffled.csv")
    assert len(shuffled) == 3 * 4 * (len(STEPS) + 1)
    assert all(abs(float(row["value"])) < 0.6 for row in shuffled)
