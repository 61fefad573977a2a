"""Heat maps: which places of an image speak for the class that a level predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from c2f_zoo.config import Preprocessing
from c2f_zoo.data.images import ImageLike, prepare_image
from c2f_zoo.data.transforms import to_shorter_side
from c2f_zoo.inference.prediction import Prediction, Step
from c2f_zoo.inference.predictor import Predictor
from c2f_zoo.level_classifier import LevelClassifier
from c2f_zoo.registry import check_names

if TYPE_CHECKING:
    from types import ModuleType

# Of the two, the products hide what matters better: docs/results/heat-maps-deletion.csv.
ATTRIBUTIONS = {"products": "LayerGradientXActivation", "grad_cam": "LayerGradCam"}
Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of the image's width and height


@dataclass(frozen=True)
class LevelHeat:
    """The heat maps of one level.

    Attributes:
        step: the predicted class: level, class name, probability in [0, 1].
        resolution: the resolution in pixels at which the level sees the image; None is full size.
        taps: tap -> heat map, float32 (H, W) of the tap's map: how much each place adds to the class's logit. Negative
            values speak against the class.
    """

    step: Step
    resolution: int | None
    taps: Mapping[str, np.ndarray]

    @property
    def total(self) -> np.ndarray:
        """The sum of all taps' heat maps, float32 (H, W) of the largest; see `sum_heat`."""
        return sum_heat([torch.from_numpy(heat)[None] for heat in self.taps.values()])[0].numpy()


@dataclass(frozen=True)
class Explanation:
    """What the levels of a model looked at in an image.

    Attributes:
        prediction: the prediction of the image.
        levels: level -> its heat maps, coarse to fine, of the levels that the model predicts. Without a level at which
            the predicted path has ended.
        window: the part of the image that the model sees, and that the heat maps cover.
        image: the image in RGB.
    """

    prediction: Prediction
    levels: Mapping[str, LevelHeat]
    window: Box
    image: Image.Image = field(repr=False)


def explain(predictor: Predictor, image: ImageLike) -> Explanation:
    """Compute heat maps of what each level looked at in an image, for each tap.

    Each level explains its class of the predicted path, at the resolution at which it is predicted. A heat map is the
    product of a tap's map and the gradient of the class's logit, summed over channels, by Captum
    (`LayerGradientXActivation`; HiResCAM of Draelos and Carin, arXiv 2011.08891). With the pooling `avg`, its values
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
        >>> [(level, heat.step[1], heat.total.shape) for level, heat in found.levels.items()]
        [('family', 'Rotundidae', (6, 6)), ('genus', 'Tessula', (6, 6)), ('species', 'Tessula ocellata', (6, 6))]
    """
    _import_captum()
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
                heat = heat_of(model.at_level(level), x, torch.tensor([label], device=x.device))
                arrays = {tap: one[0].float().cpu().numpy() for tap, one in heat.items()}
                levels[level] = LevelHeat(steps[level], resolution, arrays)
    ordered = {level: levels[level] for level in steps if level in levels}
    return Explanation(prediction, ordered, seen_window(rgb.size, model.config.preprocessing), rgb)


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
    captum = _import_captum()
    with torch.no_grad():
        maps = tuple(classifier.forward_features(x))
    model = _FromMaps(classifier)
    found = {}
    for tap, layer in zip(classifier.backbone.taps, model.layers, strict=True):
        method = getattr(captum, ATTRIBUTIONS[attribution])(model, layer)
        # Captum switches on gradients of its inputs, and clears them.
        found[tap] = method.attribute(tuple(one.clone() for one in maps), target=labels).sum(dim=1).detach()
    return found


def sum_heat(maps: Sequence[Tensor]) -> Tensor:
    """Sum heat maps (N, H_i, W_i) to one of the largest size, (N, H, W).

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


def seen_window(size: tuple[int, int], preprocessing: Preprocessing) -> Box:
    """Return the part of an image of a size (width, height) that the model sees.

    It reaches beyond the image, below 0 or above 1, where the model's input is larger than the resized image.

    Examples:
        >>> seen_window((200, 100), Preprocessing(input_size=(3, 96, 96), crop_pct=0.75))
        (0.3125, 0.125, 0.6875, 0.875)
    """
    p = preprocessing
    height, width = to_shorter_side(size[1], size[0], p.resize)
    rows, columns = p.input_size[1:]
    top, left = round((height - rows) / 2), round((width - columns) / 2)  # as torchvision's CenterCrop
    return left / width, top / height, (left + columns) / width, (top + rows) / height


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


def _import_captum() -> ModuleType:
    try:
        import captum.attr
    except ImportError as error:
        raise ImportError("heat maps need Captum: pip install 'c2f_zoo[explain]', or pip install captum") from error
    return captum.attr
