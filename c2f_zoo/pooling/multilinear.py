"""The module behind `hbp`, `trilinear` and `mlp`: they differ only in which maps are multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from c2f_zoo.ops import l2_normalize, multilinear_sums, signed_sqrt
from c2f_zoo.pooling.registry import check_maps


class MultilinearPooling(nn.Module):
    """Projects every map to `dim` channels and pools products of the projections.

    Each term's product is summed over locations; its signed square root is l2-normalised by itself; the
    terms are concatenated. The projections are separate 1x1 convolutions with bias and neither
    normalisation nor activation, initialised as in HBP's Caffe release: uniform within sqrt(3 / C_i).

    The paper writes U in R^(hw x d); like HBP's released network it is read as a projection of channels,
    U in R^(C x d): the only reading in which d = 8192 and the classifier P fit.

    Args:
        in_channels: number of channels of each map.
        terms: which maps each product takes, by index.
        dim: width d of the projections.
        grad_eps: bound on the root's gradient, see `c2f_zoo.ops.signed_sqrt`.
    """

    def __init__(self, in_channels: Sequence[int], terms: Sequence[tuple[int, ...]], dim: int, grad_eps: float) -> None:
        super().__init__()
        self.in_channels = tuple(in_channels)
        self.terms = tuple(terms)
        self.grad_eps = grad_eps
        self.out_features = dim * len(self.terms)
        self.projections = nn.ModuleList(_projection(channels, dim) for channels in in_channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pools maps of shape (N, C_i, H, W) to (N, out_features), in the projections' dtype."""
        check_maps(maps, self.in_channels)
        sums = multilinear_sums(
            maps,
            [cast(Tensor, projection.weight).flatten(1) for projection in self.projections],
            [cast(Tensor, projection.bias) for projection in self.projections],
            self.terms,
        )
        branches = [l2_normalize(signed_sqrt(branch, self.grad_eps)) for branch in sums]
        return torch.cat(branches, dim=1).to(cast(Tensor, self.projections[0].weight).dtype)


def _projection(channels: int, dim: int) -> nn.Conv2d:
    projection = nn.Conv2d(channels, dim, kernel_size=1)
    bound = (3 / channels) ** 0.5
    nn.init.uniform_(projection.weight, -bound, bound)
    nn.init.zeros_(projection.bias)  # type: ignore[arg-type]
    return projection
