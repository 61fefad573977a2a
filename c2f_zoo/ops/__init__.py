"""Functions of the poolings: sums of products, matrices, sketches, norms."""

from c2f_zoo.ops.choice import IMPLEMENTATIONS, explain
from c2f_zoo.ops.groups import sum_groups
from c2f_zoo.ops.multilinear import multilinear_sums
from c2f_zoo.ops.normalize import signed_sqrt, signed_sqrt_l2
from c2f_zoo.ops.precision import (
    at_least_float32,
    check_finite,
    is_exporting,
    project,
    widest_dtype,
    without_autocast,
)
from c2f_zoo.ops.second_order import covariance, gram, matrix_sqrt
from c2f_zoo.ops.shared_projection import shared_projection_sums
from c2f_zoo.ops.sketch import draw_hashes, draw_signs, sketch_matrix, tensor_sketch_sums

__all__ = [
    "IMPLEMENTATIONS",
    "at_least_float32",
    "check_finite",
    "covariance",
    "draw_hashes",
    "draw_signs",
    "explain",
    "gram",
    "is_exporting",
    "matrix_sqrt",
    "multilinear_sums",
    "project",
    "shared_projection_sums",
    "signed_sqrt",
    "signed_sqrt_l2",
    "sketch_matrix",
    "sum_groups",
    "tensor_sketch_sums",
    "widest_dtype",
    "without_autocast",
]
