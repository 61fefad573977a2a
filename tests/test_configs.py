"""The recipes' YAML files: each is read, and its model, optimizers and schedules are built."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import part_rcnn
import probes
import pytest
import yaml

from c2f_zoo import create_model, load_hierarchy
from c2f_zoo.data import DATASETS
from c2f_zoo.registry import check_options
from c2f_zoo.training.objective import check_objective
from c2f_zoo.training.optimizers import create_ema, create_optimizer, create_schedule
from c2f_zoo.training.option_checks import check_values
from c2f_zoo.training.options import Stage, TrainOptions, read_options
from c2f_zoo.training.setup import build_model

CONFIGS = sorted((Path(__file__).parents[1] / "recipes" / "configs").glob("*.yaml"))
TRAINED = [path for path in CONFIGS if "stages" in yaml.safe_load(path.read_text())]
OF_WEIGHTS = ("pretrained_backbone", "backbone_checkpoint")


def test_the_files_are_those_of_four_recipes() -> None:
    assert {"critters", "cub_mlph_vgg16", "paper_cub", "paper_cars", "modern"} <= {path.stem for path in TRAINED}
    tables = {path for path in CONFIGS if "backbones" in yaml.safe_load(path.read_text())}  # tests/test_ablation.py
    grids = {
        path for path in CONFIGS if "models" in yaml.safe_load(path.read_text())
    }  # tests/test_resolution_scores.py
    for path in {*CONFIGS} - {*TRAINED} - tables - grids:
        options = yaml.safe_load(path.read_text())
        check_options("option:", part_rcnn.PartOptions if "cache" in options else probes.main, options)
        check_options("key in model_options:", create_model, options["model_options"])


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
@pytest.mark.slow
def test_everything_of_a_training_is_built(path: Path) -> None:
    options = read_options(TrainOptions, [path])
    check_options("option of the dataset:", DATASETS[options.dataset], {**options.dataset_options, "split": "train"})
    without_weights = {key: value for key, value in options.model_options.items() if key not in OF_WEIGHTS}
    options = replace(options, model_options=without_weights)
    model = build_model(options, load_hierarchy(options.dataset))
    assert dict(model.config.resolutions) == options.resolutions
    check_values(options, num_processes=1)
    check_objective(options, model)
    for stage in options.stages:
        optimizer = create_optimizer(model, stage, options)
        assert optimizer.param_groups[0]["lr"] == stage.lr
        schedule = create_schedule(optimizer, stage, steps_per_epoch=10)
        schedule.step_update(stage.epochs * 10 - 1)
        assert 0 < optimizer.param_groups[0]["lr"] <= stage.lr
    ema = create_ema(model, options)
    assert (ema is None) == (options.ema is None)


def test_every_option_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reference" / "recipe.md").read_text(encoding="utf-8")
    training = page.partition("### What a run says")[0]
    rows = [line.split("|")[1] for line in training.splitlines() if line.startswith("| `")]
    documented = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    fields_of = {kind: [spec.name for spec in fields(kind)] for kind in (TrainOptions, Stage)}
    assert sorted(name for name in documented if name) == sorted([*fields_of[TrainOptions], *fields_of[Stage]])


def test_stages_of_an_argument_or_a_later_file_take_nothing_from_those_they_replace(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    lines = "dataset: critters\nmodel: mlph_tiny_critters\nresolutions: {}\n"
    first.write_text(lines + "stages:\n  - {epochs: 5, lr: 0.3, backbone_lr: 0.2, schedule: cosine}\n")
    line = "stages: [{epochs: 2, lr: 0.1}]"
    as_json = json.dumps(yaml.safe_load(line))
    for text in (line, f"{{{line}}}", f"\ufeff{line}", line.replace("stages", "'stages'"), as_json):
        second.write_text(text, encoding="utf-8")
        assert read_options(TrainOptions, [first, second]).stages == [Stage(epochs=2, lr=0.1)], text
    for argument in (["--stages", "[{epochs: 1, lr: 0.5}]"], ["--stages=[{epochs: 1, lr: 0.5}]"]):
        assert read_options(TrainOptions, [first], argument).stages == [Stage(epochs=1, lr=0.5)]
    assert read_options(TrainOptions, [first], ["--batch_size", "3"]).stages == [Stage(5, 0.3, 0.2, schedule="cosine")]


@pytest.mark.parametrize("text", ["--model_options.pooling_options.dim {}", "--model_options.pooling_options.dim={}"])
@pytest.mark.parametrize(("value", "expected"), [("512", 512), ("0.5", 0.5), ("true", True), ("[1,2]", [1, 2])])
def test_an_option_of_an_option_has_its_type(text: str, value: str, expected: object, tmp_path: Path) -> None:
    """And the other options of the file stay."""
    file = tmp_path / "a.yaml"
    options = "{pooling_options: {dim: 8, root: true}, backbone: tiny}"
    file.write_text(f"{{dataset: d, model: m, resolutions: {{}}, stages: [], model_options: {options}}}")
    arguments = text.format(value).split(" ", 1)
    found = read_options(
        TrainOptions, [file], [*arguments, "--model_options.head_options.bias", "false", "--seed", "3"]
    )
    assert found.model_options == {
        "pooling_options": {"dim": expected, "root": True},
        "backbone": "tiny",
        "head_options": {"bias": False},
    }
    assert found.seed == 3


def test_an_option_of_a_name_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("{dataset: d, model: m, resolutions: {}, stages: [], model_options: {pooling: mlp}}")
    with pytest.raises(ValueError, match=r"model_options\.pooling is 'mlp', which has no 'dim'"):
        read_options(TrainOptions, [file], ["--model_options.pooling.dim", "8"])
