"""Predictions of calibrated models: the part that can be trusted, restrictions, and several images of one object."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_predict import in_threads, model_with_probabilities

from c2f_zoo import C2FModel, Hierarchy, Prediction, Predictor, create_dataset, create_model
from c2f_zoo.inference.calibration import Calibration
from c2f_zoo.inference.fusion import fuse
from c2f_zoo.inference.trust import list_rules
from c2f_zoo.io.weights import digest_weights

GREY = Image.new("RGB", (64, 64), "grey")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
BLURRED = NOISE.resize((8, 8), Image.Resampling.BOX).resize((64, 64), Image.Resampling.NEAREST)


def calibrate(model: C2FModel, *thresholds: float, edges: Sequence[float] = (), **options: Any) -> C2FModel:
    """Give a model a calibration with these thresholds for a risk of 10 %, a group each, and 0.99 for 1 %."""
    rows = tuple((threshold, 0.99) for threshold in thresholds)
    parts: dict[str, Any] = {"rule": "climb", "probabilities": "sum", "temperatures": {}, **options}
    calibration = Calibration(
        risk=0.1,
        risks=(0.1, 0.01),
        edges=tuple(edges),
        thresholds=rows,
        images=(200,) * len(rows),
        overall=rows[0],
        about={"date": "2026-11-28"},
        **parts,
    )
    model.calibration = calibration.to_dict()
    return model


SHAPES = {"kind": [0.85, 0.15], "shape": [0.55, 0.35, 0.1]}  # the sum over leaf classes: 0.9 round, 0.1 edged


@pytest.fixture(scope="module")
def shapes() -> C2FModel:
    """Return a model with the probabilities SHAPES for every image."""
    return model_with_probabilities(SHAPES)


@pytest.mark.parametrize(
    ("threshold", "trusted", "text"),
    [
        (0.5, ("shape", "disc", 0.55), "trusted: round (0.90) > disc (0.55)"),
        (0.8, ("kind", "round", 0.9), "trusted: round (0.90); guess: disc (0.55)"),
        (0.95, None, "trusted: nothing; guess: round (0.90) > disc (0.55)"),
    ],
)
def test_the_trusted_class_reaches_the_threshold(
    shapes: C2FModel, threshold: float, trusted: tuple[str, str, float] | None, text: str
) -> None:
    prediction = Predictor(calibrate(shapes, threshold))(GREY)
    assert prediction.trusted == (None if trusted is None else (*trusted[:2], pytest.approx(trusted[2])))
    assert str(prediction) == text
    assert prediction.path == [("kind", "round", pytest.approx(0.85)), ("shape", "disc", pytest.approx(0.55))]
    assert prediction.provenance.threshold == threshold
    assert (prediction.provenance.rule, prediction.provenance.risk) == ("climb", 0.1)
    assert prediction.provenance.calibrated_on == "2026-11-28"
    assert {level: p.tolist() for level, p in prediction.probabilities.items()} == {
        level: pytest.approx(values) for level, values in SHAPES.items()
    }


def test_probabilities_of_the_heads_may_count(shapes: C2FModel) -> None:
    # 0.85 for round, by its own head, does not reach what the sum of 0.9 does.
    model = calibrate(shapes, 0.87, probabilities="levels")
    assert Predictor(model)(GREY).trusted is None
    assert Predictor(calibrate(model, 0.87))(GREY).trusted == ("kind", "round", pytest.approx(0.9))


def test_a_temperature_applies_to_what_is_trusted_and_not_to_the_path(shapes: C2FModel) -> None:
    model = calibrate(shapes, 0.5, temperatures={"shape": 2.0})
    prediction = Predictor(model)(GREY)
    roots = np.sqrt(SHAPES["shape"])
    p = roots / roots.sum()  # by hand: p ** (1 / 2), normalized: 0.45, 0.36, 0.19
    assert prediction.trusted == ("kind", "round", pytest.approx(p[0] + p[1]))
    assert prediction.guess == [("shape", "disc", pytest.approx(p[0]))]
    assert prediction.path[1][2] == pytest.approx(0.55)


def test_an_enlarged_thumbnail_needs_a_higher_probability(shapes: C2FModel) -> None:
    predictor = Predictor(calibrate(shapes, 0.8, 0.5, edges=[30]))
    sharp, blurred = predictor([NOISE, BLURRED])
    assert (sharp.provenance.group, sharp.provenance.threshold, sharp.trusted_path[-1][1]) == (1, 0.5, "disc")
    assert (blurred.provenance.group, blurred.provenance.threshold, blurred.trusted_path[-1][1]) == (0, 0.8, "round")
    assert blurred.provenance.detail is not None and sharp.provenance.detail is not None
    assert blurred.provenance.detail < 30 < sharp.provenance.detail


def test_another_risk_has_its_own_threshold(shapes: C2FModel) -> None:
    model = calibrate(shapes, 0.5)
    prediction = Predictor(model, risk=0.01)(GREY)
    assert (prediction.trusted, prediction.provenance.risk, prediction.provenance.threshold) == (None, 0.01, 0.99)
    with pytest.raises(ValueError, match=r"not calibrated for a risk of 0.2; choose one of 0.1, 0.01"):
        Predictor(model, risk=0.2)
    model.calibration = None
    with pytest.raises(ValueError, match="has no calibration and promises no risk"):
        Predictor(model, risk=0.1)


def test_a_guess_that_leaves_the_trusted_path_is_shown_in_full() -> None:
    # By hand, the products of the heads: round-disc 0.1 * 0.5 = 0.05, edged-box 0.9 * 0.3 = 0.27. The best leaf
    # class is the disc, and the sum over leaf classes is 0.7 for round.
    model = calibrate(model_with_probabilities({"kind": [0.1, 0.9], "shape": [0.5, 0.2, 0.3]}), 0.6)
    prediction = Predictor(model)(GREY)
    assert [name for _, name, _ in prediction.path] == ["edged", "box"]
    assert str(prediction) == "trusted: round (0.70); guess: edged (0.30) > box (0.30)"


def test_a_model_without_calibration_says_so_once(shapes: C2FModel, caplog: pytest.LogCaptureFixture) -> None:
    shapes.calibration = None
    with caplog.at_level(logging.WARNING):
        prediction, _ = Predictor(shapes)([GREY, NOISE])
    (record,) = caplog.records
    assert "c2f-zoo calibrate" in record.getMessage()
    assert (prediction.trusted, prediction.guess, prediction.provenance.rule) == (None, [], None)
    assert str(prediction) == "round (0.85) > disc (0.55)"


@pytest.mark.filterwarnings("ignore:.*branches end above")
def test_repeats_are_neither_trusted_nor_guessed() -> None:
    rows = [("Fruit", "Apple", "Gala"), ("Fruit", "Banana"), ("Nut", "Hazel")]
    tree = Hierarchy.from_rows(("kind", "genus", "cultivar"), rows, ragged="stop")
    p = {"kind": [0.9, 0.1], "genus": [0.1, 0.8, 0.1], "cultivar": [0.1, 0.8, 0.1]}
    model = model_with_probabilities(p, tree)
    low, high = (Predictor(calibrate(model, threshold))(GREY) for threshold in (0.5, 0.85))
    assert str(low) == "trusted: Fruit (0.90) > Banana (0.80)"
    assert low.trusted == ("genus", "Banana", pytest.approx(0.8)) == low.top_k(1)[0]
    assert str(high) == "trusted: Fruit (0.90); guess: Banana (0.80)"


def test_nothing_is_predicted_below_the_asked_level(shapes: C2FModel) -> None:
    predictor = Predictor(calibrate(shapes, 0.5), level="kind")
    prediction = predictor(GREY)
    assert prediction.path == [("kind", "round", pytest.approx(0.85))]
    assert str(prediction) == "trusted: round (0.90)" and prediction.top_k(1) == prediction.path
    assert list(prediction.probabilities) == ["kind"]
    with pytest.raises(ValueError, match="unknown level 'kint'; did you mean 'kind'"):
        Predictor(predictor.model, level="kint")


# Restrictions


def test_a_restriction_excludes_all_other_classes(shapes: C2FModel) -> None:
    predictor = Predictor(calibrate(shapes, 0.6), only=["ring", "edged"])
    prediction = predictor(GREY)
    # By hand: kinds keep 0.85 and 0.15; of the shapes 0.35 and 0.1 are left, and their sums are the same.
    assert prediction.path == [("kind", "round", pytest.approx(0.85)), ("shape", "ring", pytest.approx(0.35 / 0.45))]
    assert prediction.trusted == ("shape", "ring", pytest.approx(0.35 / 0.45))
    assert prediction.top_k(3)[1:] == [
        ("shape", "box", pytest.approx(0.1 / 0.45)),
        ("shape", "disc", 0.0),
    ]
    assert prediction.provenance.restriction == "only ring, edged"


def test_restricted_sums_lose_the_impossible_classes(shapes: C2FModel) -> None:
    """Without disc, which has most of round's probability, ring has 0.35 and box 0.1 of the sum 0.45."""
    trusted = Predictor(calibrate(shapes, 0.8), only=["ring", "box"])(GREY)
    assert trusted.trusted is None
    assert [p for _, _, p in trusted.guess] == pytest.approx([0.35 / 0.45, 0.35 / 0.45])
    tree = shapes.hierarchy
    leaf_only = model_with_probabilities({"shape": SHAPES["shape"]}, tree)
    path = Predictor(leaf_only, only=["ring", "box"])(GREY).path
    assert [p for _, _, p in path] == pytest.approx([0.35 / 0.45, 0.35 / 0.45])


