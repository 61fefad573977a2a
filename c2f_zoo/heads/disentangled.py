"""A feature for each level, of which the finer ones help the coarser classifiers."""

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
    """A feature for each level; a classifier reads its own and, without gradient, the finer ones (Chang et al., 2021).

    The FGN of "Your 'Flamingo' is My 'Bird'" (CVPR 2021): what tells species apart helps to tell families apart, but
    learning families harms what tells species apart. So the loss of a coarse level does not reach the finer features,
    although its classifier reads them. A feature is a linear projection of the vector, layer norm and ELU, over
    sqrt(dim). Layer norm because the batches of different levels differ in resolution, and so in the statistics of a
    batch norm; a length of about 1, as the poolings' vectors have, so that the other heads' learning rates fit.

    Args:
        in_features: length of the pooled vector.
        hierarchy: the class tree.
        levels: the levels to answer, coarse to fine; each has a feature, a level that is not answered has none.
        dim: width of a level's feature, >= 1. The default is ours.

    Raises:
        ValueError: `dim` is below 1.
    """

    description = "A feature per level; a coarse classifier reads the finer features without their gradient"
    source = "Chang et al., CVPR 2021"

    def __init__(self, in_features: int, hierarchy: Hierarchy, levels: Sequence[str], dim: int = 256) -> None:
        if dim < 1:
            raise ValueError(f"a level's feature has dim=1 or more numbers, not {dim}")
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
        """The linear layer of one level, which reads its own feature and then the finer levels', coarse to fine."""
        return cast(nn.Linear, self.classifiers[depth_of(level, self.levels)])

    def forward(self, v: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        """Maps vectors (N, in_features) to logits (N, classes) for each of `levels`."""
        depths = {level: depth_of(level, self.levels) for level in levels}
        coarsest = min([*depths.values(), len(self.levels)])
        features = [None] * coarsest + [feature(v) / self.dim**0.5 for feature in self.features[coarsest:]]
        logits = {}
        for level, depth in depths.items():
            finer = [feature.detach() for feature in features[depth + 1 :]]
            logits[level] = self.classifiers[depth](torch.cat([features[depth], *finer], dim=1))
        return logits
