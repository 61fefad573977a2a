"""The zoo: methods (`mlph`, `hbp`, ...), named models and their trained weights."""

from c2f_zoo.zoo.methods import METHODS, Method, num_taps_of
from c2f_zoo.zoo.models import MODELS, ModelSpec, find_model, find_weights, list_models, register_model, split_tag
from c2f_zoo.zoo.pretrained import (
    WEIGHTS,
    Accuracy,
    Metrics,
    PretrainedWeights,
    default_tag,
    fetch,
    register_weights,
    tags_of,
)

__all__ = [
    "METHODS",
    "MODELS",
    "WEIGHTS",
    "Accuracy",
    "Method",
    "Metrics",
    "ModelSpec",
    "PretrainedWeights",
    "default_tag",
    "fetch",
    "find_model",
    "find_weights",
    "list_models",
    "num_taps_of",
    "register_model",
    "register_weights",
    "split_tag",
    "tags_of",
]
