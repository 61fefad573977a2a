"""The ablation recipe: the table, what is run again, and what is refused."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ablation
import numpy as np
import pytest
import train

from c2f_zoo.evaluation.ablation_table import (
    Cell,
    Table,
    TableOptions,
    check_table,
    explain_difference,
    result_rows,
    train_options,
)
from c2f_zoo.io.files import read_csv
from c2f_zoo.training.options import TrainOptions, parse, read_options

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
OPTIONS: TableOptions = read_options(TableOptions, [CONFIGS / "ablation_critters.yaml"])  # type: ignore[type-var]


def options_in(folder: Path, **changes: Any) -> TableOptions:
    paths = {"output": str(folder / "table.csv"), "taps_folder": str(folder.parent / "taps")}
    return replace(OPTIONS, **{**paths, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the table of critters, and return its folder."""
    folder = tmp_path_factory.mktemp("finished")
    ablation.main(options_in(folder))
    return folder


def results(folder: Path) -> list[dict[str, str]]:
    """Return the rows without time and place."""
    rows = read_csv(folder / "table.csv")
    return [{key: row[key] for key in list(row)[: list(row).index("seconds")]} for row in rows]


def test_each_cell_and_level_has_a_row_and_only_the_best_are_tested(finished: Path) -> None:
    rows = results(finished)
    for method, levels in {"linear_probe": 3, "mlp": 1, "mlph": 3}.items():
        own = [row for row in rows if row["method"] == method]
        assert len(own) == 3 * levels  # two learning rates with the first seed, and the better one with the second
        mean = {
            lr: np.mean([float(row["val_accuracy"]) for row in own if (row["lr"], row["seed"]) == (lr, "0")])
            for lr in ("0.001", "0.01")
        }
        best = max(mean, key=lambda lr: mean[lr])
        tested = {(row["lr"], row["seed"]) for row in own if row["test_accuracy"]}
        assert tested == {(best, "0"), (best, "1")}
        assert all((row["chosen"] == "1") == bool(row["test_accuracy"]) for row in own)
    assert {(row["level"], row["resolution"]) for row in rows} == {
        ("species", "full"),
        ("genus", "32"),
        ("family", "12"),
    }
    assert not list(finished.rglob("*.safetensors"))


def test_the_summary_has_means_and_differences(finished: Path) -> None:
    rows, summary = results(finished), read_csv(finished / "table-summary.csv")
    mean = {
        (method, level): np.mean(
            [
                float(row["test_accuracy"])
                for row in rows
                if row["test_accuracy"] and row["method"] == method and row["level"] == level
            ]
        )
        for method, level in {(row["method"], row["level"]) for row in rows}
    }
    assert len(summary) == 7 + 1 + 3
    for row in summary:
        expected = mean[row["method"], row["level"]]
        if row["minus"]:
            expected = expected - mean[row["minus"], row["level"]]
        assert float(row["value"]) == pytest.approx(expected, abs=2e-4)
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
        assert (row["seeds"], row["images"]) == ("2", "72")


def test_a_finished_table_is_not_run_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "table.csv").read_text()
    monkeypatch.setattr(ablation, "open_frozen", lambda *_: pytest.fail("the maps were opened"))
    ablation.main(options_in(finished))
    assert (finished / "table.csv").read_text() == before
    out = capsys.readouterr().out
    assert "0 of 9 cells are left\n" in out
    assert "mlph - mlp" in out


@pytest.mark.slow
@pytest.mark.parametrize(("function", "calls"), [("train_frozen", 5), ("score_frozen", 1)])
def test_a_killed_table_goes_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, calls: int
) -> None:
    run, cells = getattr(ablation, function), []

    def interrupted(cell: Cell, **more: Any) -> Any:
        cells.append(cell)
        if len(cells) == calls:
            raise KeyboardInterrupt
        return run(cell, **more)

    monkeypatch.setattr(ablation, function, interrupted)
    methods = {name: OPTIONS.methods[name] for name in ("linear_probe", "mlp")}
    options = options_in(tmp_path, taps_folder=str(finished.parent / "taps"), methods=methods, pairs=[])
    with pytest.raises(KeyboardInterrupt):
        ablation.main(options)
    ablation.main(options)
    assert results(tmp_path) == [row for row in results(finished) if row["method"] in methods]
    assert len(cells) == len({*cells}) + 1  # only the interrupted one is run twice


def test_other_options_are_refused_and_more_methods_are_not(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"other options: epochs was 2 and is 3; choose another --output"):
        ablation.main(options_in(finished, epochs=3))
    before = json.loads((finished / "table" / "options.json").read_text())
    more = {**before, "methods": {"kp": {"method": "kp"}, **before["methods"]}, "seeds": [0, 1, 2], "pairs": []}
    assert explain_difference(before, more) == ""
    assert explain_difference(before, {**before, "seeds": [1, 0]}) == "seeds was 0 and is 1"
    other = {**before["methods"], "mlp": {"method": "mlp"}}
    found = explain_difference(before, {**before, "methods": other})
    assert found == "methods.mlp was {'method': 'mlp', 'pooling_options': {'dim': 16}} and is {'method': 'mlp'}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"mlp": {}}, "pairs": []}, "method 'mlp' has no key `method`"),
        ({"methods": {"mlp": {"method": "mlp", "dims": 3}}, "pairs": []}, "unknown key of method 'mlp': 'dims'"),
        ({"pairs": [["mlph", "mpl"]]}, "did you mean 'mlp'"),
        ({"pairs": [["mlph"]]}, "is not a pair"),
        ({"seeds": []}, "seeds is empty"),
        ({"checkpoints": {"tinny": "x"}}, "did you mean 'tiny'"),
        ({"train": {}, "methods": {"mlp": {"method": "mlp", "trained_at": {}}}, "pairs": []}, "leave trained_at out"),
    ],
)
def test_wrong_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_table(replace(OPTIONS, **changes))


