"""The zoo: methods (`mlph`, `hbp`, ...) and the models that have a name of their own."""

from c2f_zoo.zoo.methods import METHODS, Method
from c2f_zoo.zoo.models import MODELS, ModelSpec, find_model, list_models, register_model

__all__ = ["METHODS", "MODELS", "Method", "ModelSpec", "find_model", "list_models", "register_model"]
