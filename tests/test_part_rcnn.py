"""The recipe part_rcnn.py on drawn birds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import part_rcnn
import pytest
from conftest import BIRDS
from part_rcnn import PartOptions
from PIL import Image, ImageDraw

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


def draw_bird(
    rng: np.random.Generator, colour: tuple[int, int, int]
) -> tuple[Image.Image, list[int], dict[int, list[int]]]:
    """Return an image, the box of the bird, and the points of its parts by number."""
    noise = rng.integers(90, 130, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC)
    x, y = (int(value) for value in rng.integers((10, 20), (60, 45)))
    draw = ImageDraw.Draw(image)
    draw.rectangle((x, y + 15, x + 60, y + 55), fill=colour)
    draw.rectangle((x + 50, y, x + 79, y + 24), fill=(230, 220, 60))
    points = {1: [x + 3, y + 18], 3: [x + 30, y + 53], 2: [x + 78, y + 10], 5: [x + 53, y + 2], 15: [x + 60, y + 23]}
    return image, [x, y, 80, 56], points


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Write four species with four training and two test images each, in CUB's layout, with annotations."""
    root, rng = tmp_path / "birds", np.random.default_rng(0)
    names = ["images", "image_class_labels", "train_test_split", "bounding_boxes", "parts/part_locs"]
    lines: dict[str, list[str]] = {name: [] for name in names}
    (root / "parts").mkdir(parents=True)
    for number, name in enumerate(BIRDS, start=1):
        (root / "images" / name).mkdir(parents=True)
        for shot in range(6):
            image_id = len(lines["images"]) + 1
            image, box, points = draw_bird(rng, (60 * number, 40, 240 - 60 * number))
            image.save(root / "images" / name / f"{shot}.png")
            lines["images"].append(f"{image_id} {name}/{shot}.png")
            lines["image_class_labels"].append(f"{image_id} {number}")
            lines["train_test_split"].append(f"{image_id} {int(shot < 4)}")
            lines["bounding_boxes"].append(f"{image_id} {' '.join(map(str, box))}")
            lines["parts/part_locs"] += [f"{image_id} {part} {x} {y} 1" for part, (x, y) in points.items()]
    lines["classes"] = [f"{number} {name}" for number, name in enumerate(BIRDS, start=1)]
    lines["parts/parts"] = ["1 back", "2 beak", "3 belly", "5 crown", "15 throat"]
    for file, rows in lines.items():
        (root / f"{file}.txt").write_text("\n".join(rows) + "\n")
    return root


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
