"""The probes recipe: fits, the choice of penalties, and the table of methods and decodings."""

from __future__ import annotations

import csv
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch
import yaml

from c2f_zoo import list_heads
from c2f_zoo.decoding import DECODINGS
from c2f_zoo.evaluation.probe import (
    LabelledFeatures,
    fit_head,
    head_log_probs,
    level_accuracies,
    probe_linear,
    score_probe,
)
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.zoo import MODELS
from c2f_zoo.zoo.resolve import resolve, select_overrides

RECIPES = Path(__file__).parents[1] / "recipes"
CONFIGS = RECIPES / "configs"
probes = runpy.run_path(str(RECIPES / "probes.py"))
TREE = Hierarchy.from_rows(("kind", "shape"), [("round", "disc"), ("round", "ring"), ("edged", "box")])


@pytest.mark.slow
@pytest.mark.parametrize("name", list_heads())
def test_every_head_is_fitted(name: str) -> None:
    # Features determine the shape, or only the kind at the coarse level; noise is far below the margin.
    labels = TREE.ancestors(torch.tensor([0, 1, 2]).repeat(8))
    noise = 0.1 * torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(0))
    kinds = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    features = {"kind": kinds[labels[:, 0]] + noise[0], "shape": torch.eye(3)[labels[:, 1]] + noise[1]}
    head = fit_head(name, features, labels, TREE, penalty=1e-4, max_iter=50, seed=0)
    images = LabelledFeatures(features, labels)
    report = score_probe(partial(head_log_probs, head), images, TREE).report("independent")
    assert (report["kind/accuracy"], report["shape/accuracy"]) == (1.0, 1.0)


def test_a_larger_penalty_gives_smaller_weights() -> None:
    labels = TREE.ancestors(torch.tensor([0, 1, 2]))
    features = {"kind": torch.eye(3), "shape": torch.eye(3)}
    norms = []
    for penalty in (1e-4, 1.0):
        head = fit_head("levels", features, labels, TREE, penalty, max_iter=50, seed=0)
        norms.append(sum(float(weight.square().sum()) for weight in head.parameters() if weight.ndim > 1))
    assert norms[1] < 0.1 * norms[0]


def test_the_linear_probe_chooses_a_penalty_for_each_level() -> None:
    # Features equal to the kind are fitted with any penalty; random features, of 10 dimensions, only with a small one.
    labels = TREE.ancestors(torch.tensor([0, 1, 2] * 8))
    labels[0] = -1
    noise = torch.randn(24, 10, generator=torch.Generator().manual_seed(0))
    features = {"kind": torch.eye(2)[labels[:, 0].clamp(min=0)], "shape": noise}
    images = LabelledFeatures(features, labels)
    probe = probe_linear(images, images, TREE, [1.0, 1e-4], max_iter=50)
    assert probe.penalties == {"kind": 1.0, "shape": 1e-4}, "of equals the first"
    assert probe.val_accuracy == {"kind": 1.0, "shape": 1.0} == level_accuracies(probe.classify, images, TREE)
    log_probs = probe.classify(features)
    assert log_probs["shape"].exp().sum(dim=1) == pytest.approx(torch.ones(24))


def test_an_unknown_method_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown method 'marginals'; did you mean 'marginal'"):
        probes["choose_methods"](["marginals"])


def test_a_mistake_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ["--dataset", "critters", "--dataset_options.per_class", "2", "--val_fraction", "0"]
    monkeypatch.setattr(sys, "argv", ["probes.py", *data, "--model_options", "{}", "--resolutions", "{}"])
    with pytest.raises(SystemExit, match=r"probes\.py: val_fraction is 0: there are no validation images"):
        runpy.run_path(probes["__file__"], run_name="__main__")


@pytest.mark.slow
def test_the_table_has_every_head_with_every_decoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probes["main"](
        dataset="critters",
        dataset_options={"per_class": 2},
        model_options={"backbone": "test_convnext", "taps": ["stages.3"], "input_size": 48},
        resolutions={"genus": 24, "family": 12},
        val_fraction=0.5,
        max_iter=2,
        output=str(tmp_path / "heads.csv"),
    )
    with open(tmp_path / "heads.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["decoding"]) for row in rows] == [
        (method, how) for method in (*list_heads(), "linear_probe") for how in DECODINGS.load_all()
    ]
    for row in rows:
        assert row["images"] == "72"
        for metric in ("species/top1", "species/ece", "hd@5", "fpa", "wap", "tice", "mistake_severity"):
            assert float(row[metric]) >= 0
        assert (float(row["tice"]) > 0) <= (row["decoding"] == "independent")
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*list_heads(), "linear_probe", *DECODINGS.load_all()))