def test_rows_have_the_last_accuracy_and_the_gain_of_the_last_fifth_of_the_epochs() -> None:
    history = [{"genus": 0.1 * epoch} for epoch in range(10)]
    row = next(result_rows(history, {}))
    assert (row["val_accuracy"], row["val_gain"], row["resolution"]) == ("0.9000", "0.2000", "full")
    assert next(result_rows(history[:1], {}))["val_gain"] == "0.0000"


def test_the_learning_rate_scales_the_stages_of_a_full_training(tmp_path: Path) -> None:
    stages = [{"epochs": 4, "lr": 1.0}, {"epochs": 8, "lr": 0.5, "backbone_lr": 0.125, "schedule": "linear"}]
    options = options_in(
        tmp_path, train={"stages": stages, "batch_norm": "frozen"}, checkpoints={"tiny": "tiny.safetensors"}
    )
    found = train_options(options, Cell("tiny", "mlph", 0.25, 0.5, seed=3), tmp_path)
    assert found.mixed_precision is None, "as the launcher says"
    assert [(stage.lr, stage.backbone_lr, stage.schedule) for stage in found.stages] == [
        (0.25, 0, "step"),
        (0.125, 0.03125, "linear"),
    ]
    assert (found.weight_decay, found.seed, found.batch_norm, found.model) == (0.5, 3, "frozen", "mlph")
    assert found.model_options == {
        "backbone": "tiny",
        "input_size": 32,
        "pooling_options": {"dim": 16},
        "backbone_checkpoint": "tiny.safetensors",
    }
    assert found.output == str(tmp_path / "tiny-mlph-lr0.25-wd0.5-seed3")


@pytest.mark.slow
def test_a_full_training_is_a_run_of_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_process = subprocess.run

    def run_here(command: list[Any], **more: Any) -> subprocess.CompletedProcess[Any]:
        if Path(command[1]).name != "train.py":
            return run_process(command, **more)
        train.main(*parse(TrainOptions, [str(argument) for argument in command[2:]], train.DEFAULT_CONFIG))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run_here)  # importing torch takes seconds
    options = options_in(
        tmp_path,
        methods={"mlph": OPTIONS.methods["mlph"]},
        pairs=[],
        seeds=[0],
        learning_rates=[1e-5],
        train={"stages": [{"epochs": 1, "lr": 1.0, "backbone_lr": 0.1}]},
    )
    ablation.main(options)
    rows, run = read_csv(tmp_path / "table.csv"), tmp_path / "table" / "tiny-mlph-lr1e-05-wd0.01-seed0"
    tested = {row["level"]: float(row["accuracy"]) for row in read_csv(run / "test.csv") if row["own"] == "True"}
    assert {row["level"]: float(row["test_accuracy"]) for row in rows} == pytest.approx(tested, abs=1e-4)
    metrics = read_csv(run / "metrics.csv")[0]
    assert all(
        float(row["val_accuracy"]) == pytest.approx(float(metrics[f"val_{row['level']}"]), abs=1e-4) for row in rows
    )


def test_an_error_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--config", str(CONFIGS / "ablation_critters.yaml"), "--output", str(tmp_path / "table.csv")]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *arguments, "--val_fraction", "0"])
    with pytest.raises(SystemExit, match=r"^ablation\.py: val_fraction is 0: there are no validation images"):
        runpy.run_path(ablation.__file__, run_name="__main__")


@pytest.mark.parametrize("name", ["critters", "cub100_lite0", "cub100_vgg16", "cub100_dims"])
def test_the_configurations_are_valid(name: str) -> None:
    options: TableOptions = read_options(TableOptions, [CONFIGS / f"ablation_{name}.yaml"])  # type: ignore[type-var]
    check_table(options)
    backbone = next(iter(options.backbones))
    for method in options.methods:
        cell = Cell(backbone, method, 0.1, 0.1, 0)
        assert isinstance(train_options(options, cell, Path("runs")), TrainOptions)


def test_the_first_of_equally_good_cells_is_chosen(tmp_path: Path) -> None:
    table, cells = Table(tmp_path / "table.csv"), [Cell("tiny", "mlp", lr, 0.0, 0) for lr in (0.1, 0.2, 0.3)]
    for cell, accuracy in zip(cells, (0.5, 0.75, 0.75), strict=True):
        table.add(cell, [{"level": "genus", "val_accuracy": accuracy}, {"level": "family", "val_accuracy": 0.9}])
    assert Table(tmp_path / "table.csv").choose(cells) == cells[1]
