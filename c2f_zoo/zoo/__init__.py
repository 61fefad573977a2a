"""The zoo: methods (`mlph`, `hbp`, ...) and the models that have a name of their own."""

from c2f_zoo.zoo.methods import METHODS, Method, num_taps_of
from c2f_zoo.zoo.models import MODELS, ModelSpec, find_model, list_models, register_model

__all__ = ["METHODS", "MODELS", "Method", "ModelSpec", "find_model", "list_models", "num_taps_of", "register_model"]
