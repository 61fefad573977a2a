"""Datasets that timm's readers read: Hugging Face, torchvision, WebDataset and TensorFlow Datasets."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import ExifTags, Image
from tqdm import tqdm

from c2f_zoo.data.files import ImageFiles, open_hierarchy
from c2f_zoo.data.images import read_image
from c2f_zoo.data.registry import SPLITS, LabelledImages, register_dataset, unknown_split
from c2f_zoo.data.sources import Relabelled, labels_by_index, labels_by_name, targets_of
from c2f_zoo.hierarchy import Hierarchy

_PACKAGES = {"hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets", "wds": "webdataset"}
_FOLDERS = ("torch/image_folder", "torch/folder")
_MAX_WEBP = 16383  # pixels of a side


def timm_dataset(
    name: str,
    split: str,
    hierarchy: str | Path | Hierarchy,
    root: str | None = None,
    splits: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> LabelledImages:
    """Opens a dataset with `timm.data.create_dataset` and gives its images the labels of a tree.

    Its classes are found by their names at the tree's finest level, whatever their case and punctuation; where their
    names are not known, as with `wds/`, by their order, if they are as many.

    - `hfds/NAME`: a dataset of the Hugging Face Hub, or the path of a folder that `datasets.load_dataset` takes; `root`
      is its cache. Images are decoded when they are used.
    - `torch/NAME`: a torchvision dataset that timm knows, e.g. `torch/cifar10`, in `root`; `torch/image_folder` for
      `root/<split>/<class>/*`.
    - `wds/NAME` (tar shards and `_info.json` in `root`; NAME is free), `hfids/NAME` and `tfds/NAME` are streams, whose
      images come one after the other. A training wants any image at any time, so **a stream is read to its end
      when it is opened**, and kept in memory, encoded without loss at about 1 byte a pixel. One that does not fit
      cannot be used: nothing here trains from a stream. Prefer `hfds/`.

    Args:
        name: one of timm's prefixes and what it is to read.
        split: `"train"`, `"val"` or `"test"`.
        hierarchy: the path of a tree's CSV file, the name of a registered tree, or a tree.
        root: the folder that timm is given.
        splits: our splits and what the dataset calls them, e.g. `{"train": "train[:90%]", "val": "train[90%:]", "test":
            "validation"}`. Without it they are `train`, `validation` and `test`, as far as the dataset has them; for
            `torch/` they are `train`, and, for our test, `validation`, timm's name for torchvision's test images.
        class_names: the dataset's classes in the order of its labels, where it does not know their names.
        **options: what `timm.data.create_dataset` takes further, e.g. `input_key`, `target_key`, `num_samples`,
            `download`.

    Raises:
        ImportError: the package that the reader needs is missing.
        ValueError: the dataset cannot be opened or has no such split, or a class or a label is not in the tree.

    Examples:
        >>> tree = Hierarchy.from_rows(("kind", "shape"), [("round", "disc"), ("edged", "box")])
        >>> for name in ("train/box", "train/disc", "test/box", "test/disc"):
        ...     Path("shapes", name).mkdir(parents=True)
        ...     Image.new("RGB", (64, 48)).save(Path("shapes", name, "1.png"))
        >>> dataset = create_dataset("torch/image_folder", "train", hierarchy=tree, root="shapes")
        >>> dataset.targets, dataset.splits
        ([1, 0], ('train', 'test'))
    """
    prefix, what = name.partition("/")[0], f"dataset {name!r}"
    tree = open_hierarchy(hierarchy)
    named = _default_splits(name, root) if splits is None else splits
    if split not in named:
        way_out = "; say what is our test with splits={'train': 'train', 'test': 'val'}"
        is_imagenets = name in _FOLDERS and split == "test" and {"train", "val"} <= named.keys()
        raise ValueError(f"{unknown_split(name, split, named)}{way_out if is_imagenets else ''}")
    source = _SOURCES[prefix](_open(name, named[split], root, options), what)
    if splits is None and source.splits is not None:
        named = {ours: theirs for ours, theirs in named.items() if theirs in source.splits or ours == split}
    names = source.names if class_names is None else class_names
    targets = _find_labels(source.found, names, tree, what, is_train=split == "train")
    return source.make(targets=targets, hierarchy=tree, splits=tuple(named))


@dataclass(eq=False)
class EncodedImages:
    """Images that are the content of a file each, wherever it lies: a `LabelledImages`.

    Args:
        encoded: gives the bytes of the image of an index.
        source: what to call the dataset in an error.
        targets: for each image its label at the tree's finest level.
        hierarchy: the tree.
        splits: which splits the whole dataset has.
    """

    encoded: Callable[[int], bytes]
    source: str
    targets: list[int]
    hierarchy: Hierarchy
    splits: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.read(index), self.targets[index]

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """One image in RGB, decoded by `read_image`; see there for `shorter_side`.

        Raises:
            ValueError: it cannot be decoded; the message names the dataset and the index.
        """
        file = _NamedBytes(self.encoded(index))
        file.name = f"{index} of {self.source}"
        return read_image(file, shorter_side)


class _NamedBytes(io.BytesIO):
    """A file in memory that errors can name."""

    name: str

    def __str__(self) -> str:
        return self.name


class _Source(NamedTuple):
    """What was found in a dataset."""

    found: Sequence[Any]  # the label of each image, as the dataset has it
    names: Sequence[str]  # of its labels 0, 1, ...; empty where it knows none
    splits: Collection[str] | None  # its own names of them; None: as many as are named
    make: Callable[..., LabelledImages]  # of targets, hierarchy and splits


def _default_splits(name: str, root: str | None) -> dict[str, str]:
    """Our splits and what a dataset usually calls them."""
    if name in _FOLDERS:
        return {split: split for split in SPLITS if Path(root or "", split).is_dir()}
    if name.startswith("torch/"):
        return {"train": "train", "test": "validation"}
    return {"train": "train", "val": "validation", "test": "test"}


def _open(name: str, split: str, root: str | None, options: dict[str, Any]) -> Any:
    """One split as timm opens it."""
    prefix = name.partition("/")[0]
    package = _PACKAGES.get(prefix)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ImportError(f"dataset {name!r} needs {package}: pip install {package.replace('_', '-')}")
    if root is None and prefix in ("torch", "wds"):
        raise ValueError(f"dataset {name!r} needs the option root, the folder that holds it")
    if name in _FOLDERS:  # timm would look for a folder like the split, and take all images if there is none
        root, options = str(Path(root or "", split)), {**options, "search_split": False}
    if prefix in ("hfids", "wds"):  # no conversion by timm: read_image knows more modes
        options = {**options, "input_img_mode": ""}
    import timm.data  # here, because it takes long

    try:
        return timm.data.create_dataset(name, root=root, split=split, **options)
    except ImportError:
        raise
    except Exception as error:  # timm and the libraries below it raise errors of many kinds, assertions too
        check = "check the name and the network; " if prefix in ("hfds", "hfids") else ""
        raise ValueError(
            f"dataset {name!r}: cannot open its split {split!r}: {error or type(error).__name__}; {check}the option "
            "splits says what it calls ours"
        ) from error


def _torchvision(data: Any, what: str) -> _Source:
    names = [name if isinstance(name, str) else ", ".join(name) for name in getattr(data, "classes", ())]
    if hasattr(data, "imgs"):  # files, which torchvision's own loader would not decode as read_image does
        paths = [Path(path) for path, _ in data.imgs]
        return _Source([label for _, label in data.imgs], names, None, partial(ImageFiles, paths))
    if not hasattr(data, "targets"):
        raise ValueError(f"{what} does not tell its labels without its images; see list_datasets() for one of ours")
    return _Source(torch.as_tensor(data.targets).tolist(), names, None, partial(Relabelled, data))


def _hugging_face(data: Any, what: str) -> _Source:
    reader = data.reader
    make = partial(EncodedImages, partial(_file_of, reader), what)
    return _Source(reader.dataset[reader.label_key][:], _names_of(reader), reader.dataset.info.splits or (), make)


def _file_of(reader: Any, index: int) -> bytes:
    # Not through timm's dataset, which puts the next image in the place of one that it cannot read.
    try:
        with reader[index][0] as file:
            return file.read()
    except (TypeError, AssertionError) as error:
        raise ValueError(
            f"there is no image {index} of the Hugging Face dataset: its {reader.image_key} is empty"
        ) from error


def _stream(splits_of: Callable[[Any], Collection[str]], data: Any, what: str) -> _Source:
    """Reads a stream through, keeping its images."""
    reader = data.reader
    if reader.dist_num_replicas > 1:
        raise ValueError(f"{what} is a stream, of which timm gives each process a part; use one process, or 'hfds/'")
    images, found = [], []
    for image, label in tqdm(data, total=len(data) or None, desc=f"reading {what}", disable=None):
        images.append(_encode(image))
        found.append(label.item() if hasattr(label, "item") else label)
    if reader.num_samples not in (0, len(found)):
        warnings.warn(
            f"{what} was said to have {reader.num_samples} images, but timm gave {len(found)}: it leaves out those "
            "that it cannot read, and logs why",
            stacklevel=2,
        )
    return _Source(found, _names_of(reader), splits_of(reader), partial(EncodedImages, images.__getitem__, what))


def _split_names(builder: Any) -> list[str]:
    """The splits of a Hugging Face dataset that was never prepared: those that its files are for."""
    return [str(split) for split in builder.config.data_files or ()]


def _encode(image: Image.Image) -> bytes:
    """A loaded image as a file that `read_image` decodes as it would have decoded the image's own."""
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16", "F"):
        image = image.convert("RGB")
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        image_format, how = "TIFF", {}  # keeps what is in it, for read_image to refuse
    elif image.mode == "RGB" and not image.has_transparency_data and max(image.size) <= _MAX_WEBP:
        # Takes 1.1 bytes a pixel, PNG 1.5, and no longer to encode or decode (images of CUB).
        image_format, how = "WEBP", {"lossless": True, "quality": 0, "method": 0}
    else:
        image_format, how = "PNG", {"compress_level": 1}
    file = io.BytesIO()
    image.save(file, image_format, exif=_orientation(image), **how)
    return file.getvalue()


