"""Sums over the classes under one class, in the log domain."""

from __future__ import annotations

import torch
from torch import Tensor


def grouped_logsumexp(z: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Log-sum-exp over the columns of each group, without a loop over groups.

    Args:
        z: (N, C), finite.
        groups: the group of each column, int64 (C,), values in `[0, num_groups)`; no group is empty.
        num_groups: how many groups there are.

    Returns:
        (N, num_groups), in the dtype of `z`.

    Examples:
        >>> z = torch.tensor([[0.1, 0.2, 0.7]]).log()
        >>> grouped_logsumexp(z, torch.tensor([0, 0, 1]), 2).exp()
        tensor([[0.3000, 0.7000]])
    """
    # The result does not depend on what is taken out of the exponent, so that no gradient need flow through it.
    start = z.new_full((len(z), num_groups), -torch.inf)
    largest = start.scatter_reduce(1, groups.expand_as(z), z.detach(), "amax")
    sums = torch.zeros_like(start).index_add(1, groups, (z - largest[:, groups]).exp())
    return sums.log() + largest
