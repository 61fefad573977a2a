"""HBP with one shared projection, as in its PyTorch reimplementations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from c2f_zoo.ops import at_least_float32, shared_projection_sums, signed_sqrt_l2, without_autocast
from c2f_zoo.pooling.base import Pooling
from c2f_zoo.pooling.checks import Align, align_maps, check_num_maps
from c2f_zoo.pooling.multilinear import projection
from c2f_zoo.pooling.registry import register_pooling

_PAIRS = ((0, 1), (0, 2), (1, 2))
# The order in which the published head runs, and thus updates batch norm's running statistics.
_PUBLISHED_PAIRS = ((0, 1), (1, 2), (0, 2))


@register_pooling("hbp_shared")
class SharedHbpPooling(Pooling):
    """HBP with a shared projection, batch norm and ReLU: `concat(A*B, A*C, B*C)`.

    A = relu(norm(U X)), with the same U and batch norm for all three maps, which therefore need the same number of
    channels. PyTorch reimplementations of HBP use this head, the Caffe release uses `hbp`. As in the published code
    (HBP-pytorch, `HBP_fc.py`), each map updates the running statistics once for each of its two pairs, in the order A,
    B, B, C, A, C, so that they are the same after any number of steps. All computation is in float32 or wider.

    The published weights `bilinear_proj.0` and `bilinear_proj.1` are `projection` and `norm` here. Their classifier
    reads A*B, B*C, A*C, in this order; the example converts its weight.

    Args:
        in_channels: number of channels of the three maps, all the same.
        dim: width d of the projection; the vector has 3 d entries.
        align: treatment of maps of different sizes: `"error"` or `"pool"`.

    Raises:
        ValueError: the number of maps is not 3, or their numbers of channels differ.

    Examples:
        >>> published, dim = torch.nn.Linear(3 * 2, 1), 2
        >>> weight = published.weight.unflatten(1, (3, dim))[:, [0, 2, 1]].flatten(1)  # A*B, A*C, B*C
        >>> torch.equal(weight[:, dim : 2 * dim], published.weight[:, 2 * dim :])
        True
    """

    description = "Three pairs behind one projection, batch norm, ReLU: `concat(A*B, A*C, B*C)`"
    source = "after Yu et al., ECCV 2018"
    root_eps = 1e-5  # added to the sums, which are not negative, before the root: it bounds the root's gradient

    def __init__(self, in_channels: Sequence[int], dim: int = 8192, align: Align = "error") -> None:
        check_num_maps("hbp_shared", in_channels, allowed=[3])
        if len(set(in_channels)) > 1:
            raise ValueError(
                f"hbp_shared projects all maps with one weight, but they have {list(in_channels)} channels; "
                "choose taps with equal numbers of channels, or the pooling hbp"
            )
        super().__init__(in_channels, out_features=dim * len(_PAIRS), align=align)
        self.projection = projection(in_channels[0], dim, bias=False)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pool maps (N, C, H, W) to (N, out_features), in the projection's dtype.

        Raises:
            ValueError: the batch is one image with one location, in training mode; it has no variance.
        """
        maps = [at_least_float32(x) for x in align_maps(maps, self.in_channels, self.align)]
        # Any other norm, e.g. SyncBatchNorm or a frozen batch norm, runs as a module.
        sums = self._memory_efficient_sums(maps) if type(self.norm) is nn.BatchNorm2d else self._sums_of_modules(maps)
        with without_autocast(maps[0]):
            pooled = torch.cat([signed_sqrt_l2(branch + self.root_eps, grad_eps=0.0) for branch in sums], dim=1)
        return pooled.to(self.projection.weight.dtype)

    def _sums_of_modules(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums as published: modules run once for each map and pair."""
        cast_maps = [x.to(self.projection.weight.dtype) for x in maps]
        sums = {}
        for pair in _PUBLISHED_PAIRS:
            one, other = (self.norm(self.projection(cast_maps[index])).relu().float() for index in pair)
            sums[pair] = (one * other).sum(dim=(2, 3))
        return [sums[pair] for pair in _PAIRS]

    def _memory_efficient_sums(self, maps: Sequence[Tensor]) -> list[Tensor]:
        given = (self.projection.weight.flatten(1), self.norm.weight, self.norm.bias)
        weight, gain, offset = (at_least_float32(x) for x in given)
        running = [at_least_float32(cast(Tensor, x)) for x in (self.norm.running_mean, self.norm.running_var)]
        statistics = None if self.norm.training else (running[0], running[1])
        count = maps[0].shape[0] * maps[0].shape[2] * maps[0].shape[3]
        if self.norm.training and count < 2:
            raise ValueError(
                "hbp_shared has batch norm, and one image with one location has no variance; "
                "train with larger batches or maps"
            )
        with without_autocast(maps[0]):
            sums, mean, var = shared_projection_sums(maps, weight, gain, offset, _PAIRS, statistics, self.norm.eps)
            if self.norm.training:
                self._track(mean, var, count)
        return sums

    @torch.no_grad()
    def _track(self, mean: Sequence[Tensor], var: Sequence[Tensor], count: int) -> None:
        """Update the running statistics once for each map of each published pair."""
        for running, found in (
            (cast(Tensor, self.norm.running_mean), mean),
            (cast(Tensor, self.norm.running_var), [x * (count / (count - 1)) for x in var]),
        ):
            value, largest = at_least_float32(running), torch.finfo(running.dtype).max
            for index in (index for pair in _PUBLISHED_PAIRS for index in pair):
                value = value.lerp(found[index], cast(float, self.norm.momentum))
            running.copy_(value.clamp(-largest, largest))  # the largest float16 is 65504
        cast(Tensor, self.norm.num_batches_tracked).add_(2 * len(_PAIRS))
