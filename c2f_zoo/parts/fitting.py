"""Fitting the localizer of a part-based R-CNN, and of the backbone `part_rcnn`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from c2f_zoo.backbones.box_features import CONTEXT, box_features, num_features
from c2f_zoo.backbones.part_rcnn import PartNetwork
from c2f_zoo.config import Preprocessing
from c2f_zoo.data import ImageFiles, LabelledImages, create_transform
from c2f_zoo.images.sizes import crop_box_of
from c2f_zoo.io.progress import map_in_threads
from c2f_zoo.io.weights import digest_weights
from c2f_zoo.model import C2FModel
from c2f_zoo.parts.boxes import overhang, relative_positions
from c2f_zoo.parts.cache import Regions, TensorCache, load_regions
from c2f_zoo.parts.extraction import annotated_boxes
from c2f_zoo.parts.localize import Localizer
from c2f_zoo.parts.scores import mean_pcp, overlaps_of

_NONE = -1e9  # the term of a part that reaches too far beyond the object
_LEAST = 0.5  # of a box's area, inside the model's input


def training_positions(files: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """Return the features (n, D) of annotated objects and the relative positions (n, parts, 4) of their parts.

    Args:
        files: the regions of the training images, see `c2f_zoo.parts.cache.load_regions`.
    """
    boxes, features = [], []
    for file in files:  # one at a time: the features of all proposals take gigabytes
        regions = load_regions(file)
        boxes.append(regions.truth)
        features.append(regions.truth_features[0])
    truth = torch.stack(boxes)
    return torch.stack(features), relative_positions(truth[:, 1:], truth[:, :1])


def choose_alpha(name: str, localizers: Sequence[Localizer], files: Sequence[Path]) -> Localizer:
    """Return the localizer with the best PCP of the parts without annotations; print the PCP of each.

    Args:
        name: the geometry's name, to print.
        localizers: localizers with different weights of the prior.
        files: the regions of validation images.
    """
    overlaps: list[list[Tensor]] = [[] for _ in localizers]
    for file in files:
        regions = load_regions(file)
        for own, localize in zip(overlaps, localizers, strict=True):
            own.append(overlaps_of(localize(regions).boxes, regions.truth)[1:])
    scores = [mean_pcp(torch.stack(own)) for own in overlaps]
    best = max(range(len(scores)), key=scores.__getitem__)
    tried = ", ".join(f"{one.alpha:g}: {100 * score:.1f} %" for one, score in zip(localizers, scores, strict=True))
    print(f"{name}: alpha {localizers[best].alpha:g}; validation PCP of the parts for each alpha: {tried}", flush=True)
    return localizers[best]


def part_network(model: C2FModel) -> PartNetwork:
    """Return the network of a model with the backbone `part_rcnn`.

    Raises:
        ValueError: the model has another backbone.
    """
    if not isinstance(model.backbone.body, PartNetwork):
        raise ValueError(f"the backbone {model.config.backbone!r} localizes no parts; use 'part_rcnn'")
    return model.backbone.body


def boxes_in_input(boxes: Tensor, width: int, height: int, preprocessing: Preprocessing) -> Tensor:
    """Convert boxes of an image to boxes of the model's input, and clip them there.

    Args:
        boxes: boxes (k, 4) in pixels of the image; NaN for none.
        width: width of the image.
        height: height of the image.
        preprocessing: the model's.

    Returns:
        Boxes (k, 4) in pixels of the input; NaN for none, and for one of which less than half is in the input.

    Examples:
        >>> boxes = torch.tensor([[100.0, 0.0, 300.0, 100.0], [0.0, 0.0, 120.0, 20.0]])
        >>> boxes_in_input(boxes, 400, 200, Preprocessing(input_size=(3, 100, 100), crop_pct=1.0))
        tensor([[  0.,   0., 100.,  50.],
                [ nan,  nan,  nan,  nan]])
    """
    crop = torch.tensor(crop_box_of(preprocessing, width, height))
    start, size = crop[:2].repeat(2), (crop[2:] - crop[:2]).repeat(2)
    inside = (boxes / torch.tensor([width, height] * 2) - start) / size
    clipped = inside.clamp(0, 1)
    kept = _areas(clipped) >= _LEAST * _areas(inside)  # False for NaN
    sides = torch.tensor([preprocessing.input_size[2], preprocessing.input_size[1]] * 2)
    return torch.where(kept[:, None], clipped * sides, torch.nan)


def extract_candidates(model: C2FModel, images: LabelledImages, folder: Path, bf16: bool = False) -> list[Path]:
    """Return the file of each image's regions as the model sees it: its candidate boxes are the proposals.

    Args:
        model: a model with the backbone `part_rcnn`.
        images: a dataset with annotations.
        folder: the folder of the files; those that are not in it are computed.
        bf16: compute the maps under autocast to bfloat16.

    Raises:
        ValueError: the dataset has no annotations, or the model another backbone.
    """
    truths, body, p = annotated_boxes(images), part_network(model), model.config.preprocessing
    assert isinstance(images, ImageFiles), "it has annotations"
    transform, network = create_transform(p, None, train=False), body.network.eval()
    sides = torch.tensor([p.input_size[2], p.input_size[1]] * 2)
    candidates = body.localizer.boxes * sides
    settings = {"input": str(p), "candidates": candidates.tolist(), "context": CONTEXT, "bf16": bf16}
    cache = TensorCache(folder, {"network": digest_weights(network.state_dict()), "taps": network.taps, **settings})

    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def regions_of(index: int) -> Path:
        @torch.no_grad()
        def compute() -> dict[str, Tensor]:
            image = images.read(index)
            truth = boxes_in_input(truths[index], *image.size, p)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                (x,) = network(transform(image)[None])
            scale = torch.tensor([x.shape[3], x.shape[2]] * 2) / sides
            known = truth.isfinite().all(dim=1)
            own = torch.zeros(len(truth), num_features(x.shape[1]))
            own[known] = box_features(x.float(), truth[known] * scale)
            features = box_features(x.float(), candidates * scale)
            return Regions(truth, own.half(), candidates, features.half())._asdict()

        content = images.paths[index].read_bytes()
        return cache.get([content, truths[index].numpy().tobytes()], compute)

    torch.set_num_threads(1)  # each image has its own thread
    return map_in_threads(regions_of, range(len(images)), "extracting regions")


@torch.no_grad()
def set_localizer(model: C2FModel, localizer: Localizer) -> None:
    """Set the detectors and the geometry of a model with the backbone `part_rcnn`.

    Args:
        model: the model; its buffers are changed.
        localizer: a localizer whose prior, if it has one, does not depend on the features.

    Raises:
        ValueError: the model has another backbone.
    """
    own, p = part_network(model).localizer, model.config.preprocessing
    boxes = own.boxes.double().cpu() * torch.tensor([p.input_size[2], p.input_size[1]] * 2)
    own.weight.copy_(localizer.detectors.weight)
    own.bias.copy_(localizer.detectors.bias)
    terms = torch.zeros_like(own.geometry, dtype=torch.float64, device="cpu")
    if localizer.prior is not None:
        positions = relative_positions(boxes[None], boxes[:, None])
        densities = localizer.prior(localizer.detectors.weight[0])
        terms += localizer.alpha * torch.stack([density.log_prob(positions) for density in densities])
    own.geometry.copy_(terms.masked_fill(overhang(boxes, boxes) > localizer.slack, _NONE))


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
