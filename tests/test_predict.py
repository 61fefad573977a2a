"""Predictions, with classifiers whose probabilities are set by hand."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL
from PIL import Image

from c2f_zoo import C2FModel, Hierarchy, Predictor, create_dataset, create_model
from c2f_zoo.data import create_transform
from c2f_zoo.inference.resolutions import own_resolutions

TREE = Hierarchy.from_rows(("kind", "shape"), [("round", "disc"), ("round", "ring"), ("edged", "box")])


def model_with_probabilities(levels: dict[str, list[float]], tree: Hierarchy = TREE) -> C2FModel:
    """Return a model with the same probabilities for every image."""
    model = create_model("mlph", hierarchy=tree, levels=list(levels), **SMALL)  # type: ignore[arg-type]
    with torch.no_grad():
        for level, probabilities in levels.items():
            classifier = model.head.get_classifier(level)
            classifier.weight.zero_()
            classifier.bias.copy_(torch.tensor(probabilities).log())
    return model


def test_the_prediction_is_the_best_path_of_the_tree() -> None:
    # Level by level the best are "edged" and "disc", which is not a path. By hand, products along the paths:
    # round-disc 0.4 * 0.6 = 0.24, round-ring 0.4 * 0.3 = 0.12, edged-box 0.6 * 0.1 = 0.06.
    model = model_with_probabilities({"kind": [0.4, 0.6], "shape": [0.6, 0.3, 0.1]})
    path = Predictor(model)(Image.new("RGB", (30, 20))).path
    assert [(level, name) for level, name, _ in path] == [("kind", "round"), ("shape", "disc")]
    assert [p for _, _, p in path] == pytest.approx([0.4, 0.6])


def test_a_level_that_is_not_predicted_is_marginalized() -> None:
    model = model_with_probabilities({"shape": [0.25, 0.3, 0.45]})
    prediction = Predictor(model)(Image.new("L", (64, 64)))
    assert [(level, name) for level, name, _ in prediction.path] == [("kind", "edged"), ("shape", "box")]
    assert [p for _, _, p in prediction.path] == pytest.approx([0.45, 0.45])
    assert str(prediction) == "edged (0.45) > box (0.45)"


def test_a_model_of_coarse_levels_predicts_a_shorter_path() -> None:
    model = model_with_probabilities({"kind": [0.9, 0.1]})
    assert Predictor(model)(Image.new("RGB", (64, 64))).path == [("kind", "round", pytest.approx(0.9))]


def test_a_coarser_level_is_derived_from_the_finest_predicted_level() -> None:
    tree = Hierarchy.from_rows(
        ("world", "kind", "shape"), [("flat", "round", "disc"), ("flat", "edged", "box"), ("solid", "full", "ball")]
    )
    model = create_model("mlph", hierarchy=tree, levels=["kind"], **SMALL)  # type: ignore[arg-type]
    with torch.no_grad():
        classifier = model.head.get_classifier("kind")
        classifier.weight.zero_()
        classifier.bias.copy_(torch.tensor([0.3, 0.25, 0.45]).log())
    path = Predictor(model)(Image.new("RGB", (64, 64))).path
    assert path == [("world", "solid", pytest.approx(0.45)), ("kind", "full", pytest.approx(0.45))]


def test_a_level_that_is_not_predicted_has_the_next_finer_resolution() -> None:
    coarse: dict[str, Any] = {**SMALL, "levels": ["genus"], "resolutions": {"genus": 32}}
    assert own_resolutions(create_model("mlph", hierarchy="critters", **coarse)) == {"family": 32, "genus": 32}
    outer: dict[str, Any] = {**SMALL, "levels": ["family", "species"], "resolutions": {"family": 12}}
    model = create_model("mlph", hierarchy="critters", **outer)
    assert own_resolutions(model) == {"family": 12, "genus": None, "species": None}


def test_probabilities_are_not_normalized(monkeypatch: pytest.MonkeyPatch) -> None:
    # An image may stop at a class: a level's probabilities then sum to less than 1, and are not normalized.
    model = model_with_probabilities({"kind": [0.5, 0.5], "shape": [0.2, 0.3, 0.5]})
    given = {"kind": [[0.6, 0.1]], "shape": [[0.1, 0.3, 0.05]]}
    log_probs = {level: torch.tensor(values).double().log() for level, values in given.items()}
    monkeypatch.setattr(model.head, "log_probs", lambda logits: {level: log_probs[level] for level in logits})
    path = Predictor(model)(Image.new("RGB", (64, 64))).path
    assert path == [("kind", "round", pytest.approx(0.6)), ("shape", "ring", pytest.approx(0.3))]


def test_each_level_sees_the_image_at_its_own_resolution() -> None:
    # A fine pattern whose mean is grey: at 4 pixels the coarse level must see plain grey.
    torch.manual_seed(0)
    model = create_model("mlph", hierarchy=TREE, resolutions={"kind": 4, "shape": None}, **SMALL)  # type: ignore[arg-type]
    predictor = Predictor(model)
    pattern = Image.new("RGB", (64, 64))
    pattern.putdata([(255, 255, 255) if (x + y) % 2 else (0, 0, 0) for y in range(64) for x in range(64)])
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    probabilities = {level: np.exp(z) for level, z in predictor._log_probs([pattern, grey]).items()}
    assert np.allclose(*probabilities["kind"], atol=1e-3)
    assert not np.allclose(*probabilities["shape"], atol=1e-3)
    assert math.isclose(float(probabilities["shape"][0].sum()), 1.0)


def test_every_way_to_pass_an_image_gives_the_same_prediction(tmp_path: Path) -> None:
    torch.manual_seed(0)
    predictor = Predictor(create_model("mlph", hierarchy=TREE, **SMALL))  # type: ignore[arg-type]
    grey = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")  # the same image with 16 bits
    turned = Image.fromarray(np.rot90(grey).copy())  # and one that is turned by its EXIF orientation
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    files = [tmp_path / name for name in ("8.png", "16.png", "turned.png")]
    x = torch.from_numpy(grey)
    ways = [
        *files,
        str(files[0]),
        *map(Image.open, files),
        grey,
        x,
        x[None],
        x / 255,
        x.expand(3, -1, -1),
        Image.fromarray(grey),
    ]
    found = predictor._log_probs(ways)
    for level, z in found.items():
        np.testing.assert_allclose(z, np.broadcast_to(z[:1], z.shape), rtol=1e-7, atol=1e-7, err_msg=level)
    assert len(predictor(ways)) == len(ways)
    assert predictor(files[1]).path == predictor(Image.open(files[1])).path


def test_outputs_that_are_not_finite_are_an_error() -> None:
    model = model_with_probabilities({"kind": [0.5, 0.5], "shape": [0.2, 0.3, 0.5]})
    with torch.no_grad():
        model.head.get_classifier("shape").bias[1] = torch.nan
    image = Image.new("RGB", (64, 64))
    with pytest.raises(ValueError, match="outputs at 'shape' are not finite for 2 of 2 images: its weights"):
        Predictor(model)([image, image])


@pytest.fixture
def three_levels() -> C2FModel:
    """Return a model with two of its three levels at the same resolution."""
    torch.manual_seed(0)
    resolutions = {"family": 12, "genus": 12, "species": None}
    return create_model("mlph", hierarchy="critters", resolutions=resolutions, **SMALL)  # type: ignore[arg-type]


def test_the_backbone_runs_once_for_each_distinct_resolution(three_levels: C2FModel) -> None:
    batches: list[int] = []
    three_levels.backbone.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    predictor = Predictor(three_levels)
    predictor(Image.new("RGB", (64, 64)))
    assert batches == [1, 1]
    predictor.predict_batch([Image.new("RGB", (64, 64)), Image.new("RGB", (90, 64))])
    assert batches[2:] == [2, 2]


def test_shared_passes_and_batches_do_not_change_predictions(three_levels: C2FModel) -> None:
    dataset = create_dataset("critters", "test", per_class=1)
    images = [dataset[index][0] for index in (0, 9, 17, 35)]
    predictor = Predictor(three_levels)
    found, preprocessing = predictor._log_probs(images), three_levels.config.preprocessing
    for level, resolution in three_levels.config.resolutions.items():
        transform = create_transform(preprocessing, resolution, train=False)
        with torch.no_grad():
            logits = torch.cat([three_levels(transform(image)[None], (level,))[level] for image in images])
        expected = three_levels.log_probs({level: logits.double()})[level]
        torch.testing.assert_close(torch.from_numpy(found[level]), expected, atol=1e-4, rtol=1e-4)
    for image, prediction in zip(images, predictor.predict_batch(images), strict=True):
        alone = predictor(image).path
        assert [step[:2] for step in prediction.path] == [step[:2] for step in alone]
        assert [p for _, _, p in prediction.path] == pytest.approx([p for _, _, p in alone], abs=1e-4)


def in_threads(count: int, function: Callable[[int], Any]) -> list[Any]:
    """Call a function of a number in several threads at once, and return the results."""
    barrier = threading.Barrier(count)

    def call(number: int) -> Any:
        torch.set_num_threads(1)
        barrier.wait()
        return function(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


@pytest.mark.slow
def test_a_predictor_serves_several_threads(tmp_path: Path) -> None:
    # Each of the three resolutions has its own batch norm, which a pass in another thread must not change.
    model = create_model("mlph_tiny_critters", pretrained=True, batch_norm="per_level").eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("copies.1.running_mean"):
                buffer += 0.1
    predictor, dataset = Predictor(model), create_dataset("critters", "test", per_class=1)
    images = [dataset[index][0] for index in range(0, 36, 9)]
    expected = [predictor(image).path for image in images]
    found = in_threads(4, lambda number: [predictor(images[(number + call) % 4]).path for call in range(4)])
    assert found == [[expected[(number + call) % 4] for call in range(4)] for number in range(4)]
    # new predictors of the same model, and an image that no thread has loaded
    images[0].resize((800, 800)).save(tmp_path / "a.png")
    opened, alone = Image.open(tmp_path / "a.png"), predictor(tmp_path / "a.png").path
    assert in_threads(4, lambda number: Predictor(model)(opened).path) == [alone] * 4


def test_no_images_have_no_predictions(three_levels: C2FModel) -> None:
    assert Predictor(three_levels)([]) == []


@pytest.mark.slow
def test_models_are_created_and_loaded_in_several_threads(three_levels: C2FModel, tmp_path: Path) -> None:
    three_levels.save_pretrained(tmp_path)
    image = Image.new("RGB", (64, 64), (200, 100, 0))
    expected = Predictor(three_levels)(image).path
    backbones = ["test_convnext", "resnet18"]  # the second has weights whose initialization is deferred

    def create(number: int) -> Any:
        if number % 2:
            return Predictor(create_model(f"local-dir:{tmp_path}"))(image).path
        options: dict[str, Any] = {**SMALL, "backbone": backbones[number // 2], "pooling": "avg", "pooling_options": {}}
        weights = create_model("mlph", hierarchy="critters", **options).state_dict()
        return {name: float(weight.std()) for name, weight in weights.items() if weight.ndim == 4}

    found, again = in_threads(4, create), [create(0), create(2)]
    assert found[1::2] == [expected] * 2
    for deviations, alone in zip(found[::2], again, strict=True):
        assert deviations == pytest.approx(alone, rel=0.2)  # as many numbers of the same distribution
