"""`~` is the home folder wherever a path is given, and no folder called `~` appears."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import find_resolutions
import pytest
import torch
from PIL import Image
from test_folders import draw, write
from typer.testing import CliRunner

from c2f_zoo import C2FModel, Hierarchy, Predictor, create_dataset, create_model
from c2f_zoo.cli import app
from c2f_zoo.config import ModelConfig
from c2f_zoo.data import CachedImages, read_image
from c2f_zoo.io.files import write_csv
from c2f_zoo.model import load_model
from c2f_zoo.training.options import TrainOptions, parse
from c2f_zoo.training.start_checks import check_output
from c2f_zoo.zoo.pretrained import BUNDLED


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home folder; the working folder is another, in which nothing may appear."""
    folder, work = tmp_path / "home", tmp_path / "work"
    folder.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(folder))
    return folder


@pytest.fixture
def model_folder(home: Path) -> Path:
    return shutil.copytree(BUNDLED / "mlph_tiny_critters.scratch", home / "model")


def test_datasets(home: Path) -> None:
    draw(home / "birds", "train/Gull/1.png", "train/Jay/1.png", "test/Gull/1.png")
    tree = write(home / "tree.csv", "kind,sort", "Birds,Gull", "Birds,Jay")
    write(home / "list.csv", "path,label,split", "train/Gull/1.png,Gull,train", "~/birds/test/Gull/1.png,Gull,test")
    write(home / "parents.csv", "child,parent", "Birds,", "Gull,Birds", "Jay,Birds")
    parents = {"hierarchy": "~/parents.csv", "levels": ["kind", "sort"]}
    for options in ({}, {"hierarchy": "~/tree.csv"}, {"hierarchy": Path("~/tree.csv")}, parents):
        assert len(create_dataset("folder", "train", root="~/birds", **options)) == 2
    options = {"hierarchy": "~/tree.csv", "root": "~/birds"}
    for split in ("train", "test"):
        (image, _) = next(iter(create_dataset("csv", split, file="~/list.csv", **options)))
        assert image.width == 8
    assert len(create_dataset("torch/image_folder", "train", **options)) == 2
    assert (
        Hierarchy.from_csv("~/tree.csv")
        == Hierarchy.from_csv(tree)
        == Hierarchy.from_parents("~/parents.csv", ("kind", "sort"))
    )
    assert Hierarchy.from_folders("~/birds/train", ("sort",)).classes == (("Gull", "Jay"),)
    check = ["data", "check", "~/list.csv", "--hierarchy", "~/tree.csv", "--root", "~/birds"]
    for arguments in (check, ["data", "check", "~/birds"]):
        assert "train" in CliRunner().invoke(app, arguments).stdout
    assert CachedImages(create_dataset("csv", "train", file="~/list.csv", **options), "~/cache").file.is_file()
    assert list((home / "cache").iterdir())
    assert not list(Path().iterdir())


@pytest.mark.parametrize("name", ["cars", "cub", "aircraft", "inaturalist", "cifar100", "fashion_mnist"])
def test_public_datasets_look_there(home: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=str(home)):
        create_dataset(name, "train", root="~/data")
    assert not list(Path().iterdir())


@pytest.mark.slow
def test_models_and_predictions(home: Path, model_folder: Path) -> None:
    Image.new("RGB", (96, 96), (200, 90, 10)).save(home / "a.png")
    assert read_image("~/a.png").size == (96, 96)
    model = load_model("~/model")
    expected = next(model.head.parameters())
    for loaded in (create_model("local-dir:~/model"), C2FModel.from_pretrained("~/model")):
        assert loaded.config == model.config == ModelConfig.from_json("~/model/config.json")
        assert torch.equal(next(loaded.head.parameters()), expected)
    model.save_pretrained("~/saved")
    assert json.loads((home / "saved" / "config.json").read_text())
    path = str(Predictor(model)("~/a.png"))
    for name in ("~/model", "local-dir:~/model"):
        assert CliRunner().invoke(app, ["predict", name, "~/a.png"]).stdout.strip() == path
    assert "genus" in CliRunner().invoke(app, ["info", "~/model"]).stdout
    assert not list(Path().iterdir())


def test_recipes(home: Path) -> None:
    recipe = (
        "{dataset: folder, model: mlph_tiny_critters, resolutions: {}, stages: [], output: ~/runs/a, cache: ~/cache}"
    )
    write(home / "birds.yaml", recipe)
    options, name = parse(TrainOptions, ["--config", "~/birds.yaml"], default="critters.yaml")
    assert (options.output, options.cache, name) == (str(home / "runs" / "a"), str(home / "cache"), "birds")
    options, _ = parse(TrainOptions, ["--config=~/birds.yaml", "--output=~/runs/b"], default="critters.yaml")
    assert options.output == str(home / "runs" / "b")
    check_output("~/runs")
    (home / "run").mkdir()
    shutil.copy(home / "birds.yaml", home / "run" / "config.yaml")
    assert find_resolutions.parse(["~/run"])[1] == home / "run"
    write_csv("~/scores.csv", [{"level": "genus"}])
    assert (home / "scores.csv").is_file()
    assert not list(Path().iterdir())


def test_a_file_whose_name_begins_with_a_tilde(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save("~backup.png")
    assert read_image("~backup.png").size == (3, 2)