def test_a_restricted_path_is_the_best_of_the_possible_ones() -> None:
    tree = Hierarchy(("a", "b"), (("x", "y", "z"), tuple("123456")), ((0, 0, 1, 1, 2, 2),))
    p = {"a": [0.2, 0.5, 0.3], "b": [0.3, 0.05, 0.1, 0.2, 0.15, 0.2]}
    model = model_with_probabilities(p, tree)
    for leaves in itertools.combinations(range(6), 2):
        prediction = Predictor(model, only=[tree.classes[1][leaf] for leaf in leaves])(GREY)
        best = max(leaves, key=lambda leaf: p["a"][tree.parents[0][leaf]] * p["b"][leaf])
        assert [name for _, name, _ in prediction.path] == list(tree.path(best))


def test_impossible_classes_stay_so_where_all_possible_ones_have_probability_0() -> None:
    model = model_with_probabilities({"kind": [1.0, 0.0], "shape": [1.0, 0.0, 0.0]})  # logits of -inf are not finite
    with torch.no_grad():
        for level in model.levels:
            model.head.get_classifier(level).bias.clamp_(min=-1e5)
    prediction = Predictor(calibrate(model, 0.5), only=["box"])(GREY)
    assert prediction.path == [("kind", "edged", 1.0), ("shape", "box", 1.0)]
    assert str(prediction) == "trusted: edged (1.00) > box (1.00)"


