"""Datasets read by timm: Hugging Face, torchvision, WebDataset, TensorFlow."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

from c2f_zoo.data.files import ImageFiles
from c2f_zoo.data.folder import list_class_folders
from c2f_zoo.data.registry import SPLITS, IndexedImages, LabelledImages, check_split, register_dataset
from c2f_zoo.data.sources import Relabelled, labels_by_index, labels_by_name
from c2f_zoo.data.split_names import UNCLEAR, split_of
from c2f_zoo.hierarchy import Hierarchy, open_hierarchy
from c2f_zoo.hierarchy.folders import list_folder_content
from c2f_zoo.images.formats import UnsupportedImageError, no_ghostscript
from c2f_zoo.images.reading import read_image, to_upright_rgb
from c2f_zoo.paths import expand

_PACKAGES = {"hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets", "wds": "webdataset"}
_FOLDERS = ("torch/image_folder", "torch/folder")
_MAX_WEBP = 16383  # longest side in pixels


def timm_dataset(
    name: str,
    split: str,
    hierarchy: str | Path | Hierarchy,
    root: str | None = None,
    splits: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> LabelledImages:
    """Open a dataset with `timm.data.create_dataset` and label its images with a tree.

    Its classes are matched with the leaf classes by name, ignoring case and punctuation. Classes without names, as with
    `wds/`, are matched by order if the numbers of classes are equal.

    - `hfds/NAME`: a dataset of the Hugging Face Hub, or the path of a folder that `datasets.load_dataset` accepts;
      `root` is its cache. Images are decoded when they are used.
    - `torch/NAME`: a torchvision dataset that timm knows, e.g. `torch/cifar10`, in `root`; `torch/image_folder` for
      `root/<split>/<class>/*`.
    - `wds/NAME` (tar shards and `_info.json` in `root`; NAME is arbitrary), `hfids/NAME` and `tfds/NAME` are streams.
      Training needs random access, so **a stream is read to its end when it is opened**, and kept in memory, losslessly
      encoded with about 1 byte a pixel. A stream that does not fit in memory cannot be used; prefer `hfds/`.

    Args:
        name: one of timm's prefixes and the dataset to read.
        split: `"train"`, `"val"` or `"test"`.
        hierarchy: path of a tree's CSV file, name of a registered tree, or a tree.
        root: the folder passed to timm.
        splits: the dataset's name for each of our splits, e.g. `{"train": "train[:90%]", "val": "train[90%:]", "test":
            "validation"}`. Default: `train`, `validation` and `test`, if the dataset has them. For `torch/`: `train`,
            and `validation` as our test set, which is timm's name for torchvision's test images.
        class_names: the dataset's classes in the order of its labels, if it has no names for them.
        **options: keyword arguments of `timm.data.create_dataset`, e.g. `input_key`, `target_key`, `num_samples`,
            `download`.

    Raises:
        ImportError: the package of the reader is missing.
        ValueError: the dataset cannot be opened, the split does not exist, or a class or label is not in the tree.

    Examples:
        >>> tree = Hierarchy.from_rows(("kind", "shape"), [("round", "disc"), ("edged", "box")])
        >>> for name in ("train/box", "train/disc", "test/box", "test/disc"):
        ...     Path("shapes", name).mkdir(parents=True)
        ...     Image.new("RGB", (64, 48)).save(Path("shapes", name, "1.png"))
        >>> dataset = create_dataset("torch/image_folder", "train", hierarchy=tree, root="shapes")
        >>> dataset.targets, dataset.splits
        ([1, 0], ('train', 'test'))
    """
    prefix, source_name = name.partition("/")[0], f"dataset {name!r}"
    tree = open_hierarchy(hierarchy)
    named = _default_splits(name, root) if splits is None else splits
    is_imagenets = name in _FOLDERS and split == "test" and {"train", "val"} <= named.keys()
    hint = "; to test on 'val', pass splits={'train': 'train', 'test': 'val'}" if is_imagenets else ""
    check_split(name, split, named, hint)
    if name in _FOLDERS:
        source = _class_folders(name, expand(root or ""), named[split], options)
    else:
        source = _SOURCES[prefix](_open(name, named[split], root, options), source_name)
    if splits is None and source.splits is not None:
        named = {ours: theirs for ours, theirs in named.items() if theirs in source.splits or ours == split}
        if split == "train":
            _warn_of_unused_splits(source_name, map(str, source.splits), named)
    names = source.class_names if class_names is None else class_names
    targets = _match_labels(source.labels, names, tree, source_name, is_train=split == "train")
    return source.create(targets=targets, hierarchy=tree, splits=tuple(named))


def _warn_of_unused_splits(source: str, splits: Iterable[str], named: Mapping[str, str]) -> None:
    unused = [split for split in splits if split_of(split) and split not in named.values()]
    if unused:
        hint = f"name those that you want in the option splits, e.g. splits={ {**named, 'val': unused[0]} }"
        warnings.warn(f"{source} has splits that are not used, {', '.join(unused)}; {hint}", stacklevel=3)


@dataclass(eq=False)
class EncodedImages(IndexedImages):
    """A `LabelledImages` of encoded image files, in memory or in a table.

    Args:
        load_bytes: a function from an index to the bytes of an image file.
        source: name of the dataset in errors.
        targets: for each image the label of its leaf class.
        hierarchy: the tree.
        splits: the splits of the dataset.
    """

    load_bytes: Callable[[int], bytes]
    source: str
    targets: list[int]
    hierarchy: Hierarchy
    splits: tuple[str, ...]

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """Return an image in RGB, decoded by `read_image`; see there for `shorter_side`.

        Raises:
            ValueError: it cannot be decoded; the message names the dataset and the index.
        """
        file = _NamedBytes(self.load_bytes(index))
        file.name = f"{index} of {self.source}"
        return read_image(file, shorter_side)


class _NamedBytes(io.BytesIO):
    """A file in memory with a name for errors."""

    name: str

    def __str__(self) -> str:
        return self.name


class _Source(NamedTuple):
    """An opened dataset before its labels are matched with the tree."""

    labels: Sequence[Any]  # the dataset's own label of each image
    class_names: Sequence[str]  # of its labels 0, 1, ...; empty if it has none
    splits: Collection[str] | None  # its own names of its splits; None: the default ones
    create: Callable[..., LabelledImages]  # from targets, hierarchy and splits


def _default_splits(name: str, root: str | None) -> dict[str, str]:
    """Return a dataset's usual name for each of our splits."""
    if name in _FOLDERS:
        if root is None:
            raise ValueError(f"dataset {name!r} needs the option root, its folder")
        folders = list_folder_content(expand(root), defaultdict(list))[0]
        found = {split: [folder for folder in folders if split_of(folder) == split] for split in (*SPLITS, UNCLEAR)}
        unclear = [name for split, names in found.items() if split == UNCLEAR or len(names) > 1 for name in names]
        if unclear:
            hint = "name those that you want in the option splits, e.g. splits={'train': 'train', 'test': 'val'}"
            raise ValueError(f"dataset {name!r}: splits of {root} are unclear: {', '.join(unclear)}; {hint}")
        return {split: names[0] for split, names in found.items() if names}
    if name.startswith("torch/"):
        return {"train": "train", "test": "validation"}
    return {"train": "train", "val": "validation", "test": "test"}


def _open(name: str, split: str, root: str | None, options: dict[str, Any]) -> Any:
    """Open one split with timm."""
    prefix = name.partition("/")[0]
    package = _PACKAGES.get(prefix)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ImportError(f"dataset {name!r} needs {package}: pip install {package.replace('_', '-')}")
    if root is None and prefix in ("torch", "wds"):
        raise ValueError(f"dataset {name!r} needs the option root, its folder")
    if prefix in ("hfids", "wds"):  # read_image converts more modes than timm
        options = {**options, "input_img_mode": ""}
    import timm.data  # slow to import

    try:
        return timm.data.create_dataset(name, root=root, split=split, **options)
    except ImportError:
        raise
    except Exception as error:  # timm and its readers raise errors of many kinds, assertions too
        check = "check the name and the network; " if prefix in ("hfds", "hfids") else ""
        raise ValueError(
            f"dataset {name!r}: cannot open its split {split!r}: {error or type(error).__name__}; {check}if the split "
            "has another name, pass it in the option splits"
        ) from error


def _class_folders(name: str, root: Path, split: str, options: dict[str, Any]) -> _Source:
    """List `root/<split>/<class>/*`, with the images and folders that `folder` reads; timm would drop some."""
    if options:
        raise ValueError(f"dataset {name!r} has no option {next(iter(options))!r}; its options are root and splits")
    found, notes = list_class_folders(root / split)
    classes = sorted({folder for folder, _ in found})
    label_of = {folder: label for label, folder in enumerate(classes)}
    create = partial(ImageFiles, [path for _, path in found], notes=notes)
    return _Source([label_of[folder] for folder, _ in found], classes, None, create)


def _torchvision(data: Any, source: str) -> _Source:
    names = [name if isinstance(name, str) else ", ".join(name) for name in getattr(data, "classes", ())]
    if hasattr(data, "imgs"):  # read the files with read_image, which converts more modes than torchvision
        paths = [Path(path) for path, _ in data.imgs]
        return _Source([label for _, label in data.imgs], names, None, partial(ImageFiles, paths))
    if not hasattr(data, "targets"):
        raise ValueError(f"{source} has no labels without its images and is unsupported; see list_datasets()")
    return _Source(torch.as_tensor(data.targets).tolist(), names, None, partial(Relabelled, data))


def _hugging_face(data: Any, source: str) -> _Source:
    reader = data.reader
    create = partial(EncodedImages, partial(_load_bytes, reader), source)
    splits = reader.dataset.info.splits or ()
    return _Source(reader.dataset[reader.label_key][:], _class_names(reader), splits, create)


def _load_bytes(reader: Any, index: int) -> bytes:
    # Bypasses timm's dataset, which replaces an unreadable image with the next one.
    try:
        with reader[index][0] as file:
            return file.read()
    except (TypeError, AssertionError) as error:
        raise ValueError(
            f"image {index} of the Hugging Face dataset is missing: its {reader.image_key} is empty"
        ) from error


def _stream(splits_of: Callable[[Any], Collection[str]], data: Any, source: str) -> _Source:
    """Read a stream to its end and keep its images."""
    reader = data.reader
    if reader.dist_num_replicas > 1:
        raise ValueError(f"timm splits the stream {source} between processes; use one process, or 'hfds/'")
    images, labels = [], []
    with no_ghostscript(), _record_warnings() as reasons:
        for image, label in tqdm(data, total=len(data) or None, desc=f"reading {source}", disable=None):
            images.append(_encode(image))
            labels.append(label.item() if hasattr(label, "item") else label)
    missing = max(reader.num_samples - len(labels), len(reasons))
    if missing > 0:
        why = f"the first: {reasons[0]}" if reasons else "check the number in its _info.json"
        warnings.warn(f"{source} has {len(labels)} images; timm left out {missing} more, {why}", stacklevel=2)
    return _Source(labels, _class_names(reader), splits_of(reader), partial(EncodedImages, images.__getitem__, source))


@contextlib.contextmanager
def _record_warnings() -> Iterator[list[str]]:
    """Yield a list to which timm's reader of WebDataset adds its reasons for leaving out images."""
    reasons: list[str] = []
    logger = logging.getLogger("timm.data.readers.reader_wds")

    def record(entry: logging.LogRecord) -> bool:
        reasons.append(entry.getMessage())
        return True

    logger.addFilter(record)
    try:
        yield reasons
    finally:
        logger.removeFilter(record)


def _encode(image: Image.Image) -> bytes:
    """Encode a loaded image so that `read_image` treats it like the original file."""
    try:
        image = to_upright_rgb(image)
    except UnsupportedImageError:  # reading the copy raises the error again
        image = image if image.mode in ("I", "F") else image.convert("RGB")
    if image.mode != "RGB":
        image_format, options = "TIFF", {}
    elif max(image.size) <= _MAX_WEBP:
        # 1.1 bytes a pixel instead of 1.5 with PNG, at the same speed (images of CUB).
        image_format, options = "WEBP", {"lossless": True, "quality": 0, "method": 0}
    else:
        image_format, options = "PNG", {"compress_level": 1}
    file = io.BytesIO()
    image.save(file, image_format, exif=Image.Exif(), **options)
    return file.getvalue()


def _class_names(reader: Any) -> list[str]:
    """Return the class names of a reader in the order of its labels, if it has them."""
    names = sorted(reader.class_to_idx, key=reader.class_to_idx.get)
    # A Hugging Face stream that was never prepared has them only after it is read.
    features = getattr(getattr(reader, "ds", None), "features", None)
    if names or not features:
        return names
    return list(getattr(features[reader.target_key], "names", ()))


def _match_labels(
    labels: Sequence[Any], names: Sequence[str], tree: Hierarchy, source: str, is_train: bool
) -> list[int]:
    """Return the label in the tree of each image."""
    numbers = [label for label in labels if isinstance(label, int)]
    if labels and not numbers:
        own = sorted({label for label in labels if isinstance(label, str)})
        table: dict[Any, int] = dict(zip(own, labels_by_name(own, tree, source), strict=True))
    elif names:
        table = dict(enumerate(labels_by_name(names, tree, source)))
    elif is_train and labels:
        table = dict(enumerate(labels_by_index(max(numbers) + 1, tree, source)))
    else:  # a test set need not have all classes
        table = {label: label for label in range(len(tree.classes[-1]))}
    for index, label in enumerate(labels):
        if not isinstance(label, (int, str)) or label not in table:
            raise ValueError(
                f"image {index} of {source} has the label {label!r}, which is not one of its {len(table)} classes; "
                "remove it"
            )
    return [table[label] for label in labels]


_SOURCES: dict[str, Callable[[Any, str], _Source]] = {
    "hfds": _hugging_face,
    "hfids": partial(_stream, lambda reader: reader.builder.info.splits or reader.builder.config.data_files or ()),
    "tfds": partial(_stream, lambda reader: reader.builder.info.splits),
    "torch": _torchvision,
    "wds": partial(_stream, lambda reader: reader.info.get("splits", ())),
}

for _prefix in _SOURCES:
    register_dataset(f"{_prefix}/")(timm_dataset)
