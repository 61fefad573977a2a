"""From an image to a path, with classifiers whose answers are set by hand."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import SMALL
from PIL import Image

from c2f_zoo import C2FModel, Hierarchy, Predictor, create_model

TREE = Hierarchy.from_rows(("kind", "shape"), [("round", "disc"), ("round", "ring"), ("edged", "box")])


def model_that_says(levels: dict[str, list[float]]) -> C2FModel:
    """A model whose probabilities are the same for every image."""
    model = create_model("mlph", hierarchy=TREE, levels=list(levels), **SMALL)  # type: ignore[arg-type]
    with torch.no_grad():
        for level, probabilities in levels.items():
            classifier = model.head.get_classifier(level)
            classifier.weight.zero_()
            classifier.bias.copy_(torch.tensor(probabilities).log())
    return model


def test_the_answer_is_the_best_path_of_the_tree() -> None:
    # Level by level the best are "edged" and "disc", which is no path. By hand, products along the paths:
    # round-disc 0.4 * 0.6 = 0.24, round-ring 0.4 * 0.3 = 0.12, edged-box 0.6 * 0.1 = 0.06.
    model = model_that_says({"kind": [0.4, 0.6], "shape": [0.6, 0.3, 0.1]})
    path = Predictor(model)(Image.new("RGB", (30, 20))).path
    assert [(level, name) for level, name, _ in path] == [("kind", "round"), ("shape", "disc")]
    assert [p for _, _, p in path] == pytest.approx([0.4, 0.6])


def test_a_level_without_a_classifier_sums_over_its_classes() -> None:
    model = model_that_says({"shape": [0.25, 0.3, 0.45]})
    prediction = Predictor(model)(Image.new("L", (64, 64)))
    assert [(level, name) for level, name, _ in prediction.path] == [("kind", "edged"), ("shape", "box")]
    assert [p for _, _, p in prediction.path] == pytest.approx([0.45, 0.45])
    assert str(prediction) == "edged (0.45) > box (0.45)"


def test_a_model_of_coarse_levels_alone_gives_what_it_knows() -> None:
    model = model_that_says({"kind": [0.9, 0.1]})
    assert Predictor(model)(Image.new("RGB", (64, 64))).path == [("kind", "round", pytest.approx(0.9))]


def test_a_coarser_level_follows_from_the_finest_that_is_answered() -> None:
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


def test_probabilities_are_those_that_the_head_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    # An image may stop at a class: a level's probabilities then sum to less than 1, and are not to be normalised.
    model = model_that_says({"kind": [0.5, 0.5], "shape": [0.2, 0.3, 0.5]})
    said = {"kind": [[0.6, 0.1]], "shape": [[0.1, 0.3, 0.05]]}
    log_probs = {level: torch.tensor(values).double().log() for level, values in said.items()}
    monkeypatch.setattr(model.head, "log_probs", lambda logits: {level: log_probs[level] for level in logits})
    path = Predictor(model)(Image.new("RGB", (64, 64))).path
    assert path == [("kind", "round", pytest.approx(0.6)), ("shape", "ring", pytest.approx(0.3))]


def test_each_level_sees_its_own_resolution() -> None:
    # A fine pattern whose mean is grey: at 4 pixels the coarse level must see what it sees of a grey image.
    torch.manual_seed(0)
    model = create_model("mlph", hierarchy=TREE, resolutions={"kind": 4, "shape": None}, **SMALL)  # type: ignore[arg-type]
    predictor = Predictor(model)
    pattern = Image.new("RGB", (64, 64))
    pattern.putdata([(255, 255, 255) if (x + y) % 2 else (0, 0, 0) for y in range(64) for x in range(64)])
    found = predictor._probabilities(pattern)
    grey = predictor._probabilities(Image.new("RGB", (64, 64), (128, 128, 128)))
    assert torch.allclose(found["kind"], grey["kind"], atol=1e-3)
    assert not torch.allclose(found["shape"], grey["shape"], atol=1e-3)
    assert math.isclose(float(found["shape"].detach().sum()), 1.0)
