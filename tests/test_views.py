"""Images as a training sees them: one decode, labels at every level, unreadable files, splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from c2f_zoo import create_dataset, load_hierarchy
from c2f_zoo.config import Preprocessing
from c2f_zoo.data import (
    DATASETS,
    HideLabels,
    Joined,
    TransformedImages,
    create_transform,
    create_views,
    labels_of,
    name_of,
    read_error,
    register_dataset,
    stratified_split,
    train_and_val,
)

SMALL = Preprocessing((3, 16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=0.8)


class Counting:
    """Grey images of the critters' tree, which note each time that one is read, and how."""

    def __init__(self, size: int) -> None:
        self.hierarchy = load_hierarchy("critters")
        self.targets = list(range(36))[:size]
        self.reads: list[tuple[int, int | None]] = []

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.read(index), self.targets[index]

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        self.reads.append((index, shorter_side))
        return Image.new("RGB", (40, 30), (index, index, index))


class OfAnotherTree(Counting):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.hierarchy = load_hierarchy("fashion_mnist")


@pytest.fixture
def torn(cub_folder: Path) -> Path:
    """The birds' folder; of training image 2 only half is left."""
    path = cub_folder / "images" / "003.Sooty_Albatross" / "0.jpg"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return cub_folder


class TestViews:
    def test_items_have_labels_at_every_level(self) -> None:
        views = TransformedImages(Counting(36), lambda image: image.size, indices=[35, 0, 4])
        items = [(size, labels.tolist(), *rest) for size, labels, *rest in (views[i] for i in range(len(views)))]
        expected = [([3, 11, 35], 35), ([0, 0, 0], 0), ([0, 1, 4], 4)]
        assert items == [((40, 30), *labels_and_index, True) for labels_and_index in expected]

    def test_an_unknown_label_is_minus_one(self) -> None:
        dataset = HideLabels(create_dataset("critters", "train", per_class=1), "genus", [35])
        assert TransformedImages(dataset, lambda image: image.size, indices=[35])[0][1].tolist() == [3, 11, -1]

    def test_all_views_of_an_image_come_from_one_decode(self) -> None:
        dataset = Counting(3)
        transform = create_views(SMALL, {"species": None, "genus": 8, "family": 4}, train=True)
        views, *_ = TransformedImages(dataset, transform, shorter_side=20)[1]
        assert list(views) == ["species", "genus", "family"]
        assert dataset.reads == [(1, 20)]

    def test_the_views_are_those_of_the_single_transforms(self) -> None:
        image = create_dataset("critters", "test", per_class=1)[5][0]
        views = create_views(SMALL, {"species": None, "family": 4}, train=False)(image)
        for level, resolution in (("species", None), ("family", 4)):
            assert torch.equal(views[level], create_transform(SMALL, resolution, train=False)(image))

    def test_an_unreadable_image_is_named(self, torn: Path) -> None:
        views = TransformedImages(
            create_dataset("cub", "train", root=str(torn)), create_transform(SMALL, None, train=False)
        )
        assert views[1][2:] == (1, True)
        with pytest.raises(ValueError, match=r"image 2 \(.*003.Sooty_Albatross/0.jpg\) cannot be used: .*truncated"):
            views[2]

    def test_or_comes_as_a_black_one_without_labels(self, torn: Path) -> None:
        dataset = create_dataset("cub", "train", root=str(torn))
        transform = create_views(SMALL, {"species": None, "genus": 8}, train=True)
        loader = torch.utils.data.DataLoader(TransformedImages(dataset, transform, on_error="skip"), batch_size=8)
        views, labels, index, readable = next(iter(loader))
        assert index.tolist() == list(range(8))
        assert readable.tolist() == [at != 2 for at in range(8)]
        assert (labels[2] == -1).all()
        assert torch.equal(labels[[0, 1, 3]], labels_of(dataset)[[0, 1, 3]])
        for images in views.values():
            assert (images[2] == -1).all(), "black, normalised with mean and deviation 0.5"

    def test_an_unknown_policy_is_named(self) -> None:
        with pytest.raises(ValueError, match="unknown on_error 'skp'; did you mean 'skip'"):
            TransformedImages(Counting(1), lambda image: image, on_error="skp")

    def test_a_mistake_in_the_transform_is_not_taken_for_a_bad_image(self) -> None:
        def broken(image: Image.Image) -> Any:
            raise ValueError("a mistake")

        with pytest.raises(ValueError, match=r"^a mistake$"):
            TransformedImages(Counting(1), broken, on_error="skip")[0]

    def test_a_part_with_fewer_labels_reads_as_the_whole(self, torn: Path) -> None:
        whole = create_dataset("cub", "train", root=str(torn))
        hidden = HideLabels(whole, "genus", [2])
        assert name_of(hidden, 2) == name_of(whole, 2)
        assert "truncated" in read_error(hidden, 2)
        assert read_error(hidden, 1) == ""
        counting = Counting(3)
        HideLabels(counting, "genus", [2]).read(1, 9)
        assert counting.reads == [(1, 9)]

    def test_images_have_names(self, cub_folder: Path) -> None:
        assert name_of(Counting(3), 2) == "image 2"
        assert name_of(create_dataset("cub", "train", root=str(cub_folder)), 0).endswith("Albatross/0.jpg)")


class TestSplits:
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

    def test_joined_datasets_come_one_behind_the_other(self) -> None:
        first, second = Counting(2), HideLabels(Counting(4), "genus", [3])
        joined = Joined(first, second)
        assert len(joined) == 6
        assert labels_of(joined)[:, -1].tolist() == [0, 1, 0, 1, 2, -1]
        assert joined[3][0].getpixel((0, 0)) == (1, 1, 1)
        joined.read(1, 17)
        assert first.reads == [(1, 17)]
        with pytest.raises(ValueError, match="differ in their class trees"):
            Joined(first, OfAnotherTree(2))

    def test_a_datasets_own_validation_images_are_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))

        @register_dataset("parted")
        def parted(split: str) -> Counting:
            dataset = Counting({"train": 5, "val": 3, "test": 2}[split])
            dataset.splits = ("train", "val", "test")  # type: ignore[attr-defined]
            return dataset

        dataset, train, val = train_and_val("parted", 0.5, seed=0)
        assert (train, val) == ([0, 1, 2, 3, 4], [5, 6, 7])
        assert [dataset.targets[index] for index in val] == [0, 1, 2]

    def test_others_give_a_share_of_the_training_images(self) -> None:
        dataset, train, val = train_and_val("critters", 0.25, seed=1, per_class=4)
        assert (train, val) == stratified_split(dataset.targets, 0.25, seed=1)
