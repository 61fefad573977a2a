"""A head with a feature per level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from c2f_zoo.heads.base import Head
from c2f_zoo.heads.registry import depth_of, register_head
from c2f_zoo.hierarchy import Hierarchy


@register_head("disentangled")
class DisentangledHead(Head):
    """A feature per level; each classifier reads its own and all finer features.

    The FGN of "Your 'Flamingo' is My 'Bird'" (Chang et al., CVPR 2021): features of species help to classify families,
    but training on families harms the features of species. Therefore finer features are detached. A feature is a linear
    projection of the vector with layer norm and ELU, divided by sqrt(dim). Layer norm replaces batch norm because the
    statistics of batches differ with the levels' resolutions. Like the poolings' vectors, a feature has a length of
    about 1, so that the learning rates of other heads are suitable.

    Args:
        in_features: length of the pooled vector.
        hierarchy: the class tree.
        levels: the levels to predict, coarse to fine; each has a feature.
        dim: width of a level's feature, >= 1.

    Raises:
        ValueError: `dim` is below 1.
    """

    description = "A feature per level; a coarse classifier reads the finer features without their gradient"
    source = "Chang et al., CVPR 2021"

    def __init__(self, in_features: int, hierarchy: Hierarchy, levels: Sequence[str], dim: int = 256) -> None:
        if dim < 1:
            raise ValueError(f"disentangled requires dim >= 1, not {dim}")
        super().__init__(sorted(levels, key=hierarchy.levels.index))
        self.dim = dim
        self.features = nn.ModuleList(
            nn.Sequential(nn.Linear(in_features, dim), nn.LayerNorm(dim), nn.ELU()) for _ in self.levels
        )
        self.classifiers = nn.ModuleList(
            nn.Linear(dim * (len(self.levels) - depth), len(hierarchy.class_names(level)))
            for depth, level in enumerate(self.levels)
        )

    def get_classifier(self, level: str) -> nn.Linear:
        """Return the linear layer of one level, for its own and then finer features."""
        return cast(nn.Linear, self.classifiers[depth_of(level, self.levels)])

    def forward(self, v: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        """Compute logits (N, classes) of each of `levels` from vectors (N, in_features)."""
        depths = {level: depth_of(level, self.levels) for level in levels}
        coarsest = min([*depths.values(), len(self.levels)])
        features = [None] * coarsest + [feature(v) / self.dim**0.5 for feature in self.features[coarsest:]]
        logits = {}
        for level, depth in depths.items():
            finer = [feature.detach() for feature in features[depth + 1 :]]
            logits[level] = self.classifiers[depth](torch.cat([features[depth], *finer], dim=1))
        return logits
