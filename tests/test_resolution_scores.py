"""Models and a linear probe on a resolution grid: against one image at a time, and against other recipes."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import probes
import pytest
import score_resolutions
import torch
import yaml
from accelerate import Accelerator
from jsonargparse import auto_cli
from score_resolutions import GridOptions

from c2f_zoo import create_dataset, create_model
from c2f_zoo.data import create_transform, labels_of
from c2f_zoo.evaluation.resolution_scores import correct_at, resolution_rows
from c2f_zoo.io.files import read_csv
from c2f_zoo.registry import check_options

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
LEVELS = ["family", "genus", "species"]
OPTIONS = GridOptions(
    dataset="critters",
    models={"mlph": ["mlph_tiny_critters"]},
    grid=[32, 12],
    dataset_options={"per_class": 2},
    probe={"backbone": "tiny", "input_size": 32},
    penalties=[1e-3, 1e-1],
    max_iter=3,
    val_fraction=0.5,
    bootstrap=50,
)


@pytest.mark.filterwarnings("ignore:some weights of")  # of the levels that are not predicted
@pytest.mark.parametrize("levels", [None, ["species"]])
def test_predictions_are_those_of_one_image_at_a_time(levels: list[str] | None) -> None:
    model = create_model("mlph_tiny_critters", pretrained=True, **({"levels": levels} if levels else {})).eval()
    dataset, indices = create_dataset("critters", "test", per_class=1), [3, 8, 20, 21, 35]
    transform = create_transform(model.config.preprocessing, 12, train=False)
    how: dict[str, Any] = {"batch_size": 2, "accelerator": Accelerator(cpu=True)}
    found = correct_at(model, dataset, indices, 12, **how)
    assert list(found) == LEVELS
    tree = model.hierarchy
    for place, index in enumerate(indices):
        with torch.no_grad():
            own = model.log_probs(model(transform(dataset[index][0])[None]))
        for depth, level in enumerate(LEVELS):
            if levels:  # sums over the species below
                below = tree.ancestors(torch.arange(36))[:, depth]
                p = own["species"][0].exp()
                score = torch.stack([p[below == one].sum() for one in range(int(below.max()) + 1)])
            else:
                score = own[level][0]
            assert found[level][place] == int(score.argmax() == labels_of(dataset)[index, depth])


def test_rows_have_means_over_labelled_images_and_runs_and_paired_differences() -> None:
    first, second = np.array([1, 0, 1, 1, -1], np.int8), np.array([1, 0, 0, 1, -1], np.int8)
    correct = {
        "mlph": {24: [{"genus": first}, {"genus": second}], 12: [{"genus": second}]},
        "probe": {24: [{"genus": first}], 12: [{"genus": second}]},
    }
    rows = list(resolution_rows(correct, "probe", resamples=200, seed=0))
    names = [(row["model"], row["minus"], row["resolution"], row["runs"], row["images"]) for row in rows]
    assert names == [
        ("mlph", "", 24, 2, 4),
        ("mlph", "", 12, 1, 4),
        ("probe", "", 24, 1, 4),
        ("probe", "", 12, 1, 4),
        ("mlph", "probe", 24, 2, 4),
        ("mlph", "probe", 12, 1, 4),
    ]
    assert [row["value"] for row in rows] == ["0.6250", "0.5000", "0.7500", "0.5000", "-0.1250", "0.0000"]
    same = rows[-1]
    assert (same["low"], same["high"]) == ("0.0000", "0.0000"), "equal predictions differ on no resample"
    assert float(rows[1]["low"]) < 0.5 < float(rows[1]["high"])
    assert len(list(resolution_rows(correct, None, resamples=10, seed=0))) == 4


def test_a_killed_command_goes_on_and_other_options_are_scored_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scored: list[tuple[str, int]] = []
    for name in ("correct_at", "probe_at"):
        score = getattr(score_resolutions, name)

        def counted(*args: Any, score: Any = score, name: str = name, **how: Any) -> Any:
            scored.append((name, next(one for one in args[1:] if isinstance(one, int))))
            if scored[1:] == [("correct_at", 12)]:
                raise KeyboardInterrupt
            return score(*args, **how)

        monkeypatch.setattr(score_resolutions, name, counted)
    options = replace(OPTIONS, output=str(tmp_path / "grid.csv"))
    with pytest.raises(KeyboardInterrupt):
        score_resolutions.main(options)
    assert not (tmp_path / "grid.csv").exists()
    score_resolutions.main(options)
    assert scored == [("correct_at", 32), ("correct_at", 12), ("correct_at", 12), ("probe_at", 32), ("probe_at", 12)]
    rows = read_csv(tmp_path / "grid.csv")
    of_each = [(model, minus) for model, minus in (("mlph", ""), ("linear_probe", ""), ("mlph", "linear_probe"))]
    assert [(row["model"], row["minus"], row["resolution"], row["level"]) for row in rows] == [
        (*names, at, level) for names in of_each for at in ("32", "12") for level in LEVELS
    ]
    value = {(row["model"], row["minus"], row["resolution"], row["level"]): float(row["value"]) for row in rows}
    for (model, minus, *place), difference in value.items():
        if minus:
            expected = value[(model, "", *place)] - value[(minus, "", *place)]
            assert difference == pytest.approx(expected, abs=2e-4)
    assert {(row["split"], row["images"]) for row in rows} == {("val", "36")}
    assert "mlph - linear_probe: difference in points, 36 val images" in capsys.readouterr().out
    score_resolutions.main(replace(options, penalties=[1e-2], bootstrap=10))
    assert scored[5:] == [("probe_at", 32), ("probe_at", 12)]


@pytest.mark.slow
def test_the_probe_of_a_grid_point_is_that_of_probes_py(tmp_path: Path) -> None:
    options = replace(OPTIONS, models={}, grid=[12], split="test", output=str(tmp_path / "grid.csv"))
    score_resolutions.main(options)
    probes.main(
        dataset=options.dataset,
        dataset_options=options.dataset_options,
        model_options=options.probe or {},
        resolutions=dict.fromkeys(LEVELS, 12),
        methods=["linear_probe"],
        penalties=options.penalties,
        max_iter=options.max_iter,
        val_fraction=options.val_fraction,
        output=str(tmp_path / "probe.csv"),
    )
    (expected, *_) = [row for row in read_csv(tmp_path / "probe.csv") if row["decoding"] == "independent"]
    found = {row["level"]: row for row in read_csv(tmp_path / "grid.csv")}
    assert list(found) == LEVELS
    for level, row in found.items():
        assert float(row["value"]) == pytest.approx(float(expected[f"{level}/top1"]), abs=1e-4)
        assert (row["split"], row["images"]) == ("test", "72")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": [12, 32]}, "invalid resolution grid"),
        ({"models": {"linear_probe": ["mlph_tiny_critters"]}}, "a model is called linear_probe, which is the probe's"),
        ({"val_fraction": 0.0}, "val_fraction is 0: there are no validation images"),
    ],
)
def test_mistakes_are_errors(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        score_resolutions.main(replace(OPTIONS, output=str(tmp_path / "grid.csv"), **changes))


@pytest.mark.parametrize(("val_fraction", "seed"), [(0.25, 0), (0.5, 1)])
def test_validation_images_are_not_a_runs_training_images(val_fraction: float, seed: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(f"{{val_fraction: {val_fraction}, seed: {seed}}}")
    options = replace(OPTIONS, models={"mlph": [str(run)]}, output=str(tmp_path / "grid.csv"))
    with pytest.raises(
        ValueError, match=f"was trained with val_fraction {val_fraction} and seed {seed}, not 0.5 and 0"
    ):
        score_resolutions.main(options)


def test_the_configuration_is_valid_and_read_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = yaml.safe_load((CONFIGS / "resolutions_cub100.yaml").read_text())
    check_options("option:", GridOptions, values)
    check_options("key in probe:", create_model, values["probe"])
    more = ["--probe.backbone_checkpoint", "FILE", "--models.in_turn", "[runs/a, runs/b]"]
    options = auto_cli(
        GridOptions, as_positional=False, args=["--config", str(CONFIGS / "resolutions_cub100.yaml"), *more]
    )
    assert options.probe == {**values["probe"], "backbone_checkpoint": "FILE"}
    assert options.models == {**values["models"], "in_turn": ["runs/a", "runs/b"]}
    arguments = [
        "--dataset",
        "critters",
        "--dataset_options",
        "{per_class: 2}",
        "--models",
        "{}",
        "--val_fraction",
        "0",
    ]
    config = ["--config", str(CONFIGS / "resolutions_cub100.yaml"), "--output", str(tmp_path / "a.csv")]
    monkeypatch.setattr(sys, "argv", ["score_resolutions.py", *config, *arguments])
    with pytest.raises(SystemExit, match=r"^score_resolutions\.py: val_fraction is 0"):
        runpy.run_path(score_resolutions.__file__, run_name="__main__")
