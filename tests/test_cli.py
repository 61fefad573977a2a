"""The command line, in a new process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from c2f_zoo import C2FModel, create_dataset, list_poolings, load_hierarchy


def c2f_zoo(*arguments: str, ok: bool = True, columns: int = 80) -> str:
    command = [sys.executable, "-c", "from c2f_zoo.cli import main; main()", *arguments]
    environment = {**os.environ, "COLUMNS": str(columns)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode == 0) == ok, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if ok else done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("models", ["mlph_vgg16_cub", "bcnn_resnet50_cars"]),
        ("backbones", ["vgg16", "convnext_tiny"]),
        ("heads", ["levels"]),
        ("hierarchies", ["cars", "critters", "cub", "fashion_mnist"]),
        ("datasets", ["critters", "cub", "fashion_mnist"]),
        ("metrics", ["ece", "fpa", "hd@5"]),
    ],
)
def test_list_prints_names(kind: str, some: list[str]) -> None:
    assert set(some) <= set(c2f_zoo("list", kind).split())


@pytest.mark.slow
def test_list_poolings_prints_a_table_of_costs() -> None:
    rows = {
        line.split("│")[1].strip(): line
        for line in c2f_zoo("list", "poolings", columns=220).splitlines()
        if "│" in line
    }
    assert set(list_poolings()) <= set(rows)
    # Three projections of 512 x 8192 with bias; at 784 locations three projections, three pairs and one triple.
    parts = [part.strip() for part in rows["mlp"].strip("│").split("│")]
    multiply_adds = 784 * (3 * 512 * 8192 + (3 + 2) * 8192) + 4 * 8192  # and one root per entry
    assert parts[2:5] == ["Huo et al., SIGIR 2019, eq. 6", "mlp, mlph", "3"]
    assert parts[5:7] == ["32,768", f"{3 * (512 * 8192 + 8192) / 1e6:.2f} M"]
    assert float(parts[7].removesuffix(" M").replace(",", "")) == pytest.approx(multiply_adds / 1e6, rel=1e-4)
    assert "Gao et al., CVPR 2016" in rows["compact_bilinear"]


@pytest.mark.slow
def test_list_takes_a_wildcard() -> None:
    assert c2f_zoo("list", "models", "mlph_vgg*").split() == ["mlph_vgg16_cars", "mlph_vgg16_cub"]


@pytest.mark.slow
def test_info_shows_levels_taps_and_parameters() -> None:
    shown = c2f_zoo("info", "mlph_vgg16_cub")
    for part in ("36 classes", "113 classes", "200 classes", "features.25", "features.29", "14.71 M", "12.61 M"):
        assert part in shown
    assert "timm/vgg16" in shown, "the source of the backbone's weights"


def test_info_shows_the_levels_of_a_hierarchy() -> None:
    shown = c2f_zoo("info", "cub_modern")
    for part in ("order", "13 classes", "37 classes", "121 classes", "200 classes", "1.0"):
        assert part in shown


def test_info_draws_a_hierarchy() -> None:
    lines = c2f_zoo("info", "fashion_mnist", "--tree").splitlines()
    assert lines[:3] == ["Clothes (6)", "├── Tops (3)", "│   ├── T-shirt/top"]
    assert lines[-1] == "    └── Bag"
    assert len(lines) == 2 + 6 + 10


@pytest.mark.slow
def test_info_draws_the_tree_of_a_model(small_model: C2FModel, tmp_path: Path) -> None:
    small_model.save_pretrained(tmp_path / "run")
    assert c2f_zoo("info", str(tmp_path / "run"), "--tree") == c2f_zoo("info", "cub", "--tree")


@pytest.mark.slow
def test_predict_prints_a_path(small_model: C2FModel, tmp_path: Path) -> None:
    small_model.save_pretrained(tmp_path / "run")
    Image.new("CMYK", (50, 40)).save(tmp_path / "some.jpg")
    shown = c2f_zoo("predict", str(tmp_path / "run"), str(tmp_path / "some.jpg"))
    names = [part.rsplit(" (", 1)[0] for part in shown.strip().split(" > ")]
    tree = small_model.hierarchy
    assert tuple(names) in {tree.path(label) for label in range(200)}


@pytest.mark.slow
def test_errors_are_one_line(small_model: C2FModel, tmp_path: Path) -> None:
    assert "did you mean 'mlph_vgg16_cub'" in c2f_zoo("info", "mlph_vgg16_cup", ok=False)
    small_model.save_pretrained(tmp_path / "run")
    assert "there is no image none.jpg" in c2f_zoo("predict", str(tmp_path / "run"), "none.jpg", ok=False)
    (tmp_path / "bad.jpg").write_text("no image")
    assert "cannot read the image" in c2f_zoo("predict", str(tmp_path / "run"), str(tmp_path / "bad.jpg"), ok=False)
    assert "norun has no config.json" in c2f_zoo("predict", str(tmp_path / "norun"), "x.jpg", ok=False)


@pytest.mark.slow
def test_predict_accepts_a_name_with_trained_weights(tmp_path: Path) -> None:
    image, species = create_dataset("critters", "test", per_class=1)[7]
    image.save(tmp_path / "critter.png")
    expected = " > ".join(load_hierarchy("critters").path(species))
    shown = c2f_zoo("predict", "mlph_tiny_critters", str(tmp_path / "critter.png"))
    assert re.sub(r" \([0-9.]+\)", "", shown).strip() == expected
    assert "mlph_vgg16_cub" in c2f_zoo("predict", "mlph_vgg16_cub", str(tmp_path / "critter.png"), ok=False)
