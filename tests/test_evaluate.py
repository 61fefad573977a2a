"""The evaluation recipe: metrics against loops over single images, files, two processes."""

from __future__ import annotations

import csv
import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import BIRDS, SMALL
from PIL import Image
from two_processes import run_in_two_processes

from c2f_zoo import C2FModel, Hierarchy, Predictor, create_dataset, create_model, list_heads, load_hierarchy
from c2f_zoo.data import HideLabels, LabelledImages, create_transform, labels_of
from c2f_zoo.evaluation.confusion import blocks, class_paths, plot_confusion, tree_order, write_confusion_csv
from c2f_zoo.evaluation.labels import labels_in
from c2f_zoo.evaluation.mixed_metrics import score_mixed
from c2f_zoo.evaluation.model_metrics import ModelMetrics
from c2f_zoo.evaluation.plots import name_heights
from c2f_zoo.evaluation.report import without_nan
from c2f_zoo.evaluation.scoring import prediction_rows
from c2f_zoo.inference.nodes import add_missing_levels

pytestmark = pytest.mark.slow  # every test scores a dataset

RECIPE = Path(__file__).parents[1] / "recipes" / "evaluate.py"
evaluate = runpy.run_path(str(RECIPE))
RESOLUTIONS = {"family": 8, "genus": 24, "species": None}


def critters_model(levels: list[str] | None = None, head: str = "levels") -> C2FModel:
    torch.manual_seed(0)
    options = {"hierarchy": "critters", "resolutions": RESOLUTIONS, **SMALL}
    model = create_model("mlph", head=head, levels=levels, **options)  # type: ignore[arg-type]
    for parameter in model.head.parameters():  # otherwise it predicts one class for all images
        torch.nn.init.normal_(parameter)
    return model.eval()


def results_of(model: C2FModel, dataset: LabelledImages, decoding: str = "all") -> dict:
    target = labels_in(model.hierarchy, dataset)
    metrics = ModelMetrics(model, evaluate["choose_decodings"](decoding), torch.device("cpu"))
    found = evaluate["score"](model, dataset, target, metrics, Accelerator(cpu=True), batch_size=5)
    assert found.unreadable == []
    return metrics.compute()


@torch.no_grad()
def predict(model: C2FModel, image: Image.Image, level: str, resolution: int | None) -> int:
    x = create_transform(model.config.preprocessing, resolution, train=False)(image)[None]
    return int(model(x, (level,))[level].argmax())


def test_metrics_equal_those_of_a_loop_over_images() -> None:
    model, dataset = critters_model(), create_dataset("critters", "test", per_class=1)
    results, labels, tree = results_of(model, dataset), labels_of(dataset), model.hierarchy
    assert list(results["decodings"]) == ["independent", "top_down", "bottom_up", "joint"]
    images = [dataset[index][0] for index in range(36)]
    for depth, level in enumerate(tree.levels):
        for resolution, shown in ((8, "8 px"), (24, "24 px"), (None, "full size")):
            correct = sum(
                predict(model, image, level, resolution) == labels[i, depth] for i, image in enumerate(images)
            )
            assert results["accuracy_by_resolution"][level][shown] == pytest.approx(correct / 36)
        own = "full size" if RESOLUTIONS[level] is None else f"{RESOLUTIONS[level]} px"
        assert results["resolutions"][level] == own
        for name, report in (("top1", results["any_decoding"]), ("accuracy", results["decodings"]["independent"])):
            assert report[f"{level}/{name}"] == pytest.approx(results["accuracy_by_resolution"][level][own])


@pytest.mark.parametrize("head", list_heads())
def test_the_joint_decoding_equals_the_predictor(head: str) -> None:
    model, dataset = critters_model(head=head), create_dataset("critters", "test", per_class=1)
    results, tree, predictor = results_of(model, dataset, "joint"), model.hierarchy, Predictor(model)
    paths = [tuple(name for _, name, _ in predictor(dataset[index][0]).path) for index in range(36)]
    assert len(set(paths)) > 2
    heights = [sum(a != b for a, b in zip(path, tree.path(i), strict=True)) for i, path in enumerate(paths)]
    assert results["lca_heights"] == {"joint": [heights.count(height) for height in range(4)]}
    report = results["decodings"]["joint"]
    assert report["fpa"] == pytest.approx(heights.count(0) / 36)
    assert report["lca_distance"] == pytest.approx(sum(heights) / 36)
    assert report["tice"] == 0


