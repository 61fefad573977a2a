"""Coarse-to-fine grained image classification: a plug-in model zoo on timm.

Public names are imported when they are first used, so that `import c2f_zoo` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from c2f_zoo.backbones import list_backbones, register_backbone
    from c2f_zoo.data import create_dataset, list_datasets, register_dataset
    from c2f_zoo.decoding import list_decodings, register_decoding
    from c2f_zoo.heads import Head, list_heads, register_head
    from c2f_zoo.hierarchy import Hierarchy, list_hierarchies, load_hierarchy, register_hierarchy
    from c2f_zoo.inference.prediction import Prediction
    from c2f_zoo.inference.predictor import Predictor
    from c2f_zoo.inference.trust import list_rules, register_rule
    from c2f_zoo.losses import list_losses, register_loss
    from c2f_zoo.metrics import list_metrics, register_metric
    from c2f_zoo.model import C2FModel
    from c2f_zoo.pooling import Pooling, create_pooling, list_poolings, register_pooling
    from c2f_zoo.zoo import PretrainedWeights, list_models, register_model, register_weights
    from c2f_zoo.zoo.create import create_model

_MODULES = {
    "c2f_zoo.backbones": ("list_backbones", "register_backbone"),
    "c2f_zoo.data": ("create_dataset", "list_datasets", "register_dataset"),
    "c2f_zoo.zoo.create": ("create_model",),
    "c2f_zoo.decoding": ("list_decodings", "register_decoding"),
    "c2f_zoo.heads": ("Head", "list_heads", "register_head"),
    "c2f_zoo.hierarchy": ("Hierarchy", "list_hierarchies", "load_hierarchy", "register_hierarchy"),
    "c2f_zoo.losses": ("list_losses", "register_loss"),
    "c2f_zoo.metrics": ("list_metrics", "register_metric"),
    "c2f_zoo.model": ("C2FModel",),
    "c2f_zoo.pooling": ("Pooling", "create_pooling", "list_poolings", "register_pooling"),
    "c2f_zoo.inference.prediction": ("Prediction",),
    "c2f_zoo.inference.predictor": ("Predictor",),
    "c2f_zoo.inference.trust": ("list_rules", "register_rule"),
    "c2f_zoo.zoo": ("PretrainedWeights", "list_models", "register_model", "register_weights"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "C2FModel",
    "Head",
    "Hierarchy",
    "Pooling",
    "Prediction",
    "Predictor",
    "PretrainedWeights",
    "create_dataset",
    "create_model",
    "create_pooling",
    "list_backbones",
    "list_datasets",
    "list_decodings",
    "list_heads",
    "list_hierarchies",
    "list_losses",
    "list_metrics",
    "list_models",
    "list_poolings",
    "list_rules",
    "load_hierarchy",
    "register_backbone",
    "register_dataset",
    "register_decoding",
    "register_head",
    "register_hierarchy",
    "register_loss",
    "register_metric",
    "register_model",
    "register_pooling",
    "register_rule",
    "register_weights",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'c2f_zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
