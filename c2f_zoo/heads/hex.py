"""A distribution over paths of the tree that may stop at any class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2f_zoo.heads.base import Head
from c2f_zoo.heads.grouped import grouped_logsumexp
from c2f_zoo.heads.levels import LevelsHead
from c2f_zoo.heads.registry import register_head
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.ops import at_least_float32
from c2f_zoo.registry import check_names


@register_head("hex")
class HexHead(Head):
    """A head with a distribution over all paths from the top to any class.

    The hierarchy-and-exclusion (HEX) graph of a tree: a class implies its parent, and siblings exclude each other. A
    consistent state is a path from the top to any class, or the empty state: an image may show only a genus, or none of
    the classes. The probability of a state is proportional to the exponential of the sum of its classes' scores (0 for
    the empty state); that of a class is the sum over all states that contain it. One pass up the tree and one down
    compute both sums exactly.

    The probabilities of the leaf classes therefore sum to less than 1, and a class is more probable than its children
    together; `stop_log_probs` returns the differences.

    Args:
        in_features: length of the pooled vector.
        hierarchy: the class tree; every class has a score, also on levels that are not predicted.
        levels: the levels to predict, coarse to fine.
    """

    description = "A score per class; a distribution over all paths, which may stop at any class"
    source = "Deng et al., ECCV 2014"
    levels_are_marginals = True

    def __init__(self, in_features: int, hierarchy: Hierarchy, levels: Sequence[str]) -> None:
        super().__init__(levels)
        self.scores = LevelsHead(in_features, hierarchy, hierarchy.levels)
        for depth, level in enumerate(hierarchy.levels[1:], start=1):
            self.register_buffer(f"parents_{depth}", hierarchy.parent_index(level).clone(), persistent=False)

    def get_classifier(self, level: str) -> nn.Linear:
        """Return the linear layer that scores the classes of one level."""
        return self.scores.get_classifier(level)

    def forward(self, v: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        """Compute log-probabilities (N, classes) of vectors (N, in_features).

        The result is float32 or wider.
        """
        check_names("level", levels, self.levels)
        holds, _ = self._log_marginals(v)
        return {level: holds[self.scores.levels.index(level)] for level in levels}

    def log_probs(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits, which are log-probabilities of a sum below 1."""
        return {level: at_least_float32(z) for level, z in logits.items()}

    def stop_log_probs(self, v: Tensor) -> dict[str, Tensor]:
        """Return the log-probabilities that an image's path stops at each class.

        Args:
            v: vectors (N, in_features).

        Returns:
            (N, classes), float32 or wider, for every level of the tree. All probabilities together sum to 1 minus that
            of the empty state.

        Examples:
            >>> head = HexHead(16, load_hierarchy("cub"), ["species"])
            >>> stops = head.stop_log_probs(torch.rand(2, 16))
            >>> bool((torch.cat(list(stops.values()), dim=1).exp().sum(dim=1) < 1).all())
            True
        """
        holds, goes_on = self._log_marginals(v)
        return {level: p - z for level, p, z in zip(self.scores.levels, holds, goes_on, strict=True)}

    def _log_marginals(self, v: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return log-probabilities of all classes, and log-sums over continuations.

        Both are lists of (N, classes), coarse to fine. The second is the log of the sum over all ways to continue from
        a class; stopping there counts as 1.
        """
        scores = [at_least_float32(z) for z in self.scores(v, self.scores.levels).values()]
        goes_on = [torch.zeros_like(scores[-1])]
        into = [scores[-1]]  # log-sum over the ways to enter a class and continue
        for depth in range(len(scores) - 1, 0, -1):
            below = grouped_logsumexp(into[0], getattr(self, f"parents_{depth}"), scores[depth - 1].shape[1])
            goes_on.insert(0, _log_1_plus_exp(below))
            into.insert(0, scores[depth - 1] + goes_on[0])
        top = into[0].logsumexp(dim=1, keepdim=True)
        holds = [into[0] - _log_1_plus_exp(top)]
        for depth in range(1, len(scores)):
            parents = getattr(self, f"parents_{depth}")
            from_parent = goes_on[depth - 1].index_select(1, parents)
            holds.append(holds[-1].index_select(1, parents) + (into[depth] - from_parent))
        return holds, goes_on


def _log_1_plus_exp(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=40)  # beyond it, 1 is below the rounding error of float64
