"""Kernel pooling (KP): a compact Taylor series of a kernel between locations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2f_zoo.ops import at_least_float32, draw_hashes, signed_sqrt_l2, tensor_sketch_sums
from c2f_zoo.pooling.base import Pooling
from c2f_zoo.pooling.checks import check_channels, check_num_maps
from c2f_zoo.pooling.registry import register_pooling

_MAX_ORDER = 64
_SHORTEST = 1e-2  # the gradient of a unit vector treats shorter vectors as if they had this length


@register_pooling("kernel")
class KernelPooling(Pooling):
    """Kernel pooling: `concat(a_1 X, a_2 TS_2(X), ..., a_p TS_p(X))`.

    The inner product of two locations' features estimates the kernel K(x, y) = sum_i a_i^2 (x . y)^i, i = 1..p, of
    their unit vectors (zeros stay zeros). Order 1 is the vector itself; the others are Tensor Sketches of the i-fold
    outer product. Features are summed over locations; signed root and l2 over the whole vector follow.

    By default a_i^2 = exp(-2 gamma) (2 gamma)^i / i!, so that K is the Gaussian kernel exp(-gamma |x - y|^2)
    without its constant and its orders beyond p (for unit vectors). The sketches of all orders share their first
    factors, which does not affect the quality of each order's estimate.

    Args:
        in_channels: number of channels of the one map.
        max_order: p, 1 to 64.
        dim: length d of each sketch; the vector has C + (p - 1) d entries, for 512 channels 12 800.
        gamma: parameter of the Gaussian kernel, > 0.
        coefficients: a_i^2 for i = 1..p, >= 0; None for the Gaussian kernel's.
        learn_coefficients: train the a_i; otherwise they are a buffer.
        seed: seed of the sketches.
        grad_eps: bound on the root's gradient, see `c2f_zoo.ops.signed_sqrt`.

    Raises:
        ValueError: the number of maps is not 1, `max_order` is not in 1..64, or the coefficients are not p numbers
            >= 0.
    """

    description = "A compact Taylor series of a kernel: `concat(a_1 X, a_2 TS_2(X), ..., a_p TS_p(X))`"
    source = "Cui et al., CVPR 2017"

    hashes: Tensor
    signs: Tensor

    def __init__(
        self,
        in_channels: Sequence[int],
        max_order: int = 4,
        dim: int = 4096,
        gamma: float = 1.0,
        coefficients: Sequence[float] | None = None,
        learn_coefficients: bool = True,
        seed: int = 0,
        grad_eps: float = 1e-4,
    ) -> None:
        check_num_maps("kernel", in_channels, allowed=[1])
        if not 1 <= max_order <= _MAX_ORDER:
            raise ValueError(f"kernel requires max_order in 1..{_MAX_ORDER}, not {max_order}")
        if coefficients is None:
            orders = range(1, max_order + 1)
            coefficients = [math.exp(-2 * gamma) * (2 * gamma) ** order / math.factorial(order) for order in orders]
        if len(coefficients) != max_order or min(coefficients) < 0:
            raise ValueError(f"kernel requires coefficients for orders 1..{max_order}, all >= 0, not {coefficients}")
        super().__init__(in_channels, out_features=in_channels[0] + (max_order - 1) * dim)
        self.dim = dim
        self.grad_eps = grad_eps
        roots = torch.tensor([value**0.5 for value in coefficients])
        if learn_coefficients:
            self.coefficients = nn.Parameter(roots)
        else:
            self.register_buffer("coefficients", roots)
        # Order 1 needs no sketch; an unused one is drawn so that all weights files have the same keys.
        hashes, signs = draw_hashes(max_order, in_channels[0], dim, torch.Generator().manual_seed(seed))
        self.register_buffer("hashes", hashes)
        self.register_buffer("signs", signs)

    def sums(self, maps: Sequence[Tensor]) -> Tensor:
        """Return sums of features (N, out_features) before root and norm."""
        check_channels(maps, self.in_channels)
        x = _UnitVectors.apply(at_least_float32(maps[0]).flatten(2))
        orders = [x.sum(dim=2)]
        if len(self.coefficients) > 1:
            orders += tensor_sketch_sums(x, self.hashes, self.signs, self.dim)[1:]
        return torch.cat([a * order for a, order in zip(self.coefficients.to(x.dtype), orders, strict=True)], dim=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pool a map of shape (N, C, H, W) to (N, out_features)."""
        return signed_sqrt_l2(self.sums(maps), self.grad_eps).to(maps[0].dtype)


class _UnitVectors(torch.autograd.Function):
    """Unit vectors of all locations, with a gradient of at most 1 / `_SHORTEST`.

    Vectors of zeros stay zeros and have a gradient of zero.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        # Divide by the largest value first, or squares may underflow.
        x = x / x.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        return F.normalize(x, dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, unit = ctx.saved_tensors
        length = x.norm(dim=1, keepdim=True)
        tangent = grad - unit * (unit * grad).sum(dim=1, keepdim=True)
        return tangent * torch.where(length > 0, 1 / length.clamp(min=_SHORTEST), 0)
