"""`c2f-zoo calibrate`: from a run to `calibration.json`."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from c2f_zoo import create_dataset, create_model
from c2f_zoo.cli import app
from c2f_zoo.data import LabelledImages
from c2f_zoo.data.derived import AtResolutions, HideLabels, ResolutionView, draw_views
from c2f_zoo.data.registry import IndexedImages
from c2f_zoo.data.splits import train_and_val
from c2f_zoo.data.transformed_images import load_image
from c2f_zoo.evaluation.calibrating import (
    calibrate_model,
    calibrate_run,
    choose_rule,
    count_photos,
    draw_photos,
    find_groups,
    measure_reliability,
    resolution_grid,
)
from c2f_zoo.evaluation.mixed_resolutions import MixedScores, score_views
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.inference.calibration import Calibration, calibrated
from c2f_zoo.inference.detail import visible_detail
from c2f_zoo.inference.predictor import Predictor
from c2f_zoo.inference.trust import RULES
from c2f_zoo.io.files import read_csv
from c2f_zoo.io.weights import CALIBRATION_FILE, digest_weights
from c2f_zoo.model import C2FModel
from c2f_zoo.training.launch import create_accelerator


@pytest.fixture(scope="module")
def model() -> C2FModel:
    """The bundled model without its calibration."""
    model = create_model("mlph_tiny_critters", pretrained=True).eval()
    model.calibration = None
    return model


@pytest.fixture
def run(model: C2FModel, tmp_path: Path) -> Path:
    """The folder of a run with 72 validation images, of that model."""
    model.save_pretrained(tmp_path)
    config = {
        "dataset": "critters",
        "dataset_options": {"per_class": 8},
        "model": "mlph_tiny_critters",
        "resolutions": model.config.resolutions,
        "stages": [{"epochs": 1, "lr": 0.1}],
        "val_fraction": 0.25,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


class TestViews:
    def test_every_image_at_every_resolution(self) -> None:
        views = draw_views([3, 5, 8], [None, 40, 20], seed=0)
        assert [(view.index, view.resolution) for view in views] == [(i, r) for i in (3, 5, 8) for r in (None, 40, 20)]
        assert not any(view.is_enlarged for view in views if view.resolution is None)
        many = draw_views(range(200), [40], seed=0)
        assert 70 < sum(view.is_enlarged for view in many) < 130

    def test_pixels_are_means_of_areas(self) -> None:
        dataset = create_dataset("critters", "test", per_class=1)
        full, small, thumbnail = (
            AtResolutions(dataset, [ResolutionView(7, resolution, is_enlarged)])[0][0]
            for resolution, is_enlarged in ((None, False), (24, False), (24, True))
        )
        means = np.asarray(full, dtype=float).reshape(24, 4, 24, 4, 3).mean(axis=(1, 3))
        assert np.abs(np.asarray(small) - means).max() <= 1
        assert thumbnail.size == full.size
        assert visible_detail(thumbnail, 96) < visible_detail(full, 96)

    def test_small_images_stay_as_they_are(self) -> None:
        dataset = create_dataset("critters", "test", per_class=1)
        view = AtResolutions(dataset, [ResolutionView(7, 96, True)])
        assert np.array_equal(np.asarray(view[0][0]), np.asarray(dataset[7][0]))


def test_scores_are_those_of_the_predictor(model: C2FModel) -> None:
    dataset = create_dataset("critters", "test", per_class=1)
    views = draw_views([0, 13, 35], [None, 20], seed=0)
    scores = score_views(model, dataset, views, create_accelerator(), batch_size=4)
    images = AtResolutions(dataset, views)
    predictor = Predictor(model)
    for number, view in enumerate(views):
        image = images[number][0]
        assert scores.size[number] == min(image.size)
        assert scores.detail[number] == visible_detail(image, model.config.preprocessing.resize)
        assert scores.resolution[number] == (view.resolution or 0)
        assert scores.labels[number] == dataset.targets[view.index]
        for level, name, probability in predictor(image).path:
            label = model.hierarchy.class_names(level).index(name)
            assert np.exp(scores.own[level][number, label]) == pytest.approx(probability, abs=1e-5)


@pytest.fixture(scope="module")
def found(model: C2FModel) -> Calibration:
    """The calibration on 72 images."""
    dataset, _, indices = train_and_val("critters", 0.25, 0, per_class=8)
    return calibrate_model(model, dataset, indices, 0.1, [None, 24, 12])


class TestCalibrate:
    def test_it_describes_images_and_weights(self, found: Calibration, model: C2FModel) -> None:
        assert found.weights == digest_weights(model.state_dict())
        assert found.risk == 0.1
        assert sum(found.images) == 54 * 3  # three quarters of 72 images, at three resolutions
        assert found.about["photos"] == 72
        assert found.about["resolutions"] == ["full", 24, 12]
        assert set(found.reliability) == {"family", "genus", "species"}
        used = {"species"} if found.probabilities == "sum" else {"family", "genus", "species"}
        assert set(found.temperatures) == used

    def test_smaller_risks_have_higher_thresholds(self, found: Calibration) -> None:
        for row in (*found.thresholds, found.overall):
            assert list(row) == sorted(row)

    @pytest.mark.parametrize("risk", [0.0, 1.0, -0.1])
    def test_a_risk_is_a_fraction(self, model: C2FModel, risk: float) -> None:
        with pytest.raises(ValueError, match="between 0 and 1"):
            calibrate_model(model, create_dataset("critters", "train", per_class=1), range(36), risk)

    def test_too_few_images_are_named_before_they_are_scored(self, model: C2FModel) -> None:
        with pytest.raises(
            ValueError, match=r"a risk of 0.01 needs 132 or more validation images with a label of species"
        ):
            calibrate_model(model, create_dataset("critters", "train", per_class=1), range(36), 0.01)

    @pytest.mark.parametrize("grid", [[], [24, 48], [None, 0]])
    def test_an_invalid_grid_is_an_error(self, model: C2FModel, grid: list[int | None]) -> None:
        dataset = create_dataset("critters", "train", per_class=1)
        with pytest.raises(ValueError, match="invalid resolution grid"):
            calibrate_model(model, dataset, range(36), 0.2, grid)

    def test_as_many_images_as_that_are_enough(self, model: C2FModel) -> None:
        dataset = create_dataset("critters", "train", per_class=4)
        for count, is_enough in ((131, False), (132, True)):
            with nullcontext() if is_enough else pytest.raises(ValueError, match="there are 131 of 131"):
                order, fit = draw_photos(model, dataset, range(count), 0.01, seed=0)
        assert (len(order), len(fit), len(order) - len(fit)) == (132, 33, 99)
        assert set(fit) < set(order) == set(range(132))

    def test_images_without_a_leaf_label_are_left_out_and_counted(
        self, model: C2FModel, caplog: pytest.LogCaptureFixture
    ) -> None:
        dataset = HideLabels(create_dataset("critters", "train", per_class=1), "genus", range(0, 36, 3))
        order, _ = draw_photos(model, dataset, range(36), 0.2, seed=0)
        assert sorted(order) == [index for index in range(36) if index % 3]
        assert "24 of 36 images calibrate the model: 12 have no label of species, 0 are more than needed" in caplog.text

    def test_one_resolution_and_a_small_risk(self, model: C2FModel) -> None:
        """The images that kinds of probabilities are chosen on are fewer than the risk needs: 14 for 19."""
        dataset, _, indices = train_and_val("critters", 0.25, 0, per_class=8)
        found = calibrate_model(model, dataset, indices[:56], 0.05, [None])
        assert (found.risk, found.risks) == (0.05, (0.2, 0.1, 0.05))
        assert sum(found.images) == 42

    def test_views_do_not_count_as_images(self) -> None:
        """Ten views of each of 12 photos: no promise of 1 %, which needs 99 photos."""
        index = np.repeat(np.arange(12), 10)
        detail = np.where(index < 8, 10.0, 50.0)
        scores = MixedScores({}, np.zeros(120, dtype=np.int64), index, np.zeros(120), detail, detail)
        assert count_photos(scores, ()) == 12
        assert count_photos(scores, (20.0, 30.0, 40.0)) == 4
        assert count_photos(scores, (30.0, 60.0, 70.0)) == 4
        assert count_photos(scores, (60.0, 70.0, 80.0)) == 0

    @pytest.mark.parametrize(("photos", "groups"), [(99, 1), (75, 4), (60, 5), (30, 10), (12, 24), (1, 24)])
    def test_there_are_as_many_groups_as_have_enough_photos(self, photos: int, groups: int) -> None:
        """A hundred photos, each once; their detail is that of the images that the bounds are found on."""
        index, detail = np.arange(100), np.linspace(10, 90, 100)
        scores = MixedScores({}, np.zeros(100, dtype=np.int64), index, np.zeros(100), detail, detail)
        edges = find_groups(detail, scores, photos)
        assert len(edges) == groups - 1
        assert count_photos(scores, edges) >= photos


def test_a_rule_that_is_sure_of_a_wrong_class_is_not_chosen() -> None:
    """With probability 1 for a wrong class, darts is wrong at every threshold, but climb ends at the root."""
    tree = Hierarchy(("kind", "shape"), (("x", "y"), ("1", "2", "3")), ((0, 0, 1),))
    z = np.array([[0.0, -800, -800]]).repeat(40, axis=0)
    scores = MixedScores({"shape": z}, np.full(40, 2), *[np.zeros(40)] * 4)
    assert choose_rule(scores, tree, {}, 0.1) == ("climb", "sum")


class TestReliability:
    def test_probabilities_just_above_1_and_levels_of_one_class(self) -> None:
        """Sums of probabilities may exceed 1 by rounding."""
        tree = Hierarchy(("all", "kind", "shape"), (("any",), ("x", "y"), tuple("123456")), ((0, 0), (0,) * 5 + (1,)))
        rng = np.random.default_rng(0)
        z = np.log(rng.dirichlet(np.full(6, 0.3), 400))
        z[:, 5] = -800
        labels = rng.integers(6, size=400)
        scores = MixedScores({"shape": z}, labels, *[np.zeros(400)] * 4)
        p = calibrated(scores.own, tree, "sum", {})
        assert p.levels[1].max() > 1
        found = measure_reliability(scores, tree, "sum", {})
        assert found["all"] == {"ece": 0.0, "ece_before": 0.0}
        assert found["kind"]["ece"] == round((labels == 5).mean(), 4)  # always sure of x
        confidence, is_right = p.levels[2].max(axis=1), p.levels[2].argmax(axis=1) == labels
        bins = np.ceil(confidence * 15)
        gaps = [abs((is_right[bins == one] - confidence[bins == one]).sum()) for one in np.unique(bins)]
        assert found["shape"]["ece"] == pytest.approx(sum(gaps) / 400, abs=1e-4)


def test_classes_are_found_by_name(model: C2FModel) -> None:
    """Also in a dataset whose tree has its classes in another order."""
    dataset = create_dataset("critters", "test", per_class=1)
    tree = dataset.hierarchy
    other = Hierarchy.from_rows(tree.levels, [tree.path(leaf) for leaf in reversed(range(36))])
    images = OtherTree(dataset, other)
    assert images.targets[0] != dataset.targets[0]
    views = draw_views([0, 13, 35], [20], seed=0)
    found = score_views(model, images, views, create_accelerator(), batch_size=4)
    assert found.labels.tolist() == [dataset.targets[index] for index in (0, 13, 35)]


class OtherTree(IndexedImages):
    """A dataset with the same classes in another order."""

    def __init__(self, dataset: LabelledImages, hierarchy: Hierarchy) -> None:
        self.dataset, self.hierarchy = dataset, hierarchy
        names, own = hierarchy.class_names(hierarchy.finest), dataset.hierarchy.class_names(hierarchy.finest)
        self.labels = hierarchy.ancestors(torch.tensor([names.index(own[label]) for label in dataset.targets]))
        self.targets: list[int] = self.labels[:, -1].tolist()

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        return load_image(self.dataset, index, shorter_side)


@pytest.mark.slow
def test_the_command_writes_a_calibration_that_the_model_carries(run: Path, model: C2FModel) -> None:
    result = CliRunner().invoke(app, ["calibrate", str(run), "--risk", "0.1", "--resolutions", "full,24,12"])
    assert result.exit_code == 0, result.output
    assert "visible detail" in result.output
    saved = json.loads((run / CALIBRATION_FILE).read_text())
    assert Calibration.from_dict(saved).risk == 0.1
    loaded = C2FModel.from_pretrained(run)
    assert loaded.calibration == saved
    assert torch.equal(loaded.head.get_classifier("family").weight, model.head.get_classifier("family").weight)


class TestRuns:
    def test_a_folder_without_a_run_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
            calibrate_run(str(tmp_path), 0.1)

    def test_a_run_without_validation_images_is_named(self, run: Path) -> None:
        config = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump({**config, "val_fraction": 0.0}))
        with pytest.raises(ValueError, match="no validation images"):
            calibrate_run(str(run), 0.1)


def test_the_grid_goes_from_full_size_to_the_coarsest_resolution(model: C2FModel) -> None:
    full, *grid = resolution_grid(model)
    assert full is None
    assert grid[-1] == 12
    assert resolution_grid(create_model("mlph_tiny_critters", resolutions={"family": 96})) == [None, 57, 34, 20, 12]
    assert resolution_grid(create_model("mlph_tiny_critters", resolutions={"family": 94})) == [None, 95, 94]
    ratios = [b / a for a, b in zip([96, *grid], grid, strict=False)]
    assert ratios == pytest.approx([(12 / 96) ** 0.25] * 4, abs=0.02)


@pytest.mark.slow
def test_the_recipe_measures_rules_and_promises(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    import trust

    with pytest.raises(ValueError, match="has no calibration; run `c2f-zoo calibrate"):
        trust.main([str(run)], output=str(tmp_path / "trust"))
    calibrate_run(str(run), 0.2, [None, 24, 12])
    trust.main([str(run)], risks=[0.2], splits=3, bootstraps=4, output=str(tmp_path / "trust"))
    rules, promises, bins = (
        read_csv(tmp_path / "trust" / f"trust_{name}.csv") for name in ("rules", "promise", "bins")
    )
    assert {(row["rule"], row["temperature"]) for row in rules} == {
        (n, t) for n in RULES.names() for t in ("True", "False")
    }
    for row in rules:
        assert float(row["haurc_low"]) <= float(row["haurc_high"])
        assert row["rule"] != "leaf_or_nothing" or float(row["gain"]) == 0
    by_rule = {(row["rule"], row["thresholds"], row["beside"]): row for row in promises}
    assert {"climb", "darts", "max_coverage", "leaf_or_nothing", "fixed", "nominal"} == {rule for rule, _, _ in by_rule}
    beside = by_rule["climb", "by detail", "fixed"]
    assert float(beside["risk"]) >= 1 - float(by_rule["fixed", "its own", ""]["accuracy"]) - 1e-4
    fixed = [row for row in bins if (row["rule"], row["beside"]) == ("fixed", "")]
    assert {row["resolution"] for row in fixed} == {"0", "24", "12"}
    assert np.mean([float(row["accuracy"]) for row in fixed]) == pytest.approx(
        float(by_rule["fixed", "its own", ""]["accuracy"]), abs=1e-3
    )
    photo = read_csv(tmp_path / "trust" / "trust_photo.csv")
    assert [row["image"] for row in photo] == ["full size", "80 px", "40 px", "20 px", "40 px enlarged to 500"]
    for name in (f"trust_{run.name}", f"trust_bins_{run.name}", f"trust_photo_{run.name}"):
        assert Image.open(tmp_path / "trust" / f"{name}.png").size > (100, 100)


@pytest.mark.parametrize("grid", ["full,big", "-3", "40,,20"])
def test_a_grid_of_other_words_is_an_error(grid: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["calibrate", str(tmp_path), f"--resolutions={grid}"])
    assert isinstance(result.exception, ValueError)
    assert "no number of pixels; write e.g. full,80,40,20" in str(result.exception)
