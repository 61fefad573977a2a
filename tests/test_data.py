"""Datasets, views and splits."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BIRDS
from PIL import Image

from c2f_zoo import create_dataset, load_hierarchy
from c2f_zoo.config import Preprocessing
from c2f_zoo.data import DATASETS, LevelView, Shrink, create_transform, register_dataset, stratified_split
from c2f_zoo.data.critters import draw_critter


class TestTransforms:
    def test_shrinking_averages(self) -> None:
        # Columns of black and white, two pixels wide: gone at half of that scale, whatever the filter.
        stripes = np.tile(np.repeat(np.array([0, 255], np.uint8), 2), (40, 20))
        image = Image.fromarray(np.stack([stripes] * 3, axis=-1))  # 80 wide, 40 high
        small = Shrink(10)(image)
        assert small.size == (20, 10)
        inner = np.asarray(small)[2:-2, 2:-2].astype(float)
        assert abs(inner - 127.5).max() < 3

    def test_a_small_picture_stays(self) -> None:
        image = Image.new("RGB", (30, 20))
        assert Shrink(20)(image) is image
        assert Shrink(None)(image) is image
        with pytest.raises(ValueError, match="a resolution is 1 pixel or more, not 0"):
            Shrink(0)

    @pytest.mark.parametrize("train", [True, False])
    @pytest.mark.parametrize("size", [(50, 40), (40, 50), (3, 300), (1000, 700)])
    def test_any_picture_becomes_the_networks_input(self, size: tuple[int, int], train: bool) -> None:
        x = create_transform(Preprocessing(input_size=(3, 64, 64)), 16, train)(Image.new("RGB", size))
        assert x.shape == (3, 64, 64)
        assert x.dtype == torch.float32

    def test_the_centre_is_cropped_and_normalised(self) -> None:
        # 100 x 100, resized to 100 = 50 / 0.5: the crop is the middle 50 pixels, which are red.
        pixels = np.zeros((100, 100, 3), np.uint8)
        pixels[25:75, 25:75, 0] = 255
        preprocessing = Preprocessing((3, 50, 50), mean=(0.5, 0.5, 0.0), std=(0.25, 0.5, 1.0), crop_pct=0.5)
        x = create_transform(preprocessing, None, train=False)(Image.fromarray(pixels))
        assert [channel.unique().tolist() for channel in x] == [[2.0], [-1.0], [0.0]]

    def test_training_crops_and_flips_at_random(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
        transform = create_transform(Preprocessing((3, 64, 64), crop_pct=0.8), None, train=True)
        torch.manual_seed(0)
        views = [transform(Image.fromarray(pixels)) for _ in range(4)]
        assert not any(torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])

    def test_a_view_has_no_more_detail_than_its_resolution(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        preprocessing = Preprocessing((3, 64, 64), mean=(0, 0, 0), std=(1, 1, 1), crop_pct=1.0)
        spectra = {}
        for resolution in (None, 8):
            x = create_transform(preprocessing, resolution, train=False)(Image.fromarray(pixels))
            spectra[resolution] = torch.fft.fft2(x - x.mean()).abs().square()[:, 16:48, 16:48].sum()
        assert spectra[8] < 0.01 * spectra[None]


class TestViews:
    def test_a_view_gives_a_levels_labels(self) -> None:
        dataset = create_dataset("critters", "train", per_class=1)
        view = LevelView(dataset, "genus", lambda image: image.size, indices=[35, 0, 4])
        assert list(view[i] for i in range(len(view))) == [((96, 96), 11, 35), ((96, 96), 0, 0), ((96, 96), 1, 4)]

    def test_a_split_is_stratified_and_seeded(self) -> None:
        targets = [0] * 10 + [1] * 5 + [2] + [3] * 2
        first, second = stratified_split(targets, 0.2, seed=3)
        assert sorted(first + second) == list(range(18))
        assert [sum(targets[i] == label for i in second) for label in range(4)] == [2, 1, 0, 1]
        assert stratified_split(targets, 0.2, seed=3) == (first, second)
        assert stratified_split(targets, 0.2, seed=4) != (first, second)
        assert stratified_split(targets, 0.0, seed=0) == (list(range(18)), [])
        with pytest.raises(ValueError, match=r"in \[0, 1\), not 1"):
            stratified_split(targets, 1.0, seed=0)


class TestCritters:
    def test_a_picture_depends_on_seed_split_and_index_alone(self) -> None:
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

    def test_each_level_is_decided_at_its_own_scale(self) -> None:
        # The same pose, colours and background, drawn as another species, genus or family: how much of the
        # difference is left when the picture is shrunk?
        def left(species: int, other: int, resolution: int) -> float:
            total = 0.0
            for seed in range(20):
                pair = [Shrink(resolution)(draw_critter(s, np.random.default_rng(seed))) for s in (species, other)]
                total += abs(np.asarray(pair[0], float) - np.asarray(pair[1], float)).mean()
            return total

        another = {"species": 1, "genus": 3, "family": 9}  # index distance: labels are family, genus, mark in base 3
        loss = {level: {r: left(0, step, r) / left(0, step, 96) for r in (32, 12)} for level, step in another.items()}
        assert loss["species"][32] < 0.55, "marks blur at 32 pixels"
        assert loss["species"][12] < 0.2, "and vanish at 12"
        assert loss["genus"][32] > 0.7, "patches are seen at 32 pixels"
        assert loss["genus"][12] < 0.4, "and fade at 12"
        assert loss["family"][12] > 0.8, "the silhouette stays"

    @pytest.mark.parametrize("arguments", [{"species": 36}, {"species": -1}, {"species": 0, "size": 0}])
    def test_mistakes_are_named(self, arguments: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="must be"):
            draw_critter(rng=np.random.default_rng(0), **arguments)


class TestCUB:
    def test_a_part_of_cub_in_its_own_layout(self, cub_folder: Path) -> None:
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

    def test_a_missing_picture_is_named_before_training(self, cub_folder: Path) -> None:
        (cub_folder / "images" / BIRDS[0] / "0.jpg").unlink()
        with pytest.raises(ValueError, match=rf"1 picture\(s\) missing or unreadable: .*{BIRDS[0]}/0.jpg"):
            create_dataset("cub", "train", root=str(cub_folder))

    def test_a_file_that_is_no_picture_is_named_before_training(self, cub_folder: Path) -> None:
        (cub_folder / "images" / BIRDS[1] / "1.jpg").write_text("not a picture")
        with pytest.raises(ValueError, match=rf"1 picture\(s\) missing or unreadable: .*{BIRDS[1]}/1.jpg"):
            create_dataset("cub", "train", root=str(cub_folder))

    def test_a_truncated_picture_is_named_when_it_is_read(self, cub_folder: Path) -> None:
        path = cub_folder / "images" / BIRDS[0] / "0.jpg"
        path.write_bytes(path.read_bytes()[:-400])
        dataset = create_dataset("cub", "train", root=str(cub_folder))
        index = dataset.paths.index(path)  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=rf"cannot read the picture .*{BIRDS[0]}/0.jpg"):
            dataset[index]

    def test_a_class_that_is_not_in_the_tree_is_named(self, cub_folder: Path) -> None:
        self.replace_line(cub_folder / "classes.txt", BIRDS[0], "001.Black_foot_Albatross")
        with pytest.raises(
            ValueError, match=r"classes.txt: unknown species '001.Black_foot_.*did you mean '001.Black_footed"
        ):
            create_dataset("cub", "train", root=str(cub_folder))

    def test_a_label_that_is_no_class_is_named(self, cub_folder: Path) -> None:
        self.replace_line(cub_folder / "image_class_labels.txt", "3 1", "3 9")
        with pytest.raises(ValueError, match=r"image_class_labels.txt: image 3 has class 9, not in classes.txt"):
            create_dataset("cub", "train", root=str(cub_folder))

    def test_a_picture_without_a_label_is_named(self, cub_folder: Path) -> None:
        self.replace_line(cub_folder / "image_class_labels.txt", "3 1\n", "")
        with pytest.raises(ValueError, match=r"image_class_labels.txt has no line for image 3"):
            create_dataset("cub", "train", root=str(cub_folder))

    def test_a_bad_line_is_named(self, cub_folder: Path) -> None:
        self.replace_line(cub_folder / "train_test_split.txt", "2 1", "2")
        with pytest.raises(ValueError, match=r"train_test_split.txt, line 2: expected a number and a value, not '2'"):
            create_dataset("cub", "train", root=str(cub_folder))

    def test_a_flag_or_a_repeated_line_that_would_lose_a_picture_is_named(self, cub_folder: Path) -> None:
        self.replace_line(cub_folder / "train_test_split.txt", "2 1", "2 yes")
        with pytest.raises(ValueError, match=r"train_test_split.txt: image 2 has 'yes', neither 0 nor 1"):
            create_dataset("cub", "train", root=str(cub_folder))
        self.replace_line(cub_folder / "train_test_split.txt", "2 yes", "1 1")
        with pytest.raises(ValueError, match=r"train_test_split.txt, line 2: 1 stands on an earlier line already"):
            create_dataset("cub", "train", root=str(cub_folder))

    def test_a_folder_of_another_kind_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"is no CUB-200-2011 folder: it lacks images.txt"):
            create_dataset("cub", "train", root=str(tmp_path))

    def test_an_empty_split_is_named(self, cub_folder: Path) -> None:
        split = cub_folder / "train_test_split.txt"
        split.write_text(split.read_text().replace(" 0\n", " 1\n"))
        with pytest.raises(ValueError, match="dataset 'cub' has no test pictures"):
            create_dataset("cub", "test", root=str(cub_folder))


def write_fashion_mnist(folder: Path, zipped: bool) -> np.ndarray:
    """Writes ten training and ten test pictures as idx files (the format is described on MNIST's page)."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        files = {
            f"{part}-images-idx3-ubyte": struct.pack(">IIII", 0x803, 10, 28, 28) + images.tobytes(),
            f"{part}-labels-idx1-ubyte": struct.pack(">II", 0x801, 10) + bytes(range(10)),
        }
        for name, data in files.items():
            (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
    return images


class TestFashionMNIST:
    @pytest.mark.parametrize(("zipped", "place"), [(True, "."), (False, "."), (False, "FashionMNIST/raw")])
    def test_idx_files_are_read_where_they_are(self, tmp_path: Path, zipped: bool, place: str) -> None:
        images = write_fashion_mnist(tmp_path / place, zipped)
        before = sorted(tmp_path.rglob("*"))
        dataset = create_dataset("fashion_mnist", "test", root=str(tmp_path))
        image, label = dataset[9]
        assert np.array_equal(np.asarray(image), np.stack([images[9]] * 3, axis=-1))
        assert dataset.hierarchy.path(label) == ("Goods", "Shoes", "Ankle boot")
        assert sorted(tmp_path.rglob("*")) == before, "nothing is written beside the files"

    def test_missing_files_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"holds no Fashion-MNIST.*pass download=True"):
            create_dataset("fashion_mnist", "train", root=str(tmp_path))


class TestCreateDataset:
    def test_mistakes_are_named(self) -> None:
        with pytest.raises(ValueError, match="unknown dataset 'critter'; did you mean 'critters'"):
            create_dataset("critter", "train")
        with pytest.raises(ValueError, match="unknown split 'val'; a dataset has the splits 'train' and 'test'"):
            create_dataset("critters", "val")

    def test_a_label_outside_the_tree_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))

        @register_dataset("bad")
        class Bad:
            hierarchy = load_hierarchy("fashion_mnist")
            targets = (3, 10)

            def __init__(self, split: str) -> None: ...

            def __len__(self) -> int:
                return 2

        with pytest.raises(
            ValueError, match=r"train picture 1 of dataset 'bad' has label 10, outside the tree's 10 art"
        ):
            create_dataset("bad", "train")
