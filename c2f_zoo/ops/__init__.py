"""The maths without state."""

from c2f_zoo.ops.multilinear import multilinear_sums
from c2f_zoo.ops.normalize import l2_normalize, signed_sqrt

__all__ = ["l2_normalize", "multilinear_sums", "signed_sqrt"]
