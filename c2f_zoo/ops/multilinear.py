"""Products of projected feature maps, summed over locations: the heart of HBP and multi-linear pooling."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import mul

import torch
import torch.nn.functional as F
from torch import Tensor


def multilinear_sums(
    maps: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    terms: Sequence[tuple[int, ...]],
) -> list[Tensor]:
    """Projects each map, multiplies the projections of each term element by element, sums over locations.

    With P_i = U_i X_i + b_i, a term such as (0, 2) gives sum_l P_0[:, l] * P_2[:, l] (Huo et al. 2019,
    eqs. 4 to 6, before root and norm). The projections follow autocast; products and sums are made in
    float32 (float64 for float64 maps).

    Args:
        maps: the feature maps X_i, (N, C_i, H, W), one spatial size.
        weights: the projections U_i, (d, C_i).
        biases: their biases b_i, (d,).
        terms: for each sum the indices of the maps that it multiplies.

    Returns:
        For each term a tensor (N, d), float32 or float64.

    Examples:
        >>> x, u, b = torch.ones(1, 2, 3, 3), torch.ones(4, 2), torch.zeros(4)
        >>> multilinear_sums([x, x], [u, u], [b, b], [(0, 1)])[0]  # 9 locations, 2 * 2 at each
        tensor([[36., 36., 36., 36.]])
    """
    projected = [
        _at_least_float32(F.conv2d(x, weight[:, :, None, None], bias).flatten(2))
        for x, weight, bias in zip(maps, weights, biases, strict=True)
    ]
    with torch.autocast(maps[0].device.type, enabled=False):
        return [reduce(mul, [projected[index] for index in term]).sum(dim=2) for term in terms]


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
