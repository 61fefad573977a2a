"""Poolings: from feature maps to one vector, one file a method, made by name."""

# Importing a method's file registers it.
from c2f_zoo.pooling import (
    avg,
    bilinear,
    compact_bilinear,
    gem,
    hbp,
    hbp_shared,
    isqrt_cov,
    kernel,
    low_rank_bilinear,
    max,
    mlp,
    trilinear,
)
from c2f_zoo.pooling.describe import PoolingDescription, describe_pooling
from c2f_zoo.pooling.registry import POOLINGS, create_pooling, list_poolings, register_pooling

__all__ = [
    "POOLINGS",
    "PoolingDescription",
    "avg",
    "bilinear",
    "compact_bilinear",
    "create_pooling",
    "describe_pooling",
    "gem",
    "hbp",
    "hbp_shared",
    "isqrt_cov",
    "kernel",
    "list_poolings",
    "low_rank_bilinear",
    "max",
    "mlp",
    "register_pooling",
    "trilinear",
]
