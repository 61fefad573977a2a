"""Memory-efficient sums of products after shared projection, norm and ReLU.

The published PyTorch head of HBP projects every map once for every pair, and keeps all projections. Here batch norm is
folded into the projection, and the rest runs tile by tile. Mean and variance of the projected maps are computed from
mean and covariance of the maps, without a projection; their gradients pass through these small matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from c2f_zoo.ops.memory_efficient import Operands, bit_masks, plain_sums
from c2f_zoo.ops.precision import is_exporting, without_autocast
from c2f_zoo.ops.products import bmm
from c2f_zoo.ops.tiled import tiled_sums


def shared_projection_sums(
    maps: Sequence[Tensor],
    weight: Tensor,
    gain: Tensor,
    offset: Tensor,
    terms: Sequence[tuple[int, ...]],
    statistics: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-5,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Project all maps with one weight, apply batch norm and ReLU, sum products.

    With A_i = relu(gain (W X_i - mean) / sqrt(var + eps) + offset), a term such as (0, 2) gives sum_l A_0 * A_2.

    Args:
        maps: the feature maps X_i, (N, C, H, W), one spatial size, float32 or float64.
        weight: the projection W, (d, C).
        gain: batch norm's weight, (d,).
        offset: batch norm's bias, (d,).
        terms: indices of the maps of each product.
        statistics: mean and variance (d,) for all maps. Default: each map's own, over the batch.
        eps: batch norm's epsilon.

    Returns:
        The sums, (N, d) for each term, and the mean and the (biased) variance (d,) of each projected map.

    Examples:
        >>> x, one, zero = torch.tensor([[[[1.0, 3.0]]]]), torch.ones(1), torch.zeros(1)
        >>> sums, mean, var = shared_projection_sums([x, x], torch.ones(1, 1), one, zero, [(0, 1)], eps=0.0)
        >>> sums[0], mean[0], var[0]  # relu(-1)^2 + relu(1)^2
        (tensor([[1.]]), tensor([2.]), tensor([1.]))
    """
    flat = [x.flatten(2) for x in maps]
    if statistics is None:
        found = [_BatchStatistics.apply(x, weight) for x in flat]
        means, variances = [mean for mean, _ in found], [var for _, var in found]
    else:
        means, variances = [statistics[0]] * len(flat), [statistics[1]] * len(flat)
    scales = [gain * (var + eps).rsqrt() for var in variances]
    weights = [weight * scale[:, None] for scale in scales]
    biases = [offset - scale * mean for scale, mean in zip(scales, means, strict=True)]
    operands, masks = Operands(flat, weights, biases), bit_masks(terms)
    sums = plain_sums(operands, masks, True) if is_exporting() else tiled_sums(*operands, masks, False, True)[0]
    return list(sums), means, variances


class _BatchStatistics(torch.autograd.Function):
    """Mean and variance of W x over images and locations, by the covariance of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        centre, covariance = _centre_and_covariance(x)
        ctx.save_for_backward(x, weight, centre, covariance)
        return weight @ centre, (_product(weight, covariance) * weight).sum(dim=1).clamp(min=0)

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, centre, covariance = ctx.saved_tensors
        with without_autocast(x):
            if torch.is_grad_enabled():  # in a second derivative these are not constants
                centre, covariance = _centre_and_covariance(x)
            scaled = of_variance[:, None] * weight
            of_weight = torch.addr(2 * of_variance[:, None] * _product(weight, covariance), of_mean, centre)
            weighting = 1 / max(1, x.shape[0] * x.shape[2])
            of_covariance, of_centre = _product(weight.T, scaled), weight.T @ of_mean
            spread = (2 * weighting * of_covariance).expand(len(x), -1, -1)
            # In place, because allocating a tensor of the map's size takes longer than computing it.
            return bmm(spread, x - centre[:, None]).add_(weighting * of_centre[:, None]), of_weight


def _centre_and_covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    centre = x.mean(dim=(0, 2))
    centred = x - centre[:, None]
    return centre, bmm(centred, centred.transpose(1, 2)).sum(dim=0) / (x.shape[0] * x.shape[2])


def _product(a: Tensor, b: Tensor) -> Tensor:
    return bmm(a[None], b[None])[0]
