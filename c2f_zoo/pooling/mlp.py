"""Multi-linear pooling: three pairs and one triple."""

from collections.abc import Sequence

from c2f_zoo.pooling.multilinear import MultilinearPooling
from c2f_zoo.pooling.registry import check_num_maps, register_pooling


@register_pooling("mlp")
def mlp(in_channels: Sequence[int], dim: int = 8192, grad_eps: float = 1e-4) -> MultilinearPooling:
    """Multi-linear pooling: `concat(UX*VY, UX*WZ, VY*WZ, UX*VY*WZ)` (Huo et al., SIGIR 2019, eq. 6).

    Args:
        in_channels: number of channels of the three maps.
        dim: width d of the projections; the vector has 4 d entries.
        grad_eps: bound on the root's gradient, see `c2f_zoo.ops.signed_sqrt`.

    Raises:
        ValueError: not three maps.
    """
    check_num_maps("mlp", in_channels, allowed=[3])
    return MultilinearPooling(in_channels, [(0, 1), (0, 2), (1, 2), (0, 1, 2)], dim, grad_eps)
