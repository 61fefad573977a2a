"""The base class of heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from c2f_zoo.ops import at_least_float32


class Head(nn.Module):
    """Base class of heads: modules that compute logits of each level from a vector.

    A subclass defines `forward(v, levels)` and the class attributes `description` and `source`.

    Args:
        levels: the levels that the head predicts, coarse to fine.

    Attributes:
        description: the model of the levels in one line, for tables.
        source: the publication; empty if there is none.
        levels_are_marginals: whether the levels are marginals of one distribution over the tree, so that a class is
            at least as probable as its children together. Otherwise the levels may be inconsistent.
    """

    description: ClassVar[str] = ""
    source: ClassVar[str] = ""
    levels_are_marginals: ClassVar[bool] = False

    def __init__(self, levels: Sequence[str]) -> None:
        super().__init__()
        self.levels: tuple[str, ...] = tuple(levels)

    def forward(self, v: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        """Compute logits (N, classes) of each of `levels` from vectors (N, in_features).

        Raises:
            ValueError: the head does not predict one of the levels.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward(v, levels)")

    def log_probs(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert logits (N, classes) to log-probabilities; default: log-softmax.

        The result is float32 or wider. The logits may be those of some levels only, each from other images.
        """
        return {level: at_least_float32(z).log_softmax(dim=1) for level, z in logits.items()}

    def get_classifier(self, level: str) -> nn.Linear:
        """Return the linear layer that scores the classes of one level.

        Raises:
            ValueError: the level is not predicted, or the head has no linear layer for it.
        """
        raise ValueError(f"{type(self).__name__} has no classifier of level {level!r}")
