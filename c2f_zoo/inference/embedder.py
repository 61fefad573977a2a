"""Embeddings of images of any kind, as the model sees them at its leaf level."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from c2f_zoo.data.transforms import create_transform
from c2f_zoo.images.reading import ImageLike, prepare_image
from c2f_zoo.inference.resolutions import own_resolutions
from c2f_zoo.io.weights import digest_weights
from c2f_zoo.model import C2FModel
from c2f_zoo.ops import check_finite


class Embedder:
    """An embedder of images: vectors whose products are cosine similarities, see `C2FModel.embed`.

    Images are seen at the resolution of the model's leaf level.

    Args:
        model: the model; it is put into evaluation mode.
        batch_size: the largest number of images of a forward pass.

    Examples:
        >>> embedder = Embedder(create_model("mlph_tiny_critters", pretrained=True))
        >>> v = embedder([Image.new("RGB", (96, 96)), torch.rand(3, 50, 80)])
        >>> v.shape == (2, embedder.model.pooling.out_features), v.dtype
        (True, dtype('float32'))
    """

    def __init__(self, model: C2FModel, batch_size: int = 32) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
        self.model, self.batch_size = model.eval(), batch_size
        self.level = model.levels[-1]
        self._transform = create_transform(model.config.preprocessing, own_resolutions(model)[self.level], train=False)

    def __call__(self, images: Sequence[ImageLike]) -> np.ndarray:
        """Return the embeddings float32 (N, D) of one or more images.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: an image cannot be read or converted, there are none, or the model's outputs are not finite.
        """
        if not images:
            raise ValueError("there are no images to embed; pass one or more")
        starts = range(0, len(images), self.batch_size)
        batches = ([*map(self.prepare, images[start : start + self.batch_size])] for start in starts)
        return np.concatenate([self.embed_batch(batch) for batch in batches])

    def prepare(self, image: ImageLike) -> Tensor:
        """Read, convert and transform an image (channels, height, width); threads may do this ahead of `embed_batch`.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the image cannot be read or converted.
        """
        return self._transform(prepare_image(image))  # type: ignore[no-any-return]

    @torch.inference_mode()
    def embed_batch(self, images: Sequence[Tensor]) -> np.ndarray:
        """Return the embeddings float32 (N, D) of prepared images, one or more, in one forward pass.

        Raises:
            ValueError: the model's outputs are not finite.
        """
        weight = next(self.model.parameters())
        vectors = self.model.embed(torch.stack(list(images)).to(weight.device, weight.dtype), self.level)
        check_finite({"embedding": vectors})
        return vectors.cpu().numpy()  # type: ignore[no-any-return]

    def digest(self) -> str:
        """Return a SHA-256 of all that embeddings depend on, beside the images: weights and configuration.

        Weights are rounded to half precision, which a model saved in half precision keeps.
        """
        content = digest_weights(self.model.state_dict()) + self.model.config.to_json()
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
