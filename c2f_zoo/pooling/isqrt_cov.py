"""iSQRT-COV (fast MPN-COV): the square root of the covariance matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from c2f_zoo.ops import at_least_float32, covariance, matrix_sqrt, project
from c2f_zoo.pooling.base import Pooling
from c2f_zoo.pooling.checks import check_channels, check_num_maps
from c2f_zoo.pooling.multilinear import projection
from c2f_zoo.pooling.registry import register_pooling

_MAX_ITERATIONS = 100


@register_pooling("isqrt_cov")
class IsqrtCovPooling(Pooling):
    """iSQRT-COV (fast MPN-COV): the upper triangle of the covariance's square root.

    The root is computed by Newton-Schulz iterations. A 1x1 convolution first reduces the channels, without the batch
    norm and ReLU of the published networks. No root or norm follows: the matrix root is the normalisation.

    Args:
        in_channels: number of channels of the one map.
        dim: channels d after the reduction; None for no reduction. The vector has d (d + 1) / 2 entries.
        iterations: Newton-Schulz iterations, 1 to 100. In float32 more than 20 may diverge if the covariance is
            singular, as with fewer locations than channels.
        grad_eps: bound on the gradient of the trace's root, see `c2f_zoo.ops.signed_sqrt`.

    Raises:
        ValueError: the number of maps is not 1, or `iterations` is not in 1..100.
    """

    description = "The upper triangle of the square root of the covariance, by Newton-Schulz"
    source = "Li et al., CVPR 2018"

    triangle: Tensor

    def __init__(
        self, in_channels: Sequence[int], dim: int | None = 256, iterations: int = 5, grad_eps: float = 1e-4
    ) -> None:
        check_num_maps("isqrt_cov", in_channels, allowed=[1])
        if not 1 <= iterations <= _MAX_ITERATIONS:
            raise ValueError(f"isqrt_cov requires iterations in 1..{_MAX_ITERATIONS}, not {iterations}")
        width = dim or in_channels[0]
        super().__init__(in_channels, out_features=width * (width + 1) // 2)
        self.iterations = iterations
        self.grad_eps = grad_eps
        # A bias would not change the covariance.
        self.reduction = None if dim is None else projection(in_channels[0], dim, bias=False)
        # A buffer, because ONNX's exporter by tracing has no triu_indices.
        rows, columns = torch.triu_indices(width, width)
        self.register_buffer("triangle", rows * width + columns, persistent=False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pool a map (N, C, H, W) to (N, out_features), row by row from the diagonal."""
        check_channels(maps, self.in_channels)
        if self.reduction is None:
            x = at_least_float32(maps[0]).flatten(2)
        else:
            x = project(maps[0], cast(Tensor, self.reduction.weight).flatten(1))
        root = matrix_sqrt(covariance(x), self.iterations, self.grad_eps)
        dtype = maps[0].dtype if self.reduction is None else self.reduction.weight.dtype
        return root.flatten(1).index_select(1, self.triangle).to(dtype)
