"""Hierarchical bilinear pooling: three pairs."""

from collections.abc import Sequence

from c2f_zoo.pooling.multilinear import MultilinearPooling
from c2f_zoo.pooling.registry import check_num_maps, register_pooling


@register_pooling("hbp")
def hbp(in_channels: Sequence[int], dim: int = 8192, grad_eps: float = 1e-4) -> MultilinearPooling:
    """Hierarchical bilinear pooling: `concat(UX*VY, UX*WZ, VY*WZ)` (Yu et al., ECCV 2018; Huo et al., eq. 4).

    Args:
        in_channels: number of channels of the three maps.
        dim: width d of the projections; the vector has 3 d entries.
        grad_eps: bound on the root's gradient, see `c2f_zoo.ops.signed_sqrt`.

    Raises:
        ValueError: not three maps.
    """
    check_num_maps("hbp", in_channels, allowed=[3])
    return MultilinearPooling(in_channels, [(0, 1), (0, 2), (1, 2)], dim, grad_eps)
