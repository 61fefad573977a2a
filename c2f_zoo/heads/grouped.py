"""Sums over groups of classes, in the log domain."""

from __future__ import annotations

import torch
from torch import Tensor

from c2f_zoo.ops import sum_groups


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
    start = z.new_full((z.shape[0], num_groups), -torch.inf)
    # In ONNX, scatter_reduce loses the number of dimensions; view restores it.
    largest = start.scatter_reduce(1, groups.expand_as(z), z.detach(), "amax").view(-1, num_groups)
    sums = sum_groups((z - largest.index_select(1, groups)).exp(), groups, num_groups)
    return sums.log() + largest
