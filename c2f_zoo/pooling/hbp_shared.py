"""HBP as its PyTorch reimplementation has it: one shared projection with batch norm and ReLU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, get_args

import torch
from torch import Tensor, nn

from c2f_zoo.ops import (
    at_least_float32,
    shared_projection_sums,
    signed_sqrt_l2,
    without_autocast,
)
from c2f_zoo.pooling.base import Pooling
from c2f_zoo.pooling.checks import Align, align_maps, check_choice, check_num_maps
from c2f_zoo.pooling.multilinear import projection
from c2f_zoo.pooling.registry import register_pooling

_PAIRS = ((0, 1), (0, 2), (1, 2))


@register_pooling("hbp_shared")
class SharedHbpPooling(Pooling):
    """Three pairs behind one projection, batch norm, ReLU: `concat(A*B, A*C, B*C)` (after Yu et al., ECCV 2018).

    A = relu(norm(U X)), and so on, with the same U and the same batch norm for all three maps, which therefore
    have one number of channels. That is the head which the PyTorch reimplementations of HBP have; the Caffe release
    has `hbp`. There each map goes through the head once for each of its two pairs: batch norm's running statistics
    are updated six times a step, and here as well. All is computed in float32 at the least.

    Args:
        in_channels: number of channels of the three maps, all the same.
        dim: width d of the projection; the vector has 3 d entries.
        root_eps: what is added to the sums, which are not negative, before the root; it bounds its gradient.
        align: what to do with maps of different sizes: `"error"` or `"pool"`.

    Raises:
        ValueError: not three maps, or of different numbers of channels.
    """

    description = "Three pairs behind one projection, batch norm, ReLU: `concat(A*B, A*C, B*C)`"
    source = "after Yu et al., ECCV 2018"

    def __init__(
        self, in_channels: Sequence[int], dim: int = 8192, root_eps: float = 1e-5, align: Align = "error"
    ) -> None:
        check_num_maps("hbp_shared", in_channels, allowed=[3])
        check_choice("align", align, get_args(Align))
        if len(set(in_channels)) > 1:
            raise ValueError(
                f"hbp_shared projects all maps by one weight, but they have {list(in_channels)} channels; "
                "choose taps with as many channels, or the pooling hbp"
            )
        super().__init__(in_channels, out_features=dim * len(_PAIRS))
        self.root_eps = root_eps
        self.align: Align = align
        self.one_size = align == "error"
        self.projection = projection(in_channels[0], dim, bias=False)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pools maps of shape (N, C, H, W) to (N, out_features), in the projection's dtype.

        Raises:
            ValueError: in training there is one image with one location, which has no variance.
        """
        maps = [at_least_float32(x) for x in align_maps(maps, self.in_channels, self.align)]
        # Another norm is SyncBatchNorm, or one that somebody froze.
        sums = self._lean_sums(maps) if type(self.norm) is nn.BatchNorm2d else self._sums_of_modules(maps)
        with without_autocast(maps[0]):
            pooled = torch.cat([signed_sqrt_l2(branch + self.root_eps, grad_eps=0.0) for branch in sums], dim=1)
        return pooled.to(self.projection.weight.dtype)

    def _sums_of_modules(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """As published: each map goes through the modules once for each of its pairs."""
        active = [
            [self.norm(self.projection(maps[index].to(self.projection.weight.dtype))).relu().float() for index in pair]
            for pair in _PAIRS
        ]
        return [(one * other).sum(dim=(2, 3)) for one, other in active]

    def _lean_sums(self, maps: Sequence[Tensor]) -> list[Tensor]:
        given = (self.projection.weight.flatten(1), self.norm.weight, self.norm.bias)
        weight, gain, offset = (at_least_float32(x) for x in given)
        with without_autocast(maps[0]):
            if self.norm.training:
                self._check_batch(maps[0])
                sums, mean, var = shared_projection_sums(maps, weight, gain, offset, _PAIRS, eps=self.norm.eps)
                self._track(mean, var, maps[0].shape[0] * maps[0].shape[2] * maps[0].shape[3])
                return sums
            running = (self.norm.running_mean, self.norm.running_var)
            known = (at_least_float32(cast(Tensor, running[0])), at_least_float32(cast(Tensor, running[1])))
            return shared_projection_sums(maps, weight, gain, offset, _PAIRS, known, self.norm.eps)[0]

    def _check_batch(self, x: Tensor) -> None:
        if x.shape[0] * x.shape[2] * x.shape[3] < 2:
            raise ValueError("hbp_shared has batch norm, and one image with one location has no variance to train on")

    @torch.no_grad()
    def _track(self, mean: Sequence[Tensor], var: Sequence[Tensor], count: int) -> None:
        """Updates the running statistics as the published head does, map by map of each pair."""
        for running, found in (
            (cast(Tensor, self.norm.running_mean), mean),
            (cast(Tensor, self.norm.running_var), [x * (count / (count - 1)) for x in var]),
        ):
            value, largest = at_least_float32(running), torch.finfo(running.dtype).max
            for index in (index for pair in _PAIRS for index in pair):
                value = value.lerp(found[index], cast(float, self.norm.momentum))
            running.copy_(value.clamp(-largest, largest))  # float16 ends at 65504
        cast(Tensor, self.norm.num_batches_tracked).add_(2 * len(_PAIRS))
