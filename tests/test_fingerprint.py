"""The fingerprint of a run's data: data that moved are the same, data that changed are named."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from c2f_zoo import create_dataset
from c2f_zoo.training.fingerprint import Fingerprint, explain_change, fingerprint
from c2f_zoo.training.options import TrainOptions
from c2f_zoo.training.run_folder import check_data, choose_run_folder

SPECIES = ("Corvidae/Corvus/crow", "Corvidae/Pica/magpie", "Turdidae/Turdus/robin", "Turdidae/Turdus/thrush")


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    for species in SPECIES:
        (tmp_path / "birds" / species).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8)).save(tmp_path / "birds" / species / f"{number}.png")
    return tmp_path / "birds"


def read(root: Path) -> Fingerprint:
    dataset = create_dataset("folder", "train", root=root)
    found = fingerprint(dataset.hierarchy, {"training": (dataset, range(len(dataset)))})
    return json.loads(json.dumps(found))


def test_data_that_moved_are_the_same(birds: Path, tmp_path: Path) -> None:
    before = read(birds)
    shutil.move(birds, tmp_path / "elsewhere" / "deeper")
    assert explain_change(before, read(tmp_path / "elsewhere" / "deeper")) == ""


@pytest.mark.parametrize("name", ["Pájaro", "Möwe"])
def test_names_in_another_unicode_form_are_the_same(birds: Path, name: str) -> None:
    folder = birds / SPECIES[0]
    before, after = (folder / unicodedata.normalize(form, f"{name}.png") for form in ("NFC", "NFD"))
    os.rename(folder / "2.png", before)
    first = read(birds)
    os.rename(before, after)
    assert explain_change(first, read(birds)) == ""


def test_treatment_of_short_branches(birds: Path) -> None:
    shutil.rmtree(birds / SPECIES[0])
    Image.new("RGB", (8, 8)).save(birds / "Corvidae/Corvus" / "1.png")
    datasets = {ragged: create_dataset("folder", "train", root=birds, ragged=ragged) for ragged in ("repeat", "stop")}
    repeat, stop = (fingerprint(dataset.hierarchy, {"training": (dataset, [0])}) for dataset in datasets.values())
    assert explain_change(repeat, stop) == "ragged, the treatment of short branches, was 'repeat' and is 'stop'"
    del repeat["ragged"]  # as runs of earlier versions
    assert explain_change(repeat, {**stop, "ragged": "repeat"}) == ""


def test_options_of_drawn_images_may_not_change(tmp_path: Path) -> None:
    options = TrainOptions("critters", "mlph_tiny_critters", {}, [], {"seed": 1, "root": "/old"}, output=str(tmp_path))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asdict(options)))
    moved = replace(options, resume="auto", dataset_options={"root": "/new", "seed": 1, "download": True})
    assert choose_run_folder(moved, "critters") == tmp_path
    for other in ({"seed": 2, "root": "/old"}, {"root": "/old"}):
        with pytest.raises(ValueError, match=r"was started with other options: dataset_options \("):
            choose_run_folder(replace(moved, dataset_options=other), "critters")


def rename_class(birds: Path) -> None:
    os.rename(birds / SPECIES[0], birds / "Corvidae/Corvus/raven")


def swap_genera(birds: Path) -> None:
    os.rename(birds / SPECIES[0], birds / "Corvidae/Pica/crow")
    os.rename(birds / SPECIES[1], birds / "Corvidae/Corvus/magpie")


def add_class(birds: Path) -> None:
    shutil.copytree(birds / SPECIES[0], birds / "Corvidae/Corvus/rook")


def add_image(birds: Path) -> None:
    shutil.copy(birds / SPECIES[2] / "0.png", birds / SPECIES[2] / "3.png")


def rename_image(birds: Path) -> None:
    os.rename(birds / SPECIES[3] / "1.png", birds / SPECIES[3] / "other.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_class, "the class 'Corvidae > Corvus > crow' was removed or renamed"),
        (swap_genera, "the classes 'Corvidae > Corvus > crow' and 1 more were removed or renamed"),
        (add_class, "the class 'Corvidae > Corvus > rook' was added"),
        (add_image, "'Turdidae > Turdus > robin' had 2 training images and has 3"),
        (rename_image, "the names, labels or order of the training images of 'Turdidae > Turdus > thrush' changed"),
    ],
)
def test_data_that_changed_are_refused_with_the_difference(change, message: str, birds: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "data.json"
    check_data(file, read(birds))
    file.write_text(json.dumps(read(birds)))
    check_data(file, read(birds))
    change(birds)
    with pytest.raises(ValueError, match=r"the data of the run in .* changed: ") as error:
        check_data(file, read(birds))
    assert message in str(error.value)
