"""Batches of training images: their order and seeds, and the steps that they make.

Order and augmentation depend on the seed, the epoch and the place in the order only: they are the same for any number
of processes and loader workers, and after any restart.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

Batch = Any  # what the loader of `TransformedImages` yields: crops, labels, indices, readable
Part = tuple[tuple[str, ...], Batch]  # levels that are trained on a batch in one forward and backward pass
Step = list[Part]  # parts whose gradients are added for one step of the optimizer


def seed_of(*numbers: int) -> int:
    """Return a 32-bit seed from integers; any other integers give an unrelated one.

    Examples:
        >>> seed_of(0, 1) == seed_of(0, 1), seed_of(0, 1) == seed_of(1, 0)
        (True, False)
    """
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest(), "big")


def seed_everything(seed: int, device: torch.device | None = None) -> None:
    """Seed the generators of Python, NumPy and PyTorch.

    Args:
        seed: a 32-bit seed.
        device: a device whose generator is seeded besides that of the CPU.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed notes the stack for GPUs not in use, which is slow
    if device is not None and device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """A process's share of each batch of an epoch: positions of images, with a seed for each.

    Each batch of `batch_size` images is split evenly between processes. A smaller last batch is left out, since it
    would give batch norm poor statistics; the next epoch leaves out other images. Fewer images than `batch_size` are
    one batch.

    Args:
        num_images: number of images.
        batch_size: number of images in a batch, over all processes.
        seed: the run's seed.
        order: a function of a generator that returns the positions of an epoch's images, in their order; None for a
            permutation.
        process_index: number of this process.
        num_processes: number of processes.

    Attributes:
        epoch: number of finished epochs; it decides the order.
        first: number of the first batch to yield.

    Raises:
        ValueError: there are fewer images than processes.

    Examples:
        >>> batches = EpochBatches(num_images=7, batch_size=2, seed=0)
        >>> len(batches), [len(batch) for batch in batches]
        (3, [2, 2, 2])
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        order: Callable[[Generator], Tensor] | None = None,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.batch_size = min(batch_size, num_images // num_processes * num_processes)
        if self.batch_size < 1:
            raise ValueError(f"{num_images} training images are too few for {num_processes} processes")
        self.num_images = num_images
        self.seed = seed
        self.order = order
        self.process_index, self.num_processes = process_index, num_processes
        self.epoch = self.first = 0

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return self.num_images // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = Generator().manual_seed(seed_of(self.seed, self.epoch))
        order = self.order(generator) if self.order else torch.randperm(self.num_images, generator=generator)
        share = self.batch_size // self.num_processes
        for batch in range(self.first, len(self)):
            start = batch * self.batch_size + self.process_index * share
            places = range(start, start + share)
            yield [(int(order[place]), seed_of(self.seed, self.epoch, place)) for place in places]


class SeededItems(Dataset[Any]):
    """Items of a dataset, each read after its seed has been set: `items[position, seed]`.

    The generators of Python, NumPy and PyTorch are seeded.

    Args:
        items: the dataset.
    """

    def __init__(self, items: Dataset[Any]) -> None:
        self.items = items

    def __getitem__(self, key: tuple[int, int]) -> Any:
        position, seed = key
        seed_everything(seed)
        return self.items[position]


def create_loader(items: Dataset[Any], batches: EpochBatches, num_workers: int, pin_memory: bool) -> DataLoader[Any]:
    """Create the loader of a run; its workers live as long as the run.

    Args:
        items: the dataset.
        batches: the batches; set `epoch` and `first` before each iteration.
        num_workers: number of worker processes; 0 reads in this process.
        pin_memory: whether to copy to memory from which a GPU reads faster.
    """
    return DataLoader(
        SeededItems(items),
        batch_sampler=batches,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=ignore_signals,
        pin_memory=pin_memory,
    )


def ignore_signals(_: int) -> None:
    """Ignore, in a loader's worker, signals that ask the run to save and stop."""
    # A signal to the whole process group (Ctrl-C, Slurm) must leave the batches of the last step alone.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def plan_rounds(objective: str, levels: Sequence[str], num_groups: int) -> tuple[int, int]:
    """Return how many rounds an epoch has, and how many steps.

    Args:
        objective: `in_turn`, `joint` or `any_resolution`.
        levels: the levels.
        num_groups: number of groups of batches; the batches of a group make one step.

    Examples:
        >>> plan_rounds("in_turn", ["species", "genus"], num_groups=10), plan_rounds("joint", ["species"], 10)
        ((11, 20), (10, 10))
    """
    if objective == "in_turn":
        return num_groups + len(levels) - 1, num_groups * len(levels)
    return num_groups, num_groups


def first_group(objective: str, levels: Sequence[str], first_round: int) -> int:
    """Return the first group of batches that a round and those after it need.

    Examples:
        >>> first_group("in_turn", ["species", "genus", "family"], first_round=5)
        3
    """
    return max(0, first_round - (len(levels) - 1 if objective == "in_turn" else 0))


def split_into_steps(
    objective: str, levels: Sequence[str], groups: Iterable[list[Batch]], first_round: int = 0
) -> Iterator[list[Step]]:
    """Yield the steps of each round of an epoch.

    - `in_turn`: a round has a step for each level, each level one group behind the previous one. Consecutive steps see
      different images, as with a separate loader for each level. With the same images, the species of critters are
      learned far worse (docs/results.md).
    - `joint`: one step, with a part for each level and batch.
    - `any_resolution`: one step, with a part for each batch, on all levels.

    Args:
        objective: one of these.
        levels: the levels, finest first.
        groups: groups of batches, from `first_group` of the first round on.
        first_round: number of the round to start with.

    Examples:
        >>> steps = split_into_steps("in_turn", ["species", "genus"], [["a"], ["b"]])
        >>> [[levels[0] + " " + batch for ((levels, batch),) in round_] for round_ in steps]
        [['species a'], ['species b', 'genus a'], ['genus b']]
    """
    if objective == "joint":
        for group in groups:
            yield [[((level,), batch) for batch in group for level in levels]]
    elif objective == "any_resolution":
        for group in groups:
            yield [[(tuple(levels), batch) for batch in group]]
    else:
        recent: deque[list[Batch] | None] = deque(maxlen=len(levels))
        round_ = first_group(objective, levels, first_round)
        for newest in itertools.chain(groups, [None] * (len(levels) - 1)):
            recent.appendleft(newest)
            if round_ >= first_round:
                pairs = zip(levels, recent, strict=False)
                yield [[((level,), batch) for batch in waiting] for level, waiting in pairs if waiting is not None]
            round_ += 1


def in_groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield groups of `size` batches; fewer than `size` at the end are left out, unless there is no other group.

    Examples:
        >>> list(in_groups("abcde", 2)), list(in_groups("a", 2))
        ([['a', 'b'], ['c', 'd']], [['a']])
    """
    batches, first = iter(batches), True
    while group := list(itertools.islice(batches, size)):
        if len(group) == size or first:
            yield group
        first = False