def test_levels_that_are_not_predicted_are_marginalized_or_left_out() -> None:
    model, dataset = critters_model(["genus"]), create_dataset("critters", "test", per_class=1)
    results = results_of(model, dataset, "bottom_up")
    assert results["levels"] == {"family": 4, "genus": 12}
    assert results["predicted"] == ["genus"]
    assert results["resolutions"] == {"family": "24 px", "genus": "24 px"}
    report = results["decodings"]["bottom_up"]
    assert report["genus/accuracy"] == results["any_decoding"]["genus/top1"]
    assert sum(results["lca_heights"]["bottom_up"]) == 36


def test_images_of_unknown_species_count_at_coarser_levels() -> None:
    dataset = create_dataset("critters", "test", per_class=1)
    model, hidden = critters_model(), HideLabels(dataset, "genus", range(9))
    results, whole = results_of(model, hidden, "joint"), results_of(model, dataset, "joint")
    assert results["any_decoding"]["genus/top1"] == whole["any_decoding"]["genus/top1"]
    assert sum(results["lca_heights"]["joint"]) == 27


@pytest.mark.parametrize("levels", [None, ["genus"]])
def test_predictions_of_each_image_are_those_of_single_images(levels: list[str] | None) -> None:
    model, dataset = critters_model(levels), create_dataset("critters", "test", per_class=1)
    metrics = ModelMetrics(model, ["joint"], torch.device("cpu"))
    target, tree = labels_in(model.hierarchy, dataset), model.hierarchy
    found = evaluate["score"](model, dataset, target, metrics, Accelerator(cpu=True), batch_size=5)
    rows, predictor = list(prediction_rows(found, metrics.own, dataset)), Predictor(model)
    assert [row["index"] for row in rows] == list(range(36))
    for index in (0, 20, 35):
        expected = {"index": index}
        for level, log_probs in add_missing_levels(predictor._log_probs([dataset[index][0]]), predictor.tree).items():
            names, probability = tree.class_names(level), np.exp(log_probs[0])
            expected |= {level: names[int(target[index, tree.depth(level)])]}
            expected |= {f"predicted_{level}": names[int(probability.argmax())]}
            expected |= {f"probability_{level}": pytest.approx(float(probability.max()), abs=1e-4)}
        numbers = {key: float(value) for key, value in rows[index].items() if key.startswith("probability")}
        assert rows[index] | numbers == expected


