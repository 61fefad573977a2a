"""Trilinear pooling: one triple."""

from __future__ import annotations

from collections.abc import Sequence

from c2f_zoo.pooling.checks import Align, check_num_maps
from c2f_zoo.pooling.multilinear import MultilinearPooling
from c2f_zoo.pooling.registry import register_pooling


@register_pooling("trilinear")
class TrilinearPooling(MultilinearPooling):
    """Trilinear pooling: the product of the projections of three maps.

    Args:
        in_channels: number of channels of the three maps.
        dim: width d of the projections and of the vector.
        grad_eps: bound on the root's gradient, see `c2f_zoo.ops.signed_sqrt`.
        align: treatment of maps of different sizes: `"error"` or `"pool"`.
        impl: the implementation, see [fast pooling](../explanation/fast-pooling.md). Default: chosen automatically.

    Raises:
        ValueError: the number of maps is not 3.
    """

    description = "One cross-layer triple: `UX*VY*WZ`"
    source = "Huo et al., SIGIR 2019, eq. 5"

    def __init__(
        self,
        in_channels: Sequence[int],
        dim: int = 8192,
        grad_eps: float = 1e-4,
        align: Align = "error",
        impl: str | None = None,
    ) -> None:
        check_num_maps("trilinear", in_channels, allowed=[3])
        super().__init__(in_channels, [(0, 1, 2)], None, dim, grad_eps, align=align, impl=impl)
