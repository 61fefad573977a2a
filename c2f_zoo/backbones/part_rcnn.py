"""A part-based R-CNN as a backbone: its maps are those of an object, its head and its body."""

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from c2f_zoo.backbones.batch_norm import current_copy
from c2f_zoo.backbones.box_features import box_scores, num_features
from c2f_zoo.backbones.registry import BACKBONES, create_body, register_backbone
from c2f_zoo.backbones.tap_backbone import TapBackbone
from c2f_zoo.io.deferred_init import DeferredInit
from c2f_zoo.ops import at_least_float32, without_autocast
from c2f_zoo.registry import check_names

REGIONS = ("object", "head", "body")
# Square roots of the boxes' areas. With these aspects and steps, 95 % of the heads, 99 % of the bodies and all birds of
# CUB-200-2011 (50 species, training images) overlap a box by 0.5 or more.
SCALES = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.22)
MIN_SCALE, MAX_SCALES = 0.1, 16
_ASPECTS = (0.6, 1.0, 1.7)  # width / height
_STEP = 0.4  # between boxes, as a fraction of their size
_recording = threading.local()


def candidate_boxes(scales: Sequence[float] = SCALES) -> Tensor:
    """Return boxes of several sizes and aspects at regular positions.

    Args:
        scales: square roots of the boxes' areas, in [0.1, 1], as fractions of the image's side.

    Returns:
        Distinct boxes (k, 4), from the largest to the smallest: left, top, right and bottom as fractions of the image's
        sides. The first is the whole image.

    Raises:
        ValueError: a scale is out of range, or there are more than 16.

    Examples:
        >>> candidate_boxes([1.0, 0.5]).shape, candidate_boxes()[0]
        (torch.Size([54, 4]), tensor([0., 0., 1., 1.]))
    """
    if not 1 <= len(scales) <= MAX_SCALES or not all(MIN_SCALE <= scale <= 1 for scale in scales):
        raise ValueError(f"scales is {list(scales)}, expected 1 to {MAX_SCALES} numbers in [{MIN_SCALE}, 1]")
    boxes = {(0.0, 0.0, 1.0, 1.0)}
    for scale, aspect in itertools.product(scales, _ASPECTS):
        width, height = min(1.0, scale * math.sqrt(aspect)), min(1.0, scale / math.sqrt(aspect))
        for x, y in itertools.product(_positions(width), _positions(height)):
            boxes.add((x, y, x + width, y + height))
    ordered = sorted(boxes, key=lambda box: (-(box[2] - box[0]) * (box[3] - box[1]), box))
    return torch.tensor(ordered)


def _positions(length: float) -> list[float]:
    """Return the starts of stretches that cover [0, 1] in even steps."""
    count = math.ceil((1 - length) / (_STEP * length) - 1e-9)
    return [(1 - length) * number / max(count, 1) for number in range(count + 1)]


