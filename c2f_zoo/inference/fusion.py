"""Fusion of the predictions of several images of one object."""

from __future__ import annotations

import numpy as np

from c2f_zoo.inference.nodes import LOWEST

_ROUNDING = 1e-9  # a smaller difference of a sum of probabilities from 1 is rounding


def fuse(log_probs: np.ndarray) -> np.ndarray:
    """Return the mean of log-probabilities over images, normalized again.

    It is the product of experts (Hinton, 2002), with a weight of 1/N each: more images of the same kind do not make a
    prediction surer. What a level's probabilities lack to 1 (the head `hex`, where an image may stop at a class) is
    averaged as if it were another class.

    Args:
        log_probs: log-probabilities float64 (N, classes) of one level.

    Returns:
        float64 (1, classes).

    Examples:
        >>> np.exp(fuse(np.log([[0.5, 0.5], [0.2, 0.8]]))).round(4)  # in proportion to sqrt(0.1), sqrt(0.4)
        array([[0.3333, 0.6667]])
    """
    rest = 1 - np.exp(log_probs).sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        of_rest = np.log(np.where(rest > _ROUNDING, rest, 0.0))
    means = np.maximum(np.append(log_probs, of_rest, axis=1), LOWEST).mean(axis=0, keepdims=True)
    means -= means.max()
    return np.asarray(means - np.log(np.exp(means).sum()))[:, :-1]
