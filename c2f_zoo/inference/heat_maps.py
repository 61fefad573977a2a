"""Heat maps: which places of an image speak for the class that a level predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from c2f_zoo.backbones.part_rcnn import REGIONS, record_boxes
from c2f_zoo.images.reading import ImageLike, prepare_image
from c2f_zoo.inference.prediction import Box, Prediction, Step
from c2f_zoo.inference.predictor import Predictor
from c2f_zoo.level_classifier import LevelClassifier
from c2f_zoo.registry import check_names

if TYPE_CHECKING:
    from types import ModuleType

# Of the two, the products hide what matters better: docs/results/heat-maps-deletion.csv.
ATTRIBUTIONS = {"products": "LayerGradientXActivation", "grad_cam": "LayerGradCam"}


@dataclass(frozen=True)
class LevelHeat:
    """The heat maps of one level.

    Attributes:
        step: the predicted class: level, class name, probability in [0, 1].
        resolution: the resolution in pixels at which the level sees the image; None is full size.
        taps: tap -> heat map, float32 (H, W) of the tap's map: how much each place adds to the class's logit. Negative
            values speak against the class.
        windows: tap -> the part of the image that its map covers: left, top, right and bottom as fractions of width and
            height. It is what the model sees, which may reach beyond the image, or with the backbone `part_rcnn` the
            box of the object, the head or the body.
    """

    step: Step
    resolution: int | None
    taps: Mapping[str, np.ndarray]
    windows: Mapping[str, Box]

    def on_image(self, size: tuple[int, int], tap: str | None = None) -> np.ndarray:
        """Return a heat map over the whole image.

        Its sum is about that of the map, whatever the size of the image.

        Args:
            size: width and height in pixels of the image.
            tap: the tap; None: the sum of all taps.

        Returns:
            float32 (height, width), 0 outside the tap's window.

        Examples:
            >>> heat = LevelHeat(("kind", "disc", 0.9), None, {"a": np.ones((2, 2))}, {"a": (0.5, 0, 1, 1)})
            >>> heat.on_image((4, 2))
            array([[0., 0., 1., 1.],
                   [0., 0., 1., 1.]], dtype=float32)
        """
        chosen = self.taps if tap is None else [tap]
        return np.sum([_place(self.taps[one], self.windows[one], size) for one in chosen], axis=0)


@dataclass(frozen=True)
class Explanation:
    """What the levels of a model looked at in an image.

    Attributes:
        prediction: the prediction of the image.
        levels: level -> its heat maps, coarse to fine, of the levels that the model predicts. Without a level at which
            the predicted path has ended.
        image: the image in RGB.
    """

    prediction: Prediction
    levels: Mapping[str, LevelHeat]
    image: Image.Image = field(repr=False)


def explain(predictor: Predictor, image: ImageLike) -> Explanation:
    """Compute heat maps of what each level looked at in an image, for each tap.

    Each level explains its class of the predicted path, at the resolution at which it is predicted. A heat map is the
    product of a tap's map and the gradient of the class's logit, summed over channels, by Captum
    (`LayerGradientXActivation`; HiResCAM of Draelos and Carin, 2020). With the pooling `avg`, its values
    sum to the logit without its bias. Poolings that normalize their vector ignore the contrast of a map: there, places
    that speak for the class and against it nearly balance.

    A tap's map counts as an input of the pooling: what it adds through later layers of the backbone is in the heat maps
    of later taps.

    Args:
        predictor: the predictor of a model.
        image: a path, an open file, a PIL image, an array or a tensor, see `c2f_zoo.data.prepare_image`.

    Raises:
        ImportError: Captum is not installed.
        FileNotFoundError: the file does not exist.
        ValueError: the image cannot be read, or the model's outputs are not finite.

    Examples:
        >>> predictor = Predictor.from_pretrained("mlph_tiny_critters")
        >>> found = explain(predictor, create_dataset("critters", "test", per_class=1)[7][0])
        >>> [(level, heat.step[1], len(heat.taps)) for level, heat in found.levels.items()]
        [('family', 'Rotundidae', 3), ('genus', 'Tessula', 3), ('species', 'Tessula ocellata', 3)]
    """
    import_captum()
    model, rgb = predictor.model, prepare_image(image)
    prepared = predictor.prepare(rgb)
    prediction = predictor.predict_batch([prepared])[0]
    steps = {step[0]: step for step in prediction.path}
    weight = next(model.parameters())
    levels: dict[str, LevelHeat] = {}
    for resolution, names in predictor.levels_at.items():
        x = prepared.views[resolution][None].to(weight.device, weight.dtype)
        for level in names:
            if level in steps:
                label = predictor.tree.class_names(level).index(steps[level][1])
                with record_boxes() as localized:
                    heat = heat_of(model.at_level(level), x, torch.tensor([label], device=x.device))
                arrays = {tap: one[0].float().cpu().numpy() for tap, one in heat.items()}
                boxes = dict(zip(REGIONS, localized[0][0].tolist(), strict=True)) if localized else {}
                windows = {tap: _inside(prepared.crop, boxes.get(tap, (0.0, 0.0, 1.0, 1.0))) for tap in arrays}
                levels[level] = LevelHeat(steps[level], resolution, arrays, windows)
    ordered = {level: levels[level] for level in steps if level in levels}
    return Explanation(prediction, ordered, rgb)


def heat_of(classifier: LevelClassifier, x: Tensor, labels: Tensor, attribution: str = "products") -> dict[str, Tensor]:
    """Compute the heat maps of a batch of images, of one level.

    Args:
        classifier: the level, from `C2FModel.at_level`, in evaluation mode.
        x: the images (N, channels, height, width).
        labels: the class to explain of each image, int64 (N,).
        attribution: `"products"`, or `"grad_cam"`: the map is multiplied by the mean of its gradient over places
            (Grad-CAM of Selvaraju et al., ICCV 2017).

    Returns:
        tap -> (N, H, W) of the tap's map.

    Raises:
        ImportError: Captum is not installed.
        ValueError: the attribution is unknown.

    Examples:
        >>> model = create_model("mlph_tiny_critters", pretrained=True).eval()
        >>> heat = heat_of(model.at_level("genus"), torch.rand(2, 3, 96, 96), torch.tensor([0, 5]))
        >>> list(heat), heat["layer4.0.conv2"].shape
        (['layer3.0.downsample', 'layer4.0.downsample', 'layer4.0.conv2'], torch.Size([2, 6, 6]))
    """
    check_names("attribution", [attribution], ATTRIBUTIONS)
    captum = import_captum()
    with torch.no_grad():
        maps = tuple(classifier.forward_features(x))
    model = _FromMaps(classifier)
    found = {}
    for tap, layer in zip(classifier.backbone.taps, model.layers, strict=True):
        method = getattr(captum, ATTRIBUTIONS[attribution])(model, layer)
        # Captum switches on gradients of its inputs, and clears them.
        found[tap] = method.attribute(tuple(one.clone() for one in maps), target=labels).sum(dim=1).detach()
    return found


def _inside(outer: Box, box: Box) -> Box:
    """Return a box in fractions of another one as fractions of the image."""
    left, top, right, bottom = outer
    x, y = right - left, bottom - top
    return left + box[0] * x, top + box[1] * y, left + box[2] * x, top + box[3] * y


def _place(heat: np.ndarray, window: Box, size: tuple[int, int]) -> np.ndarray:
    """Return a heat map (H, W), enlarged bilinearly to its window of an image of a size (width, height)."""
    width, height = size
    left, top = round(window[0] * width), round(window[1] * height)
    right, bottom = max(round(window[2] * width), left + 1), max(round(window[3] * height), top + 1)
    values = torch.from_numpy(heat.astype(np.float32))[None, None]
    large = interpolate(values, (bottom - top, right - left), mode="bilinear")[0, 0].numpy()
    large = large * (heat.size / large.size)
    whole = np.zeros((height, width), np.float32)
    rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    whole[rows, columns] = large[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return whole


class _FromMaps(nn.Module):
    """A level's pooling and classifier, with a layer for each tap's map that Captum can hook.

    In the layers every map is (N, C, H, W), whatever the layout of the tapped module's output.
    """

    def __init__(self, classifier: LevelClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.layers = nn.ModuleList(nn.Identity() for _ in classifier.backbone.taps)

    def forward(self, *maps: Tensor) -> Tensor:
        return self.classifier.forward_head([layer(one) for layer, one in zip(self.layers, maps, strict=True)])


def import_captum() -> ModuleType:
    """Import `captum.attr`.

    Raises:
        ImportError: Captum is not installed; the message says how to install it.
    """
    try:
        import captum.attr
    except ImportError as error:
        raise ImportError("heat maps need Captum: pip install 'c2f_zoo[explain]', or pip install captum") from error
    return captum.attr
