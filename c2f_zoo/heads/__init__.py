"""Hierarchy heads: from one vector to logits for every level."""

# Importing a head's file registers it.
from c2f_zoo.heads import conditional, disentangled, hex, levels, marginal
from c2f_zoo.heads.registry import HEADS, create_head, list_heads, register_head

__all__ = [
    "HEADS",
    "conditional",
    "create_head",
    "disentangled",
    "hex",
    "levels",
    "list_heads",
    "marginal",
    "register_head",
]
