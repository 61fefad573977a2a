"""The base class of poolings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn


class Pooling(nn.Module):
    """Base class of poolings: modules that pool feature maps to a vector per image.

    A subclass defines `forward(maps)`, from maps (N, C_i, H_i, W_i) to (N, `out_features`), and the class attributes
    `description` and `source`.

    Args:
        in_channels: number of channels C_i of each map, one map per tap.
        out_features: length of the vector.

    Attributes:
        description: the formula in one line, for tables.
        source: the publication; empty if there is none.
        one_size: whether all maps must have the same height and width. `create_model` checks it.

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

    def __init__(self, in_channels: Sequence[int], out_features: int) -> None:
        super().__init__()
        self.in_channels: tuple[int, ...] = tuple(in_channels)
        self.out_features = out_features

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pool maps of shape (N, C_i, H_i, W_i) to (N, out_features)."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward(maps)")
