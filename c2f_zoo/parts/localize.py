"""Localization of an object and its parts: detectors, geometry and the joint search together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2f_zoo.parts.cache import Regions
from c2f_zoo.parts.geometry import Prior
from c2f_zoo.parts.search import SLACK, find_configuration

MAX_ROOTS = 50


class Found(NamedTuple):
    """The localized regions of an image: the object, the head and the body.

    Attributes:
        boxes: boxes (3, 4); NaN for a part without a box.
        features: features (3, D); zeros for a part without a box.
    """

    boxes: Tensor
    features: Tensor

    def vector(self) -> Tensor:
        """Return the concatenated features (3 D), float32."""
        return self.features.float().flatten()


def annotated(regions: Regions) -> Found:
    """Return the annotated regions."""
    return Found(regions.truth, regions.truth_features)


@dataclass(frozen=True, eq=False)
class Localizer:
    """A localization of the object, the head and the body among the proposals of an image.

    Args:
        detectors: linear layer, features (D) -> logits (3) of the object, the head and the body.
        prior: the parts' positions, see `c2f_zoo.parts.geometry`. None: no prior.
        alpha: weight of the prior.
        slack: pixels by which a part may reach beyond the object's box; infinity for no constraint.
        box_given: use the annotated box of the object instead of detecting it.
        max_roots: number of the proposals with the highest scores that may be the object.
    """

    detectors: nn.Linear
    prior: Prior | None = None
    alpha: float = 0.1
    slack: float = SLACK
    box_given: bool = False
    max_roots: int = MAX_ROOTS

    @torch.no_grad()
    def __call__(self, regions: Regions) -> Found:
        """Localize the regions of an image with one proposal or more."""
        scores = F.logsigmoid(self.detectors(regions.features.float()))
        if self.box_given:
            roots, features, root_scores = regions.truth[:1], regions.truth_features[:1], torch.zeros(1)
        else:
            best = scores[:, 0].argsort(descending=True, stable=True)[: self.max_roots]
            roots, features, root_scores = regions.proposals[best], regions.features[best], scores[best, 0]
        densities = None if self.prior is None else self.prior(features[0])
        chosen = find_configuration(
            root_scores, roots, scores[:, 1:], regions.proposals, densities, self.alpha, self.slack
        )
        boxes, vectors = [roots[chosen.root]], [features[chosen.root]]
        for number in chosen.parts:
            boxes.append(regions.proposals[number] if number >= 0 else torch.full((4,), math.nan))
            vectors.append(regions.features[number] if number >= 0 else torch.zeros_like(features[0]))
        return Found(torch.stack(boxes), torch.stack(vectors))
