"""Data: datasets whose pictures have a label at every level, and what is done to a picture before the network."""

# Importing a dataset's file registers it.
from c2f_zoo.data import critters, cub, fashion_mnist
from c2f_zoo.data.images import read_image
from c2f_zoo.data.registry import DATASETS, LabelledImages, create_dataset, labels_of, list_datasets, register_dataset
from c2f_zoo.data.transforms import Shrink, create_transform
from c2f_zoo.data.views import HideLabels, LevelView, stratified_split

__all__ = [
    "DATASETS",
    "HideLabels",
    "LabelledImages",
    "LevelView",
    "Shrink",
    "create_dataset",
    "create_transform",
    "critters",
    "cub",
    "fashion_mnist",
    "labels_of",
    "list_datasets",
    "read_image",
    "register_dataset",
    "stratified_split",
]