class TestFiles:
    # Siblings lie apart in the labels: p has 0 and 2, q has 1, r has 3; a has p and r, b has q.
    TREE = Hierarchy(("A", "B", "C d"), (("a", "b"), ("p", "q", "r"), ("0", "1", "2", "3")), ((0, 1, 0), (0, 1, 0, 2)))
    MATRIX = torch.arange(16).reshape(4, 4)

    def test_classes_are_in_the_order_of_the_tree(self) -> None:
        assert tree_order(self.TREE, "C d") == [0, 2, 3, 1]
        assert tree_order(self.TREE, "B") == [0, 2, 1]
        paths = class_paths(self.TREE, "C d")
        assert paths == [[0, 0, 0], [1, 1, 1], [0, 0, 2], [0, 2, 3]]
        assert blocks(paths, [0, 2, 3, 1], 0) == [(0, 3, 0), (3, 4, 1)]
        assert blocks(paths, [0, 2, 3, 1], 1) == [(0, 2, 0), (2, 3, 2), (3, 4, 1)]
        assert name_heights(self.TREE) == ["correct", "same B", "same A", "elsewhere"]

    def test_all_files_are_written(self, tmp_path: Path) -> None:
        heights = {"joint": [5, 2, 1, 0], "top_down": [4, 2, 1, 1]}
        results = {"lca_heights": heights, "decodings": {"joint": {"fpa": 0.5, "mistake_severity": math.nan}}}
        confusions = {"A": torch.tensor([[3, 1], [0, 0]]), "C d": self.MATRIX}
        evaluate["write"](tmp_path / "new" / "folder", results, confusions, self.TREE)
        folder = tmp_path / "new" / "folder"
        names = ["confusion_A.csv", "confusion_A.png", "confusion_C_d.csv", "confusion_C_d.png"]
        assert sorted(path.name for path in folder.iterdir()) == [*names, "metrics.json", "mistakes.png"]
        written = json.loads((folder / "metrics.json").read_text())
        assert written["decodings"]["joint"] == {"fpa": 0.5, "mistake_severity": None}
        with open(folder / "confusion_C_d.csv", newline="") as file:
            rows = list(csv.reader(file))
        # Row 2 of the matrix is 8 9 10 11; its columns 0, 2, 3, 1 are 8 10 11 9.
        assert rows[0] == ["C d", "0", "2", "3", "1"]
        assert rows[2] == ["2", "8", "10", "11", "9"]
        for path in folder.glob("*.png"):
            with Image.open(path) as image:
                assert min(image.size) > 300

    def test_names_with_dollar_signs_and_levels_with_dots(self, tmp_path: Path) -> None:
        tree = Hierarchy(("a_b", "a.b"), (("$x^$", "y"), ("$^$", "z")), ((0, 1),))
        confusions = {level: torch.eye(2, dtype=torch.int64) for level in tree.levels}
        evaluate["write"](tmp_path, {"lca_heights": {"joint": [1, 0, 1]}}, confusions, tree)
        names = [f"confusion_{level}.{kind}" for level in ("a.b", "a_b") for kind in ("csv", "png")]
        assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "metrics.json", "mistakes.png"]

    def test_a_class_may_have_the_name_of_its_level(self, tmp_path: Path) -> None:
        tree = Hierarchy(("kind",), (("kind", "other"),), ())
        write_confusion_csv(torch.tensor([[3, 1], [0, 2]]), tree, "kind", [0, 1], tmp_path / "x.csv")
        assert (tmp_path / "x.csv").read_text() == "true kind,kind,other\nkind,3,1\nother,0,2\n"

    def test_many_classes_can_be_plotted(self, tmp_path: Path) -> None:
        tree = load_hierarchy("cub")
        order = tree_order(tree, "species")
        assert sorted(order) == list(range(200))
        plot_confusion(torch.eye(200), tree, "species", order, tmp_path / "x.png")
        assert (tmp_path / "x.png").stat().st_size > 10_000


def test_two_processes_score_each_image_once(cub_folder: Path, tmp_path: Path) -> None:
    # Nine images, five for one process and four for the other, with four of the 200 species of the model.
    split = cub_folder / "train_test_split.txt"
    split.write_text("\n".join(f"{image_id} {int(image_id % 4 == 1)}" for image_id in range(1, 13)))
    torch.manual_seed(0)
    model = create_model("mlph", hierarchy="cub", resolutions={"family": 16}, **SMALL)  # type: ignore[arg-type]
    model.save_pretrained(tmp_path / "run")
    arguments = [str(tmp_path / "run"), "--dataset", "cub", "--dataset_options.root", str(cub_folder)]
    arguments += ["--batch_size", "2", "--mixed_resolutions", "[null, 32, 20]"]
    code, printed = run_in_two_processes(RECIPE, arguments, tmp_path)
    assert code == 0, printed[-3000:]
    written = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    dataset = create_dataset("cub", "test", root=str(cub_folder))
    alone = results_of(model.eval(), dataset)
    target, cpu = labels_in(model.hierarchy, dataset), Accelerator(cpu=True)
    grid = (None, 32, 20)
    alone["mixed_resolutions"] = score_mixed(model, dataset, target, grid, cpu, tmp_path / "alone", batch_size=5)
    for key, expected in without_nan(alone).items():
        assert flat(written[key]) == pytest.approx(flat(expected), abs=1e-6), key
    assert (written["processes"], written["images"]) == (2, 9)
    assert written["labelled"] == {"family": 9, "genus": 9, "species": 9}
    assert {"dataset", "split", "date", "device", "versions"} <= set(written)
    with open(tmp_path / "run" / "evaluation" / "confusion_species.csv", newline="") as file:
        counts = {
            row["species"]: sum(int(n) for name, n in row.items() if name != "species") for row in csv.DictReader(file)
        }
    assert sum(counts.values()) == 9
    assert {name for name, count in counts.items() if count} == set(BIRDS)
    assert printed.count("mistake_severity") == 1, "one table"
    assert all((tmp_path / "run" / "evaluation" / name).is_file() for name in ("risk_coverage.png", "reliability.png"))
    for name in (
        "fpa",
        "tice",
        "species/ece",
        "hd@5",
        "independent",
        "joint",
        "16 px",
        "9 test images of cub",
        "hAURC",
    ):
        assert name in printed