class PartLocalizer(nn.Module):
    """A localizer of an object, its head and its body among candidate boxes of feature maps.

    Linear detectors score every box. The configuration with the largest sum of the logarithms of the detectors'
    probabilities and of the geometric terms is exact: all pairs of boxes are compared.

    The buffers are saved with a model. As built, they are zeros: every configuration is as good as another, and all
    regions are the first candidate, the whole image. `c2f_zoo.parts.fitting.set_localizer` sets them.

    Args:
        channels: number of channels of the maps.
        scales: see `candidate_boxes`.

    Attributes:
        boxes: the candidates (k, 4).
        weight: weights (3, D) of the detectors, D = `num_features(channels)`.
        bias: (3,).
        geometry: (2, k, k): the term of a head and of a body in the box of the last index, if the object is in that of
            the second; a large negative number excludes the pair.

    Examples:
        >>> PartLocalizer(64, scales=[1.0, 0.5])(torch.rand(2, 64, 7, 7))[0]
        tensor([[0., 0., 1., 1.],
                [0., 0., 1., 1.],
                [0., 0., 1., 1.]])
    """

    boxes: Tensor
    weight: Tensor
    bias: Tensor
    geometry: Tensor

    def __init__(self, channels: int, scales: Sequence[float] = SCALES) -> None:
        super().__init__()
        boxes = candidate_boxes(scales)
        self.register_buffer("boxes", boxes)
        self.register_buffer("weight", torch.zeros(len(REGIONS), num_features(channels)))
        self.register_buffer("bias", torch.zeros(len(REGIONS)))
        self.register_buffer("geometry", torch.zeros(len(REGIONS) - 1, len(boxes), len(boxes)))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Localize the regions in maps (N, C, H, W).

        Returns:
            Boxes (N, 3, 4) of the object, the head and the body, as fractions of the maps' sides.
        """
        with without_autocast(x):
            boxes, weight, bias = (at_least_float32(own) for own in (self.boxes, self.weight, self.bias))
            on_map = boxes * _sides(x, boxes)
            scores = F.logsigmoid(box_scores(at_least_float32(x).to(weight.dtype), on_map, weight, bias))
            total, *of_parts = scores.unbind(dim=2)
            choices = []
            for own, geometry in zip(of_parts, at_least_float32(self.geometry), strict=True):
                best, choice = (own[:, None] + geometry).max(dim=2)
                total = total + best
                choices.append(choice)
            root = total.argmax(dim=1, keepdim=True)
            numbers = torch.cat([root, *(choice.gather(1, root) for choice in choices)], dim=1)
            found = boxes[numbers]
        if not torch.compiler.is_compiling() and getattr(_recording, "boxes", None) is not None:
            _recording.boxes.append(found)
        return found


@contextmanager
def record_boxes() -> Iterator[list[Tensor]]:
    """Collect the boxes that localizers find in this thread.

    Yields:
        A list, to which each forward pass of a `PartLocalizer` appends its boxes (N, 3, 4).

    Examples:
        >>> with record_boxes() as found:
        ...     boxes = PartLocalizer(64, scales=[1.0])(torch.rand(2, 64, 7, 7))
        >>> [x.shape for x in found]
        [torch.Size([2, 3, 4])]
    """
    outer, _recording.boxes = getattr(_recording, "boxes", None), []
    try:
        yield _recording.boxes
    finally:
        _recording.boxes = outer


class RegionMap(nn.Module):
    """The part of feature maps in one box each, resampled to a fixed size by RoIAlign.

    Args:
        cells: height and width of the resampled map.
        stage: layers for the resampled map.
    """

    def __init__(self, cells: int, stage: nn.Module | None = None) -> None:
        super().__init__()
        self.cells = cells
        self.stage = nn.Identity() if stage is None else stage

    def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
        """Resample maps (N, C, H, W) in boxes (N, 4), fractions of their sides, to (N, C, cells, cells)."""
        y: Tensor = self.stage(self._resample(x, boxes))
        return y

    def _resample(self, x: Tensor, boxes: Tensor) -> Tensor:
        with without_autocast(x):
            wide = at_least_float32(x)
            boxes = boxes.to(wide.dtype)
            numbers = torch.arange(boxes.shape[0], device=x.device, dtype=wide.dtype)[:, None]
            rois = torch.cat([numbers, boxes * _sides(x, boxes)], dim=1)
            return roi_align(wide, rois, output_size=self.cells, sampling_ratio=0, aligned=True).to(x.dtype)

    def extra_repr(self) -> str:
        return f"cells={self.cells}"


class PartNetwork(nn.Module):
    """A network with the localized regions of one of its maps as modules `object`, `head` and `body`.

    Args:
        network: the network, with one tap.
        cells: height and width of the regions' maps.
        scales: see `candidate_boxes`.
        stage: layers that each region has a copy of; None for none.
        stage_name: their name in the network.
    """

    # The last of the default taps serves a method with one tap.
    default_taps = ("head", "body", "object")

    def __init__(
        self,
        network: TapBackbone,
        cells: int,
        scales: Sequence[float],
        stage: nn.Module | None = None,
        stage_name: str = "",
    ) -> None:
        super().__init__()
        self.stage_name = stage_name
        self.network = network
        self.localizer = PartLocalizer(network.out_channels[0], scales)
        for region in REGIONS:
            self.add_module(region, RegionMap(cells, copy.deepcopy(stage)))

    def load_stages(self, weights: Mapping[str, Tensor]) -> None:
        """Load the network's weights, by their names there, into each region's copy of the stage."""
        prefix = f"{self.stage_name}."
        own = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        for region in map(self.get_submodule, REGIONS if self.stage_name else ()):
            if isinstance(region, RegionMap):  # a region that is no tap has been removed
                region.stage.load_state_dict(own)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the regions' maps (N, C', rows, columns) of images: the object, the head and the body."""
        (x,) = self.network(x, current_copy())
        boxes = self.localizer(x)
        return [self.get_submodule(region)(x, boxes[:, number]) for number, region in enumerate(REGIONS)]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set gradient checkpointing of the network."""
        self.network.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that timm excludes from weight decay."""
        return {f"network.{name}" for name in self.network.no_weight_decay()}


