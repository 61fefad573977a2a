"""The zoo: methods (`mlph`, `hbp`, ...), named models and their trained weights."""

from c2f_zoo.zoo.methods import METHODS, num_taps_of
from c2f_zoo.zoo.models import MODELS, ModelSpec, find_weights, list_models, register_model, split_tag
from c2f_zoo.zoo.pretrained import WEIGHTS, Accuracy, Metrics, PretrainedWeights, register_weights

__all__ = [
    "METHODS",
    "MODELS",
    "WEIGHTS",
    "Accuracy",
    "Metrics",
    "ModelSpec",
    "PretrainedWeights",
    "find_weights",
    "list_models",
    "num_taps_of",
    "register_model",
    "register_weights",
    "split_tag",
]