def _orientation(image: Image.Image) -> Image.Exif:
    """The EXIF orientation of an image alone, which XMP may have given too."""
    exif, key = Image.Exif(), ExifTags.Base.Orientation
    with contextlib.suppress(Exception):  # as in read_image, broken EXIF says nothing
        if key in image.getexif():
            exif[key] = image.getexif()[key]
    return exif


def _names_of(reader: Any) -> list[str]:
    """The classes of a reader, in the order of its labels; empty where it knows none."""
    names = sorted(reader.class_to_idx, key=reader.class_to_idx.get)
    # A Hugging Face stream that was never prepared learns them when it is read.
    features = getattr(getattr(reader, "ds", None), "features", None)
    if names or not features:
        return names
    return list(getattr(features[reader.target_key], "names", ()))


def _find_labels(found: Sequence[Any], names: Sequence[str], tree: Hierarchy, what: str, is_train: bool) -> list[int]:
    """The label in the tree of each image."""
    numbers = [label for label in found if isinstance(label, int)]
    if found and not numbers:
        own = sorted({label for label in found if isinstance(label, str)})
        table: dict[Any, int] = dict(zip(own, labels_by_name(own, tree, what), strict=True))
    elif names:
        table = dict(enumerate(labels_by_name(names, tree, what)))
    elif is_train and found:
        table = dict(enumerate(labels_by_index(max(numbers) + 1, tree, what)))
    else:  # images of a few classes are enough to test
        table = {label: label for label in range(len(tree.classes[-1]))}
    return targets_of(found, table, what)


_SOURCES: dict[str, Callable[[Any, str], _Source]] = {
    "hfds": _hugging_face,
    "hfids": partial(_stream, lambda reader: reader.builder.info.splits or _split_names(reader.builder)),
    "tfds": partial(_stream, lambda reader: reader.builder.info.splits),
    "torch": _torchvision,
    "wds": partial(_stream, lambda reader: reader.info.get("splits", ())),
}

for _prefix in _SOURCES:
    register_dataset(f"{_prefix}/")(timm_dataset)
