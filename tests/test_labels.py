"""Labels of a dataset, translated to the larger tree of a model."""

from __future__ import annotations

import pytest
from PIL import Image

from c2f_zoo import Hierarchy
from c2f_zoo.data import HideLabels
from c2f_zoo.evaluation.labels import labels_in


class Labelled:
    """A dataset of grey images."""

    def __init__(self, tree: Hierarchy, targets: list[int]) -> None:
        self.hierarchy = tree
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (32, 32)), self.targets[index]


class TestLabels:
    TREE = Hierarchy.from_rows(("kind", "shape"), [("round", "disc"), ("edged", "box"), ("round", "ring")])

    def test_classes_are_found_by_name(self) -> None:
        part = Hierarchy.from_rows(("kind", "shape"), [("round", "ring"), ("edged", "box")])
        assert labels_in(self.TREE, Labelled(part, [0, 1, 0])).tolist() == [[0, 2], [1, 1], [0, 2]]

    def test_unknown_labels_stay_unknown(self) -> None:
        hidden = HideLabels(Labelled(self.TREE, [1, 2]), "kind", [1])
        assert labels_in(self.TREE, hidden).tolist() == [[1, 1], [0, -1]]

    def test_levels_missing_in_one_of_the_trees(self) -> None:
        shapes = Hierarchy.from_rows(("shape",), [("box",), ("ring",)])
        assert labels_in(self.TREE, Labelled(shapes, [0, 1])).tolist() == [[1, 1], [0, 2]]
        kinds = Hierarchy.from_rows(("kind",), [("edged",), ("round",)])
        assert labels_in(self.TREE, Labelled(kinds, [0, 1])).tolist() == [[1, -1], [0, -1]]

    @pytest.mark.parametrize(
        ("levels", "rows", "message"),
        [
            (
                ("kind", "shape"),
                [("round", "rings")],
                "a class of the dataset is missing in the model's tree: unknown shape 'rings'; did you mean 'ring'",
            ),
            (
                ("kinds", "shape"),
                [("round", "ring")],
                "a level of the dataset is missing in the model's tree: unknown level 'kinds'; did you mean 'kind'",
            ),
            (
                ("kind", "shape"),
                [("edged", "ring")],
                "the dataset's path edged > ring does not exist in the model's tree",
            ),
        ],
    )
    def test_missing_levels_and_classes_are_errors(self, levels: tuple, rows: list, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            labels_in(self.TREE, Labelled(Hierarchy.from_rows(levels, rows), [0]))
