"""Products of projected feature maps, summed over locations: the heart of HBP and multi-linear pooling."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import mul

from torch import Tensor

from c2f_zoo.ops.precision import project, without_autocast


def multilinear_sums(
    maps: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    terms: Sequence[tuple[int, ...]],
) -> list[Tensor]:
    """Projects each map, multiplies the projections of each term element by element, sums over locations.

    With P_i = U_i X_i + b_i, a term such as (0, 2) gives sum_l P_0[:, l] * P_2[:, l] (Huo et al. 2019,
    eqs. 4 to 6, before root and norm). The projections follow autocast; products and sums are made in
    float32 (float64 for float64 maps).

    Args:
        maps: the feature maps X_i, (N, C_i, H, W), one spatial size.
        weights: the projections U_i, (d, C_i).
        biases: their biases b_i, (d,), or None.
        terms: for each sum the indices of the maps that it multiplies.

    Returns:
        For each term a tensor (N, d), float32 or float64.

    Examples:
        >>> x, u, b = torch.ones(1, 2, 3, 3), torch.ones(4, 2), torch.zeros(4)
        >>> multilinear_sums([x, x], [u, u], [b, b], [(0, 1)])[0]  # 9 locations, 2 * 2 at each
        tensor([[36., 36., 36., 36.]])
    """
    projected = [project(x, weight, bias) for x, weight, bias in zip(maps, weights, biases, strict=True)]
    with without_autocast(maps[0]):
        return [reduce(mul, [projected[index] for index in term]).sum(dim=2) for term in terms]
