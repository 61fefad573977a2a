"""Hierarchy heads: from one vector to logits for every level."""

from c2f_zoo.heads import levels
from c2f_zoo.heads.registry import HEADS, create_head, list_heads, register_head

__all__ = ["HEADS", "create_head", "levels", "list_heads", "register_head"]
