"""Orders of the training images in an epoch."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def balanced_order(labels: Tensor, generator: Generator) -> Tensor:
    """Draw an epoch in which each leaf class is equally frequent.

    The numbers of images of two classes differ by at most one, and those of two images of a class too: images of large
    classes are left out, images of small classes repeated. Images of unknown leaf class are as frequent as in the data,
    because they may belong to any class.

    Args:
        labels: leaf labels (n,) of the images; -1 for unknown.
        generator: the random numbers.

    Returns:
        Positions (n,) in `labels`, in random order.

    Examples:
        >>> labels = torch.tensor([0, 0, 0, 0, 0, 1])
        >>> order = balanced_order(labels, torch.Generator().manual_seed(0))
        >>> labels[order].sort().values
        tensor([0, 0, 0, 1, 1, 1])
    """
    classes = labels[labels >= 0].unique()
    if len(classes) == 0:
        return torch.randperm(len(labels), generator=generator)
    unknown = (labels < 0).nonzero()[:, 0]
    each, rest = divmod(len(labels) - len(unknown), len(classes))
    takes_one_more = torch.randperm(len(classes), generator=generator) < rest
    chosen = [unknown]
    for name, one_more in zip(classes, takes_one_more.tolist(), strict=True):
        members = (labels == name).nonzero()[:, 0]
        rounds = -(-(each + one_more) // len(members))
        orders = [torch.randperm(len(members), generator=generator) for _ in range(rounds)]
        chosen += [members[torch.cat(orders)[: each + one_more]]] if rounds else []
    order = torch.cat(chosen)
    return order[torch.randperm(len(order), generator=generator)]
