"""The base class of `low_rank_bilinear`, `hbp`, `trilinear` and `mlp`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from c2f_zoo.ops import IMPLEMENTATIONS, multilinear_sums, signed_sqrt_l2
from c2f_zoo.pooling.base import Pooling
from c2f_zoo.pooling.checks import Align, align_maps
from c2f_zoo.registry import check_names

L2 = Literal["branch", "vector"]


class MultilinearPooling(Pooling):
    """Base class of poolings by sums of products of projections.

    Each term's product is summed over locations; signed square root, l2 and concatenation follow. The projections are
    separate 1x1 convolutions with bias, without normalisation or activation, initialised as in HBP's Caffe release:
    uniform within sqrt(3 / C_i).

    The paper writes U in R^(hw x d). Like HBP's released network, this class projects channels, U in R^(C x d), which
    matches d = 8192 and the size of the classifier P.

    Args:
        in_channels: number of channels of each map.
        terms: indices of the projections of each product.
        sources: index of the map of each projection; None for one projection per map.
        dim: width d of the projections.
        grad_eps: bound on the root's gradient, see `c2f_zoo.ops.signed_sqrt`.
        l2: normalise each term (`"branch"`, as in HBP) or the concatenation of all (`"vector"`).
        align: treatment of maps of different sizes, see `c2f_zoo.pooling.checks.align_maps`.
        impl: one of `c2f_zoo.ops.IMPLEMENTATIONS`, which differ in speed, memory and rounding. Default: chosen
            automatically.

    Raises:
        ValueError: `l2`, `align` or `impl` is unknown.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        terms: Sequence[tuple[int, ...]],
        sources: Sequence[int] | None = None,
        dim: int = 8192,
        grad_eps: float = 1e-4,
        l2: L2 = "branch",
        align: Align = "error",
        impl: str | None = None,
    ) -> None:
        check_names("l2", [l2], get_args(L2))
        if impl is not None:
            check_names("impl", [impl], IMPLEMENTATIONS)
        super().__init__(in_channels, out_features=dim * len(terms), align=align)
        self.terms = tuple(terms)
        self.sources = tuple(sources if sources is not None else range(len(in_channels)))
        self.grad_eps = grad_eps
        self.l2 = l2
        self.impl = impl
        self.projections = nn.ModuleList(projection(in_channels[source], dim) for source in self.sources)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pool maps (N, C_i, H, W) to (N, out_features), in the projections' dtype."""
        maps = align_maps(maps, self.in_channels, self.align)
        sums = multilinear_sums(
            [maps[source] for source in self.sources],
            [cast(Tensor, layer.weight).flatten(1) for layer in self.projections],
            [cast(Tensor, layer.bias) for layer in self.projections],
            self.terms,
            self.impl,
        )
        if self.l2 == "branch":
            pooled = torch.cat([signed_sqrt_l2(branch, self.grad_eps) for branch in sums], dim=1)
        else:
            pooled = signed_sqrt_l2(torch.cat(sums, dim=1), self.grad_eps)
        return pooled.to(cast(Tensor, self.projections[0].weight).dtype)


def projection(channels: int, dim: int, bias: bool = True) -> nn.Conv2d:
    """Build a 1x1 convolution, initialised as in HBP's Caffe release.

    Weights are uniform within sqrt(3 / channels); biases are 0.
    """
    layer = nn.Conv2d(channels, dim, kernel_size=1, bias=bias)
    bound = (3 / channels) ** 0.5
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
