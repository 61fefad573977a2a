"""Frozen taps: the maps on disk against the backbone's, when they are found again, and training on them."""

from __future__ import annotations

import copy
import math
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from c2f_zoo import C2FModel, create_dataset, create_model
from c2f_zoo.backbones import TapBackbone
from c2f_zoo.data import create_transform, labels_of
from c2f_zoo.data.transformed_images import load_image
from c2f_zoo.training.frozen_taps import FrozenTaps, open_taps
from c2f_zoo.training.options import Stage, TrainOptions
from c2f_zoo.training.tap_training import choose_view, correct_on_taps, mean_accuracy, train_on_taps

RESOLUTIONS = {"species": None, "genus": 32, "family": 12}
DATA = create_dataset("critters", "train", per_class=1)  # 36 images


@pytest.fixture
def model() -> C2FModel:
    return create_model(
        "mlph",
        backbone="tiny",
        hierarchy="critters",
        input_size=32,
        resolutions=RESOLUTIONS,
        pooling_options={"dim": 4},
    )


def views_of(model: C2FModel, folder: Path, mirrored: bool = False) -> FrozenTaps:
    return open_taps(model, DATA, list(RESOLUTIONS.values()), mirrored, folder)


def crop(model: C2FModel, index: int, resolution: int | None) -> Tensor:
    return create_transform(model.config.preprocessing, resolution, train=False)(load_image(DATA, index))[None]


@pytest.mark.parametrize("view", [0, 3])
def test_maps_are_those_of_the_backbone_in_half_precision(model: C2FModel, tmp_path: Path, view: int) -> None:
    taps = views_of(model, tmp_path, mirrored=True)
    resolution, mirrored = taps.views[view]
    assert (resolution, mirrored) == {0: (None, False), 3: (32, True)}[view]
    image = crop(model, 20, resolution)
    with torch.no_grad():
        expected = model.backbone.eval()(image.flip(3) if mirrored else image)
    for found, x in zip(taps.read(model.backbone.taps, torch.tensor([[view, 20]])), expected, strict=True):
        torch.testing.assert_close(found, x.half().float(), rtol=2e-3, atol=1e-4)
    assert torch.equal(taps.labels, labels_of(DATA))


def test_maps_in_bfloat16_are_close_and_have_files_of_their_own(model: C2FModel, tmp_path: Path) -> None:
    full, rounded = (open_taps(model, DATA, [12], False, tmp_path, bf16) for bf16 in (False, True))
    row = torch.tensor([[0, 20]])
    for x, y in zip(full.read(model.backbone.taps, row), rounded.read(model.backbone.taps, row), strict=True):
        assert not torch.equal(x, y)
        torch.testing.assert_close(x, y, rtol=0.05, atol=0.05 * x.abs().max().item())
    assert len(list(tmp_path.glob("*.npy"))) == 6


