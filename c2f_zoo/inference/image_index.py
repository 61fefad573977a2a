"""An index of images: their embeddings in a file, searched for the images most similar to another."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from c2f_zoo.io.files import atomic_write
from c2f_zoo.paths import expand

_FORMAT = "c2f_zoo image index, version 1"
_BLOCK = 256  # embeddings that are converted to float32 at a time; they fit into the processor's caches


@dataclass(frozen=True)
class ImageIndex:
    """Embeddings of the images of a folder.

    It is searched by a product with all embeddings, which is exact, and fast for the up to a million images of a
    folder; see [Find similar images](../how-to/similar.md).

    Attributes:
        embeddings: float16 (N, D), of length 1.
        files: the N files, relative to the folder, with forward slashes.
        folder: the folder's absolute path.
        model: the model's name, as it was given.
        digest: the model's `Embedder.digest`.
    """

    embeddings: np.ndarray
    files: Sequence[str]
    folder: str
    model: str
    digest: str

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or len(self.embeddings) != len(self.files):
            raise ValueError(f"{len(self.files)} files do not fit embeddings of shape {self.embeddings.shape}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the index atomically as a safetensors file.

        Args:
            path: the file; its folder must exist.
        """
        about = {"format": _FORMAT, "folder": self.folder, "model": self.model, "digest": self.digest}
        # A header of safetensors holds 100 MB and valid Unicode only, so that the names are a tensor.
        names = "\0".join(self.files).encode("utf-8", "surrogateescape")
        tensors: dict[str, np.ndarray] = {
            "embeddings": self.embeddings.astype(np.float16),
            "files": np.frombuffer(names, dtype=np.uint8),
        }
        metadata = {"about": json.dumps(about)}
        content = save(tensors, metadata)  # save_file would keep other users from reading the file
        atomic_write(expand(path), lambda part: part.write_bytes(content))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ImageIndex:
        """Load an index.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not an index of images, or of another version.

        Examples:
            >>> index = ImageIndex(np.eye(2, dtype=np.float16), ["a.jpg", "b.jpg"], "/birds", "my_model", "0")
            >>> index.save("birds.index")
            >>> ImageIndex.load("birds.index").files
            ['a.jpg', 'b.jpg']
        """
        path = expand(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no index {path}; make it: c2f-zoo index MODEL FOLDER -o {path.name}")
        try:
            with safe_open(path, "numpy") as file:
                about = json.loads((file.metadata() or {})["about"])
                found = about.pop("format")
                if found == _FORMAT:
                    names = file.get_tensor("files").tobytes().decode("utf-8", "surrogateescape")
                    return cls(file.get_tensor("embeddings"), names.split("\0") if names else [], **about)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not an index of c2f-zoo, or damaged ({error}); make it again") from None
        raise ValueError(f"{path} is a {found!r}, not a {_FORMAT!r}; make it again with c2f-zoo index")

    def check_model(self, model: str, digest: str) -> None:
        """Check that the index was made by a model.

        Args:
            model: the model's name.
            digest: its `Embedder.digest`.

        Raises:
            ValueError: it was made by another one.
        """
        if digest != self.digest:
            raise ValueError(
                f"the index is of the model {self.model} ({self.digest[:8]}), not of {model} ({digest[:8]}), whose "
                f"embeddings differ; use that model, or make another index: c2f-zoo index {model} {self.folder}"
            )

    def search(self, embedding: np.ndarray, k: int) -> list[tuple[str, float]]:
        """Return the k most similar images, most similar first, equals in the order of the index.

        Args:
            embedding: float32 (D,), of length 1.
            k: their number, >= 1; all if there are fewer.

        Returns:
            file, relative to `folder`, and cosine similarity in [-1, 1].

        Examples:
            >>> index = ImageIndex(np.eye(2, dtype=np.float16), ["a.jpg", "b.jpg"], "/birds", "my_model", "0")
            >>> index.search(np.array([0.8, 0.6], dtype=np.float32), k=1)
            [('a.jpg', 0.800000011920929)]
        """
        starts = range(0, len(self.embeddings), _BLOCK)
        # PyTorch converts to float32 several times as fast as NumPy.
        blocks = (torch.from_numpy(self.embeddings[start : start + _BLOCK]).float() for start in starts)
        query = torch.from_numpy(embedding)
        similarities = torch.cat([block @ query for block in blocks]).numpy()
        nearest = np.argsort(-similarities, kind="stable")[:k]
        return [(self.files[number], float(similarities[number])) for number in nearest]