@pytest.mark.parametrize("joined", [False, True])
def test_a_configuration_of_training_names_data_and_backbone(
    joined: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    smoke = CONFIGS / "smoke.yaml"
    found: list[dict[str, Any]] = []
    monkeypatch.setattr("jsonargparse.auto_cli", lambda main, as_positional, args: found.append(parse(main, args)))
    config = [f"--config={smoke}"] if joined else ["--config", str(smoke)]
    monkeypatch.setattr(sys, "argv", ["probes.py", *config, "--model_options.input_size", "32"])
    runpy.run_path(probes["__file__"], run_name="__main__")
    (options,) = found
    assert options["model_options"] == {"backbone": "test_convnext", "input_size": 32}
    assert (options["dataset"], options["dataset_options"]) == ("critters", {"per_class": 4})
    assert options["resolutions"] == {"species": 48, "genus": 32, "family": 12}
    assert (options["val_fraction"], options["seed"], options["output"]) == (0.25, 0, "runs/probes.csv")
    printed = capsys.readouterr().out
    assert f"{smoke} is a configuration of train.py" in printed and "and not: model, stages, batch_size\n" in printed


def parse(main: Callable[..., None], args: list[str]) -> dict[str, Any]:
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_function_arguments(main, as_group=False)
    return parser.parse_args(args).as_dict()


@pytest.mark.parametrize("config", ["critters", "cub_mlph_lite0", "modern", "paper_cub", "fashion_mnist"])
def test_probes_have_the_backbone_of_the_training(config: str) -> None:
    recipe = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
    given = recipe.get("model_options", {})
    expected = resolve(recipe["model"], {"hierarchy": "critters", **select_overrides(given)})
    options = probes["probe_options"](recipe)["model_options"]
    found = resolve("mlph", {"hierarchy": "critters", "pooling": "avg", **select_overrides(options)})
    assert (found.backbone, found.preprocessing, found.backbone_options) == (
        expected.backbone,
        expected.preprocessing,
        expected.backbone_options,
    )
    assert found.taps == expected.taps
    assert options.get("pretrained_backbone") == given.get("pretrained_backbone")


def test_other_configurations_are_left_alone() -> None:
    arguments = ["--config", str(CONFIGS / "probe_heads.yaml"), "--seed", "1"]
    assert probes["adopt_recipes"](arguments) == arguments
    assert probes["adopt_recipes"](["--help"]) == ["--help"]


def test_a_configuration_of_training_may_leave_the_dataset_to_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("{model: mlph_tiny_critters, stages: [], resolutions: {}}")
    arguments = ["--config", str(tmp_path / "a.yaml"), "--dataset", "cub"]
    options = parse(probes["main"], probes["adopt_recipes"](arguments))
    assert (options["dataset"], options["dataset_options"]) == ("cub", {})
    assert options["model_options"]["backbone"] == "tiny"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", r"a\.yaml is not a YAML file: "),
        ("", r"a\.yaml has no options"),
        ("- dataset", r"a\.yaml has no options"),
        ("{dataset: critters, stages: []}", r"a\.yaml has stages, but no model, .*; name it there"),
        (None, r"there is no configuration .*a\.yaml"),
    ],
)
def test_a_configuration_that_cannot_be_used_ends_in_one_line(
    text: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "a.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["probes.py", "--config", str(tmp_path / "a.yaml")])
    with pytest.raises(SystemExit, match=rf"^probes\.py: .*{message}") as error:
        runpy.run_path(probes["__file__"], run_name="__main__")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_probe_of_a_training_is_that_of_its_options(tmp_path: Path) -> None:
    run = ["probes.py", "--config", str(CONFIGS / "critters.yaml"), "--methods", "[linear_probe]"]
    run += ["--dataset_options.per_class", "2", "--val_fraction", "0.5", "--max_iter", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*run, "--output", str(tmp_path / "recipe.csv")])
        runpy.run_path(probes["__file__"], run_name="__main__")
    spec = MODELS["mlph_tiny_critters"]
    probes["main"](
        dataset="critters",
        dataset_options={"per_class": 2},
        model_options={"backbone": "tiny", "taps": spec.options["taps"], "input_size": 96},
        resolutions={"species": None, "genus": 32, "family": 12},
        methods=["linear_probe"],
        val_fraction=0.5,
        max_iter=2,
        output=str(tmp_path / "options.csv"),
    )
    assert (tmp_path / "recipe.csv").read_text() == (tmp_path / "options.csv").read_text()
