"""Class trees: the class `Hierarchy`, readers, drawing, and the built-in trees."""

from c2f_zoo.hierarchy.builtin import HIERARCHIES, list_hierarchies, load_hierarchy, register_hierarchy
from c2f_zoo.hierarchy.draw import draw_image, draw_text
from c2f_zoo.hierarchy.opening import open_hierarchy
from c2f_zoo.hierarchy.tree import Hierarchy

__all__ = [
    "HIERARCHIES",
    "Hierarchy",
    "draw_image",
    "draw_text",
    "list_hierarchies",
    "load_hierarchy",
    "open_hierarchy",
    "register_hierarchy",
]
