"""Methods: the first part of a model's name."""

from __future__ import annotations

from dataclasses import dataclass

from c2f_zoo.backbones.default_taps import NUM_TAPS
from c2f_zoo.pooling import create_pooling
from c2f_zoo.registry import Registry


@dataclass(frozen=True)
class Method:
    """A published way from a backbone's feature maps to class scores.

    Args:
        pooling: one of `list_poolings()`.
        num_taps: number of the backbone's default taps to pool, counted from the last.
        every_level: whether the model predicts every level of the tree, or only the leaf level.
        source: the paper.
    """

    pooling: str
    num_taps: int
    every_level: bool
    source: str


METHODS: Registry[Method] = Registry("method")

for _name, _method in {
    "mlph": Method("mlp", 3, True, "Huo et al., SIGIR 2019"),
    "mlp": Method("mlp", 3, False, "Huo et al., SIGIR 2019, eq. 6"),
    "hbp": Method("hbp", 3, False, "Yu et al., ECCV 2018"),
    "trilinear": Method("trilinear", 3, False, "Huo et al., SIGIR 2019, eq. 5"),
    "bcnn": Method("bilinear", 1, False, "Lin et al., ICCV 2015"),
    "cbcnn": Method("compact_bilinear", 1, False, "Gao et al., CVPR 2016"),
    "kp": Method("kernel", 1, False, "Cui et al., CVPR 2017"),
    "fbp": Method("low_rank_bilinear", 1, False, "Kim et al., ICLR 2017; Huo et al., SIGIR 2019, eq. 3"),
    "isqrt": Method("isqrt_cov", 1, False, "Li et al., CVPR 2018"),
}.items():
    METHODS.register(_name)(_method)


def num_taps_of(pooling: str) -> int:
    """Return a pooling's number of taps: its method's, or else the smallest possible."""
    for name in METHODS.names():
        if METHODS[name].pooling == pooling:
            return METHODS[name].num_taps
    for count in range(1, NUM_TAPS + 1):
        try:
            create_pooling(pooling, [1] * count)
        except ValueError:
            continue
        return count
    raise ValueError(f"pooling {pooling!r} does not accept 1 to {NUM_TAPS} maps")
