"""Batches of training images and the steps that they make."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from c2f_zoo.training.batches import (
    EpochBatches,
    SeededItems,
    create_loader,
    first_group,
    in_groups,
    plan_rounds,
    seed_everything,
    split_into_steps,
)

LEVELS = ("species", "genus", "family")
OBJECTIVES = ("in_turn", "joint", "any_resolution")


class RandomItems(torch.utils.data.Dataset[tuple[int, float]]):
    """Items that are random numbers."""

    def __getitem__(self, position: int) -> tuple[int, float]:
        return position, torch.rand(()).item()


@pytest.mark.parametrize(("images", "size"), [(23, 4), (8, 4), (3, 8)])
def test_an_epoch_holds_every_image_at_most_once_in_full_batches(images: int, size: int) -> None:
    batches = EpochBatches(images, size, seed=3)
    size = min(size, images)
    epochs = []
    for batches.epoch in range(3):
        found = list(batches)
        assert [len(batch) for batch in found] == [size] * (images // size) == [size] * len(batches)
        positions = [position for batch in found for position, _ in batch]
        assert len(set(positions)) == len(positions)
        assert set(positions) <= set(range(images))
        epochs.append(positions)
    assert images < 8 or epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_batches_of_one(processes: int) -> None:
    one = list(EpochBatches(20, 6, seed=0))
    shares = [list(EpochBatches(20, 6, 0, process_index=index, num_processes=processes)) for index in range(processes)]
    assert [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == one


def test_a_later_start_gives_the_same_batches() -> None:
    whole, rest = EpochBatches(20, 3, seed=5), EpochBatches(20, 3, seed=5)
    whole.epoch = rest.epoch = 2
    rest.first = 4
    assert list(rest) == list(whole)[4:]


def test_fewer_images_than_processes_are_an_error() -> None:
    with pytest.raises(ValueError, match="1 training images are too few for 2 processes"):
        EpochBatches(1, 4, seed=0, num_processes=2)


def test_the_order_may_repeat_images_with_other_seeds() -> None:
    (batch,) = EpochBatches(4, 4, seed=0, order=lambda generator: torch.tensor([1, 1, 2, 1]))
    assert [position for position, _ in batch] == [1, 1, 2, 1]
    assert len({seed for _, seed in batch}) == 4


def test_items_are_random_in_the_same_way_for_any_number_of_workers() -> None:
    batches = EpochBatches(12, 4, seed=0)
    found = [
        [(positions.tolist(), values.tolist()) for positions, values in create_loader(RandomItems(), batches, n, False)]
        for n in (0, 2)
    ]
    assert found[0] == found[1]
    values = [value for _, batch in found[0] for value in batch]
    assert len(set(values)) == 12
    position, seed = next(iter(batches))[0]
    torch.manual_seed(seed)
    expected = position, torch.rand(()).item()
    assert SeededItems(RandomItems())[position, seed] == expected


def test_all_generators_are_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw() -> list[float]:
        return [random.random(), float(np.random.random()), torch.rand(()).item()]

    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    expected = draw()
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed", seeded.append)
    for device, seeds in ((None, []), (torch.device("cpu"), []), (torch.device("cuda", 1), [7])):
        draw()
        seed_everything(7, device)
        assert draw() == expected
        assert seeded == seeds


def test_in_turn_trains_each_level_one_group_behind_the_previous_one() -> None:
    rounds = list(split_into_steps("in_turn", LEVELS, [["a", "b"], ["c", "d"]]))
    assert [[(step[0][0], [batch for _, batch in step]) for step in steps] for steps in rounds] == [
        [(("species",), ["a", "b"])],
        [(("species",), ["c", "d"]), (("genus",), ["a", "b"])],
        [(("genus",), ["c", "d"]), (("family",), ["a", "b"])],
        [(("family",), ["c", "d"])],
    ]


def test_joint_and_any_resolution_take_one_step_with_a_group() -> None:
    assert list(split_into_steps("joint", LEVELS[:2], [["a", "b"]])) == [
        [[(("species",), "a"), (("genus",), "a"), (("species",), "b"), (("genus",), "b")]]
    ]
    assert list(split_into_steps("any_resolution", LEVELS, [["a", "b"]])) == [[[(LEVELS, "a"), (LEVELS, "b")]]]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("num_groups", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_round_can_be_the_first(objective: str, num_groups: int, count: int) -> None:
    levels = LEVELS[:count]
    groups = [[group] for group in range(num_groups)]
    whole = list(split_into_steps(objective, levels, groups))
    rounds, steps = plan_rounds(objective, levels, num_groups)
    assert (len(whole), sum(len(steps) for steps in whole)) == (rounds, steps)
    for first in range(rounds):
        rest = groups[first_group(objective, levels, first) :]
        assert list(split_into_steps(objective, levels, rest, first)) == whole[first:]


def test_incomplete_groups_are_left_out() -> None:
    assert list(in_groups(range(7), 3)) == [[0, 1, 2], [3, 4, 5]]
    assert list(in_groups(range(2), 3)) == [[0, 1]]
