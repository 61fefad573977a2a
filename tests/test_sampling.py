"""Class-balanced orders of an epoch."""

from __future__ import annotations

import torch

from c2f_zoo.training.sampling import balanced_order


def order_of(labels: list[int], seed: int = 0) -> torch.Tensor:
    return balanced_order(torch.tensor(labels), torch.Generator().manual_seed(seed))


def test_classes_are_equally_frequent_and_so_are_images_of_a_class() -> None:
    labels = torch.tensor([0] * 20 + [3] * 3 + [1] * 8)  # class 2 has no image; 31 images, three classes
    firsts = set()
    for seed in range(12):
        order = order_of(labels.tolist(), seed)
        assert len(order) == 31
        per_class = labels[order].bincount()
        assert sorted(per_class.tolist()) == [0, 10, 10, 11] and per_class[2] == 0
        per_image = order.bincount(minlength=31)
        assert set(per_image[:20].tolist()) == {0, 1}
        assert set(per_image[20:23].tolist()) == {3, 4}
        assert set(per_image[23:].tolist()) == {1, 2}
        firsts.add(int(per_class.argmax()))
    assert firsts == {0, 1, 3}  # the image over is of any class


def test_images_of_unknown_class_are_as_frequent_as_in_the_data() -> None:
    labels = torch.tensor([0] * 6 + [-1] * 3 + [1])
    order = order_of(labels.tolist())
    assert sorted(order[labels[order] < 0].tolist()) == [6, 7, 8]
    assert sorted((labels[order] == name).sum().item() for name in (0, 1)) == [3, 4]
    assert sorted(order_of([-1] * 5).tolist()) == list(range(5))


def test_the_order_is_random_and_repeated_by_a_seed() -> None:
    labels = [0] * 30 + [1] * 10
    assert torch.equal(order_of(labels), order_of(labels))
    assert not torch.equal(order_of(labels), order_of(labels, seed=1))
    halves = [(torch.tensor(labels)[order_of(labels, seed)[:20]] == 0).sum().item() for seed in range(20)]
    assert len(set(halves)) > 2 and all(3 <= count <= 17 for count in halves)


def test_more_classes_than_images_of_known_class() -> None:
    assert sorted(order_of([4, 2, 9, -1]).tolist()) == [0, 1, 2, 3]
