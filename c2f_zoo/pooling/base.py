"""The base class of poolings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, get_args

import torch
from torch import Tensor, nn

from c2f_zoo.pooling.checks import Align, check_channels
from c2f_zoo.registry import check_names


class Pooling(nn.Module):
    """Base class of poolings: modules that pool feature maps to a vector per image.

    A subclass defines `forward(maps)`, from maps (N, C_i, H_i, W_i) to (N, `out_features`), and the class attributes
    `description` and `source`.

    Args:
        in_channels: number of channels C_i of each map, one map per tap.
        out_features: length of the vector.
        align: what a pooling that multiplies maps does with maps of different sizes, see
            `c2f_zoo.pooling.checks.align_maps`.

    Attributes:
        description: the formula in one line, for tables.
        source: the publication; empty if there is none.
        one_size: whether all maps must have the same height and width: the class's value, but false with
            `align="pool"`. `create_model` checks it.

    Raises:
        ValueError: `align` is unknown.

    Examples:
        >>> class Sum(Pooling):
        ...     description = "The sum over locations of each channel"
        ...     one_size = False
        ...
        ...     def __init__(self, in_channels):
        ...         super().__init__(in_channels, out_features=sum(in_channels))
        ...
        ...     def forward(self, maps):
        ...         return torch.cat([x.sum(dim=(2, 3)) for x in maps], dim=1)
        >>> Sum([2, 3])([torch.ones(1, 2, 5, 5), torch.ones(1, 3, 1, 1)])
        tensor([[25., 25.,  1.,  1.,  1.]])
    """

    description: ClassVar[str] = ""
    source: ClassVar[str] = ""
    one_size: bool = True

    def __init__(self, in_channels: Sequence[int], out_features: int, align: Align = "error") -> None:
        check_names("align", [align], get_args(Align))
        super().__init__()
        self.in_channels: tuple[int, ...] = tuple(in_channels)
        self.out_features = out_features
        self.align: Align = align
        if align == "pool":
            self.one_size = False

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pool maps of shape (N, C_i, H_i, W_i) to (N, out_features)."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward(maps)")


class ChannelwisePooling(Pooling):
    """A pooling that turns each channel of each map into one number.

    A subclass computes the numbers of one map in `pool_map`. The maps may differ in size.

    Args:
        in_channels: number of channels C_i of each map.
    """

    one_size = False

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__(in_channels, out_features=sum(in_channels))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pool maps of shape (N, C_i, H_i, W_i) to (N, out_features)."""
        check_channels(maps, self.in_channels)
        return torch.cat([self.pool_map(x) for x in maps], dim=1).to(maps[0].dtype)

    def pool_map(self, x: Tensor) -> Tensor:
        """Pool one map (N, C_i, H_i, W_i) to (N, C_i), float32 or wider."""
        raise NotImplementedError(f"{type(self).__name__} defines no pool_map(x)")
