"""Sums over groups of entries."""

from __future__ import annotations

from torch import Tensor

from c2f_zoo.ops.precision import is_exporting


def sum_groups(x: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Return the sums over the entries of each group along dimension 1.

    Args:
        x: (N, C, ...).
        groups: the group of each of the C entries, int64 (C,), in `[0, num_groups)`; a group may be empty.
        num_groups: number of groups.

    Returns:
        (N, num_groups, ...), in the dtype of `x`.

    Examples:
        >>> sum_groups(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([0, 0, 2]), 3)
        tensor([[3., 0., 4.]])
    """
    sums = x.new_zeros(x.shape[0], num_groups, *x.shape[2:])
    if is_exporting():  # ONNX has no index_add with repeated indices
        return sums.scatter_add(1, groups.view(-1, *[1] * (x.ndim - 2)).expand_as(x), x)
    return sums.index_add(1, groups, x)
