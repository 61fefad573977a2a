"""A classifier of the leaf classes, marginalized to the other levels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from c2f_zoo.heads.base import Head
from c2f_zoo.heads.grouped import grouped_logsumexp
from c2f_zoo.heads.registry import depth_of, register_head
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.ops import at_least_float32


@register_head("marginal")
class MarginalHead(Head):
    """A softmax over the leaf classes, marginalized to coarser levels.

    A coarse logit is the log-sum-exp of its leaves' logits, so that a coarse probability is the sum over its leaves.
    The classifier has all leaf classes of the tree, even if the head predicts only coarser levels.

    Args:
        in_features: length of the pooled vector.
        hierarchy: the class tree.
        levels: the levels to predict, coarse to fine.
    """

    description = "One classifier of the leaf classes; a coarse class has the sum over its leaves"
    levels_are_marginals = True

    def __init__(self, in_features: int, hierarchy: Hierarchy, levels: Sequence[str]) -> None:
        super().__init__(levels)
        self.finest = hierarchy.finest
        self.num_classes = hierarchy.num_classes
        self.classifier = nn.Linear(in_features, self.num_classes[self.finest])
        for number, level in enumerate(self.levels):  # a buffer's name must not contain a dot, a level's may
            self.register_buffer(f"ancestors_{number}", hierarchy.ancestor_index(level).clone(), persistent=False)

    def get_classifier(self, level: str) -> nn.Linear:
        """Return the linear layer of the leaf level, the only one.

        Raises:
            ValueError: the level is not the leaf level.
        """
        if level == self.finest:
            return self.classifier
        depth_of(level, (*self.levels, self.finest))
        raise ValueError(f"a marginal head has a classifier of level {self.finest!r} only, not of {level!r}")

    def forward(self, v: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        """Compute logits (N, classes), float32 or wider, from vectors (N, in_features)."""
        z = at_least_float32(self.classifier(v))
        return {level: self._sum(z, level) for level in levels}

    def _sum(self, z: Tensor, level: str) -> Tensor:
        if level == self.finest:
            return z
        ancestors = getattr(self, f"ancestors_{depth_of(level, self.levels)}")
        return grouped_logsumexp(z, ancestors, self.num_classes[level])
