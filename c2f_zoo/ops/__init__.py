"""The maths without state."""

from c2f_zoo.ops.multilinear import multilinear_sums
from c2f_zoo.ops.normalize import signed_sqrt

__all__ = ["multilinear_sums", "signed_sqrt"]
