"""Poolings: from feature maps to one vector, one file a method, made by name."""

# Importing a method's file registers it.
from c2f_zoo.pooling import avg, bilinear, hbp, mlp, trilinear
from c2f_zoo.pooling.registry import POOLINGS, create_pooling, list_poolings, register_pooling

__all__ = [
    "POOLINGS",
    "avg",
    "bilinear",
    "create_pooling",
    "hbp",
    "list_poolings",
    "mlp",
    "register_pooling",
    "trilinear",
]
