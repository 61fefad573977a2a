"""Class trees: what they are (`tree`) and those that come with the package (`shipped`)."""

from c2f_zoo.hierarchy.shipped import HIERARCHIES, list_hierarchies, load_hierarchy, register_hierarchy
from c2f_zoo.hierarchy.tree import Hierarchy

__all__ = ["HIERARCHIES", "Hierarchy", "list_hierarchies", "load_hierarchy", "register_hierarchy"]
