"""Drawing a tree as text and as an image."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from c2f_zoo import Hierarchy, list_hierarchies, load_hierarchy
from c2f_zoo.hierarchy import draw_image, draw_text

TREE = Hierarchy(
    ("class", "group", "species"),
    (("Birds", "Beasts"), ("Gulls", "Cats", "Jays"), ("Ivory gull", "Lynx", "Blue jay", "Herring gull")),
    ((0, 1, 0), (0, 1, 2, 0)),
)


def test_tree_as_text_by_hand() -> None:
    assert draw_text(TREE).splitlines() == [
        "Birds (3)",
        "├── Gulls (2)",
        "│   ├── Ivory gull",
        "│   └── Herring gull",
        "└── Jays (1)",
        "    └── Blue jay",
        "Beasts (1)",
        "└── Cats (1)",
        "    └── Lynx",
    ]


def test_a_tree_of_one_level_is_a_list() -> None:
    assert draw_text(Hierarchy.from_rows(["digit"], [["0"], ["1"]])) == "0\n1"


@pytest.mark.parametrize("name", list_hierarchies())
def test_text_has_a_line_for_each_class(name: str) -> None:
    tree = load_hierarchy(name)
    lines = [re.sub("^[│├└─  ]*", "", line) for line in draw_text(tree).splitlines()]
    drawn = [re.sub(r" \(\d+\)$", "", line) for line in lines]
    assert sorted(drawn) == sorted(name for names in tree.classes for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("tree", [TREE, load_hierarchy("cifar100"), load_hierarchy("cub")], ids=["4", "100", "200"])
def test_an_image_contains_every_name_without_overlaps(tree: Hierarchy) -> None:
    figure = draw_image(tree)
    *names, counts = figure.axes[0].texts
    assert sorted(text.get_text() for text in names) == sorted(name for names in tree.classes for name in names)
    assert counts.get_text() == "\n".join(f"{level}: {number}" for level, number in tree.num_classes.items())
    canvas = FigureCanvasAgg(figure)
    for text in names:
        box = text.get_window_extent(canvas.get_renderer())
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
        assert -90 <= (text.get_rotation() + 180) % 360 - 180 <= 90, "upside down"
    anchors = np.array([text.get_position() for text in names])  # the axes are in points
    distances = np.linalg.norm(anchors[:, None] - anchors, axis=-1) + 1e9 * np.eye(len(names))
    assert distances.min() >= 6, "nearer than a line of text"


def test_an_image_is_saved(tmp_path: Path) -> None:
    tree = Hierarchy.from_rows(["price"], [["$1"], ["$2"], ["a_b^c"], ["$x^$"]])  # would be formulas to matplotlib
    figure = draw_image(tree)
    figure.savefig(tmp_path / "tree.png")
    assert Image.open(tmp_path / "tree.png").size == tuple(figure.get_size_inches() * figure.dpi // 1)
    figure.savefig(tmp_path / "tree.svg")
    assert "<svg" in (tmp_path / "tree.svg").read_text(encoding="utf-8")
