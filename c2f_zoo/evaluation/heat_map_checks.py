"""Sanity checks of heat maps: do they show what the model uses, and do they depend on its weights?"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate
from torchmetrics.functional import spearman_corrcoef

from c2f_zoo.model import C2FModel

STEPS = ("head", "head, pooling", "head, pooling, half of the backbone", "all")  # of `shuffle_weights`


def sum_heat(maps: Sequence[Tensor]) -> Tensor:
    """Sum heat maps (N, H_i, W_i) that cover the same part of an image to one of the largest size, (N, H, W).

    A map that is enlarged (bilinear) keeps its sum over places.

    Examples:
        >>> sum_heat([torch.ones(1, 4, 4), torch.ones(1, 2, 2)]).sum()
        tensor(20.)
    """
    height, width = max((tuple(one.shape[1:]) for one in maps), key=math.prod)
    areas = [one.shape[1] * one.shape[2] / (height * width) for one in maps]
    enlarged = [
        area * interpolate(one[:, None], (height, width), mode="bilinear")
        for area, one in zip(areas, maps, strict=True)
    ]
    return torch.cat(enlarged, dim=1).sum(dim=1)


def hottest(heat: Tensor, size: tuple[int, int], fraction: float) -> Tensor:
    """Return masks of the hottest part of images.

    Args:
        heat: heat maps (N, h, w), enlarged bilinearly.
        size: height and width of the images.
        fraction: the fraction of the pixels in a mask, in (0, 1].

    Returns:
        bool (N, H, W), with the same number of pixels in each mask.

    Examples:
        >>> hottest(torch.tensor([[[0.0, 1.0], [2.0, 3.0]]]), (2, 2), 0.5)
        tensor([[[False, False],
                 [ True,  True]]])
    """
    large = interpolate(heat[:, None].float(), size, mode="bilinear").flatten(1)
    chosen = large.topk(max(1, round(fraction * large.shape[1])), dim=1).indices
    return torch.zeros_like(large, dtype=torch.bool).scatter(1, chosen, True).unflatten(1, size)


def shift(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each mask (N, H, W) to a random place, wrapping around: the same size and shape elsewhere.

    Examples:
        >>> shift(torch.eye(3, dtype=torch.bool)[None], torch.Generator().manual_seed(0)).sum()
        tensor(3)
    """
    draws = [[int(torch.randint(side, (), generator=generator)) for side in masks.shape[1:]] for _ in masks]
    return torch.stack([mask.roll(by, (0, 1)) for mask, by in zip(masks, draws, strict=True)])


def hide(x: Tensor, masks: Tensor) -> Tensor:
    """Blur images (N, C, H, W) where their masks (N, H, W) are true, by means of squares of a seventh of a side."""
    cells = tuple(max(1, side // 7) for side in x.shape[2:])
    blurred = interpolate(avg_pool2d(x, cells, ceil_mode=True, count_include_pad=False), x.shape[2:], mode="bilinear")
    return torch.where(masks[:, None], blurred, x)


def shuffle_weights(model: C2FModel, step: str, seed: int) -> C2FModel:
    """Return a copy of a model with shuffled weights, from its output down to a step of `STEPS`.

    The entries of each tensor are shuffled, also of batch norm's statistics, which keeps their distribution.

    Args:
        model: the model.
        step: the parts that are shuffled; of the backbone, the later half of its tensors first.
        seed: seed of the order.

    Examples:
        >>> model = create_model("mlph_tiny_critters", pretrained=True)
        >>> other = shuffle_weights(model, "head", seed=0)
        >>> torch.equal(model.pooling.projections[0].weight, other.pooling.projections[0].weight)
        True
        >>> torch.equal(next(model.head.parameters()), next(other.head.parameters()))
        False
    """
    changed = copy.deepcopy(model)
    backbone = list(changed.backbone.state_dict().values())
    counts = dict(zip(STEPS, (0, 0, len(backbone) // 2, len(backbone)), strict=True))
    parts: list[nn.Module] = [changed.head] if step == "head" else [changed.head, changed.pooling]
    tensors = [tensor for part in parts for tensor in part.state_dict().values()]
    tensors += backbone[len(backbone) - counts[step] :]
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors:
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        tensor.copy_(tensor.flatten()[order].view_as(tensor))
    return changed


def rank_correlations(first: Tensor, second: Tensor) -> Sequence[float]:
    """Return Spearman's rank correlation over places of each pair of heat maps (N, H, W).

    Examples:
        >>> heat = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
        >>> [round(rank_correlations(heat, other)[0], 4) for other in (heat.square(), -heat)]
        [1.0, -1.0]
    """
    found = [spearman_corrcoef(a.flatten().double(), b.flatten().double()) for a, b in zip(first, second, strict=True)]
    return torch.stack(found).tolist()
