"""Class trees: what they are (`tree`), how they are read (`reading`, `datasets`) and drawn (`draw`), and those that
come with the package (`shipped`)."""

from c2f_zoo.hierarchy.draw import draw_image, draw_text
from c2f_zoo.hierarchy.shipped import HIERARCHIES, list_hierarchies, load_hierarchy, register_hierarchy
from c2f_zoo.hierarchy.tree import Hierarchy

__all__ = [
    "HIERARCHIES",
    "Hierarchy",
    "draw_image",
    "draw_text",
    "list_hierarchies",
    "load_hierarchy",
    "register_hierarchy",
]
