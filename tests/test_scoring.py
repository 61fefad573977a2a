"""Scoring: one decode and one forward pass for each distinct resolution, every image once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import SMALL
from PIL import Image
from test_transformed_images import Counting

from c2f_zoo import C2FModel, Hierarchy, Predictor, create_dataset, create_model, load_hierarchy
from c2f_zoo.data import HideLabels, ImageFiles, create_transform, labels_of
from c2f_zoo.evaluation.scoring import (
    Predictions,
    accuracy_rows,
    predict_labels,
    prediction_rows,
    score_images,
    validate,
)
from c2f_zoo.inference.resolutions import levels_by_resolution, own_resolutions


@pytest.fixture
def model() -> C2FModel:
    """Return a model with two of its three levels at the same resolution."""
    torch.manual_seed(0)
    resolutions = {"family": 12, "genus": 12, "species": None}
    return create_model("mlph", hierarchy="critters", resolutions=resolutions, **SMALL)  # type: ignore[arg-type]


HOW: dict[str, Any] = {"batch_size": 4, "accelerator": Accelerator(cpu=True)}


def test_an_image_is_decoded_once_and_passed_once_for_each_distinct_resolution(model: C2FModel) -> None:
    passes: list[int] = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    dataset = Counting(7)
    batches = list(score_images(model, dataset, [6, 1, 2, 3, 5], levels_by_resolution(model), **HOW))
    assert [index for index, _ in dataset.reads] == [6, 1, 2, 3, 5]
    assert passes == [4, 4, 1, 1]
    assert [batch.index.tolist() for batch in batches] == [[6, 1, 2, 3], [5]]
    assert {at: list(logits) for at, logits in batches[0].logits.items()} == {
        12: ["family", "genus"],
        None: ["species"],
    }


def test_predictions_in_batches_equal_those_of_single_images(model: C2FModel) -> None:
    dataset = create_dataset("critters", "test", per_class=1)
    indices = [30, 2, 11, 20, 7]
    levels_at = dict.fromkeys((None, 12), model.levels)
    predictions = predict_labels(model, dataset, indices, levels_at, **HOW)
    assert predictions.index.tolist() == sorted(indices)
    assert torch.equal(predictions.truth, labels_of(dataset)[sorted(indices)])
    assert predictions.probabilities.keys() == {None, 12}
    for resolution in (None, 12):
        transform = create_transform(model.config.preprocessing, resolution, train=False)
        with torch.no_grad():
            logits = model.eval()(torch.stack([transform(dataset[index][0]) for index in sorted(indices)]))
        for level in model.levels:
            assert torch.equal(predictions.labels[resolution][level], logits[level].argmax(dim=1))
            expected = logits[level].softmax(dim=1).amax(dim=1)
            torch.testing.assert_close(predictions.probabilities[resolution][level], expected)


def test_accuracy_counts_known_labels_only(model: C2FModel) -> None:
    dataset = HideLabels(create_dataset("critters", "test", per_class=1), "genus", range(0, 36, 2))
    levels_at = levels_by_resolution(model)
    predictions = predict_labels(model, dataset, range(36), levels_at, **HOW)
    rows = {row["level"]: row for row in accuracy_rows(predictions, own_resolutions(model))}
    assert {level: row["images"] for level, row in rows.items()} == {"family": 36, "genus": 36, "species": 18}
    odd = range(1, 36, 2)
    right = sum(int(predictions.labels[None]["species"][index] == index) for index in odd)
    assert rows["species"]["accuracy"] == pytest.approx(right / 18)
    table = list(prediction_rows(predictions, own_resolutions(model)))
    assert [row["species"] == "" for row in table] == [index % 2 == 0 for index in range(36)]
    assert predictions.select(predictions.index < 6).accuracy("species", None)[1] == 3


def test_unreadable_images_are_listed_and_not_counted(model: C2FModel, cub_folder: Path) -> None:
    file = cub_folder / "images" / "003.Sooty_Albatross" / "0.jpg"
    file.write_bytes(file.read_bytes()[:700])
    dataset = create_dataset("cub", "train", root=str(cub_folder))
    birds = create_model("mlph", hierarchy=dataset.hierarchy, **SMALL)  # type: ignore[arg-type]
    predictions = predict_labels(birds, dataset, range(8), {None: birds.levels}, on_error="skip", **HOW)
    assert predictions.unreadable == [2]
    assert predictions.accuracy("species", None)[1] == 7
    rows = list(prediction_rows(predictions, own_resolutions(birds), dataset))
    assert [row["index"] for row in rows] == [0, 1, 3, 4, 5, 6, 7]
    assert [row["file"] for row in rows] == [str(dataset.paths[index]) for index in (0, 1, 3, 4, 5, 6, 7)]
    assert "file" not in next(iter(prediction_rows(predictions, own_resolutions(birds))))
    assert rows[0].keys() == {"index", "file"} | {
        column for level in birds.levels for column in (level, f"predicted_{level}", f"probability_{level}")
    }
    with pytest.raises(ValueError, match="no readable validation image has a label at 'family'"):
        validate(birds, dataset, [2], on_error="skip", **HOW)
    with pytest.raises(ValueError, match=r"image 2 .* cannot be used"):
        validate(birds, dataset, [1, 2], **HOW)


def test_outputs_that_are_not_finite_are_an_error(model: C2FModel) -> None:
    with torch.no_grad():
        model.head.get_classifier("genus").bias[0] = torch.inf
    with pytest.raises(ValueError, match="outputs at 'genus' are not finite for 2 of 2 images"):
        predict_labels(model, create_dataset("critters", "test", per_class=1), [0, 1], {None: model.levels}, **HOW)


def test_levels_with_the_names_of_other_columns_have_columns_too() -> None:
    tree = Hierarchy(("index", "file"), (("a", "b"), ("c", "d")), ((0, 1),))
    labels: Any = {None: {"index": torch.tensor([1]), "file": torch.tensor([0])}}
    predictions = Predictions(tree, torch.tensor([7]), torch.tensor([True]), torch.tensor([[1, 1]]), labels)
    (row,) = prediction_rows(predictions, {"index": None, "file": None})
    assert row == {"index": 7, "true_index": "b", "predicted_index": "b", "true_file": "d", "predicted_file": "c"}


def test_scores_are_those_of_a_predictor(model: C2FModel, tmp_path: Path) -> None:
    # JPEGs of 8 times the input's size, which validation decodes at reduced size, and of a mode that must be converted.
    rng, paths = np.random.default_rng(0), [tmp_path / "rgb.jpg", tmp_path / "turned.jpg", tmp_path / "grey.png"]
    for path in paths[:2]:
        image = Image.fromarray(rng.integers(0, 256, (600, 800, 3), dtype=np.uint8))
        image.getexif()[0x0112] = 1 if path.stem == "rgb" else 8
        image.save(path, exif=image.getexif())
    Image.fromarray(rng.integers(0, 2**16, (70, 90), dtype=np.uint16)).save(paths[2])
    files = ImageFiles(paths, [0, 1, 2], load_hierarchy("critters"))
    expected = Predictor(model)._log_probs(paths)
    for reduced in (False, True):
        (batch,) = score_images(model, files, [0, 1, 2], levels_by_resolution(model), reduced=reduced, **HOW)
        found = model.log_probs({level: z for logits in batch.logits.values() for level, z in logits.items()})
        equal = [np.allclose(found[level], expected[level], atol=1e-4) for level in model.levels]
        assert equal[-1] is not reduced and (reduced or all(equal))
