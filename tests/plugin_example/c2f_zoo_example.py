"""A pooling and a class tree that c2f_zoo finds once this package is installed."""

import torch

from c2f_zoo import Hierarchy, Pooling


class StdPooling(Pooling):
    """The standard deviation of each channel over locations."""

    description = "The standard deviation of each channel over locations"

    def __init__(self, in_channels, eps=1e-6):
        super().__init__(in_channels, out_features=sum(in_channels))
        self.eps = eps

    def forward(self, maps):
        return torch.cat([(x.var(dim=(2, 3)) + self.eps).sqrt() for x in maps], dim=1)


def shapes():
    """Three shapes of two kinds."""
    return Hierarchy.from_rows(("kind", "shape"), [("round", "disc"), ("round", "ring"), ("edged", "box")])
