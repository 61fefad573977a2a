"""Poolings of feature maps to a vector, one module per method."""

import importlib
import pkgutil

from c2f_zoo.pooling.base import Pooling
from c2f_zoo.pooling.checks import align_maps, check_channels
from c2f_zoo.pooling.describe import PoolingDescription, describe_pooling
from c2f_zoo.pooling.registry import POOLINGS, create_pooling, list_poolings, register_pooling

__all__ = [
    "POOLINGS",
    "Pooling",
    "PoolingDescription",
    "align_maps",
    "check_channels",
    "create_pooling",
    "describe_pooling",
    "list_poolings",
    "register_pooling",
]

# Importing a module registers its pooling.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
