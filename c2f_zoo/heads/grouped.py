"""Sums over groups of classes, in the log domain."""

from __future__ import annotations

import torch
from torch import Tensor


def grouped_logsumexp(z: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Return the log-sum-exp over the columns of each group.

    Args:
        z: (N, C), finite.
        groups: the group of each column, int64 (C,), in `[0, num_groups)`; no group is empty.
        num_groups: number of groups.

    Returns:
        (N, num_groups), in the dtype of `z`.

    Examples:
        >>> z = torch.tensor([[0.1, 0.2, 0.7]]).log()
        >>> grouped_logsumexp(z, torch.tensor([0, 0, 1]), 2).exp()
        tensor([[0.3000, 0.7000]])
    """
    # The result does not depend on the subtracted maximum, so that it needs no gradient.
    start = z.new_full((len(z), num_groups), -torch.inf)
    largest = start.scatter_reduce(1, groups.expand_as(z), z.detach(), "amax")
    sums = torch.zeros_like(start).index_add(1, groups, (z - largest[:, groups]).exp())
    return sums.log() + largest
