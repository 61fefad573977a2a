"""Mixup and CutMix: mixtures of pairs of images, with the weight of each image's label."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Beta


@dataclass(frozen=True)
class Mixture:
    """A batch of mixtures: image i is made of images i and `partners[i]`.

    Attributes:
        images: the mixtures (N, C, H, W).
        partners: indices (N,) of the images mixed in, a permutation.
        weight: fraction of image i in [0, 1]; that of its partner is `1 - weight`.
    """

    images: Tensor
    partners: Tensor
    weight: float

    def mix_losses(self, loss: Callable[[Tensor], Tensor], labels: Tensor) -> Tensor:
        """Return the loss of the mixtures, the weighted mean of the losses of both labels.

        Args:
            loss: a function of labels, for the model's prediction of `images`.
            labels: labels (N, ...) of the images before mixing.
        """
        return self.weight * loss(labels) + (1 - self.weight) * loss(labels[self.partners])


def mix(images: Tensor, mixup_alpha: float, cutmix_alpha: float) -> Mixture:
    """Mix a batch by mixup or CutMix; if both are on, one of them is drawn for the batch.

    The random numbers are those of torch's CPU generator.

    Args:
        images: images (N, C, H, W), normalized.
        mixup_alpha: parameter of `mixup`, 0: off.
        cutmix_alpha: parameter of `cutmix`, 0: off.

    Raises:
        ValueError: both are 0, or one is negative.
    """
    check_alphas(mixup_alpha, cutmix_alpha)
    if mixup_alpha == cutmix_alpha == 0:
        raise ValueError("mixup and cutmix are both 0: there is nothing to mix")
    if cutmix_alpha == 0 or (mixup_alpha > 0 and torch.rand(()) < 0.5):
        return mixup(images, mixup_alpha)
    return cutmix(images, cutmix_alpha)


def check_alphas(mixup_alpha: float, cutmix_alpha: float) -> None:
    """Check the parameters of `mix`.

    Examples:
        >>> check_alphas(0.2, -1.0)
        Traceback (most recent call last):
        ValueError: cutmix is -1.0; it must be a number of 0 or more (0: none)
    """
    for name, alpha in (("mixup", mixup_alpha), ("cutmix", cutmix_alpha)):
        if not 0 <= alpha < math.inf:
            raise ValueError(f"{name} is {alpha}; it must be a number of 0 or more (0: none)")


def mixup(images: Tensor, alpha: float) -> Mixture:
    """Average each image with another one of the batch (Zhang et al., ICLR 2018).

    Args:
        images: images (N, C, H, W).
        alpha: parameter > 0 of the weight's distribution, Beta(alpha, alpha).

    Examples:
        >>> mixture = mixup(torch.ones(2, 3, 8, 8), alpha=0.2)
        >>> mixture.mix_losses(lambda labels: labels.float().mean(), torch.tensor([4, 6])).round()
        tensor(5.)
    """
    weight = _draw_weight(alpha)
    partners = torch.randperm(len(images)).to(images.device)
    return Mixture(images * weight + images[partners] * (1 - weight), partners, weight)


def cutmix(images: Tensor, alpha: float) -> Mixture:
    """Replace a rectangle of each image by that of another one of the batch (Yun et al., ICCV 2019).

    The rectangle's centre is uniform in the image and its area is drawn; the part outside the image is cut off, and the
    weight is the fraction of the remaining area.

    Args:
        images: images (N, C, H, W).
        alpha: parameter > 0 of the distribution of the remaining area, Beta(alpha, alpha).
    """
    height, width = images.shape[-2:]
    ratio = 0.5 * math.sqrt(1 - _draw_weight(alpha))
    x, y = int(torch.randint(width, ())), int(torch.randint(height, ()))
    half_width, half_height = int(ratio * width), int(ratio * height)
    rows = slice(max(y - half_height, 0), min(y + half_height, height))
    columns = slice(max(x - half_width, 0), min(x + half_width, width))
    partners = torch.randperm(len(images)).to(images.device)
    mixed = images.clone()
    mixed[..., rows, columns] = images[partners][..., rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return Mixture(mixed, partners, 1 - area / (height * width))


def _draw_weight(alpha: float) -> float:
    return Beta(torch.tensor(float(alpha)), alpha).sample().item()
