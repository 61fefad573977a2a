"""The best joint configuration of an object and its parts among proposals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from c2f_zoo.parts.boxes import overhang, relative_positions

SLACK = 10.0  # pixels by which a part may reach beyond the object's box; not compared with the paper's text
_NONE = -1e9  # the score of a part without a box: roots whose parts all have one win


class Configuration(NamedTuple):
    """The boxes of an object and of its parts.

    Attributes:
        root: number of the object's box.
        parts: number of each part's box; -1 if no box satisfies the constraint.
    """

    root: int
    parts: list[int]


def find_configuration(
    root_scores: Tensor,
    roots: Tensor,
    part_scores: Tensor,
    boxes: Tensor,
    densities: Sequence[Distribution] | None = None,
    alpha: float = 0.1,
    slack: float = SLACK,
) -> Configuration:
    """Find the configuration with the largest product of scores under the geometric constraints.

    The score of a configuration (Zhang et al., ECCV 2014) is the product of the detectors' probabilities and of the
    densities of the parts' positions to the power of `alpha`. Parts that reach more than `slack` pixels beyond the
    object's box are excluded. Given the object's box, the parts are independent, so the search is exact.

    Args:
        root_scores: log-probabilities (r,) of the boxes that may be the object.
        roots: these boxes (r, 4), r >= 1.
        part_scores: log-probabilities (k, parts) of the boxes that may be parts.
        boxes: these boxes (k, 4).
        densities: density of each part's relative position (`relative_positions`). None: no density.
        alpha: weight of the log-densities.
        slack: pixels by which a part may reach beyond the object's box; infinity for no constraint.

    Examples:
        >>> roots = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
        >>> boxes = torch.tensor([[0.0, 0.0, 40.0, 9.0], [1.0, 1.0, 4.0, 4.0]])
        >>> find_configuration(torch.zeros(1), roots, torch.tensor([[-0.1], [-2.0]]), boxes)
        Configuration(root=0, parts=[1])
    """
    excluded = overhang(boxes, roots) > slack  # (r, k)
    positions = None if densities is None else relative_positions(boxes[None].double(), roots[:, None].double())
    totals, choices = root_scores.double(), []
    for part, scores in enumerate(part_scores.double().unbind(dim=1)):
        values = scores.expand(len(roots), -1)
        if densities is not None and positions is not None:
            values = values + alpha * densities[part].log_prob(positions)
        values = values.masked_fill(excluded, _NONE)
        if values.shape[1] == 0:
            best, choice = torch.full_like(totals, _NONE), torch.full((len(roots),), -1)
        else:
            best, choice = values.max(dim=1)
        totals = totals + best
        choices.append(choice.masked_fill(best <= _NONE, -1))
    root = int(totals.argmax())
    return Configuration(root, [int(choice[root]) for choice in choices])
