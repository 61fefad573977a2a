"""check_pooling and check_head: each check fails for its kind of mistake, and names it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from c2f_zoo import Head, Pooling
from c2f_zoo.heads.levels import LevelsHead
from c2f_zoo.ops import at_least_float32
from c2f_zoo.pooling.checks import check_channels
from c2f_zoo.testing import check_head, check_pooling


class Mean(Pooling):
    """A correct pooling; the broken ones override one method."""

    description = "The mean of each channel, times a weight"
    one_size = False

    def __init__(self, in_channels: Sequence[int], scale: float = 1.0) -> None:
        super().__init__(in_channels, out_features=sum(in_channels))
        self.weight = nn.Parameter(torch.rand(1, self.out_features) + scale)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        check_channels(maps, self.in_channels)
        means = torch.cat([at_least_float32(x).mean(dim=(2, 3)) for x in maps], dim=1)
        return (means * self.weight).to(maps[0].dtype)


def mean(pooling: Any, maps: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.mean(dim=(2, 3)) for x in maps], dim=1) * pooling.weight


@pytest.mark.slow
def test_a_correct_pooling_passes() -> None:
    check_pooling(Mean, [3, 2], mean, scale=2.0)
    check_pooling("avg", [3])


class Nameless(Mean):
    description = ""


class Longer(Mean):
    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__(in_channels)
        self.out_features += 1


class Doubled(Mean):
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return 2 * super().forward(maps)


class Root(Mean):
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return super().forward(maps).abs().sqrt()


class HalfMean(Mean):
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        check_channels(maps, self.in_channels)
        return torch.cat([x.sum(dim=(2, 3)) / (x.shape[2] * x.shape[3]) for x in maps], dim=1) * self.weight


class Float32(Mean):
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        out = super().forward(maps)
        return out if out.dtype == torch.float64 else out.float()


class Frozen(Mean):
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return super().forward([x.detach() for x in maps])


class Contiguous(Mean):
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return super().forward([x.view(x.shape) if x.is_contiguous() else 0 * x for x in maps])


class Forgetful(Mean):
    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__(in_channels)
        self.offset = float(torch.rand(1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return super().forward(maps) + self.offset


class Seeding(Mean):
    def __init__(self, in_channels: Sequence[int]) -> None:
        torch.manual_seed(0)
        super().__init__(in_channels)


class Noisy(Mean):
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        torch.rand(1)
        return super().forward(maps)


class Careless(Mean):
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        maps = [x[:, :c] for x, c in zip(maps, self.in_channels, strict=True)]
        return super().forward(maps)


class OneSize(Mean):
    one_size = True


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        (nn.Identity, "attributes: it is a Identity, not a subclass of c2f_zoo.Pooling"),
        (Nameless, "attributes: the attribute description is empty"),
        (Longer, r"values: maps of (5, 3) give a vector of (2, 5), not (2, 6)"),
        (Doubled, "values: Tensor-likes are not close"),
        (Root, "values: Tensor-likes are not close"),
        (HalfMean, "hard inputs: "),
        (Float32, "hard inputs: zeros in torch.bfloat16, train: the vector is torch.float32"),
        (Frozen, "gradients: they differ from numerical differentiation"),
        (Contiguous, "memory layout: "),
        (Forgetful, "copies: state_dict gives other values"),
        (Seeding, "the random generator: it seeds the global generator"),
        (Noisy, "the random generator: forward draws from the global generator"),
        (Careless, "maps that do not fit: a map with other channels raises no ValueError"),
        (OneSize, "maps that do not fit: maps of different sizes with one_size = True raises no ValueError"),
    ],
)
def test_a_broken_pooling_fails_its_check(pooling: Callable[..., Pooling], message: str) -> None:
    formula = mean if message.startswith("values") else None
    with pytest.raises(AssertionError, match=re.escape(f"pooling {pooling.__name__} fails the check of {message}")):
        check_pooling(pooling, [3, 2], formula)


def test_a_root_without_a_bound_has_no_finite_gradient() -> None:
    with pytest.raises(AssertionError, match=r"hard inputs: zeros in .*: the gradient of map 0 is not finite"):
        check_pooling(Root, [3, 2])


def test_options_must_survive_json() -> None:
    with pytest.raises(AssertionError, match="options: TypeError: Object of type Tensor is not JSON serializable"):
        check_pooling(Mean, [3, 2], scale=torch.tensor(1.0))


class Sound(LevelsHead):
    """A correct head; the broken ones override one method."""


class Chatty(Sound):
    def forward(self, v: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        return super().forward(v, self.levels)


class Raw(Sound):
    def log_probs(self, logits: Any) -> dict[str, Tensor]:
        return dict(logits)


class Overclaiming(Sound):
    levels_are_marginals = True


class Tempered(Sound):
    def log_probs(self, logits: Any) -> dict[str, Tensor]:
        return {level: z.to(logits[level].dtype) for level, z in super().log_probs(logits).items()}


class Layerless(Sound):
    def get_classifier(self, level: str) -> Any:
        return self.classifiers if level == "level.9" else super().get_classifier(level)


class Overflowing(Sound):
    def log_probs(self, logits: Any) -> dict[str, Tensor]:
        return {level: z.softmax(dim=1).log() for level, z in logits.items()}


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Identity, "attributes: it is a Identity, not a subclass of c2f_zoo.Head"),
        (Chatty, "requested levels: forward gives the levels ('level.0', 'level.1', 'level.2'), not ()"),
        (Raw, "probabilities: the probabilities of level.0 sum to "),
        (Overclaiming, "levels are marginals: it is true, but some children are more probable than their parent"),
        (Layerless, "classifiers: get_classifier of an unknown level raises no ValueError"),
        (Overflowing, "large scores: weights of 1e4: level.0 is not finite"),
        (Tempered, "autocast: log-probabilities of level.0 are torch.bfloat16"),
    ],
)
def test_a_broken_head_fails_its_check(head: Callable[..., Head], message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(f"head {head.__name__} fails the check of {message}")):
        check_head(head)


def test_heads_with_marginals_must_declare_them() -> None:
    from c2f_zoo.heads.marginal import MarginalHead

    class Modest(MarginalHead):
        levels_are_marginals = False

    with pytest.raises(AssertionError, match="it is false, but no children are more probable than their parent"):
        check_head(Modest)
