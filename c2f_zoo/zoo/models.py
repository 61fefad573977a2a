"""Names of models: registered ones, and any `method_backbone_hierarchy`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from c2f_zoo.backbones import list_backbones
from c2f_zoo.hierarchy import HIERARCHIES
from c2f_zoo.registry import Registry, check_names, unknown_name
from c2f_zoo.zoo.methods import METHODS
from c2f_zoo.zoo.pretrained import WEIGHTS, PretrainedWeights, default_tag, tags_of


@dataclass(frozen=True)
class ModelSpec:
    """The parts and options of a named model.

    Args:
        method: one of the methods, e.g. `"mlph"`.
        backbone: one of `list_backbones()`.
        hierarchy: one of `list_hierarchies()`.
        options: default options, by the names of `create_model`'s arguments, which override them. Options of a
            backbone, pooling, head or hierarchy are dropped when the caller replaces that part.
    """

    method: str
    backbone: str
    hierarchy: str
    options: Mapping[str, Any] = field(default_factory=dict)


MODELS: Registry[ModelSpec] = Registry("model", "c2f_zoo.models", fits=lambda entry: isinstance(entry, ModelSpec))
register_model = MODELS.register

# The paper's methods and datasets, on its backbone and on ResNet-50.
for _backbone in ("vgg16", "resnet50"):
    for _hierarchy in ("cub", "cars"):
        for _method in METHODS.names():
            _spec = ModelSpec(_method, _backbone, _hierarchy)
            register_model(f"{_method}_{_backbone}_{_hierarchy}")(_spec)

# The paper's last comparison, with its poolings and heads on the localized object, head and body.
register_model("part_rcnn_vgg16_cub")(
    ModelSpec(method="mlph", backbone="part_rcnn", hierarchy="cub", options={"backbone_options": {"network": "vgg16"}})
)

# Small enough to ship with weights. The taps precede activations: products of such outputs differ more between images.
_TINY_TAPS = ("layer3.0.downsample", "layer4.0.downsample", "layer4.0.conv2")
register_model("mlph_tiny_critters")(
    ModelSpec(
        method="mlph",
        backbone="tiny",
        hierarchy="critters",
        options={
            "taps": _TINY_TAPS,
            "input_size": 96,
            "pooling_options": {"dim": 512, "grad_eps": 0.1},
            "resolutions": {"species": None, "genus": 32, "family": 12},
        },
    )
)
register_model("mlph_tf_efficientnet_lite0_cub100")(
    ModelSpec(
        method="mlph",
        backbone="tf_efficientnet_lite0",
        hierarchy="cub100",
        options={
            "input_size": 224,
            "pooling_options": {"dim": 512},
            "resolutions": {"species": None, "genus": 64, "family": 20},
        },
    )
)
register_model("mlph_tiny_fashion_mnist")(
    ModelSpec(
        method="mlph",
        backbone="tiny",
        hierarchy="fashion_mnist",
        options={
            "backbone_options": {"output_stride": 8},
            "taps": _TINY_TAPS,
            "input_size": 32,
            "pooling_options": {"dim": 256, "grad_eps": 0.1},
            "resolutions": {"article": None, "group": 14, "division": 7},
        },
    )
)


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """List the named models, filtered by a wildcard.

    `create_model` accepts more names than these: any `method_backbone_hierarchy`, e.g. `hbp_convnext_tiny_cub`.

    Args:
        pattern: a shell-style wildcard.
        pretrained: list trained weights instead, as `arch.tag`; the wildcard may match `arch` alone.

    Examples:
        >>> list_models("mlph_*cub")
        ['mlph_resnet50_cub', 'mlph_vgg16_cub']
    """
    if not pretrained:
        return MODELS.names(pattern)
    return [name for name in WEIGHTS.names() if fnmatch(name, pattern) or fnmatch(name.rpartition(".")[0], pattern)]


def find_model(name: str) -> ModelSpec:
    """Return the parts of a registered model or a `method_backbone_hierarchy`.

    Raises:
        ValueError: the name is unknown; the message suggests close names.
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
    raise unknown_name("model", name, [*MODELS.names(), *WEIGHTS.names(), *METHODS.names()])


def split_tag(name: str) -> tuple[str, str]:
    """Split `arch.tag`; without a tag, the second item is empty.

    Not every dot separates a tag: a backbone's name may contain a tag of timm.

    Examples:
        >>> split_tag("mlph_vgg16_cub.paper"), split_tag("mlph_resnet50.a1_in1k_cub")
        (('mlph_vgg16_cub', 'paper'), ('mlph_resnet50.a1_in1k_cub', ''))
    """
    arch, _, tag = name.rpartition(".")
    if name in MODELS or not arch:
        return name, ""
    if name not in WEIGHTS:
        try:
            find_model(arch)
        except ValueError:
            return name, ""
    return arch, tag


def find_weights(name: str) -> PretrainedWeights:
    """Return trained weights by `arch.tag`, or those of the default tag by `arch`.

    Raises:
        ValueError: the model or the tag is unknown, or the model has no trained weights.
    """
    arch, tag = split_tag(name)
    tags = tags_of(arch)
    if not tags and arch not in METHODS:
        find_model(arch)  # raises an error for an unknown name
    if not tags:
        raise ValueError(
            f"there are no trained weights for {arch!r}. Available: {', '.join(WEIGHTS.names()) or 'none'}. Train it "
            "with recipes/train.py, or start from a pretrained backbone: pretrained_backbone=True, or "
            "backbone_checkpoint=FILE"
        )
    tag = tag or default_tag(arch)
    check_names(f"tag of {arch!r}:", [tag], tags)
    return WEIGHTS[f"{arch}.{tag}"]