def test_an_impossible_class_is_not_trusted_where_the_heads_exclude_each_other() -> None:
    """Of ring and box each has probability 0 at one level, as disc, which is impossible."""
    model = model_with_probabilities({"kind": [1.0, 0.0], "shape": [0.0, 0.0, 1.0]})
    with torch.no_grad():
        for level in model.levels:
            model.head.get_classifier(level).bias.clamp_(min=-1e5)
    found = Predictor(calibrate(model, 0.0, probabilities="levels"), only=["ring", "box"])(GREY)
    assert found.trusted is not None and found.trusted[1] in ("ring", "box")


def test_a_species_list_may_have_other_names(
    shapes: C2FModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "species.txt"
    file.write_text("\ufeff# of the region\n\nRING\n  box \nsquare\ntriangle\nring\n", encoding="utf-8")
    model = calibrate(shapes, 0.6)
    with caplog.at_level(logging.WARNING):
        prediction = Predictor(model, species_list=file)(GREY)
    assert [name for _, name, _ in prediction.path] == ["round", "ring"]
    assert prediction.provenance.restriction == "the list species.txt: 3 of 5 names"
    messages = "\n".join(record.getMessage() for record in caplog.records)
    assert "2 of 5 names are not in the model's tree and are left out: square, triangle" in messages
    assert "1 names are matched by letters and digits only: 'RING' is" in messages
    assert Predictor(model, species_list=file, only=["edged"])(GREY).path[-1][1] == "box"
    with pytest.raises(ValueError, match="exclude each other"):
        Predictor(model, species_list=file, only=["disc"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# none\n", "has no names"),
        (b"caf\xe9\n", "is not UTF-8"),
        (b"square\n", "none of its 1 names is in the model's tree: square"),
    ],
)
def test_a_useless_species_list_is_an_error(shapes: C2FModel, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "species.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Predictor(shapes, species_list=tmp_path / "species.txt")


def test_an_unknown_class_is_an_error_with_suggestions(shapes: C2FModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown class 'dics'; did you mean 'disc'"):
        Predictor(shapes, only=["round", "dics"])
    assert Predictor(shapes, only="edged").restriction == Predictor(shapes, only=["edged"]).restriction
    with pytest.raises(ValueError, match="no leaf class"):
        Predictor(shapes, only=[])
    with pytest.raises(FileNotFoundError):
        Predictor(shapes, species_list=tmp_path / "none.txt")


# Several images of one object, and batches


def test_fused_probabilities_are_the_normalized_geometric_mean() -> None:
    p = np.random.default_rng(0).dirichlet([1] * 4, size=3)
    mean = np.prod(p, axis=0) ** (1 / 3)
    np.testing.assert_allclose(np.exp(fuse(np.log(p)))[0], mean / mean.sum())
    # A level that sums to less than 1: the rest is as another class.
    full = np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]])
    mean = np.sqrt(full[0] * full[1])
    np.testing.assert_allclose(np.exp(fuse(np.log(full[:, :2])))[0], (mean / mean.sum())[:2])
    certain = np.where(np.eye(2), 0.0, -np.inf)  # each is sure of another class
    assert np.exp(fuse(certain))[0].tolist() == [0.5, 0.5]


