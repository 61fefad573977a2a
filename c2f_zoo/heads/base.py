"""The base class of heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from c2f_zoo.ops import at_least_float32


class Head(nn.Module):
    """A module from the pooled vector to logits for each level.

    A subclass computes the logits in `forward(v, levels)` and names itself in two class attributes.

    Args:
        levels: the levels that the head predicts, coarse to fine.

    Attributes:
        description: one line for tables: how the head models the levels.
        source: the publication it comes from; empty if there is none.
        levels_are_marginals: whether the levels are marginals of one distribution over the tree, so that a class is
            at least as probable as its children together. Otherwise the levels may contradict each other.
    """

    description: ClassVar[str] = ""
    source: ClassVar[str] = ""
    levels_are_marginals: ClassVar[bool] = False

    def __init__(self, levels: Sequence[str]) -> None:
        super().__init__()
        self.levels: tuple[str, ...] = tuple(levels)

    def forward(self, v: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        """Map vectors (N, in_features) to logits (N, classes) for each of `levels`.

        Raises:
            ValueError: the head does not predict one of the levels.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward(v, levels)")

    def log_probs(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map logits (N, classes) to log-probabilities: here a log-softmax of each level.

        The result is float32 or wider. The logits of a subset of the levels are enough, and different levels may come
        from different images.
        """
        return {level: at_least_float32(z).log_softmax(dim=1) for level, z in logits.items()}

    def get_classifier(self, level: str) -> nn.Linear:
        """Return the linear layer that scores the classes of one level.

        Raises:
            ValueError: the head does not predict the level, or has no linear layer for it.
        """
        raise ValueError(f"{type(self).__name__} has no classifier of level {level!r}")
