"""Conditional probabilities given the parent, multiplied along the path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from c2f_zoo.heads.base import Head
from c2f_zoo.heads.grouped import grouped_logsumexp
from c2f_zoo.heads.levels import LevelsHead
from c2f_zoo.heads.registry import register_head
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.ops import at_least_float32
from c2f_zoo.registry import check_names


@register_head("conditional")
class ConditionalHead(Head):
    """A softmax among siblings: `P(class) = P(parent) P(class | parent)`.

    This is the WordTree of YOLO9000 ("Hierarchical classification"). Each level of the tree down to the finest
    predicted level has a linear layer, including levels that are not predicted.

    Args:
        in_features: length of the pooled vector.
        hierarchy: the class tree.
        levels: the levels to predict, coarse to fine.
    """

    description = "P(class) = P(parent) P(class | parent): a softmax among siblings"
    source = "Redmon & Farhadi, CVPR 2017"
    levels_are_marginals = True

    def __init__(self, in_features: int, hierarchy: Hierarchy, levels: Sequence[str]) -> None:
        super().__init__(levels)
        depth = max(hierarchy.levels.index(level) for level in levels)
        self.scores = LevelsHead(in_features, hierarchy, hierarchy.levels[: depth + 1])
        for below, level in enumerate(hierarchy.levels[1 : depth + 1], start=1):
            self.register_buffer(f"parents_{below}", hierarchy.parent_index(level).clone(), persistent=False)

    def get_classifier(self, level: str) -> nn.Linear:
        """Return the linear layer of one level; only siblings' scores are comparable."""
        return self.scores.get_classifier(level)

    def forward(self, v: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        """Compute log-probabilities (N, classes) of vectors (N, in_features).

        The result is float32 or wider.
        """
        check_names("level", levels, self.levels)
        down_to = max((self.scores.levels.index(level) for level in levels), default=-1)
        found: dict[str, Tensor] = {}
        for depth, (level, score) in enumerate(self.scores(v, self.scores.levels[: down_to + 1]).items()):
            z = at_least_float32(score)
            if depth == 0:
                log_prob = z.log_softmax(dim=1)
            else:
                parents = getattr(self, f"parents_{depth}")
                given_parent = z - grouped_logsumexp(z, parents, log_prob.shape[1]).index_select(1, parents)
                log_prob = log_prob.index_select(1, parents) + given_parent
            found[level] = log_prob
        return {level: found[level] for level in levels}

    def log_probs(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits, which are log-probabilities."""
        return {level: at_least_float32(z) for level, z in logits.items()}
