"""Losses of one level, their registry, and a prior on a classifier's weights.

A loss is a function `(log_probs, labels, tree, **options) -> scalar` of the log-probabilities and labels of one level
and of `hierarchy.truncate(level)`. The mean ignores unknown labels, -1. Losses do not normalize: probabilities that sum
to less than 1, as with the head `hex`, are used unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.registry import Registry

LOSSES: Registry[Callable[..., Tensor]] = Registry("loss", "c2f_zoo.losses")
register_loss = LOSSES.register


def list_losses(pattern: str = "*") -> list[str]:
    """List the names of the registered losses, filtered by a wildcard.

    Examples:
        >>> list_losses()
        ['cross_entropy', 'hxe', 'soft_labels']
    """
    return LOSSES.names(pattern)


@register_loss("cross_entropy")
def cross_entropy(log_probs: Tensor, labels: Tensor, tree: Hierarchy, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean of `-log p(label)`, with optional label smoothing.

    Label smoothing follows Szegedy et al. (CVPR 2016).

    Args:
        log_probs: log-probabilities (N, C) of the tree's leaf level.
        labels: integer tensor (N,), values in `[0, C)`, or -1 for unknown.
        tree: the class tree down to the level of the labels.
        label_smoothing: fraction of the target spread evenly over all classes, in [0, 1].

    Returns:
        A scalar; 0 with zero gradient if no label is known.

    Raises:
        ValueError: a label or the number of classes does not match the tree, or `label_smoothing` is outside [0, 1].

    Examples:
        >>> tree = load_hierarchy("fashion_mnist").truncate("division")
        >>> cross_entropy(torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log(), torch.tensor([1, -1]), tree)
        tensor(0.2877)
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], not {label_smoothing}")
    log_probs, labels = _known(log_probs, labels, tree)
    if len(labels) == 0:
        return log_probs.sum()
    loss = F.nll_loss(log_probs, labels)
    return loss if label_smoothing == 0 else (1 - label_smoothing) * loss - label_smoothing * log_probs.mean()


@register_loss("soft_labels")
def soft_labels(log_probs: Tensor, labels: Tensor, tree: Hierarchy, beta: float = 10.0) -> Tensor:
    """Return the cross-entropy with soft labels by distance in the tree.

    These are the soft labels of Bertinetto et al. (CVPR 2020). The target of a class is proportional to
    `exp(-beta d(class, label))`, where d is the height of their lowest common ancestor (`Hierarchy.lca_height`) over
    the number of levels. A large `beta` gives cross-entropy; 0 gives the uniform target. The paper uses 4 to 30.

    Args:
        log_probs: log-probabilities (N, C) of the tree's leaf level.
        labels: integer tensor (N,), values in `[0, C)`, or -1 for unknown.
        tree: the class tree down to the level of the labels.
        beta: sharpness of the target, >= 0.

    Returns:
        A scalar; 0 with zero gradient if no label is known.

    Raises:
        ValueError: a label or the number of classes does not match the tree, or `beta` is negative.

    Examples:
        >>> tree = load_hierarchy("fashion_mnist")
        >>> soft_labels(torch.full((1, 10), 0.1).log(), torch.tensor([3]), tree, beta=4.0)
        tensor(2.3026)
    """
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta must be a finite number >= 0, not {beta}")
    log_probs, labels = _known(log_probs, labels, tree)
    if len(labels) == 0:
        return log_probs.sum()
    distances = _lca_heights(labels, tree).to(log_probs.dtype) / len(tree.levels)
    targets = (-beta * distances).softmax(dim=1)
    return -(targets * log_probs).sum(dim=1).mean()


@register_loss("hxe")
def hxe(log_probs: Tensor, labels: Tensor, tree: Hierarchy, alpha: float = 0.1) -> Tensor:
    """Return the hierarchical cross-entropy of Bertinetto et al. (CVPR 2020).

    `-log p(label)` is the sum of `-log p(class | parent)` over the label's path. This loss weights each term by
    `exp(-alpha h)`, where h is 1 for the coarsest level, 2 for the next, and so on: a large `alpha` emphasizes mistakes
    at coarse levels, 0 gives cross-entropy. The paper uses 0.1 to 0.6. The conditional probabilities are ratios of sums
    over leaf classes; those of the coarsest level are not divided by their sum.

    Args:
        log_probs: log-probabilities (N, C) of the tree's leaf level.
        labels: integer tensor (N,), values in `[0, C)`, or -1 for unknown.
        tree: the class tree down to the level of the labels.
        alpha: decrease of the weights from level to level, >= 0.

    Returns:
        A scalar; 0 with zero gradient if no label is known.

    Raises:
        ValueError: a label or the number of classes does not match the tree, or `alpha` is negative.

    Examples:
        >>> log_probs = torch.full((1, 10), 0.1).log()  # 0.6 for clothes, 0.3 for tops, 0.1 for T-shirts
        >>> hxe(log_probs, torch.tensor([0]), load_hierarchy("fashion_mnist"), alpha=0.5)
        tensor(0.8100)
    """
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be a finite number >= 0, not {alpha}")
    log_probs, labels = _known(log_probs, labels, tree)
    if len(labels) == 0:
        return log_probs.sum()
    heights = _lca_heights(labels, tree)
    loss = log_probs.new_zeros(len(labels))
    above = log_probs.new_zeros(len(labels))  # log 1, of the root
    for depth in range(1, len(tree.levels) + 1):
        is_elsewhere = heights > len(tree.levels) - depth
        here = log_probs.masked_fill(is_elsewhere, -torch.inf).logsumexp(dim=1)
        loss = loss - math.exp(-alpha * depth) * (here - above)
        above = here
    return loss.mean()


def tree_prior(weight: Tensor, tree: Hierarchy) -> Tensor:
    """Return the negative log-prior of a classifier's weights, given the tree.

    In this prior (Srivastava & Salakhutdinov, NIPS 2013) each class of the tree has a vector with a Gaussian prior of
    variance 1 around its parent's vector, and around 0 at the coarsest level. The vectors of the leaf classes are the
    classifier's weights; the others minimize `1/2 sum |w(class) - w(parent)|^2`, the value of the loss. The minimum is
    exact, and the vectors are not stored: from the leaf level upwards, the cost of a subtree is
    `1/2 precision |mean - w(root)|^2` plus a constant.

    With this prior, classes with few images borrow from their siblings. For a tree of one level it is `1/2 |weight|^2`.

    Args:
        weight: weights (C, D) of a linear classifier of the tree's leaf level.
        tree: the class tree down to that level.

    Returns:
        A scalar >= 0.

    Raises:
        ValueError: the number of rows differs from the number of classes.

    Examples:
        >>> tree = Hierarchy.from_rows(("kind", "shape"), [("round", "disc"), ("round", "ring")])
        >>> tree_prior(torch.tensor([[3.0], [3.0]]), tree)  # with w(round) = 2: (1 + 1 + 4) / 2
        tensor(3.)
    """
    if len(weight) != len(tree.classes[-1]):
        raise ValueError(f"{len(weight)} rows of weights for {len(tree.classes[-1])} {tree.finest} classes")
    mean, precision, cost = weight, weight.new_ones(len(weight)), weight.new_zeros(())
    for level, above_names in zip(reversed(tree.levels[1:]), reversed(tree.classes[:-1]), strict=True):
        parents, count = tree.parent_index(level, weight.device), len(above_names)
        total = weight.new_zeros(count).index_add(0, parents, precision)
        sums = weight.new_zeros(count, weight.shape[1]).index_add(0, parents, precision[:, None] * mean)
        above = sums / total[:, None]
        cost = cost + _cost(precision, mean - above[parents])
        mean, precision = above, total / (total + 1)
    return cost + _cost(precision, mean)


def _cost(precision: Tensor, offset: Tensor) -> Tensor:
    return (precision * offset.square().sum(dim=1)).sum() / 2


def _lca_heights(labels: Tensor, tree: Hierarchy) -> Tensor:
    """Return the LCA heights of each label and each class, int64 (N, C)."""
    return tree.lca_height(labels[:, None], torch.arange(len(tree.classes[-1]), device=labels.device))


def _known(log_probs: Tensor, labels: Tensor, tree: Hierarchy) -> tuple[Tensor, Tensor]:
    """Check shapes and labels; return the rows with known labels, and these labels."""
    count = len(tree.classes[-1])
    if log_probs.shape != (len(labels), count):
        raise ValueError(
            f"log-probabilities of shape {tuple(log_probs.shape)} do not match {len(labels)} labels of the tree's "
            f"{count} {tree.finest} classes; truncate the tree to the level of the labels"
        )
    labels = labels.long()  # in uint8, -1 is 255
    outside = (labels < -1) | (labels >= count)
    if outside.any():
        bad = labels[outside][0].item()
        known_labels = f"{count} classes (0..{count - 1}; -1: unknown)"
        raise ValueError(f"label {bad} is outside the tree: {tree.finest} has {known_labels}")
    known = labels >= 0
    return log_probs[known], labels[known]
