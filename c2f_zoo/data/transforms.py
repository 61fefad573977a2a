"""Transforms from an image to the model's input."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from c2f_zoo.config import MEASURES, SHRINK_FILTERS, Preprocessing
from c2f_zoo.images.array_transform import TENSOR_FILTERS, check_channels, has_tensor_filters
from c2f_zoo.images.sizes import to_input, to_resolution
from c2f_zoo.registry import check_names

AnyImage = TypeVar("AnyImage", Image.Image, Tensor)
Key = TypeVar("Key", bound=Hashable)

# NEAREST_EXACT is Pillow's "nearest"; torch's NEAREST may choose another pixel.
_MODES = {name: InterpolationMode(name) for name in SHRINK_FILTERS} | {"nearest": InterpolationMode.NEAREST_EXACT}


class Degrade(nn.Module):
    """Shrink an image to a resolution and resize it back, to remove finer detail.

    The paper (Huo et al., SIGIR 2019, section 2) states a resolution for each level, but not the filters, nor if a
    resolution is a side or an area. The defaults are the shorter side and the antialiased bilinear (triangle) filter.
    An image below the resolution is not shrunk.

    Accepts an RGB PIL image, or a tensor (..., C, H, W), uint8 or floating, on any device, and returns the same type.
    With the bilinear filter all types, batched or not, on CPU and GPU, agree within 2/255 at any pixel and 0.5/255 in
    the mean: 8-bit values are rounded after each pass. With bicubic the bounds are 3/255 and 0.5/255, unless values
    overshoot the 8 bits: they are clipped after each pass, but floating tensors are not. `"nearest"` chooses the same
    pixel, unless two are equally near. The tests compare all of these; the test on a GPU has not been run.

    Args:
        resolution: shorter side in pixels to shrink to, >= 1; None does not shrink.
        filter: the filter for shrinking: `"bilinear"`, `"bicubic"`, or for PIL images also `"box"`, `"hamming"` or
            `"lanczos"`.
        size: shorter side of the result in pixels, >= 1; None keeps the image's size.
        up_filter: the filter for resizing to the result's size: one of the filters above, or `"nearest"`.
        measure: `"side"`, or `"area"`: shrink to `resolution ** 2` pixels, keeping the aspect ratio.

    Raises:
        ValueError: a number is less than 1, a name is unknown, or (when called) the filter does not support tensors or
            the result has more than `PIL.Image.MAX_IMAGE_PIXELS` pixels.

    Examples:
        >>> Degrade(64)(Image.new("RGB", (500, 300))).size
        (500, 300)
        >>> Degrade(64, size=448)(torch.rand(8, 3, 300, 500)).shape
        torch.Size([8, 3, 448, 746])
    """

    def __init__(
        self,
        resolution: int | None,
        filter: str = "bilinear",
        size: int | None = None,
        up_filter: str = "bilinear",
        measure: str = "side",
    ) -> None:
        super().__init__()
        for name, value in (("resolution", resolution), ("size", size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 pixel or more, not {value}")
        for kind, name, known in (
            ("filter to shrink with", filter, SHRINK_FILTERS),
            ("filter to resize with", up_filter, _MODES),
            ("measure of a resolution", measure, MEASURES),
        ):
            check_names(kind, [name], known)
        self.resolution = resolution
        self.filter = filter
        self.size = size
        self.up_filter = up_filter
        self.measure = measure

    def forward(self, image: AnyImage) -> AnyImage:
        height, width = v2.functional.get_size(image)
        small = resize(image, to_resolution(height, width, self.resolution, self.measure), self.filter)
        return resize(small, to_input(height, width, self.size), self.up_filter)

    def extra_repr(self) -> str:
        return f"{self.resolution}, {self.filter!r}, {self.size}, {self.up_filter!r}, {self.measure!r}"


class Normalize(nn.Module):
    """Normalize uint8 images to the model's float32 input.

    Images (..., H, W, C) become (..., C, H, W), channels-last in memory. With `inplace=True`, float32 images are
    overwritten.

    Args:
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].

    Examples:
        >>> Normalize(mean=[0.5], std=[0.25])(torch.tensor([[[0], [255]]], dtype=torch.uint8))
        tensor([[[-2.,  2.]]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Not persistent: a model with a Normalize has the same state_dict keys.
        self.register_buffer("mean", 255 * torch.tensor(mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std), persistent=False)

    def forward(self, images: Tensor, inplace: bool = False) -> Tensor:
        *_, width, channels = images.shape
        # Whole rows are faster than three channels at a time.
        rows = images.flatten(-2).to(torch.float32, copy=not inplace)
        rows = rows.sub_(self.mean.repeat(width)).div_(self.std.repeat(width))
        return rows.unflatten(-1, (width, channels)).movedim(-1, -3)


def create_transform(
    preprocessing: Preprocessing, resolution: int | None, train: bool, normalize: bool = True
) -> v2.Compose:
    """Create the transform from an image to the model's input at a resolution.

    It shrinks the image to the resolution, resizes it to the model's input, crops, flips and normalizes. If tensors
    support the filters (bilinear, bicubic), the image is resized as a uint8 tensor, several times faster than with
    Pillow.

    Args:
        preprocessing: size, mean and std of the model's input, and the filters.
        resolution: the resolution to shrink to, see `Degrade`; None keeps that of the image.
        train: crop and flip at random, instead of cropping the centre.
        normalize: normalize the image. False returns uint8 (height, width, channels), to be normalized as a batch by
            `Normalize(mean, std)`: a loader's workers then send a quarter of the bytes.

    Returns:
        A callable from an RGB PIL image to a float32 tensor (channels, height, width), or see `normalize`. For a model
        of one channel the image is converted to grey.

    Raises:
        ValueError: the model expects neither 1 nor 3 channels.

    Examples:
        >>> transform = create_transform(Preprocessing(), resolution=64, train=False)
        >>> transform(Image.new("RGB", (500, 300))).shape
        torch.Size([3, 448, 448])
    """
    p = preprocessing
    size = p.input_size[1:]
    check_channels(p)
    degrade = Degrade(resolution, p.shrink_filter, p.resize, p.interpolation, p.resolution_of)
    steps: list[Any] = [v2.PILToTensor(), degrade] if has_tensor_filters(p) else [degrade, v2.PILToTensor()]
    if p.input_size[0] == 1:
        steps.insert(1, v2.Grayscale())
    if train:
        steps.insert(1, v2.RandomHorizontalFlip())  # most images are smaller before resizing
    steps += [v2.RandomCrop(size) if train else v2.CenterCrop(size), _ChannelsLast()]
    if normalize:
        steps.append(Normalize(p.mean, p.std))
    return v2.Compose(steps)


def create_views(
    preprocessing: Preprocessing, resolutions: Mapping[Key, int | None], train: bool, normalize: bool = True
) -> Callable[[Image.Image], dict[Key, Tensor]]:
    """Create the transform from an image to its views, one for each resolution.

    In training each view is cropped and flipped independently.

    Args:
        preprocessing: see `create_transform`.
        resolutions: key -> resolution of the view.
        train: see `create_transform`.
        normalize: see `create_transform`.

    Returns:
        A callable from an RGB PIL image to its views, key -> tensor.

    Examples:
        >>> views = create_views(Preprocessing(), {"species": None, "family": 64}, train=True, normalize=False)
        >>> [(name, x.shape, x.dtype) for name, x in views(Image.new("RGB", (500, 300))).items()][1]
        ('family', torch.Size([448, 448, 3]), torch.uint8)
    """
    transforms = {
        key: create_transform(preprocessing, resolution, train, normalize) for key, resolution in resolutions.items()
    }
    return partial(_views_of, transforms, has_tensor_filters(preprocessing))


class _ChannelsLast(nn.Module):
    """Transpose (..., C, H, W) to (..., H, W, C).

    This is the order in memory, so that a batch is copied in long rows.
    """

    def forward(self, image: Tensor) -> Tensor:
        return image.movedim(-3, -1)


def _views_of(transforms: Mapping[Key, v2.Compose], as_tensor: bool, image: Image.Image) -> dict[Key, Tensor]:
    # PILToTensor, the first step of each transform, accepts tensors: one conversion is enough for all.
    shared = v2.functional.pil_to_tensor(image) if as_tensor else image
    return {key: transform(shared) for key, transform in transforms.items()}


def resize(image: AnyImage, size: tuple[int, int], filter: str) -> AnyImage:
    """Resize an image to (height, width) with antialiasing."""
    if isinstance(image, Tensor) and filter not in TENSOR_FILTERS:
        known = ", ".join(repr(name) for name in sorted(TENSOR_FILTERS))
        raise ValueError(f"the filter {filter!r} supports PIL images only; tensors support {known}")
    return v2.functional.resize(image, list(size), _MODES[filter], antialias=True)