@pytest.fixture(scope="module")
def critters() -> Predictor:
    """Return the predictor of the bundled model, calibrated by hand in two groups of visible detail."""
    model = create_model("mlph_tiny_critters", pretrained=True)
    return Predictor(calibrate(model, 0.9, 0.6, edges=[40]))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Return six critters, three of them small."""
    dataset = create_dataset("critters", "test", per_class=1)
    found = [dataset[index][0] for index in (0, 7, 14, 21, 28, 35)]
    return [image.resize((12, 12)) if number % 2 else image for number, image in enumerate(found)]


def test_a_group_is_predicted_from_the_mean_of_its_images(critters: Predictor, images: list[Image.Image]) -> None:
    fused, (sharp, small) = critters.group(images[:2]), critters(images[:2])
    for level, p in fused.probabilities.items():
        mean = np.sqrt(sharp.probabilities[level] * small.probabilities[level])
        np.testing.assert_allclose(p, mean / mean.sum(), rtol=1e-5)
    assert fused.provenance.images == 2
    assert fused.provenance.threshold == 0.9 == small.provenance.threshold  # the higher one
    assert fused.provenance.detail == small.provenance.detail
    same = critters.group([images[0]] * 3)
    assert_same(same, sharp)
    with pytest.raises(ValueError, match="a group has no images"):
        critters.group([])


def assert_same(a: Prediction, b: Prediction) -> None:
    """Assert that two predictions agree but for rounding."""
    assert [step[:2] for step in a.trusted_path] == [step[:2] for step in b.trusted_path]
    assert [step[:2] for step in a.path] == [step[:2] for step in b.path]
    for level, p in a.probabilities.items():
        np.testing.assert_allclose(p, b.probabilities[level], atol=1e-5)
    for (*_, p), (*_, q) in zip([*a.trusted_path, *a.guess], [*b.trusted_path, *b.guess], strict=True):
        assert math.isclose(p, q, abs_tol=1e-5)


def test_predictions_do_not_depend_on_the_batch(critters: Predictor, images: list[Image.Image]) -> None:
    alone = [critters(image) for image in images]
    assert len({prediction.provenance.group for prediction in alone}) == 2
    for batch_size in (1, 4, 32):
        predictor = Predictor(critters.model, batch_size=batch_size)
        for a, b in zip(alone, predictor(images), strict=True):
            assert_same(a, b)
        assert_same(critters.group(images), predictor.group(images))
    for a, b in zip(alone, critters(images[::-1])[::-1], strict=True):
        assert_same(a, b)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, not 0"):
        Predictor(critters.model, batch_size=0)


@pytest.mark.parametrize(("probabilities", "passes_of_a_batch"), [("sum", 1), ("levels", 3)])
def test_a_batch_is_split_to_the_batch_size(
    critters: Predictor,
    images: list[Image.Image],
    monkeypatch: pytest.MonkeyPatch,
    probabilities: str,
    passes_of_a_batch: int,
) -> None:
    """Sums need the pass of the leaf level alone, levels one for each resolution."""
    assert critters.model.calibration is not None
    monkeypatch.setitem(critters.model.calibration, "probabilities", probabilities)
    passes: list[int] = []
    hook = critters.model.backbone.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    Predictor(critters.model, batch_size=4)(images)
    hook.remove()
    assert passes == [4] * passes_of_a_batch + [2] * passes_of_a_batch


def test_threads_trust_the_same(critters: Predictor, images: list[Image.Image]) -> None:
    expected = [critters(image) for image in images]
    found = in_threads(4, lambda number: [critters(images[(number + at) % 6]) for at in range(2)])
    for number, predictions in enumerate(found):
        for at, prediction in enumerate(predictions):
            assert_same(prediction, expected[(number + at) % 6])


@pytest.mark.parametrize("rule", sorted({*list_rules()} - {"nominal"}))  # which needs the resolutions of the levels
def test_every_rule_trusts_a_path_of_the_tree(
    rule: str, critters: Predictor, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(critters.model, "calibration", None)  # restored at the end
    predictor = Predictor(calibrate(critters.model, 0.3, 0.3, edges=[40], rule=rule))
    paths = [predictor.tree.path(leaf) for leaf in range(len(predictor.tree.classes[-1]))]
    for prediction in predictor(images):
        names = tuple(name for _, name, _ in prediction.trusted_path)
        assert any(path[: len(names)] == names for path in paths)


# Ways to load a model and to pass images


def test_a_trained_model_is_found_by_its_name_or_folder(
    critters: Predictor, images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_model("mlph_tiny_critters", pretrained=True).save_pretrained(tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    expected = critters(images[0]).path
    for name in ("mlph_tiny_critters", tmp_path / "run", "~/run"):
        assert Predictor.from_pretrained(name)(images[0]).path == expected
    with pytest.raises(ValueError, match=r"no folder 'mlph_tiny_criters', and it is an unknown model .* did you mean"):
        Predictor.from_pretrained("mlph_tiny_criters")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        Predictor.from_pretrained(tmp_path / "other")


@pytest.mark.slow
def test_a_calibration_is_saved_with_its_model(shapes: C2FModel, tmp_path: Path) -> None:
    model = shapes
    calibrate(model, 0.8, weights=digest_weights(model.state_dict())).save_pretrained(tmp_path)
    assert str(Predictor.from_pretrained(tmp_path)(GREY)) == "trusted: round (0.90); guess: disc (0.55)"


def test_a_calibration_of_other_weights_or_resolutions_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    model = create_model("mlph_tiny_critters", pretrained=True)
    with torch.no_grad():
        next(model.head.parameters()).add_(1)
    predictor = Predictor(model)
    assert predictor.calibration is None and "of other weights" in caplog.text
    other = create_model("mlph_tiny_critters", pretrained=True, resolutions={"species": 48})
    assert other.calibration is None and "of another configuration" in caplog.text
    same = create_model("mlph_tiny_critters", pretrained=True)
    same.set_config(same.config)
    assert Predictor(same).calibration is not None


def test_a_calibration_of_other_levels_is_an_error(shapes: C2FModel) -> None:
    with pytest.raises(ValueError, match="unknown level in the calibration's temperatures: 'shap'"):
        Predictor(calibrate(shapes, 0.5, temperatures={"shap": 2.0}))


def test_a_folder_and_a_batch_are_several_images(
    critters: Predictor, images: list[Image.Image], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "b").mkdir()
    files = [tmp_path / "1.png", tmp_path / "2.png", tmp_path / "b" / "0.png"]
    for file, image in zip(files, images, strict=False):
        image.save(file)
    (tmp_path / "notes.txt").write_text("no image")
    expected = critters(images[:3])
    for folder in (tmp_path, str(tmp_path)):
        found = critters(folder)
        assert isinstance(found, list) and [prediction.file for prediction in found] == list(map(str, files))
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    assert caplog.text.count("files without an image extension, left out: 1") == 2
    batch = torch.from_numpy(np.stack([np.asarray(image) for image in images[::2]])).movedim(-1, 1)
    for a, b in zip(critters(batch), critters(images[::2]), strict=True):
        assert_same(a, b)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images in"):
        critters(tmp_path / "empty")


def test_the_data_of_a_prediction_are_plain(critters: Predictor, images: list[Image.Image]) -> None:
    data: Mapping[str, Any] = json.loads(json.dumps(critters(images[1]).to_dict(k=2)))
    assert data["provenance"]["group"] == 0 and len(data["top_k"]) == 2
    assert [step["level"] for step in data["path"]] == ["family", "genus", "species"]
    assert [*data["trusted_path"], *data["guess"]][0]["level"] == "family"
    assert data["trusted"] == (data["trusted_path"][-1] if data["trusted_path"] else None)
