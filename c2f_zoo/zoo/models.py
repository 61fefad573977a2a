"""Names of whole models, `method_backbone_hierarchy`: those listed, and any that can be read that way."""

from __future__ import annotations

from dataclasses import dataclass

from c2f_zoo.backbones import list_backbones
from c2f_zoo.hierarchy import HIERARCHIES
from c2f_zoo.registry import Registry, unknown_name
from c2f_zoo.zoo.methods import METHODS


@dataclass(frozen=True)
class ModelSpec:
    """What a model's name stands for.

    Args:
        method: one of the methods, e.g. `"mlph"`.
        backbone: one of `list_backbones()`.
        hierarchy: one of `list_hierarchies()`.
    """

    method: str
    backbone: str
    hierarchy: str


MODELS: Registry[ModelSpec] = Registry("model")
register_model = MODELS.register

# The paper's methods and data sets on its backbone, and on the one that most people reach for today.
for _backbone in ("vgg16", "resnet50"):
    for _hierarchy in ("cub", "cars"):
        for _method in METHODS.names():
            _spec = ModelSpec(_method, _backbone, _hierarchy)
            register_model(f"{_method}_{_backbone}_{_hierarchy}")(_spec)


def list_models(pattern: str = "*") -> list[str]:
    """Lists the named models, filtered by a wildcard.

    `create_model` takes more names than these: any `method_backbone_hierarchy`, e.g. `hbp_convnext_tiny_cub`.

    Examples:
        >>> list_models("mlph_*")
        ['mlph_resnet50_cars', 'mlph_resnet50_cub', 'mlph_vgg16_cars', 'mlph_vgg16_cub']
    """
    return MODELS.names(pattern)


def find_model(name: str) -> ModelSpec:
    """Reads a model's name: a registered one, or any `method_backbone_hierarchy`.

    Raises:
        ValueError: the name is unknown; the message names close ones, or the part that is wrong.
    """
    if name in MODELS:
        return MODELS[name]
    method, _, rest = name.partition("_")
    for hierarchy in HIERARCHIES.names():
        backbone = rest.removesuffix(f"_{hierarchy}")
        if method in METHODS and backbone and backbone != rest:
            if backbone.split(".")[0] not in list_backbones():
                raise unknown_name(f"backbone in model name {name!r}:", backbone, list_backbones())
            return ModelSpec(method, backbone, hierarchy)
    raise unknown_name("model", name, [*MODELS.names(), *METHODS.names()])