@register_backbone("part_rcnn")
def part_rcnn(
    pretrained: bool = False,
    network: str = "vgg16",
    tap: Sequence[str | int] | None = None,
    cells: int = 7,
    scales: Sequence[float] = SCALES,
    stage: Sequence[str | int] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network that localizes an object, its head and its body, with taps `object`, `head` and `body`.

    After Zhang et al. (Part-based R-CNNs for fine-grained category detection, ECCV 2014), with fixed candidate boxes
    (`candidate_boxes`) instead of proposals, and the regions' features from one pass of one network. As built, each
    region is the whole image; see `PartLocalizer`.

    Args:
        pretrained: let timm download the network's weights.
        network: the network, one of `list_backbones()`, without a tag.
        tap: the name of the tapped module, as a list of its parts: `["features", 29]`. Default: the last default tap.
        cells: height and width of the regions' maps.
        scales: see `candidate_boxes`.
        stage: the name of a module that follows the tap, as a list: `["layer4"]` for the tap `["layer3"]` of a ResNet.
            Each region's map passes through a copy of its own, so that training fine-tunes it for each region. Default:
            none, the regions share all layers.
        **options: additional keyword arguments of the network's constructor.

    Raises:
        ValueError: the network, the tap or the stage is unknown, or the tap has more than 1024 channels.

    Examples:
        >>> body = part_rcnn(network="test_resnet", tap=["layer3"], scales=[1.0, 0.5])
        >>> [tuple(x.shape) for x in body(torch.rand(2, 3, 64, 64))]
        [(2, 192, 7, 7), (2, 192, 7, 7), (2, 192, 7, 7)]
    """
    init = DeferredInit()
    with nullcontext() if network in BACKBONES else init:
        body = create_body(network, pretrained=pretrained, **options)
    weights, stage_name = list(body.parameters()), ".".join(map(str, stage or ()))
    check_names("stage", [stage_name] if stage else [], [name for name, _ in body.named_modules() if name])
    layers = body.get_submodule(stage_name) if stage else None
    own = (getattr(body, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    size = options.get("img_size", own[1])
    taps = 1 if tap is None else [".".join(map(str, tap))]
    tapped = TapBackbone(body, taps, (options.get("in_chans", 3), size, size))
    still_used = {id(weight) for part in (tapped, layers) if part is not None for weight in part.parameters()}
    init.discard(weight for weight in weights if id(weight) not in still_used)
    init.run()
    return PartNetwork(tapped, cells, scales, layers, stage_name)


def _sides(x: Tensor, boxes: Tensor) -> Tensor:
    """Return the sides (4,) of maps, to scale boxes with."""
    return boxes.new_tensor([x.shape[3], x.shape[2], x.shape[3], x.shape[2]])
