"""The paper's head: one independent linear classifier per level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from c2f_zoo.heads.base import Head
from c2f_zoo.heads.registry import depth_of, register_head
from c2f_zoo.hierarchy import Hierarchy


@register_head("levels")
class LevelsHead(Head):
    """One independent linear classifier per level, the paper's matrices P.

    Args:
        in_features: length of the pooled vector.
        hierarchy: the class tree.
        levels: the levels to predict, coarse to fine.
    """

    description = "An independent linear classifier per level"
    source = "Huo et al., SIGIR 2019"

    def __init__(self, in_features: int, hierarchy: Hierarchy, levels: Sequence[str]) -> None:
        super().__init__(levels)
        # Not a ModuleDict, which does not allow levels named "a.b" or "items".
        self.classifiers = nn.ModuleList(nn.Linear(in_features, len(hierarchy.class_names(level))) for level in levels)

    def get_classifier(self, level: str) -> nn.Linear:
        """Return the linear layer of one level."""
        return cast(nn.Linear, self.classifiers[depth_of(level, self.levels)])

    def forward(self, v: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        """Compute logits (N, classes) of each of `levels` from vectors (N, in_features)."""
        return {level: self.get_classifier(level)(v) for level in levels}
