"""Transformed images: one decode, labels at every level, unreadable files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from c2f_zoo import create_dataset, load_hierarchy
from c2f_zoo.config import Preprocessing
from c2f_zoo.data import (
    HideLabels,
    TransformedImages,
    create_transform,
    create_views,
    labels_of,
    name_of,
    read_error,
)

SMALL = Preprocessing((3, 16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=0.8)


class Counting:
    """Grey images of the critters' tree that record each read: the index and `shorter_side`."""

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


@pytest.fixture
def truncated_folder(cub_folder: Path) -> Path:
    """Return the birds' folder with half of training image 2."""
    path = cub_folder / "images" / "003.Sooty_Albatross" / "0.jpg"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return cub_folder


class TestTransformedImages:
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

    def test_views_equal_those_of_single_transforms(self) -> None:
        image = create_dataset("critters", "test", per_class=1)[5][0]
        views = create_views(SMALL, {"species": None, "family": 4}, train=False)(image)
        for level, resolution in (("species", None), ("family", 4)):
            assert torch.equal(views[level], create_transform(SMALL, resolution, train=False)(image))

    def test_an_unreadable_image_is_an_error_with_its_path(self, truncated_folder: Path) -> None:
        views = TransformedImages(
            create_dataset("cub", "train", root=str(truncated_folder)), create_transform(SMALL, None, train=False)
        )
        assert views[1][2:] == (1, True)
        with pytest.raises(ValueError, match=r"image 2 \(.*003.Sooty_Albatross/0.jpg\) cannot be used: .*truncated"):
            views[2]

    def test_a_skipped_image_is_black_and_without_labels(self, truncated_folder: Path) -> None:
        dataset = create_dataset("cub", "train", root=str(truncated_folder))
        transform = create_views(SMALL, {"species": None, "genus": 8}, train=True)
        loader = torch.utils.data.DataLoader(TransformedImages(dataset, transform, on_error="skip"), batch_size=8)
        views, labels, index, readable = next(iter(loader))
        assert index.tolist() == list(range(8))
        assert readable.tolist() == [at != 2 for at in range(8)]
        assert (labels[2] == -1).all()
        assert torch.equal(labels[[0, 1, 3]], labels_of(dataset)[[0, 1, 3]])
        for images in views.values():
            assert (images[2] == -1).all(), "black, normalized with mean and deviation 0.5"

    def test_an_unknown_on_error_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="unknown on_error 'skp'; did you mean 'skip'"):
            TransformedImages(Counting(1), lambda image: image, on_error="skp")

    def test_an_error_in_the_transform_is_raised(self) -> None:
        def broken(image: Image.Image) -> Any:
            raise ValueError("a bug")

        with pytest.raises(ValueError, match=r"^a bug$"):
            TransformedImages(Counting(1), broken, on_error="skip")[0]

    def test_hidden_labels_do_not_change_the_images(self, truncated_folder: Path) -> None:
        whole = create_dataset("cub", "train", root=str(truncated_folder))
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