def flat(value: object, name: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {key: v for part, inner in value.items() for key, v in flat(inner, f"{name}.{part}").items()}
    if isinstance(value, list):
        return flat(dict(enumerate(value)), name)
    return {name: value}


def test_the_dataset_of_the_run_is_the_default(tmp_path: Path) -> None:
    choose = evaluate["choose_dataset"]
    with pytest.raises(FileNotFoundError, match=r"has no config.yaml; name a dataset: --dataset NAME"):
        choose(tmp_path, None, None)
    (tmp_path / "config.yaml").write_text("dataset: critters\ndataset_options: {per_class: 4}\n")
    assert choose(tmp_path, None, None) == ("critters", {"per_class": 4})
    assert choose(tmp_path, None, {"per_class": 2}) == ("critters", {"per_class": 2})
    assert choose(tmp_path, "cub", {"root": "birds"}) == ("cub", {"root": "birds"})
    assert choose(tmp_path, "other", None) == ("other", {})


def test_an_unknown_decoding_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown decoding 'topdown'; did you mean 'top_down'"):
        evaluate["choose_decodings"]("topdown")
    assert evaluate["choose_decodings"]("joint") == ("joint",)


def test_unreadable_images_do_not_count(cub_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tree = create_dataset("cub", "test", root=str(cub_folder)).hierarchy
    create_model("mlph", hierarchy=tree, **SMALL).save_pretrained(tmp_path / "run")  # type: ignore[arg-type]
    torn = cub_folder / "images" / BIRDS[1] / "2.jpg"  # image 6, the second of four test images
    torn.write_bytes(torn.read_bytes()[:700])
    options = {"dataset": "cub", "dataset_options": {"root": str(cub_folder)}, "decoding": "joint"}
    with pytest.raises(ValueError, match=rf"image 1 \({torn}\) cannot be used: .*truncated"):
        evaluate["main"](str(tmp_path / "run"), **options)
    evaluate["main"](str(tmp_path / "run"), **options, on_error="skip", output=str(tmp_path / "skipped"))
    split = cub_folder / "train_test_split.txt"
    split.write_text(split.read_text().replace("\n6 0\n", "\n6 1\n"))
    evaluate["main"](str(tmp_path / "run"), **options, output=str(tmp_path / "without"))
    skipped, without = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("skipped", "without"))
    assert len(skipped["unreadable"]) == 1
    assert skipped["unreadable"][0].startswith(f"image 1 ({torn}): cannot read the image {torn}: ")
    assert without["unreadable"] == []
    for key in ("images", "labelled", "lca_heights", "any_decoding", "decodings", "accuracy_by_resolution"):
        assert flat(skipped[key]) == pytest.approx(flat(without[key]), abs=1e-6), key
    assert skipped["images"] == skipped["mixed_resolutions"]["rules"]["climb"]["images"] == 3
    assert skipped["mixed_resolutions"]["rules"]["climb"]["unknown"] == 0
