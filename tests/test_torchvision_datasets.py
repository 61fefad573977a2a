"""Datasets opened by torchvision: Cars, Aircraft, iNaturalist 2021, CIFAR-100."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import pickle
import shutil
import tarfile
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from c2f_zoo import create_dataset
from c2f_zoo.data import DATASETS, LabelledImages, labels_of, notes_of, register_dataset
from c2f_zoo.data.sources import labels_by_index, labels_by_name
from c2f_zoo.hierarchy import Hierarchy


def save_image(path: Path, value: int = 0, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (20, 16), value if mode == "L" else (value, 0, 0)).save(path)


def names_of(dataset: LabelledImages) -> list[tuple[str, ...]]:
    """Return the names of each image's classes, coarse to fine."""
    classes = dataset.hierarchy.classes
    return [tuple(classes[depth][label] for depth, label in enumerate(row)) for row in labels_of(dataset).tolist()]


# In another order than in the tree, as in the devkit.
SMART, HUMMER, RAM = "smart fortwo Convertible 2012", "AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"


def write_cars(root: Path, names: tuple[str, ...] = (SMART, HUMMER, RAM)) -> None:
    """Write two training and two test images with the devkit's structs."""
    savemat = pytest.importorskip("scipy.io").savemat
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array([names], dtype=object)})
    boxes = [(name, "O") for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")]
    for split, file, labels in (
        ("train", folder / "devkit" / "cars_train_annos.mat", (2, 1)),
        ("test", folder / "cars_test_annos_withlabels.mat", (3, 2)),
    ):
        rows = [(1, 1, 9, 9, np.uint8(label), f"{at:05d}.jpg") for at, label in enumerate(labels, start=1)]
        savemat(file, {"annotations": np.array([rows], dtype=[*boxes, ("class", "O"), ("fname", "O")])})
        for at in (1, 2):
            save_image(folder / f"cars_{split}" / f"{at:05d}.jpg", 100 * at)


class TestCars:
    def test_labels_at_every_level(self, tmp_path: Path) -> None:
        write_cars(tmp_path)
        train, test = (create_dataset("cars", split, root=str(tmp_path)) for split in ("train", "test"))
        assert names_of(train) == [
            ("SUV", "AM General SUV", HUMMER),
            ("Convertible", "smart Convertible", SMART),
        ]
        assert names_of(test) == [("Minivan", "Ram Minivan", RAM), ("SUV", "AM General SUV", HUMMER)]
        assert train.hierarchy.num_classes["species"] == 196
        assert [path.name for path in train.paths] == ["00001.jpg", "00002.jpg"]  # type: ignore[attr-defined]
        image, _ = train[1]
        assert image.mode == "RGB"
        assert abs(np.asarray(image)[..., 0].astype(int) - 200).max() < 5

    def test_class_outside_the_tree(self, tmp_path: Path) -> None:
        write_cars(tmp_path, (SMART, HUMMER, "Ram C/V Cargo Van Minivan 2013"))
        with pytest.raises(
            ValueError, match=r"cars_meta.mat has a class .*Minivan 2013'; did you mean '.*Minivan 2012'"
        ):
            create_dataset("cars", "train", root=str(tmp_path))

    def test_name_with_another_separator(self, tmp_path: Path) -> None:
        write_cars(tmp_path, (SMART, HUMMER, "Ram C-V Cargo Van Minivan 2012"))
        assert names_of(create_dataset("cars", "test", root=str(tmp_path)))[0][-1] == RAM

    def test_missing_image(self, tmp_path: Path) -> None:
        write_cars(tmp_path)
        (tmp_path / "stanford_cars" / "cars_train" / "00002.jpg").unlink()
        with pytest.raises(ValueError, match=r"missing files:\s+.*cars_train/00002.jpg"):
            create_dataset("cars", "train", root=str(tmp_path))

    def test_missing_folder(self, tmp_path: Path) -> None:
        pytest.importorskip("scipy")
        with pytest.raises(
            FileNotFoundError,
            match=r"does not contain Stanford Cars .* must contain stanford_cars/ with devkit/.*kaggle",
        ):
            create_dataset("cars", "train", root=str(tmp_path))

    def test_missing_scipy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"pip install 'c2f_zoo\[cars\]'"):
            create_dataset("cars", "train", root=str(tmp_path))


