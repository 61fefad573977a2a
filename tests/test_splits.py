"""Splits of a dataset into training and validation images."""

from __future__ import annotations

import pytest
from test_transformed_images import Counting

from c2f_zoo import load_hierarchy
from c2f_zoo.data import DATASETS, HideLabels, Joined, labels_of, register_dataset, stratified_split, train_and_val


class OfAnotherTree(Counting):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.hierarchy = load_hierarchy("fashion_mnist")


def test_a_split_is_stratified_and_seeded() -> None:
    targets = [0] * 10 + [1] * 5 + [2] + [3] * 2
    first, second = stratified_split(targets, 0.2, seed=3)
    assert sorted(first + second) == list(range(18))
    assert [sum(targets[i] == label for i in second) for label in range(4)] == [2, 1, 0, 1]
    assert stratified_split(targets, 0.2, seed=3) == (first, second)
    assert stratified_split(targets, 0.2, seed=4) != (first, second)
    assert stratified_split(targets, 0.0, seed=0) == (list(range(18)), [])
    with pytest.raises(ValueError, match=r"in \[0, 1\), not 1"):
        stratified_split(targets, 1.0, seed=0)


def test_joined_datasets_are_concatenated() -> None:
    first, second = Counting(2), HideLabels(Counting(4), "genus", [3])
    joined = Joined(first, second)
    assert len(joined) == 6
    assert labels_of(joined)[:, -1].tolist() == [0, 1, 0, 1, 2, -1]
    assert joined[3][0].getpixel((0, 0)) == (1, 1, 1)
    joined.read(1, 17)
    assert first.reads == [(1, 17)]
    with pytest.raises(ValueError, match="the datasets have different class trees"):
        Joined(first, OfAnotherTree(2))


def test_the_validation_set_of_a_dataset_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))

    @register_dataset("parted")
    def parted(split: str) -> Counting:
        dataset = Counting({"train": 5, "val": 3, "test": 2}[split])
        dataset.splits = ("train", "val", "test")  # type: ignore[attr-defined]
        return dataset

    dataset, train, val = train_and_val("parted", 0.5, seed=0)
    assert (train, val) == ([0, 1, 2, 3, 4], [5, 6, 7])
    assert [dataset.targets[index] for index in val] == [0, 1, 2]


def test_datasets_without_a_validation_set_hold_out_training_images() -> None:
    dataset, train, val = train_and_val("critters", 0.25, seed=1, per_class=4)
    assert (train, val) == stratified_split(dataset.targets, 0.25, seed=1)
