"""Datasets with a label at every level, and transforms to the model's input."""

import importlib
import pkgutil

from c2f_zoo.data.augment import Augmentation, create_crop
from c2f_zoo.data.cache import CachedImages
from c2f_zoo.data.derived import HideLabels, Joined
from c2f_zoo.data.files import ImageFiles
from c2f_zoo.data.registry import (
    DATASETS,
    LabelledImages,
    create_dataset,
    labels_of,
    list_datasets,
    notes_of,
    register_dataset,
)
from c2f_zoo.data.splits import stratified_split, train_and_val
from c2f_zoo.data.transformed_images import TransformedImages, load_image, name_of, read_error
from c2f_zoo.data.transforms import Degrade, Normalize, create_transform, create_views
from c2f_zoo.data.views import Views
from c2f_zoo.images.reading import ImageLike, prepare_image, read_image

__all__ = [
    "DATASETS",
    "Augmentation",
    "CachedImages",
    "Degrade",
    "HideLabels",
    "ImageFiles",
    "ImageLike",
    "Joined",
    "LabelledImages",
    "Normalize",
    "TransformedImages",
    "Views",
    "create_crop",
    "create_dataset",
    "create_transform",
    "create_views",
    "labels_of",
    "list_datasets",
    "load_image",
    "name_of",
    "notes_of",
    "prepare_image",
    "read_error",
    "read_image",
    "register_dataset",
    "stratified_split",
    "train_and_val",
]

# Importing a dataset's module registers it. `check` is slow to import: it needs rich.
for _module in pkgutil.iter_modules(__path__):
    if _module.name != "check":
        importlib.import_module(f"{__name__}.{_module.name}")
