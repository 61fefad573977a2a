"""The recipe part_rcnn.py on drawn birds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import part_rcnn
import pytest
from drawn_birds import write_birds
from part_rcnn import PartOptions
from PIL import Image

from c2f_zoo.io.files import read_csv

OPTIONS: dict[str, Any] = {
    "dataset": "cub",
    "model_options": {"backbone": "test_convnext", "taps": ["stages.1"], "input_size": 64},
    "longer_side": 128,
    "proposals": 200,
    "alphas": [0.1, 1.0],
    "penalties": [1e-2],
    "val_fraction": 0.25,
    "max_iter": 20,
    "bootstrap": 100,
}


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    return write_birds(tmp_path / "birds")


@pytest.mark.slow
def test_every_mode_is_scored(birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2.ximgproc")
    places = {"cache": str(tmp_path / "cache"), "output": str(tmp_path / "out.csv")}
    part_rcnn.main(PartOptions(dataset_options={"root": str(birds)}, **OPTIONS, **places))
    rows = read_csv(places["output"])
    values = {(row["mode"], row["geometry"], row["measure"], row["of"]): float(row["value"]) for row in rows}
    geometries = {"none", "inside", "mixture", "neighbours"}
    assert {key[:2] for key in values} == {("", ""), ("oracle", "")} | {
        (mode, geometry) for mode in ("box_given", "no_box") for geometry in geometries
    }
    assert {key[3] for key in values if key[2] == "accuracy"} == {"family", "genus", "species"}
    assert all(row["images"] == "8" for row in rows)
    for region in ("object", "head", "body"):
        assert values["", "", "recall at 0.5", region] == 1  # plain rectangles on a blurred ground
        assert values["", "", "recall at 0.7", region] <= 1
    assert all(values["box_given", geometry, "PCP", "object"] == 1 for geometry in geometries)
    assert values["no_box", "mixture", "PCP", "head"] >= 0.75
    assert values["no_box", "mixture", "PCP", "body"] >= 0.75
    # One colour for each species, and an untrained backbone.
    assert values["oracle", "", "accuracy", "species"] >= 0.75
    assert values["no_box", "mixture", "accuracy", "species"] >= 0.75
    shown = capsys.readouterr().out
    assert "validation PCP of the parts for each alpha: 0.1: " in shown
    assert [line for line in shown.splitlines() if "visible points" in line] == [
        f"{count} images; with fewer than two visible points: none" for count in (16, 8)
    ]

    boxes = read_csv(tmp_path / "out-boxes.csv")
    assert {row["image"] for row in boxes} == {*"01234567"}
    assert sum(row["kind"] == "annotated" for row in boxes) == 3 * 8
    assert sum(row["kind"] == "point" for row in boxes) == 5 * 8

    pixels = np.asarray(Image.open(tmp_path / "out.png").convert("RGB")).reshape(-1, 3)
    for number in range(1, 5):  # the birds of each species; interpolation may change the edges
        assert (np.abs(pixels.astype(int) - [60 * number, 40, 240 - 60 * number]).max(axis=1) < 3).sum() > 1000

    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(files) == 2 * 24  # boxes, and features
    places["output"] = str(tmp_path / "val.csv")
    part_rcnn.main(PartOptions(dataset_options={"root": str(birds)}, test_split="val", **OPTIONS, **places))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.safetensors")} == files
    assert {row["split"] for row in read_csv(places["output"])} == {"val"}


def test_a_dataset_without_annotations(tmp_path: Path) -> None:
    options = {**OPTIONS, "dataset": "critters", "dataset_options": {"per_class": 2}}
    with pytest.raises(ValueError, match=r"critters.*annotations"):
        part_rcnn.main(PartOptions(output=str(tmp_path / "out.csv"), cache=str(tmp_path / "cache"), **options))
