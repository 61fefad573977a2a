"""Extraction of the regions of annotated images: boxes and features, on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from c2f_zoo.backbones.box_features import CONTEXT
from c2f_zoo.backbones.part_rcnn import REGIONS
from c2f_zoo.data import ImageFiles, LabelledImages
from c2f_zoo.io.progress import map_in_threads
from c2f_zoo.io.weights import digest_weights
from c2f_zoo.model import C2FModel
from c2f_zoo.parts.boxes import region_boxes
from c2f_zoo.parts.cache import Regions, TensorCache, load_tensors
from c2f_zoo.parts.features import region_features
from c2f_zoo.parts.proposals import SEARCHED, selective_search


def annotated_boxes(images: LabelledImages) -> list[Tensor]:
    """Return the annotated boxes (3, 4) of each image's regions; print how many are hidden.

    Raises:
        ValueError: the dataset has no annotations or no files.
    """
    if not isinstance(images, ImageFiles) or images.annotations is None:
        raise ValueError("the dataset has no annotations; use cub, with bounding_boxes.txt and parts/")
    boxes = [region_boxes(annotation) for annotation in images.annotations]
    hidden = torch.stack(boxes).isnan().any(dim=2).sum(dim=0).tolist()
    counts = ", ".join(f"{region} {count}" for region, count in zip(REGIONS, hidden, strict=True) if count)
    print(f"{len(images)} images; with fewer than two visible points: {counts or 'none'}")
    return boxes


def extract_regions(
    model: C2FModel, images: LabelledImages, folder: Path, longer_side: int, proposals: int = 1000, bf16: bool = False
) -> list[Path]:
    """Return the file of each image's regions (`load_regions`); those that are not in the folder are computed.

    The proposals of selective search, half a second an image, are kept in the subfolder `boxes`: they serve for every
    backbone.

    Args:
        model: the model; its backbone, with one tap, is used.
        images: a dataset with annotations.
        folder: the folder of the files.
        longer_side: longer side in pixels of the backbone's input.
        proposals: maximum number of proposals of an image.
        bf16: compute the maps under autocast to bfloat16.

    Raises:
        ValueError: the dataset has no annotations, or the backbone several taps or too many channels.
    """
    truths = annotated_boxes(images)
    assert isinstance(images, ImageFiles), "it has annotations"
    searched = TensorCache(folder / "boxes", {"proposals": proposals, "longer_side": SEARCHED})
    sizes = {"longer_side": longer_side, "proposals": proposals, "context": CONTEXT, "bf16": bf16}
    cache = TensorCache(folder, {"backbone": digest_weights(model.backbone.state_dict()), **sizes})

    model.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # three times as fast in bf16

    def regions_of(index: int) -> Path:
        content, truth = images.paths[index].read_bytes(), truths[index]

        def search() -> dict[str, Tensor]:
            return {"boxes": selective_search(images.read(index), proposals)}

        def compute() -> dict[str, Tensor]:
            found = load_tensors(searched.get([content], search))["boxes"]
            features = region_features(
                model.backbone,
                images.read(index),
                torch.cat([truth, found]),
                model.config.preprocessing,
                longer_side,
                bf16,
            )
            return Regions(truth, features[: len(truth)], found, features[len(truth) :])._asdict()

        return cache.get([content, truth.numpy().tobytes()], compute)

    torch.set_num_threads(1)  # each image has its own thread
    return map_in_threads(regions_of, range(len(images)), "extracting regions")
