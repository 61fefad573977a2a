"""Where the parts of an object are: densities of their positions relative to the object's box.

The two geometric constraints of Zhang et al. (ECCV 2014): a mixture of Gaussians for each part, and a Gaussian of the
training images that look most like the detected object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, MultivariateNormal

# The density of each part's relative position, given the features (D,) of the most probable object.
Prior = Callable[[Tensor], Sequence[Distribution]]

_RIDGE = 1e-3  # added to variances; a standard deviation of 3 % of the object's size


def fit_gaussian(x: Tensor, weights: Tensor | None = None) -> MultivariateNormal:
    """Fit a Gaussian by maximum likelihood, with a small ridge on its covariance.

    Args:
        x: points (n, d), n >= 1.
        weights: weights (n,) of the points, not all 0. Default: equal.

    Examples:
        >>> gaussian = fit_gaussian(torch.tensor([[0.0], [2.0]]))
        >>> gaussian.mean.item(), gaussian.covariance_matrix.item()
        (1.0, 1.001)
    """
    x = x.double()
    weights = torch.ones(len(x)) if weights is None else weights
    weights = weights.to(x.dtype) / weights.sum()
    mean = weights @ x
    centred = x - mean
    covariance = (weights[:, None] * centred).T @ centred
    return MultivariateNormal(mean, covariance + _RIDGE * torch.eye(x.shape[1], dtype=x.dtype))


def fit_mixture(x: Tensor, components: int = 4, iterations: int = 50, seed: int = 0) -> MixtureSameFamily:
    """Fit a mixture of Gaussians by expectation maximization.

    Args:
        x: points (n, d), n >= 1.
        components: number of Gaussians, >= 1; no more than there are points are used.
        iterations: number of iterations.
        seed: seed of the first means, which are points.
    """
    x, components = x.double(), min(components, len(x))
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:components]
    responsibilities = torch.softmax(-torch.cdist(x, x[chosen]) / x.std().clamp(min=1e-3), dim=1)
    for _ in range(iterations):
        parts = [fit_gaussian(x, weights) for weights in responsibilities.T]
        mixture = MixtureSameFamily(
            Categorical(responsibilities.mean(dim=0)),
            MultivariateNormal(
                torch.stack([part.mean for part in parts]), torch.stack([part.covariance_matrix for part in parts])
            ),
        )
        joint = mixture.component_distribution.log_prob(x[:, None]) + mixture.mixture_distribution.logits
        responsibilities = torch.softmax(joint, dim=1).clamp(min=1e-12)
    return mixture


def mixture_prior(positions: Tensor, components: int = 4, seed: int = 0) -> Prior:
    """Fit a mixture of Gaussians to each part's relative positions.

    Args:
        positions: relative positions (n, parts, 4), NaN where hidden.
        components: number of Gaussians of each part.
        seed: seed of the fits.

    Raises:
        ValueError: a part is visible in no image.
    """
    mixtures = [fit_mixture(_visible(part), components, seed=seed) for part in positions.unbind(dim=1)]
    return lambda feature: mixtures


def _visible(positions: Tensor) -> Tensor:
    """Return the rows without NaN."""
    visible = positions[positions.isfinite().all(dim=1)]
    if len(visible) == 0:
        raise ValueError("a part is visible in no training image, so its position is unknown")
    return visible


@dataclass(frozen=True, eq=False)
class NeighbourPrior:
    """A prior: Gaussians of the positions in the training images with the most similar objects.

    Similarity is the cosine of the objects' features. Images in which a part is hidden do not count for it.

    Args:
        features: features (n, D) of the training images' objects.
        positions: relative positions (n, parts, 4) of their parts, NaN where hidden.
        neighbours: number of images.

    Raises:
        ValueError: when it is called, if a part is visible in no image.
    """

    features: Tensor
    positions: Tensor
    neighbours: int = 20

    def __call__(self, feature: Tensor) -> list[Distribution]:
        similarity = F.cosine_similarity(self.features.float(), feature[None].float(), dim=1)
        order = similarity.argsort(descending=True, stable=True)
        ordered = self.positions[order].unbind(dim=1)
        return [fit_gaussian(_visible(part)[: self.neighbours]) for part in ordered]
