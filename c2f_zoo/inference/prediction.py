"""A prediction: which part of it can be trusted, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.hierarchy.escape import printable

Step = tuple[str, str, float]  # level, class name, probability in [0, 1]
Box = tuple[float, float, float, float]  # left, top, right and bottom as fractions of the image's width and height


@dataclass(frozen=True)
class Provenance:
    """Where a prediction comes from.

    Attributes:
        rule: the rule that chose the trusted class, one of `list_rules()`; None for a model without calibration, for
            which the other fields up to `calibrated_on` are None as well.
        risk: the promised risk: at most this fraction of the trusted classes is wrong.
        threshold: the threshold of the rule in the group of the image; for `climb`, the probability that a trusted
            class must reach.
        detail: the visible detail of the image in pixels, see `visible_detail`.
        group: the group of visible detail; 0 is the coarsest.
        calibration_version: the version of the calibration's format.
        calibrated_on: the date of the calibration; empty if unknown.
        images: number of images that the prediction is made of.
        restriction: the classes that were possible, in words; None for all. The promised risk was calibrated without
            a restriction.
    """

    rule: str | None = None
    risk: float | None = None
    threshold: float | None = None
    detail: float | None = None
    group: int | None = None
    calibration_version: int | None = None
    calibrated_on: str | None = None
    images: int = 1
    restriction: str | None = None


@dataclass(frozen=True)
class Prediction:
    """A predicted path in the class tree, coarse to fine, and the part of it that can be trusted.

    Printed, the trusted part comes first, and what the model only guesses follows:
    `trusted: Parulidae (0.98) > Setophaga (0.93); guess: Prairie Warbler (0.41)`. A model without calibration prints
    its path alone.

    Attributes:
        path: for each level (level, class name, probability in [0, 1]). The probability comes from the head, or for a
            level that the model does not predict from the sum over the class's descendants. With the head `hex`, an
            image may stop at a class, so that the probabilities of a level sum to less than 1.
        trusted_path: the path down to the trusted class, with calibrated probabilities; empty if nothing is trusted or
            the model has no calibration.
        guess: the part of `path` that is not trusted, with calibrated probabilities; empty for a model without
            calibration. If `path` does not lead to the trusted class, it begins where it leaves the trusted path.
        probabilities: for each level the probabilities (classes,) from which `path` is chosen, float64.
        provenance: rule, threshold and calibration behind the trusted class.
        tree: the class tree.
        file: the image's file; empty if it has none.
        boxes: of a model that localizes (`part_rcnn`), the boxes of the object, its head and its body: left, top, right
            and bottom as fractions of the width and height of the upright image. None for other models, and for several
            images of an object.
    """

    path: list[Step]
    trusted_path: list[Step] = field(default_factory=list)
    guess: list[Step] = field(default_factory=list)
    probabilities: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    provenance: Provenance = Provenance()
    tree: Hierarchy | None = field(default=None, repr=False, compare=False)
    file: str = ""
    boxes: Mapping[str, Box] | None = None

    @property
    def trusted(self) -> Step | None:
        """The trusted class: (level, class name, calibrated probability); None if nothing is trusted."""
        return self.trusted_path[-1] if self.trusted_path else None

    def top_k(self, k: int = 5) -> list[Step]:
        """Return the k most probable classes of the finest level, most probable first.

        A repeat of a tree whose `ragged` is `"stop"` stands for the class that it repeats.

        Examples:
            >>> model = create_model("mlph_tiny_critters", pretrained=True)
            >>> prediction = Predictor(model)(Image.new("RGB", (96, 96)))
            >>> [level for level, name, probability in prediction.top_k(2)]
            ['species', 'species']
        """
        if self.tree is None:
            return self.path[-1:]
        level = list(self.probabilities)[-1]
        p, depth = self.probabilities[level], self.tree.depth(level)
        labels = np.argsort(-p, kind="stable")[:k]
        return [(*_shown_class(self.tree, depth, int(label)), float(p[label])) for label in labels]

    def to_dict(self, k: int | None = None) -> dict[str, Any]:
        """Return the prediction as data for JSON, without the probabilities of all classes.

        Args:
            k: number of most probable classes to add as `top_k`; None for none.
        """
        return {
            "file": self.file,
            "trusted": None if self.trusted is None else _as_dict(self.trusted),
            "trusted_path": list(map(_as_dict, self.trusted_path)),
            "guess": list(map(_as_dict, self.guess)),
            "path": list(map(_as_dict, self.path)),
            **({} if k is None else {"top_k": list(map(_as_dict, self.top_k(k)))}),
            "boxes": None if self.boxes is None else {name: list(box) for name, box in self.boxes.items()},
            "provenance": asdict(self.provenance),
        }

    def __str__(self) -> str:
        if self.provenance.rule is None:
            return format_steps(self.path)
        trusted = f"trusted: {format_steps(self.trusted_path) or 'nothing'}"
        return f"{trusted}; guess: {format_steps(self.guess)}" if self.guess else trusted


def format_steps(steps: Sequence[Step]) -> str:
    """Format a path in one line.

    Examples:
        >>> format_steps([("kind", "round", 0.97), ("shape", "ring", 0.5)])
        'round (0.97) > ring (0.50)'
    """
    return " > ".join(f"{printable(name)} ({probability:.2f})" for _, name, probability in steps)


def _as_dict(step: Step) -> dict[str, Any]:
    return dict(zip(("level", "name", "probability"), step, strict=True))


def _shown_class(tree: Hierarchy, depth: int, label: int) -> tuple[str, str]:
    """Return the level and name of a class, or of the class that it repeats if repeats are left out."""
    while label in tree.left_out[depth]:
        label, depth = tree.parents[depth - 1][label], depth - 1
    return tree.levels[depth], tree.classes[depth][label]