def test_maps_are_computed_once(model: C2FModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views_of(model, tmp_path)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.npy")}
    assert len(files) == 9  # 3 taps at 3 resolutions
    # A part of the taps, or of the resolutions, needs no computation.
    fewer = create_model("bcnn", backbone="tiny", hierarchy="critters", input_size=32)
    fewer.backbone.load_state_dict(model.backbone.state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(TapBackbone, "forward", lambda *_: pytest.fail("the maps were computed again"))
        views_of(model, tmp_path)
        assert open_taps(fewer, DATA, [12], False, tmp_path).views == [(12, False)]
    views_of(model, tmp_path, mirrored=True)
    assert len(list(tmp_path.glob("*.npy"))) == 18
    assert {file: file.stat().st_mtime_ns for file in files} == files


def change_weight(model: C2FModel) -> tuple[C2FModel, Any]:
    next(model.backbone.parameters()).data[0] += 0.1
    return model, DATA


def change_preprocessing(model: C2FModel) -> tuple[C2FModel, Any]:
    model.config = replace(model.config, preprocessing=replace(model.config.preprocessing, crop_pct=1.0))
    return model, DATA


def change_images(model: C2FModel) -> tuple[C2FModel, Any]:
    return model, create_dataset("critters", "test", per_class=1)


@pytest.mark.parametrize("change", [change_weight, change_preprocessing, change_images])
def test_other_content_has_other_files(model: C2FModel, tmp_path: Path, change: Any) -> None:
    open_taps(model, DATA, [12], False, tmp_path)
    changed, dataset = change(model)
    open_taps(changed, dataset, [12], False, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 6


def test_an_interrupted_computation_leaves_no_maps(
    model: C2FModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = TapBackbone.forward, []

    def interrupted(self: TapBackbone, x: Tensor) -> list[Tensor]:
        calls.append(len(x))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(self, x)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TapBackbone, "forward", interrupted)
        open_taps(model, DATA, [12], False, tmp_path)
    assert not list(tmp_path.glob("*.npy"))
    taps = open_taps(model, DATA, [12], False, tmp_path)
    assert np.asarray(taps.maps[12, False][model.backbone.taps[0]]).any(axis=(1, 2, 3)).all()


def test_maps_beyond_half_precision_are_an_error(model: C2FModel, tmp_path: Path) -> None:
    for weight in model.backbone.parameters():
        weight.data *= 1e3
    with pytest.raises(ValueError, match="not finite in half precision"):
        open_taps(model, DATA, [12], False, tmp_path)


def test_a_disk_without_room_is_named(model: C2FModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 36 * sum(channels * height * width for channels, height, width in model.backbone.map_shapes) * 2
    for free, is_enough in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        with nullcontext() if is_enough else pytest.raises(OSError, match=r"the maps need .*, but the disk of .* left"):
            open_taps(model, DATA, [None if is_enough else 12], False, tmp_path)


def options_of(objective: str, **more: Any) -> TrainOptions:
    common: dict[str, Any] = {
        "resolutions": RESOLUTIONS,
        "stages": [Stage(epochs=2, lr=0.01, schedule="cosine")],
        "objective": objective,
        "batch_size": 36,
        "optimizer": "adamw",
        "weight_decay": 0.1,
    }
    return TrainOptions("critters", "mlph", **{**common, **more})


@pytest.mark.parametrize(("objective", "precision"), [("in_turn", "no"), ("joint", "no"), ("in_turn", "bf16")])
def test_training_is_that_of_a_loop_by_hand(model: C2FModel, tmp_path: Path, objective: str, precision: str) -> None:
    taps, by_hand = views_of(model, tmp_path), copy.deepcopy(model)
    history = train_on_taps(model, taps, range(36), range(36), options_of(objective, mixed_precision=precision))
    # All images are one batch, so their order does not matter.
    weights = [*by_hand.pooling.parameters(), *by_hand.head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1)
    levels = ("species", "genus", "family")
    steps = 2 * ([[level] for level in levels] if objective == "in_turn" else [list(levels)])
    for number, step in enumerate(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * number / len(steps))) / 2
        optimizer.zero_grad()
        for level in step:
            view = taps.views.index((RESOLUTIONS[level], False))
            maps = taps.read(by_hand.backbone.taps, torch.tensor([(view, index) for index in range(36)]))
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                logits = by_hand.forward_head(by_hand.forward_pool(maps), (level,))[level].float()
            target = taps.labels[:, by_hand.hierarchy.depth(level)]
            torch.nn.functional.cross_entropy(logits, target).backward()
        optimizer.step()
    for name, weight in by_hand.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-3, atol=1e-5)
    assert history[-1] == mean_accuracy(correct_on_taps(by_hand, taps, range(36)))


def test_predictions_are_those_of_the_model_at_each_level_s_resolution(model: C2FModel, tmp_path: Path) -> None:
    found = correct_on_taps(model, views_of(model, tmp_path), [3, 20, 35])
    assert list(found) == ["family", "genus", "species"]
    for level, resolution in RESOLUTIONS.items():
        for place, index in enumerate((3, 20, 35)):
            with torch.no_grad():
                predicted = int(model.eval()(crop(model, index, resolution), (level,))[level].argmax())
            truth = int(labels_of(DATA)[index, model.hierarchy.depth(level)])
            assert found[level][place] == (predicted == truth)


def test_images_without_a_label_count_for_nothing(model: C2FModel, tmp_path: Path) -> None:
    taps = views_of(model, tmp_path)
    taps.labels[5, 2] = -1
    found = correct_on_taps(model, taps, [4, 5])
    assert (found["species"][1], found["genus"][1] >= 0) == (-1, True)
    assert mean_accuracy({"species": np.array([1, -1, 0, 0])}) == {"species": pytest.approx(1 / 3)}


@pytest.mark.parametrize(
    ("objective", "level", "resolutions"),
    [("in_turn", "genus", {32}), ("joint", "family", {12}), ("any_resolution", "species", {None, 32, 12})],
)
def test_views_are_mirrored_at_random_at_a_resolution_of_the_objective(
    model: C2FModel, tmp_path: Path, objective: str, level: str, resolutions: set[int | None]
) -> None:
    taps = views_of(model, tmp_path, mirrored=True)
    chosen = [taps.views[choose_view(taps, seed, [level], options_of(objective))] for seed in range(600)]
    counts = [chosen.count((at, mirrored)) for at in resolutions for mirrored in (False, True)]
    assert sum(counts) == 600
    assert min(counts) > 600 / len(counts) * 0.7


def test_a_diverged_training_is_an_error(model: C2FModel, tmp_path: Path) -> None:
    options = options_of("in_turn", optimizer="sgd", stages=[Stage(epochs=40, lr=1e30)])
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) in epoch \d+; lower the learning rate"):
        train_on_taps(model, views_of(model, tmp_path), range(36), range(4), options)