AIRCRAFT = {  # number of the image -> manufacturer, family, variant
    "0000001": ("Boeing", "Boeing 737", "737-200"),
    "0000002": ("Airbus", "A320", "A321"),
    "0000003": ("Boeing", "Boeing 737", "737-300"),
    "0000004": ("Airbus", "A320", "A321"),
    "0000005": ("Boeing", "Boeing 747", "747-100"),
    "0000006": ("Airbus", "A320", "A320"),
    "0000007": ("Boeing", "Boeing 737", "737-300"),
}
AIRCRAFT_SPLITS = {
    "train": ["0000001", "0000002", "0000005", "0000006"],
    "val": ["0000003"],
    "test": ["0000007", "0000004"],
}


def write_aircraft(root: Path) -> Path:
    data = root / "fgvc-aircraft-2013b" / "data"
    data.mkdir(parents=True)
    splits = AIRCRAFT_SPLITS | {"trainval": AIRCRAFT_SPLITS["train"] + AIRCRAFT_SPLITS["val"]}
    for depth, (level, file) in enumerate(
        {"manufacturer": "manufacturers", "family": "families", "variant": "variants"}.items()
    ):
        names = sorted({classes[depth] for classes in AIRCRAFT.values()})
        (data / f"{file}.txt").write_text("".join(f"{name}\n" for name in names))
        for split, images in splits.items():
            lines = [f"{image} {AIRCRAFT[image][depth]}\n" for image in images]
            (data / f"images_{level}_{split}.txt").write_text("".join(lines))
    for image in AIRCRAFT:
        save_image(data / "images" / f"{image}.jpg")
    return data


