"""A cache on disk of what is computed for each image: proposals, and the features of regions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from c2f_zoo.io.files import atomic_write

MAX_BYTES = 10 * 10**9


class Regions(NamedTuple):
    """The regions of an image.

    Attributes:
        truth: the annotated boxes (3, 4) of the object, head and body, in pixels of the image; NaN where hidden.
        truth_features: their features (3, D), float16; zeros where hidden.
        proposals: the proposed boxes (k, 4).
        features: their features (k, D), float16.
    """

    truth: Tensor
    truth_features: Tensor
    proposals: Tensor
    features: Tensor


class TensorCache:
    """A folder with tensors of images, one file for each image.

    An interrupted computation continues where it stopped. A file is found by the contents that its tensors depend on
    and by the settings.

    Args:
        folder: the folder; it is created if it does not exist.
        settings: all that the tensors depend on, besides the contents; written as JSON.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.settings = json.dumps(settings, sort_keys=True)
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, contents: Sequence[bytes], compute: Callable[[], Mapping[str, Tensor]]) -> Path:
        """Return the file of an image's tensors; compute them if it does not exist.

        Args:
            contents: what the tensors depend on, e.g. the bytes of the image's file.
            compute: returns the tensors by name.
        """
        key = hashlib.blake2b(digest_size=16)
        for content in (self.settings.encode(), *contents):
            key.update(hashlib.blake2b(content).digest())
        file = self.folder / f"{key.hexdigest()}.safetensors"
        if not file.exists():
            tensors = {name: tensor.clone() for name, tensor in compute().items()}
            atomic_write(file, lambda part: save_file(tensors, part))
        return file


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Load a file of a `TensorCache`.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}; delete it, and it is computed again") from error


def load_regions(file: Path) -> Regions:
    """Load the regions of an image from a file of a `TensorCache`.

    Raises:
        ValueError: the file is damaged.
    """
    return Regions(**load_tensors(file))


def check_space(images: int, proposals: int, features: int, limit: int = MAX_BYTES) -> None:
    """Raise a ValueError if the regions of images may take more space than allowed.

    Examples:
        >>> check_space(images=2202, proposals=1000, features=2048)
        >>> check_space(images=11788, proposals=1000, features=2048)
        Traceback (most recent call last):
        ValueError: the regions of 11788 images take up to 48.4 GB, the limit is 10.0 GB; set proposals to 204 or less
    """
    bytes_each = images * 2 * features
    needed = bytes_each * (proposals + 3)
    if needed > limit:
        most = max(limit // bytes_each - 3, 0)
        raise ValueError(
            f"the regions of {images} images take up to {needed / 1e9:.1f} GB, the limit is {limit / 1e9:.1f} GB; "
            f"set proposals to {most} or less"
        )
