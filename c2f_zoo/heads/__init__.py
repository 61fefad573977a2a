"""Heads that compute logits of every level from a vector, one module per method."""

import importlib
import pkgutil

from c2f_zoo.heads.base import Head
from c2f_zoo.heads.registry import HEADS, create_head, list_heads, register_head

__all__ = ["HEADS", "Head", "create_head", "list_heads", "register_head"]

# Importing a module registers its head.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
