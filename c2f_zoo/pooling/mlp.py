"""Multi-linear pooling: every product of two or more maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from c2f_zoo.pooling.checks import Align
from c2f_zoo.pooling.multilinear import L2, MultilinearPooling
from c2f_zoo.pooling.registry import register_pooling

_MAX_TERMS = 1000


@register_pooling("mlp")
class MlpPooling(MultilinearPooling):
    """The paper's multi-linear pooling: products of all subsets of the projections.

    The paper uses three maps: three pairs and one triple. For n maps the terms are all subsets of 2, 3, ...,
    `max_order` maps, smaller subsets first.

    Args:
        in_channels: number of channels of each map, two maps or more.
        dim: width d of the projections; the vector has d entries for each term, 4 d with three maps.
        max_order: number of maps in the largest term, >= 2.
        grad_eps: bound on the root's gradient, see `c2f_zoo.ops.signed_sqrt`.
        l2: normalise each `"branch"` or the whole `"vector"`.
        align: treatment of maps of different sizes: `"error"` or `"pool"`.
        impl: the implementation, see [fast pooling](../explanation/fast-pooling.md). Default: chosen automatically.

    Raises:
        ValueError: fewer than two maps, `max_order` is below 2, or there are over 1000 products.
    """

    description = "Three pairs and one triple: `concat(UX*VY, UX*WZ, VY*WZ, UX*VY*WZ)`"
    source = "Huo et al., SIGIR 2019, eq. 6"

    def __init__(
        self,
        in_channels: Sequence[int],
        dim: int = 8192,
        max_order: int = 3,
        grad_eps: float = 1e-4,
        l2: L2 = "branch",
        align: Align = "error",
        impl: str | None = None,
    ) -> None:
        if len(in_channels) < 2:
            raise ValueError(f"mlp pools 2 or more maps, not {len(in_channels)}; name that many taps")
        if max_order < 2:
            raise ValueError(f"mlp requires max_order >= 2, not {max_order}")
        count, orders = len(in_channels), range(2, min(max_order, len(in_channels)) + 1)
        if sum(math.comb(count, order) for order in orders) > _MAX_TERMS:
            raise ValueError(f"{count} maps have over {_MAX_TERMS} products of up to {max_order}; lower max_order")
        terms = [term for order in orders for term in combinations(range(count), order)]
        super().__init__(in_channels, terms, None, dim, grad_eps, l2, align, impl)
