"""Drawing a class tree as text and as an image."""

from __future__ import annotations

import math
from itertools import count
from typing import TYPE_CHECKING

from c2f_zoo.hierarchy.escape import printable
from c2f_zoo.hierarchy.tree import Hierarchy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FONT_SIZE = 6  # of the names in an image, in points (1/72 inch)


def draw_text(tree: Hierarchy) -> str:
    """Draw a tree as text, like the Unix command `tree`.

    The number of leaf classes of a class is in brackets.

    Examples:
        >>> print(draw_text(load_hierarchy("fashion_mnist").truncate("group")))
        Clothes (4)
        ├── Tops
        ├── Bottoms
        ├── Dresses
        └── Outers
        Goods (2)
        ├── Shoes
        └── Accessories
    """
    children = _children(tree)

    def draw(depth: int, label: int) -> tuple[list[str], int]:
        """Return the lines of a subtree, and its number of leaf classes."""
        name, below = printable(tree.classes[depth][label]), children[depth][label]
        if not below:
            return [name], 1
        lines, size = [], 0
        for child in below:
            (head, *tail), leaves = draw(depth + 1, child)
            elbow, bar = ("└── ", "    ") if child == below[-1] else ("├── ", "│   ")
            lines += [elbow + head, *(bar + line for line in tail)]
            size += leaves
        return [f"{name} ({size})", *lines], size

    return "\n".join(line for label in range(len(tree.classes[0])) for line in draw(0, label)[0])


def draw_image(tree: Hierarchy) -> Figure:
    """Draw a tree as rings of class names, the coarsest level inside.

    The size of the figure depends on the names: 200 leaf classes take about 13 inches. Colours distinguish neighbouring
    classes of the coarsest level.

    Args:
        tree: the class tree.

    Returns:
        A matplotlib figure; its `savefig` writes PNG, SVG or PDF.

    Examples:
        >>> draw_image(load_hierarchy("critters")).savefig("critters.png")
    """
    from matplotlib.figure import Figure

    children = _children(tree)
    turn = 2 * math.pi / len(tree.classes[-1])
    # Names of a ring are at least one leaf class apart; the innermost ring has room for a line of text for each.
    rings = [max(1.3 * FONT_SIZE / turn, 8 * FONT_SIZE)]
    for names in tree.classes:
        rings.append(rings[-1] + max(_width(printable(name)) for name in names) + 3 * FONT_SIZE)
    size = rings[-1]
    figure = Figure(figsize=(2 * size / 72, 2 * size / 72))  # one unit of the axes is a point
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-size, size), ylim=(-size, size))
    axes.set_axis_off()
    leaves = count()

    def draw(depth: int, label: int, colour: str) -> float:
        """Draw a subtree; return the angle of its root."""
        below = [draw(depth + 1, child, colour) for child in children[depth][label]]
        angle = (below[0] + below[-1]) / 2 if below else math.pi / 2 - turn * next(leaves)
        name = printable(tree.classes[depth][label])
        _write(axes, name, angle, rings[depth], colour if depth == 0 else "black")
        if below:
            inner, outer = rings[depth] + _width(name) + FONT_SIZE / 2, rings[depth + 1] - FONT_SIZE / 2
            arc = rings[depth + 1] - 1.5 * FONT_SIZE
            _line(axes, [(inner, angle), (arc, angle)], colour)
            steps = [below[0] + (below[-1] - below[0]) * step / 32 for step in range(33)]
            _line(axes, [(arc, step) for step in steps], colour)
            for child in below:
                _line(axes, [(arc, child), (outer, child)], colour)
        return angle

    for label in range(len(tree.classes[0])):
        draw(0, label, f"C{label % 10}")
    counts = "\n".join(f"{level}: {number}" for level, number in tree.num_classes.items())
    axes.text(0, 0, counts, ha="center", va="center", fontsize=min(rings[0] / 8, 3 * FONT_SIZE), parse_math=False)
    return figure


def _children(tree: Hierarchy) -> list[list[list[int]]]:
    """Return the labels of the children of each class, at each depth, without those that `ragged` leaves out."""
    children: list[list[list[int]]] = [[[] for _ in names] for names in tree.classes]
    for depth, parents in enumerate(tree.parents):
        for label, parent in enumerate(parents):
            if label not in tree.left_out[depth + 1]:
                children[depth][parent].append(label)
    return children


def _width(name: str) -> float:
    """Return an upper bound of the length of a name in points."""
    from matplotlib.textpath import TextPath

    plain = name.replace("$", r"\$")  # not a formula
    x = TextPath((0, 0), plain, size=FONT_SIZE).vertices[:, 0]  # with control points, which enclose the curves
    # 1.08: letters get wider when they are fitted to pixels.
    return 1.08 * float(x.max(initial=0.0) - x.min(initial=0.0))


def _line(axes: Axes, points: list[tuple[float, float]], colour: str) -> None:
    xs = [radius * math.cos(angle) for radius, angle in points]
    ys = [radius * math.sin(angle) for radius, angle in points]
    axes.plot(xs, ys, color=colour, linewidth=0.8, solid_capstyle="round")


def _write(axes: Axes, name: str, angle: float, radius: float, colour: str) -> None:
    """Write a name along a ray from the centre, never upside down."""
    left = math.cos(angle) < -1e-9
    axes.text(
        radius * math.cos(angle),
        radius * math.sin(angle),
        name,
        rotation=math.degrees(angle) + 180 * left,
        rotation_mode="anchor",
        ha="right" if left else "left",
        va="center_baseline",
        fontsize=FONT_SIZE,
        color=colour,
        parse_math=False,
    )
