"""Fusion of the predictions of several images of one object."""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDING = 1e-9  # a smaller difference of a sum of probabilities from 1 is rounding
_LOWEST = -1e100  # in place of the logarithm of 0: its means are finite


def fuse(log_probs: Tensor) -> Tensor:
    """Return the mean of log-probabilities over images, normalized again.

    It is the product of experts (Hinton, 2002), with a weight of 1/N each: more images of the same kind do not make a
    prediction surer. What a level's probabilities lack to 1 (the head `hex`, where an image may stop at a class) is
    averaged as if it were another class.

    Args:
        log_probs: log-probabilities float64 (N, classes) of one level.

    Returns:
        float64 (1, classes).

    Examples:
        >>> fuse(torch.tensor([[0.5, 0.5], [0.2, 0.8]]).double().log()).exp()  # in proportion to sqrt(0.1), sqrt(0.4)
        tensor([[0.3333, 0.6667]], dtype=torch.float64)
    """
    rest = 1 - log_probs.exp().sum(dim=1, keepdim=True)
    rest = torch.where(rest > _ROUNDING, rest, 0.0)
    means = torch.cat([log_probs, rest.log()], dim=1).clamp(min=_LOWEST).mean(dim=0, keepdim=True)
    return means.log_softmax(dim=1)[:, :-1]
