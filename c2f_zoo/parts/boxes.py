"""Boxes of an object's parts, and positions of parts relative to the object.

Boxes are left, top, right and bottom in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from c2f_zoo.data.annotations import Annotation

# The points of CUB-200-2011 that belong to the parts of Zhang et al. (ECCV 2014). The paper names the parts; this
# assignment of the points is ours, and it leaves the tail out.
PARTS = {
    "head": ("beak", "crown", "forehead", "left eye", "nape", "right eye", "throat"),
    "body": ("back", "belly", "breast", "left leg", "left wing", "right leg", "right wing"),
}
MARGIN = 0.1  # points lie inside their parts


def region_boxes(annotation: Annotation, margin: float = MARGIN) -> Tensor:
    """Return the boxes of the regions of an annotated image: the object, the head and the body.

    A part's box is the smallest one around its visible points, with a margin. The margin ends at the object's box.

    Args:
        annotation: the annotation.
        margin: the margin at each side, as a fraction of the object's width or height, > 0.

    Returns:
        Boxes (3, 4); NaN for a part with fewer than two visible points, whose extent is unknown.

    Examples:
        >>> points = {"beak": (10.0, 20.0), "crown": (30.0, 40.0), "belly": (50.0, 50.0)}
        >>> region_boxes(Annotation((0, 0, 100, 200), points), margin=0.1)
        tensor([[  0.,   0., 100., 200.],
                [  0.,   0.,  40.,  60.],
                [ nan,  nan,  nan,  nan]])
    """
    left, top, right, bottom = annotation.box
    boxes = [torch.tensor(annotation.box)]
    grow = margin * torch.tensor([right - left, bottom - top])
    for names in PARTS.values():
        points = torch.tensor([annotation.points[name] for name in names if name in annotation.points])
        if len(points) < 2:
            boxes.append(torch.full((4,), torch.nan))
            continue
        low, high = points.amin(dim=0), points.amax(dim=0)
        first = torch.maximum(low - grow, torch.minimum(low, torch.tensor([left, top])))
        last = torch.minimum(high + grow, torch.maximum(high, torch.tensor([right, bottom])))
        boxes.append(torch.cat([first, last]))
    return torch.stack(boxes).float()


def overhang(boxes: Tensor, roots: Tensor) -> Tensor:
    """Return how far boxes reach beyond others, in pixels; negative inside.

    Args:
        boxes: boxes (k, 4).
        roots: the other boxes (r, 4).

    Returns:
        The largest distance (r, k) over the four sides.

    Examples:
        >>> overhang(torch.tensor([[5.0, 5.0, 12.0, 8.0]]), torch.tensor([[0.0, 0.0, 10.0, 10.0]]))
        tensor([[2.]])
    """
    before = roots[:, None, :2] - boxes[None, :, :2]
    after = boxes[None, :, 2:] - roots[:, None, 2:]
    return torch.cat([before, after], dim=2).amax(dim=2)


def relative_positions(boxes: Tensor, roots: Tensor) -> Tensor:
    """Return the positions and sizes of boxes relative to others.

    Args:
        boxes: boxes (..., 4) of positive area, or NaN.
        roots: the other boxes, of a shape that broadcasts with `boxes`.

    Returns:
        (..., 4): the offset of the centre in widths and heights of the root, and the logarithms of the relative
        width and height.

    Examples:
        >>> relative_positions(torch.tensor([10.0, 0.0, 20.0, 20.0]), torch.tensor([0.0, 0.0, 20.0, 20.0]))
        tensor([ 0.2500,  0.0000, -0.6931,  0.0000])
    """
    size, root_size = boxes[..., 2:] - boxes[..., :2], roots[..., 2:] - roots[..., :2]
    offset = (boxes[..., :2] + boxes[..., 2:] - roots[..., :2] - roots[..., 2:]) / 2
    return torch.cat([offset / root_size, (size / root_size).log()], dim=-1)


def best_overlaps(proposals: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Return the best intersection over union of each box with the proposals of its image.

    Args:
        proposals: the proposals (k, 4) of n images.
        boxes: boxes (n, regions, 4), NaN where unknown.

    Returns:
        (n, regions), in [0, 1]; NaN where the box is unknown, 0 without proposals.

    Examples:
        >>> best_overlaps([torch.tensor([[0.0, 0.0, 2.0, 2.0]])], torch.tensor([[[0.0, 0.0, 2.0, 4.0]]]))
        tensor([[0.5000]])
    """
    best = [
        box_iou(truth, found).amax(dim=1) if len(found) else truth[:, 0] * 0
        for found, truth in zip(proposals, boxes, strict=True)
    ]
    return torch.stack(best)