class TestAircraft:
    @pytest.mark.parametrize("split", ["train", "val", "test"])
    def test_labels_at_every_level(self, tmp_path: Path, split: str) -> None:
        write_aircraft(tmp_path)
        dataset = create_dataset("aircraft", split, root=str(tmp_path))
        assert names_of(dataset) == [AIRCRAFT[image] for image in AIRCRAFT_SPLITS[split]]
        assert [path.stem for path in dataset.paths] == AIRCRAFT_SPLITS[split]  # type: ignore[attr-defined]
        assert dataset.splits == ("train", "val", "test")  # type: ignore[attr-defined]
        assert dataset[0][0].size == (20, 16)

    def test_missing_data(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"does not contain FGVC-Aircraft \(.*download=True"):
            create_dataset("aircraft", "train", root=str(tmp_path))
        data = write_aircraft(tmp_path)
        (data / "images" / "0000003.jpg").unlink()
        with pytest.raises(ValueError, match=r"missing files:\s+.*0000003.jpg"):
            create_dataset("aircraft", "val", root=str(tmp_path))
        (data / "families.txt").unlink()
        with pytest.raises(FileNotFoundError, match=r"missing families.txt"):
            create_dataset("aircraft", "val", root=str(tmp_path))

    def test_download(self, tmp_path: Path, serve: Callable[[Path], None]) -> None:
        write_aircraft(tmp_path / "server")
        archive = tmp_path / "aircraft.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(tmp_path / "server" / "fgvc-aircraft-2013b", "fgvc-aircraft-2013b")
        serve(archive)
        dataset = create_dataset("aircraft", "train", root=str(tmp_path / "here"), download=True)
        assert names_of(dataset)[0] == AIRCRAFT["0000001"]
        assert tarfile.TarFile.extraction_filter is None, "restored"

    def test_archive_with_a_member_outside_the_folder(self, tmp_path: Path, serve: Callable[[Path], None]) -> None:
        archive = tmp_path / "aircraft.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("../outside.txt"), io.BytesIO())
        serve(archive)
        with pytest.raises(ConnectionError, match=r"cannot download FGVC-Aircraft to .*outside.txt"):
            create_dataset("aircraft", "train", root=str(tmp_path / "in" / "here"), download=True)
        assert not list(tmp_path.rglob("outside.txt"))

    def test_network_failure(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise urllib.error.URLError("no route to host")

        monkeypatch.setattr(torchvision.datasets.utils, "download_url", fail)
        with pytest.raises(ConnectionError, match=r"cannot download .*no route to host.* fgvc-aircraft-2013b/"):
            create_dataset("aircraft", "train", root=str(tmp_path), download=True)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Return a function that replaces torchvision's downloads with a file."""

    def serve_file(archive: Path) -> None:
        def copy(url: str, root: str, filename: str | None = None, md5: str | None = None) -> None:
            Path(root).mkdir(parents=True, exist_ok=True)
            shutil.copy(archive, Path(root, filename or url.rpartition("/")[2]))

        monkeypatch.setattr(torchvision.datasets.utils, "download_url", copy)

    return serve_file


INATURALIST = [
    "00000_Animalia_Chordata_Aves_Passeriformes_Prunellidae_Prunella_modularis",
    "00001_Animalia_Chordata_Aves_Passeriformes_Paridae_Parus_major",
    "00002_Plantae_Tracheophyta_Magnoliopsida_Lamiales_Lamiaceae_Prunella_vulgaris",
]
DUNNOCK = (
    "Animalia",
    "Chordata",
    "Aves",
    "Passeriformes",
    "Prunellidae",
    "Prunella (Prunellidae)",
    "Prunella modularis",
)
HEAL_ALL = (
    *("Plantae", "Tracheophyta", "Magnoliopsida", "Lamiales", "Lamiaceae"),
    *("Prunella (Lamiaceae)", "Prunella vulgaris"),
)


class TestINaturalist:
    @pytest.mark.parametrize(
        ("version", "split", "options"),
        [("2021_train", "train", {}), ("2021_train_mini", "train", {"mini": True}), ("2021_valid", "test", {})],
    )
    def test_labels_at_every_level(self, tmp_path: Path, version: str, split: str, options: dict[str, bool]) -> None:
        for category in reversed(INATURALIST):
            for name in "ba":
                save_image(tmp_path / version / category / f"{name}.jpg", mode="L")
        dataset = create_dataset("inaturalist", split, root=str(tmp_path), **options)
        assert names_of(dataset)[0] == DUNNOCK
        assert names_of(dataset)[-1] == HEAL_ALL
        places = [f"{path.parent.name}/{path.name}" for path in dataset.paths]  # type: ignore[attr-defined]
        assert places == [f"{category}/{name}.jpg" for category in INATURALIST for name in "ab"], "sorted"
        assert dataset[0][0].mode == "RGB"

    def test_missing_data(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no folder 2021_train_mini/ or train_mini/ in .*; pass download"):
            create_dataset("inaturalist", "train", root=str(tmp_path / "here"), mini=True)
        assert not list(tmp_path.iterdir())

    def test_as_people_unpack_it(self, tmp_path: Path) -> None:
        for category in INATURALIST:  # the validation set has only two of the categories
            save_image(tmp_path / "train_mini" / category / "a.jpg")
        for category in INATURALIST[1:]:
            save_image(tmp_path / "val" / category / "b.jpg")
        save_image(tmp_path / "val" / "thumbnails" / "c.jpg")
        for name in (".DS_Store", "train_mini.tar.gz", "train_mini/.DS_Store", f"val/{INATURALIST[1]}/readme.txt"):
            (tmp_path / name).touch()
        train = create_dataset("inaturalist", "train", root=str(tmp_path), mini=True)
        test = create_dataset("inaturalist", "test", root=str(tmp_path))
        assert train.hierarchy == test.hierarchy
        assert (train.targets, test.targets) == ([0, 1, 2], [1, 2])
        assert notes_of(train, test) == [
            f"{(mini := tmp_path / 'train_mini')}: hidden files and folders, left out: 1 ({mini / '.DS_Store'})",
            f"{tmp_path / 'val'}: files without an image extension, left out: 1 (1 .txt)",
            f"{tmp_path / 'val'}: images in folders that are no category, left out: 1",
        ]
        with pytest.raises(FileNotFoundError, match="pass mini=True to use train_mini/"):
            create_dataset("inaturalist", "train", root=str(tmp_path))

    def test_names_as_macos_writes_them(self, tmp_path: Path) -> None:
        accent = f"{INATURALIST[0]}\u0301"  # of the last letter, a character of its own
        for folder in ("train", "val"):
            save_image(tmp_path / folder / accent / "a.jpg")
        dataset = create_dataset("inaturalist", "train", root=str(tmp_path))
        assert len(dataset) == 1 and notes_of(dataset) == []


def test_class_folders_of_torchvision(tmp_path: Path) -> None:
    for name in ("Train/disc/1.jfif", "Train/disc/2.gif", "Train/box/1.png", "Train/@eaDir/1.jpg", "TEST/disc/1.png"):
        save_image(tmp_path / name)
    for name in ("Train/box/notes.txt", "Train/notes.txt", "Train/empty"):
        (tmp_path / name).mkdir() if name.endswith("empty") else (tmp_path / name).touch()
    tree = Hierarchy.from_rows(("kind", "shape"), [("round", "disc"), ("edged", "box")])
    options = {"root": str(tmp_path), "hierarchy": tree}
    train, test = (create_dataset("torch/image_folder", split, **options) for split in ("train", "test"))
    assert (train.targets, test.targets) == ([1, 0, 0], [0])
    assert len(notes_of(train)) == 3, "a service folder, two texts, an empty folder"
    with pytest.raises(ValueError, match="'torch/image_folder' has no option 'class_map'"):
        create_dataset("torch/image_folder", "train", class_map="", **options)


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Write three images for each split with their checksums; return the pixels."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    files: dict[str, dict[str, Any]] = {
        "train": {"data": pixels.transpose(0, 3, 1, 2).reshape(3, -1), "fine_labels": [2, 0, 1]},
        "test": {"data": pixels.transpose(0, 3, 1, 2).reshape(3, -1), "fine_labels": [1, 1, 0]},
        "meta": {"fine_label_names": ["wolf", "apple", "bee"]},
    }
    sums = {}
    for name, content in files.items():
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    kind = torchvision.datasets.CIFAR100
    monkeypatch.setattr(kind, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": sums["meta"]})
    return pixels


class TestCIFAR100:
    def test_labels_and_images(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pixels = write_cifar100(tmp_path, monkeypatch)
        train = create_dataset("cifar100", "train", root=str(tmp_path))
        assert names_of(train) == [
            ("insects", "bee"),
            ("large_carnivores", "wolf"),
            ("fruit_and_vegetables", "apple"),
        ]
        assert np.array_equal(np.asarray(train[1][0]), pixels[1])
        test = create_dataset("cifar100", "test", root=str(tmp_path))
        assert [fine for _, fine in names_of(test)] == ["apple", "apple", "wolf"]

    def test_its_own_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_cifar100(tmp_path, monkeypatch)
        assert len(create_dataset("cifar100", "train", root=str(tmp_path / "cifar-100-python"))) == 3

    def test_changed_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_cifar100(tmp_path, monkeypatch)
        file = tmp_path / "cifar-100-python" / "train"
        file.write_bytes(file.read_bytes() + b" ")
        with pytest.raises(
            FileNotFoundError, match=r"does not contain CIFAR-100 .*corrupted.* must contain cifar-100-python/"
        ):
            create_dataset("cifar100", "test", root=str(tmp_path))


@pytest.mark.parametrize("name", ["cars", "cifar100", "inaturalist"])
def test_unknown_split(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"dataset '{name}' has no split 'val'; it has 'train' and 'test'"):
        create_dataset(name, "val", root=str(tmp_path))
    with pytest.raises(ValueError, match="unknown split 'valid'; did you mean 'val'"):
        create_dataset(name, "valid", root=str(tmp_path))


def test_default_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))

    @register_dataset("plain")
    class Plain:
        hierarchy = Hierarchy(("kind",), (("disc", "box"),), ())
        targets = (1,)

        def __init__(self, split: str) -> None:
            self.split = split

        def __len__(self) -> int:
            return 1

    assert create_dataset("plain", "test").split == "test"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="dataset 'plain' has no split 'val'; it has 'train' and 'test'"):
        create_dataset("plain", "val")


class TestLabelsByName:
    TREE = Hierarchy(("kind",), (("Great tit", "great-tit", "Blue tit"),), ())

    def test_exact_names_come_first(self) -> None:
        assert labels_by_name(["great-tit", "blue_tit", "Great tit"], self.TREE, "birds") == [1, 2, 0]

    def test_ambiguous_names(self) -> None:
        with pytest.raises(ValueError, match="birds has a class that is not in the tree: unknown kind 'GREAT TIT'"):
            labels_by_name(["GREAT TIT"], self.TREE, "birds")
        with pytest.raises(ValueError, match="birds has two classes that match the tree's 'Blue tit'"):
            labels_by_name(["Blue tit", "blue tit"], self.TREE, "birds")

    def test_matching_by_order(self) -> None:
        assert labels_by_index(3, self.TREE, "birds") == [0, 1, 2]
        with pytest.raises(ValueError, match="birds has 2 classes without names, but the tree has 3 at kind"):
            labels_by_index(2, self.TREE, "birds")
