"""Annotations of images: a box around the object and the points of its visible parts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from c2f_zoo.hierarchy.datasets import read_lines

Box = tuple[float, float, float, float]  # left, top, right and bottom, in pixels
Points = dict[str, tuple[float, float]]  # the x and y of parts, in pixels


class Annotation(NamedTuple):
    """The annotation of an image, in pixels of the image.

    Attributes:
        box: left, top, right and bottom of the object.
        points: the x and y of its visible parts, by the parts' names.
    """

    box: Box
    points: Points

    def points_outside(self) -> list[str]:
        """Return the names of the visible parts outside the box.

        Examples:
            >>> Annotation((0, 0, 20, 10), {"beak": (21, 5), "tail": (20, 10)}).points_outside()
            ['beak']
        """
        left, top, right, bottom = self.box
        return [name for name, (x, y) in self.points.items() if not (left <= x <= right and top <= y <= bottom)]

    def exceeds(self, width: float, height: float) -> bool:
        """Return whether the box reaches beyond an image of this size."""
        left, top, right, bottom = self.box
        return left < 0 or top < 0 or right > width or bottom > height


def parse_box(text: str) -> Box:
    """Return the box of a text `x y width height`.

    Raises:
        ValueError: the text is not four finite numbers, or the box has no area.

    Examples:
        >>> parse_box("60.0 27.0 325.0 304.0")
        (60.0, 27.0, 385.0, 331.0)
        >>> parse_box("60 27 0 304")
        Traceback (most recent call last):
        ValueError: the box '60 27 0 304' has no area
    """
    try:
        x, y, width, height = map(float, text.split())
    except ValueError:
        raise ValueError(f"expected a box 'x y width height', not {text!r}") from None
    if not all(map(math.isfinite, (x, y, width, height))):
        raise ValueError(f"the box {text!r} is not finite")
    if width <= 0 or height <= 0:
        raise ValueError(f"the box {text!r} has no area")
    return x, y, x + width, y + height


def read_points(path: Path, names: Mapping[str, str], errors: list[str]) -> Mapping[str, Points]:
    """Read the visible points of parts from lines `image part x y visible`.

    Args:
        path: the file.
        names: the number of each part -> its name.
        errors: an error is added for each invalid line.

    Returns:
        The number of each image with visible parts -> its points.
    """
    points: defaultdict[str, Points] = defaultdict(dict)
    for place, line in read_lines(path):
        try:
            image_id, part, *values = line.split()
            x, y, visible = map(float, values)
        except ValueError:
            errors.append(f"{place}: expected 'image part x y visible', not {line!r}")
            continue
        if part not in names:
            errors.append(f"{place}: part {part} is not in parts.txt")
        elif visible and not (math.isfinite(x) and math.isfinite(y)):
            errors.append(f"{place}: the point {x:g}, {y:g} is not finite")
        elif visible:
            points[image_id][names[part]] = (x, y)
    return points
