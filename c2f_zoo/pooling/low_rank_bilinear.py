"""Low-rank bilinear pooling (FBP, MLB): two projections of one map."""

from __future__ import annotations

from collections.abc import Sequence

from c2f_zoo.pooling.checks import check_num_maps
from c2f_zoo.pooling.multilinear import MultilinearPooling
from c2f_zoo.pooling.registry import register_pooling


@register_pooling("low_rank_bilinear")
class LowRankBilinearPooling(MultilinearPooling):
    """Low-rank (factorised) bilinear pooling: `P^T (U^T X * V^T X)`.

    As in the comparisons of HBP and the paper, signed root and l2 follow the sum over locations, and P is the linear
    classifier after the pooling.

    Args:
        in_channels: number of channels of the one map.
        dim: width d of the projections and of the vector.
        grad_eps: bound on the root's gradient, see `c2f_zoo.ops.signed_sqrt`.
        impl: the implementation, see [fast pooling](../explanation/fast-pooling.md). Default: chosen automatically.

    Raises:
        ValueError: the number of maps is not 1.
    """

    description = "Two projections of one map: `UX*VX`, classified by P"
    source = "Kim et al., ICLR 2017; Huo et al., eq. 3"

    def __init__(
        self, in_channels: Sequence[int], dim: int = 8192, grad_eps: float = 1e-4, impl: str | None = None
    ) -> None:
        check_num_maps("low_rank_bilinear", in_channels, allowed=[1])
        super().__init__(in_channels, [(0, 1)], (0, 0), dim, grad_eps, impl=impl)
