"""Features of boxes of a feature map, and linear scores of them, by RoIAlign."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

MAX_FEATURES = 2048
CONTEXT = 0.5  # of the box's size at each side


def grid_size(channels: int) -> int:
    """Return the largest g for which g x g cells of a box and one cell of its surroundings have at most 2048 numbers.

    Raises:
        ValueError: there are too many channels for two cells.

    Examples:
        >>> grid_size(512), grid_size(112)
        (1, 4)
    """
    if 2 * channels > MAX_FEATURES:
        raise ValueError(
            f"the map has {channels} channels; two cells of a region have at most {MAX_FEATURES} numbers. Choose a tap "
            f"with {MAX_FEATURES // 2} channels or less"
        )
    return math.isqrt(MAX_FEATURES // channels - 1)


def num_features(channels: int) -> int:
    """Return the number of features of a box.

    Examples:
        >>> num_features(512), num_features(112)
        (1024, 1904)
    """
    return channels * (grid_size(channels) ** 2 + 1)


def surroundings(boxes: Tensor) -> Tensor:
    """Enlarge boxes (k, 4) by half their size at each side.

    Examples:
        >>> surroundings(torch.tensor([[10.0, 10.0, 30.0, 20.0]]))
        tensor([[ 0.,  5., 40., 25.]])
    """
    grown = CONTEXT * (boxes[:, 2:] - boxes[:, :2])
    return torch.cat([boxes[:, :2] - grown, boxes[:, 2:] + grown], dim=1)


def box_features(x: Tensor, boxes: Tensor) -> Tensor:
    """Average a map in the cells of each box, and in the box's surroundings.

    Without its surroundings, a small box in the middle of a bird would look like the bird.

    Args:
        x: a map (1, C, H, W), float32.
        boxes: boxes (k, 4): left, top, right and bottom in pixels of the map.

    Returns:
        Features (k, `num_features(C)`): the `grid_size(C)` x `grid_size(C)` cells, then the surroundings.

    Raises:
        ValueError: the map has too many channels.

    Examples:
        >>> box_features(torch.rand(1, 512, 14, 14), torch.tensor([[1.0, 2.0, 6.0, 9.0]])).shape
        torch.Size([1, 1024])
    """
    inner, outer = box_averages(x, boxes, grid_size(x.shape[1])), box_averages(x, surroundings(boxes), 1)
    return torch.cat([inner.flatten(start_dim=1), outer.flatten(start_dim=1)], dim=1)


def box_averages(x: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Average a map in the cells of many boxes: RoIAlign as matrix products, ten times as fast on a CPU.

    Args:
        x: a map (1, C, H, W), float32.
        boxes: boxes (k, 4) in pixels of the map.
        size: number of cells in a row and in a column of a box.

    Returns:
        (k, C, size, size), those of `torchvision.ops.roi_align(x, [boxes], size, aligned=True)`.

    Examples:
        >>> x, boxes = torch.rand(1, 8, 14, 14), torch.tensor([[1.0, 2.0, 6.0, 9.0], [-3.0, 0.5, 20.0, 1.5]])
        >>> torch.allclose(box_averages(x, boxes, 3), roi_align(x, [boxes], 3, aligned=True), atol=1e-5)
        True
    """
    pixels = x[0].flatten(start_dim=1).T  # (H W, C)
    of_rows, of_columns = _weights(boxes[:, 1::2], x.shape[2], size), _weights(boxes[:, 0::2], x.shape[3], size)
    cells = [  # one after the other: the weights of all take more time to write than the products
        (of_rows[:, row, :, None] * of_columns[:, column, None, :]).flatten(start_dim=1) @ pixels
        for row, column in itertools.product(range(size), range(size))
    ]
    return torch.stack(cells, dim=2).unflatten(2, (size, size))


def box_scores(x: Tensor, boxes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute a linear layer of the features of the same boxes of each map.

    RoIAlign is linear, so the map is projected before it, to few channels, as in R-FCN (Dai et al., NeurIPS 2016). The
    features themselves, megabytes for each image, are never computed.

    Args:
        x: maps (N, C, H, W).
        boxes: boxes (k, 4) in pixels of the maps.
        weight: weights (outputs, `num_features(C)`).
        bias: (outputs,).

    Returns:
        (N, k, outputs): those of the linear layer on `box_features`.

    Examples:
        >>> x, boxes = torch.rand(1, 112, 14, 14), torch.tensor([[1.0, 2.0, 6.0, 9.0]])
        >>> linear = torch.nn.Linear(num_features(112), 3)
        >>> scores = box_scores(x, boxes, linear.weight, linear.bias)
        >>> torch.allclose(scores[0], linear(box_features(x, boxes)), atol=1e-5)
        True
    """
    channels, outputs = x.shape[1], weight.shape[0]
    size = grid_size(channels)
    inner, outer = weight.split([channels * size**2, channels], dim=1)
    # A channel for each output and cell; the last cell is the surroundings.
    cells = torch.cat([inner.view(outputs, channels, size**2), outer[:, :, None]], dim=2)
    projected = F.conv2d(x, cells.transpose(1, 2).reshape(-1, channels, 1, 1))
    pixels = torch.cat([cell_weights(x, boxes, size), cell_weights(x, surroundings(boxes), 1)], dim=1)
    return torch.einsum("nocp,kcp->nko", projected.flatten(start_dim=2).unflatten(1, (outputs, -1)), pixels) + bias


def cell_weights(x: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Return the weight of each pixel of maps (N, C, H, W) in each cell of boxes: (k, size * size, H * W).

    It is the product of the weights of the pixel's row and of its column.
    """
    of_rows, of_columns = _weights(boxes[:, 1::2], x.shape[2], size), _weights(boxes[:, 0::2], x.shape[3], size)
    return (of_rows[:, :, None, :, None] * of_columns[:, None, :, None, :]).flatten(1, 2).flatten(2, 3)


def _weights(ends: Tensor, length: int, size: int) -> Tensor:
    """Return the weight (k, size, length) of each pixel of a line in each cell of stretches with these ends (k, 2)."""
    # A channel for each pixel.
    line = torch.eye(length, dtype=ends.dtype, device=ends.device).view(1, length, length, 1)
    first, last = ends.unbind(dim=1)
    rois = torch.stack([torch.zeros_like(first), torch.zeros_like(first), first, torch.ones_like(first), last], dim=1)
    return roi_align(line, rois, output_size=(size, 1), sampling_ratio=0, aligned=True)[..., 0].transpose(1, 2)
