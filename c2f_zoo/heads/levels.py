"""One independent linear classifier per level: the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from c2f_zoo.heads.registry import depth_of, register_head
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.ops import at_least_float32


@register_head("levels")
class LevelsHead(nn.Module):
    """One linear classifier per level, independent of each other (Huo et al., SIGIR 2019: the matrices P).

    Args:
        in_features: length of the pooled vector.
        hierarchy: the class tree.
        levels: the levels to answer, coarse to fine.
    """

    levels_are_marginals = False

    def __init__(self, in_features: int, hierarchy: Hierarchy, levels: Sequence[str]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        # A list, not a ModuleDict: a level may be called "a.b" or "items", which a ModuleDict refuses.
        self.classifiers = nn.ModuleList(nn.Linear(in_features, len(hierarchy.class_names(level))) for level in levels)

    def get_classifier(self, level: str) -> nn.Linear:
        """The linear layer of one level."""
        return self.classifiers[depth_of(level, self.levels)]  # type: ignore[return-value]

    def forward(self, v: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        """Maps vectors (N, in_features) to logits (N, classes) for each of `levels`."""
        return {level: self.get_classifier(level)(v) for level in levels}

    def log_probs(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Maps logits (N, classes) to log-probabilities, each level's by itself: levels may contradict each other."""
        return log_softmax(logits)


def log_softmax(logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each level's logits (N, classes) to log-probabilities, float32 at least."""
    return {level: at_least_float32(z).log_softmax(dim=1) for level, z in logits.items()}
