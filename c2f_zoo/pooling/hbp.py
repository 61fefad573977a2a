"""Hierarchical bilinear pooling: three pairs."""

from __future__ import annotations

from collections.abc import Sequence

from c2f_zoo.pooling.checks import Align, check_num_maps
from c2f_zoo.pooling.multilinear import L2, MultilinearPooling
from c2f_zoo.pooling.registry import register_pooling


@register_pooling("hbp")
class HbpPooling(MultilinearPooling):
    """Hierarchical bilinear pooling, as in the network of its Caffe release.

    The projections have no batch norm and no activation.

    Args:
        in_channels: number of channels of the three maps.
        dim: width d of the projections; the vector has 3 d entries.
        grad_eps: bound on the root's gradient, see `c2f_zoo.ops.signed_sqrt`.
        l2: normalise each `"branch"` or the whole `"vector"`.
        align: treatment of maps of different sizes: `"error"` or `"pool"`.
        impl: the implementation, see [fast pooling](../explanation/fast-pooling.md). Default: chosen automatically.

    Raises:
        ValueError: the number of maps is not 3.
    """

    description = "Three cross-layer pairs: `concat(UX*VY, UX*WZ, VY*WZ)`"
    source = "Yu et al., ECCV 2018; Huo et al., eq. 4"

    def __init__(
        self,
        in_channels: Sequence[int],
        dim: int = 8192,
        grad_eps: float = 1e-4,
        l2: L2 = "branch",
        align: Align = "error",
        impl: str | None = None,
    ) -> None:
        check_num_maps("hbp", in_channels, allowed=[3])
        super().__init__(in_channels, [(0, 1), (0, 2), (1, 2)], None, dim, grad_eps, l2, align, impl)
