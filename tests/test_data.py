"""Critters, CUB, Fashion-MNIST, and errors of `create_dataset`."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import BIRDS

from c2f_zoo import create_dataset, load_hierarchy
from c2f_zoo.data import DATASETS, Degrade, register_dataset
from c2f_zoo.data.critters import draw_critter


class TestCritters:
    def test_image_depends_on_seed_split_and_index_only(self) -> None:
        one, again = (create_dataset("critters", "train", per_class=2) for _ in range(2))
        assert one[7][0].tobytes() == again[7][0].tobytes()
        others = [
            create_dataset("critters", "test", per_class=2),
            create_dataset("critters", "train", per_class=2, seed=1),
        ]
        for other in others:
            assert other[7][0].tobytes() != one[7][0].tobytes()
        assert one[7][0].tobytes() != one[6][0].tobytes()

    def test_labels(self) -> None:
        dataset = create_dataset("critters", "test", per_class=3)
        assert len(dataset) == 108
        assert dataset.targets == [label for label in range(36) for _ in range(3)]
        image, label = dataset[107]
        assert (image.size, image.mode, label) == ((96, 96), "RGB", 35)
        with pytest.raises(IndexError):
            dataset[108]

    @pytest.mark.slow
    def test_each_level_needs_its_own_resolution(self) -> None:
        # The same pose, colours and background, drawn as another species, genus or family: the fraction of the
        # difference that remains in the shrunk image.
        def difference(species: int, other: int, resolution: int) -> float:
            total = 0.0
            for seed in range(20):
                shrink = Degrade(resolution, size=resolution)
                pair = [shrink(draw_critter(s, np.random.default_rng(seed))) for s in (species, other)]
                total += abs(np.asarray(pair[0], float) - np.asarray(pair[1], float)).mean()
            return total

        another = {"species": 1, "genus": 3, "family": 9}  # index distance: labels are family, genus, mark in base 3
        left = {
            level: {r: difference(0, step, r) / difference(0, step, 96) for r in (32, 12)}
            for level, step in another.items()
        }
        assert left["species"][32] < 0.55, "marks are blurred at 32 pixels"
        assert left["species"][12] < 0.2, "marks vanish at 12 pixels"
        assert left["genus"][32] > 0.7, "patches are visible at 32 pixels"
        assert left["genus"][12] < 0.4, "patches fade at 12 pixels"
        assert left["family"][12] > 0.8, "the silhouette remains"

    @pytest.mark.parametrize("arguments", [{"species": 36}, {"species": -1}, {"species": 0, "size": 0}])
    def test_errors(self, arguments: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="must be"):
            draw_critter(rng=np.random.default_rng(0), **arguments)


class TestCUB:
    def test_subset_in_the_layout_of_cub(self, cub_folder: Path) -> None:
        train = create_dataset("cub", "train", root=str(cub_folder))
        test = create_dataset("cub", "test", root=str(cub_folder))
        assert train.hierarchy.num_classes == {"family": 2, "genus": 3, "species": 4}
        names = train.hierarchy.class_names("species")
        assert set(names) == set(BIRDS)
        assert (len(train), len(test)) == (8, 4)
        for dataset in (train, test):
            for index, path in enumerate(dataset.paths):  # type: ignore[attr-defined]
                image, label = dataset[index]
                assert names[label] == path.parent.name
                assert (image.mode, image.size) == ("RGB", (50, 40))
        assert load_hierarchy("cub").subtree(BIRDS) == train.hierarchy

    def replace_line(self, file: Path, old: str, new: str) -> None:
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    def test_missing_image(self, cub_folder: Path) -> None:
        (cub_folder / "images" / BIRDS[0] / "0.jpg").unlink()
        with pytest.raises(ValueError, match=rf"missing files:\n *.*{BIRDS[0]}.0\.jpg$"):
            create_dataset("cub", "train", root=str(cub_folder))

    def test_all_errors_are_listed(self, cub_folder: Path) -> None:
        self.replace_line(cub_folder / "image_class_labels.txt", "3 1\n", "")
        self.replace_line(cub_folder / "image_class_labels.txt", "5 2", "5 7")
        self.replace_line(cub_folder / "train_test_split.txt", "2 1", "2 yes")
        self.replace_line(cub_folder / "classes.txt", BIRDS[2], "004.Groovy_Ani")
        (cub_folder / "images" / BIRDS[3] / "1.jpg").unlink()
        with pytest.raises(ValueError) as error:
            create_dataset("cub", "train", root=str(cub_folder))
        lines = [line.strip() for line in str(error.value).splitlines()]
        assert lines.pop(2).startswith(
            "classes.txt, class 3: unknown class '004.Groovy_Ani'; did you mean '004.Groove_b"
        )
        assert lines == [
            f"cannot use {cub_folder}:",
            "classes outside the tree (rename them, or use a tree that has them):",
            "errors in the lists:",
            "train_test_split.txt: image 2 has 'yes', neither 0 nor 1",
            f"image_class_labels.txt has no line for image 3 ({BIRDS[0]}/2.jpg)",
            "image_class_labels.txt: image 5 has class 7, not in classes.txt",
            "missing files:",
            str(cub_folder / "images" / BIRDS[3] / "1.jpg"),
        ]

    def test_another_tree_of_the_same_classes(self, cub_folder: Path) -> None:
        dataset = create_dataset("cub", "train", root=str(cub_folder), hierarchy="cub_modern")
        assert dataset.hierarchy == load_hierarchy("cub_modern").subtree(BIRDS)
        assert dataset.hierarchy.levels[0] == "order"

    def test_parent_folder(self, cub_folder: Path) -> None:
        cub_folder.rename(cub_folder.with_name("CUB_200_2011"))
        assert len(create_dataset("cub", "train", root=str(cub_folder.parent))) == 8

    def test_truncated_image(self, cub_folder: Path) -> None:
        path = cub_folder / "images" / BIRDS[0] / "0.jpg"
        path.write_bytes(path.read_bytes()[:-400])
        dataset = create_dataset("cub", "train", root=str(cub_folder))
        index = dataset.paths.index(path)  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=rf"cannot read the image .*{BIRDS[0]}/0.jpg"):
            dataset[index]

    def test_class_outside_the_tree(self, cub_folder: Path) -> None:
        self.replace_line(cub_folder / "classes.txt", BIRDS[0], "001.Black_foot_Albatross")
        with pytest.raises(
            ValueError, match=r"classes.txt, class 1: unknown class '001.Black_foot_.*did you mean '001.Black_footed"
        ):
            create_dataset("cub", "train", root=str(cub_folder))

    def test_label_without_a_class(self, cub_folder: Path) -> None:
        self.replace_line(cub_folder / "image_class_labels.txt", "3 1", "3 9")
        with pytest.raises(ValueError, match=r"image_class_labels.txt: image 3 has class 9, not in classes.txt"):
            create_dataset("cub", "train", root=str(cub_folder))

    def test_image_without_a_label(self, cub_folder: Path) -> None:
        self.replace_line(cub_folder / "image_class_labels.txt", "3 1\n", "")
        with pytest.raises(ValueError, match=r"image_class_labels.txt has no line for image 3"):
            create_dataset("cub", "train", root=str(cub_folder))

    def test_malformed_line(self, cub_folder: Path) -> None:
        self.replace_line(cub_folder / "train_test_split.txt", "2 1", "2")
        with pytest.raises(ValueError, match=r"train_test_split.txt, line 2: expected a number and a value, not '2'"):
            create_dataset("cub", "train", root=str(cub_folder))

    def test_malformed_flag_and_repeated_line(self, cub_folder: Path) -> None:
        self.replace_line(cub_folder / "train_test_split.txt", "2 1", "2 yes")
        with pytest.raises(ValueError, match=r"train_test_split.txt: image 2 has 'yes', neither 0 nor 1"):
            create_dataset("cub", "train", root=str(cub_folder))
        self.replace_line(cub_folder / "train_test_split.txt", "2 yes", "1 1")
        with pytest.raises(ValueError, match=r"train_test_split.txt, line 2: 1 is on an earlier line already"):
            create_dataset("cub", "train", root=str(cub_folder))

    def test_folder_in_another_layout(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"is not a CUB-200-2011 folder: it has no images.txt"):
            create_dataset("cub", "train", root=str(tmp_path))

    def test_empty_split(self, cub_folder: Path) -> None:
        split = cub_folder / "train_test_split.txt"
        split.write_text(split.read_text().replace(" 0\n", " 1\n"))
        with pytest.raises(ValueError, match=r"splits without an image:\n *'test'"):
            create_dataset("cub", "test", root=str(cub_folder))


def write_fashion_mnist(folder: Path, zipped: bool) -> np.ndarray:
    """Write ten training and ten test images as idx files."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    for split in ("train", "t10k"):
        files = {
            f"{split}-images-idx3-ubyte": struct.pack(">IIII", 0x803, 10, 28, 28) + images.tobytes(),
            f"{split}-labels-idx1-ubyte": struct.pack(">II", 0x801, 10) + bytes(range(10)),
        }
        for name, data in files.items():
            (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
    return images


class TestFashionMNIST:
    @pytest.mark.parametrize(("zipped", "place"), [(True, "."), (False, "."), (False, "FashionMNIST/raw")])
    def test_idx_files_are_read_in_place(self, tmp_path: Path, zipped: bool, place: str) -> None:
        images = write_fashion_mnist(tmp_path / place, zipped)
        before = sorted(tmp_path.rglob("*"))
        dataset = create_dataset("fashion_mnist", "test", root=str(tmp_path))
        image, label = dataset[9]
        assert np.array_equal(np.asarray(image), np.stack([images[9]] * 3, axis=-1))
        assert dataset.hierarchy.path(label) == ("Goods", "Shoes", "Ankle boot")
        assert sorted(tmp_path.rglob("*")) == before, "nothing is written next to the files"

    def test_missing_files(self, tmp_path: Path) -> None:
        with pytest.raises(
            FileNotFoundError, match=r"does not contain Fashion-MNIST.*download=True.*train-images-idx3-ubyte"
        ):
            create_dataset("fashion_mnist", "train", root=str(tmp_path))


class TestCreateDataset:
    def test_errors(self) -> None:
        with pytest.raises(ValueError, match="unknown dataset 'critter'; did you mean 'critters'"):
            create_dataset("critter", "train")
        with pytest.raises(ValueError, match="dataset 'critters' has no split 'val'; it has 'train' and 'test'"):
            create_dataset("critters", "val")
        with pytest.raises(ValueError, match=r"dataset 'csv' needs the option file and hierarchy, e.g. file="):
            create_dataset("csv", "train")
        with pytest.raises(ValueError, match="dataset 'hfds/x' needs the option hierarchy"):
            create_dataset("hfds/x", "train")

    def test_label_outside_the_tree(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))

        @register_dataset("bad")
        class Bad:
            hierarchy = load_hierarchy("fashion_mnist")
            targets = (3, 10)

            def __init__(self, split: str) -> None: ...

            def __len__(self) -> int:
                return 2

        with pytest.raises(
            ValueError, match=r"image 1 of the train split of dataset 'bad' has label 10, outside the tree's 10 art"
        ):
            create_dataset("bad", "train")
