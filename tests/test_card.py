"""The model card reports measured results; push_to_hub.py writes it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import push_to_hub
import pytest
import timm
import torch
import yaml
from conftest import SMALL
from hub_server import Hub, model_index_errors
from huggingface_hub import ModelCard
from PIL import Image
from timm.models._hub import load_model_config_from_path

from c2f_zoo import C2FModel, Hierarchy, create_model, load_hierarchy
from c2f_zoo.io.card import CITATION, model_card, read_run
from c2f_zoo.io.files import write_csv

RECIPE = Path(__file__).parents[1] / "recipes" / "push_to_hub.py"

RESOLUTIONS = {"species": 64, "genus": 32, "family": None}
ACCURACY = {  # (level, resolution): fraction
    ("family", 64): 0.875, ("genus", 64): 0.75, ("species", 64): 0.625,
    ("family", 32): 0.5, ("genus", 32): 0.4375, ("species", 32): 0.375,
    ("family", None): 0.25, ("genus", None): 0.1875, ("species", None): 0.125,
}  # fmt: skip
OPTIONS = {
    "dataset": "cub",
    "model": "mlph",
    "dataset_options": {"root": "/home/ann/data/CUB_200_2011"},
    "model_options": {"backbone": "test_convnext", "backbone_checkpoint": "C:\\Users\\ann\\weights.safetensors"},
    "seed": 0,
}
METRICS = {
    "dataset": "cub",
    "split": "test",
    "images": 16,
    "any_decoding": {"species/top5": 0.9375},
    "decodings": {"independent": {"tice": 0.3125, "fpa": None}, "joint": {"tice": 0.0, "fpa": 0.5}},
}


@pytest.fixture
def model() -> C2FModel:
    return create_model("mlph", hierarchy="cub", resolutions=RESOLUTIONS, **SMALL)  # type: ignore[arg-type]


@pytest.fixture
def run(model: C2FModel, tmp_path: Path) -> Path:
    """The folder of a finished run of train.py."""
    folder = tmp_path / "run"
    model.save_pretrained(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(OPTIONS, sort_keys=False))
    rows = [
        {"level": level, "resolution": at, "own": RESOLUTIONS[level] == at, "accuracy": accuracy, "images": 16}
        for (level, at), accuracy in ACCURACY.items()
    ]
    write_csv(folder / "test.csv", rows)
    write_csv(folder / "metrics.csv", [{"epoch": 1}, {"epoch": 2}])
    Image.new("RGB", (8, 8)).save(folder / "curves.png")
    (folder / "checkpoint-0002").mkdir()
    (folder / "checkpoint-0002" / "optimizer.pt").write_bytes(b"not to be pushed")
    return folder


def test_the_card_reports_the_measured_results(model: C2FModel, run: Path) -> None:
    text = model_card(model.config, "me/birds", "mit", read_run(run))
    assert "| level | 64 px | 32 px | full size |" in text
    assert "| family | 87.5 | 50.0 | **25.0** |" in text
    assert "| genus | 75.0 | **43.8** | 18.8 |" in text
    assert "| species | **62.5** | 37.5 | 12.5 |" in text
    assert "on the 16 test images of the dataset `cub`" in text
    assert "2 epochs of c2f_zoo's `recipes/train.py`" in text and "![loss and" in text
    assert "Hierarchical metrics" not in text, "evaluate.py was not run"


def test_an_evaluation_is_reported(model: C2FModel, run: Path) -> None:
    (run / "evaluation").mkdir()
    (run / "evaluation" / "metrics.json").write_text(json.dumps(METRICS))
    text = model_card(model.config, "me/birds", "mit", read_run(run))
    assert "on 16 images of `cub`, test split" in text
    assert "| metric | independent | joint |" in text
    assert "| species/top5 | 0.9375 | 0.9375 |" in text
    assert "| tice | 0.3125 | 0.0000 |" in text
    assert "| fpa |  | 0.5000 |" in text, "an undefined metric is empty"


def test_the_metadata_is_valid_for_the_hub(model: C2FModel, run: Path) -> None:
    card = ModelCard(model_card(model.config, "me/birds", "mit", read_run(run)))
    assert (card.data.license, card.data.library_name, card.data.model_name) == ("mit", "c2f_zoo", "birds")
    assert card.data.pipeline_tag == "image-classification"
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found == {
        "accuracy of species (64 px)": 0.625,
        "accuracy of genus (32 px)": 0.4375,
        "accuracy of family (full size)": 0.25,
    }
    assert {result.dataset_name for result in card.data.eval_results} == {"cub"}
    assert model_index_errors(card.data.to_dict()["model-index"]) == []


def test_only_the_last_component_of_a_path_is_shown(model: C2FModel, run: Path) -> None:
    text = model_card(model.config, "me/birds", "mit", read_run(run))
    assert "root: CUB_200_2011" in text and "backbone_checkpoint: weights.safetensors" in text
    assert "/home" not in text and "Users" not in text


def test_missing_information_is_stated(model: C2FModel) -> None:
    text = model_card(model.config, "me/birds")
    assert "Nothing was measured" in text
    assert "Nothing is known about the training" in text
    assert "No licence is known" in text
    assert ModelCard(text).data.license is None
    assert ModelCard(text).data.eval_results is None
    assert CITATION in text


def test_the_tree_is_drawn_and_shortened(model: C2FModel) -> None:
    text = model_card(model.config, "me/birds")
    assert "family 36, genus 113, species 200" in text
    assert "\nDiomedeidae" in text and "Black_footed_Albatross" not in text
    assert "The finest levels are not shown" in text
    small = create_model("mlph", hierarchy="fashion_mnist", **SMALL)  # type: ignore[arg-type]
    assert "│   ├── T-shirt/top\n" in model_card(small.config, "me/clothes")
    wide = Hierarchy(("kind",), (tuple(f"kind {i}" for i in range(100)),), ())
    model.reset_classifier(wide)
    assert "kind 59\n... and 40 more\n```" in model_card(model.config, "me/kinds")


def test_timm_reads_the_config(model: C2FModel, run: Path) -> None:
    cfg, name, arguments = load_model_config_from_path(run)
    assert (name, arguments) == ("c2f_zoo", {})
    assert cfg["num_classes"] == 200
    assert cfg["label_names"] == list(load_hierarchy("cub").class_names("species"))
    resolved = timm.data.resolve_data_config(pretrained_cfg=cfg)
    own = timm.data.resolve_data_config(model=model)
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in resolved.items()} == own
    assert (resolved["input_size"], resolved["crop_pct"]) == ([3, 64, 64], 0.875)
    assert timm.data.create_transform(**resolved)(Image.new("RGB", (99, 80))).shape == (3, 64, 64)


def in_a_process(folder: Path, *arguments: str, **environment: str) -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    kept |= {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_a_dry_run_writes_what_would_be_pushed(
    run: Path, tmp_path: Path, model: C2FModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dry = tmp_path / "dry"
    monkeypatch.setattr(push_to_hub, "push", None)
    push_to_hub.main(str(run), "me/birds", "cc-by-4.0", dry_run=str(dry))
    assert "nothing was pushed" in capsys.readouterr().out
    assert {path.name for path in dry.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "test.csv", "curves.png",
    }  # fmt: skip
    assert (dry / "README.md").read_text() == model_card(model.config, "me/birds", "cc-by-4.0", read_run(run))
    again = C2FModel.from_pretrained(dry).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.slow
def test_a_run_is_pushed_and_the_code_of_its_card_runs(run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (80, 70), "teal").save(tmp_path / "image.jpg")
    with Hub({"mine": "me"}).serving() as hub:
        there = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "mine"}
        command = [str(RECIPE), str(run), "birds", "--license", "mit", "--private", "true"]
        printed = in_a_process(tmp_path, *command, **there)
        birds = hub.repos["me/birds"]
        files = birds.commits[birds.branches["main"]]
        assert f"pushed: {hub.endpoint}/me/birds/commit/{birds.branches['main']}" in printed
        assert files.keys() == {
            ".gitattributes", "README.md", "config.json", "model.safetensors", "test.csv", "curves.png",
        }  # fmt: skip
        assert birds.private
        lines = re.search(r"```python\n(.*?)```", files["README.md"].data.decode(), re.DOTALL)
        assert lines and len(lines[1].splitlines()) == 2
        printed = in_a_process(tmp_path, "-c", lines[1], **there)
        assert len(printed.strip().split(" > ")) == 3, "a path of three levels"


@pytest.mark.slow
def test_the_card_names_the_revision(run: Path, tmp_path: Path) -> None:
    push_to_hub.main(str(run), "me/birds", "mit", revision="refs/v2", dry_run=str(tmp_path / "dry"))
    text = (tmp_path / "dry" / "README.md").read_text()
    assert 'create_model("hf-hub:me/birds@refs/v2")' in text and "\n# birds\n" in text
    assert ModelCard(text).data.model_name == "birds"


def test_errors_of_the_recipe(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model has no licence; name one"):
        push_to_hub.main(str(run), "me/birds")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="full is not empty; choose another folder for --dry_run"):
        push_to_hub.main(str(run), "me/birds", "mit", dry_run=str(tmp_path / "full"))
    with pytest.raises(ValueError, match="name the owner: 'owner/birds'"):
        push_to_hub.main(str(run), "birds", "mit", dry_run=str(tmp_path / "dry"))
    (run / "test.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no test.csv: the run is not finished"):
        read_run(run)
    with pytest.raises(FileNotFoundError, match=r"has no config.yaml: pass the folder of a run of train.py"):
        read_run(tmp_path)
