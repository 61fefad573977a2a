"""A pooling and a class tree that c2f_zoo finds once this package is installed."""

import torch

from c2f_zoo import Hierarchy, Pooling
from c2f_zoo.ops import at_least_float32
from c2f_zoo.pooling import check_channels


class StdPooling(Pooling):
    """The standard deviation of each channel over locations."""

    description = "The standard deviation of each channel over locations"
    one_size = False

    def __init__(self, in_channels, eps=1e-6):
        super().__init__(in_channels, out_features=sum(in_channels))
        self.eps = eps

    def forward(self, maps):
        check_channels(maps, self.in_channels)
        variances = [at_least_float32(x).var(dim=(2, 3), correction=0) for x in maps]
        return (torch.cat(variances, dim=1) + self.eps).sqrt().to(maps[0].dtype)


def shapes():
    """Three shapes of two kinds."""
    return Hierarchy.from_rows(("kind", "shape"), [("round", "disc"), ("round", "ring"), ("edged", "box")])
