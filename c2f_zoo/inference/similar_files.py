"""The work of `c2f-zoo index` and `c2f-zoo similar` on image files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from c2f_zoo.inference.ahead import process_ahead
from c2f_zoo.inference.embedder import Embedder
from c2f_zoo.inference.image_files import list_image_files
from c2f_zoo.inference.image_index import ImageIndex
from c2f_zoo.inference.predict_files import error_line, report, tell, with_progress
from c2f_zoo.paths import expand


def index_folder(embedder: Embedder, model: str, folder: Path, output: Path) -> tuple[int, int]:
    """Embed the images of a folder and its subfolders, and save their index.

    What is left out is said on standard error, and unreadable images are reported there at the end.

    Args:
        embedder: the embedder.
        model: the model's name, for the index.
        folder: the folder.
        output: the file to write; its folder must exist.

    Returns:
        The number of indexed images, and of unreadable files and folders.

    Raises:
        FileNotFoundError: a folder does not exist, or has no images.
        ValueError: no image can be read, or the model's outputs are not finite.
    """
    folder, output = expand(folder).absolute(), expand(output)
    for needed in (folder, output.parent):
        if not needed.is_dir():
            raise FileNotFoundError(f"there is no folder {needed}")
    found = list_image_files([folder])
    for note in found.notes:
        tell(note)
    files, vectors, errors = [], [], list(found.unreadable)
    outcomes: Iterator[tuple[Path, list[np.ndarray] | Exception]] = process_ahead(
        found.files, lambda file: [file], embedder.prepare, embedder.embed_batch, embedder.batch_size
    )
    for file, outcome in with_progress(outcomes, len(found.files), is_shown=True, description="embedding"):
        if isinstance(outcome, Exception):
            errors.append(error_line(file, outcome))
        else:
            files.append(file.relative_to(folder).as_posix())
            vectors.append(outcome[0].astype(np.float16))
    report(errors)
    if not files:
        raise ValueError(f"none of the {len(errors)} images of {folder} can be read; no index is written")
    ImageIndex(np.stack(vectors), files, str(folder), model, embedder.digest()).save(output)
    return len(files), len(errors)


def find_similar(embedder: Embedder, index: ImageIndex, photo: Path, k: int) -> list[tuple[Path, float]]:
    """Return the images of an index that are most similar to a photo, most similar first.

    The photo itself is left out, if it is in the index.

    Args:
        embedder: the embedder of the index's model, see `ImageIndex.check_model`.
        index: the index.
        photo: the photo's file.
        k: the number of images, >= 1; all if there are fewer.

    Returns:
        The file and cosine similarity of each image.

    Raises:
        FileNotFoundError: the photo does not exist.
        ValueError: the photo is unreadable, or the model's outputs are not finite.
    """
    ranked = index.search(embedder([photo])[0], k + 1)
    itself = expand(photo).resolve()
    files = ((Path(index.folder, file), similarity) for file, similarity in ranked)
    return [(file, similarity) for file, similarity in files if file.resolve() != itself][:k]
