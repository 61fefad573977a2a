"""Resolving the name of a model to its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import chain
from typing import Any

from c2f_zoo.backbones import pretrained_cfg
from c2f_zoo.config import ModelConfig, Preprocessing
from c2f_zoo.hierarchy import Hierarchy, load_hierarchy
from c2f_zoo.registry import check_names
from c2f_zoo.zoo.methods import METHODS, Method
from c2f_zoo.zoo.models import find_model

PAPER_INPUT_SIZE = 448

# Options of a named model that are dropped when the caller replaces the part they belong to.
OPTIONS_OF_PART = {
    "backbone": ("taps", "backbone_options"),
    "pooling": ("pooling_options",),
    "head": ("head_options",),
    "hierarchy": ("levels", "resolutions"),
}
# Arguments of `create_model` that override a named model's.
OVERRIDES = (*OPTIONS_OF_PART, *chain(*OPTIONS_OF_PART.values()), "input_size", "preprocessing_options")


def select_overrides(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that override a named model's; None keeps the model's."""
    return {name: value for name, value in arguments.items() if name in OVERRIDES and value is not None}


def resolve(name: str, overrides: Mapping[str, Any]) -> ModelConfig:
    """Return the configuration of a named model.

    Args:
        name: a named model, a `method_backbone_hierarchy`, or a method.
        overrides: parts and options to replace, by the names of `create_model`'s arguments (`OVERRIDES`). Options are
            merged with the model's own, key by key; the model's own options of a part are dropped when the part is
            replaced, see `OPTIONS_OF_PART`.

    Returns:
        The configuration. `taps` is a number unless taps are named; `c2f_zoo.model.build` replaces it with names.

    Raises:
        ValueError: a name or an option is unknown.

    Examples:
        >>> config = resolve("mlph_tiny_critters", {"pooling_options": {"dim": 64}})
        >>> config.pooling, config.pooling_options
        ('mlp', {'dim': 64, 'grad_eps': 0.1})
        >>> resolve("mlph_tiny_critters", {"pooling": "avg"}).pooling_options
        {}
    """
    method, defaults = _defaults(name, overrides)
    parts = _merge(defaults, overrides)
    tree = parts["hierarchy"]
    levels = tree.levels if method.every_level else (tree.finest,)
    preprocessing, backbone_options = _preprocessing(
        parts["backbone"],
        parts.get("input_size"),
        parts.get("preprocessing_options", {}),
        parts.get("backbone_options", {}),
    )
    return ModelConfig(
        backbone=parts["backbone"],
        taps=tuple(parts.get("taps") or ()) or method.num_taps,
        pooling=parts["pooling"],
        head=parts["head"],
        hierarchy=tree,
        levels=tuple(parts.get("levels") or levels),
        preprocessing=preprocessing,
        resolutions=dict(parts.get("resolutions", {})),
        backbone_options=backbone_options,
        pooling_options=dict(parts.get("pooling_options", {})),
        head_options=dict(parts.get("head_options", {})),
    )


def adapt(
    config: ModelConfig,
    hierarchy: str | Hierarchy | None = None,
    levels: Sequence[str] | None = None,
    resolutions: Mapping[str, int | None] | None = None,
) -> ModelConfig:
    """Return a saved model's configuration with another tree, levels or resolutions.

    Without `levels`, a model of another tree predicts all its levels, or only the leaf level if it did so before.

    Raises:
        ValueError: the tree or a level is unknown, or the configuration could not be saved.
    """
    tree = config.hierarchy if hierarchy is None else as_tree(hierarchy)
    predicted, seen_at = config.levels, config.resolutions
    if tree != config.hierarchy:
        only_leaves = len(config.hierarchy.levels) > 1 and config.levels == (config.hierarchy.finest,)
        predicted, seen_at = (tree.finest,) if only_leaves else tree.levels, {}
    seen_at = seen_at if resolutions is None else dict(resolutions)
    config = replace(config, hierarchy=tree, levels=tuple(levels or predicted), resolutions=seen_at)
    config.check()
    return config


def as_tree(hierarchy: str | Hierarchy) -> Hierarchy:
    """Return a tree, or the registered tree of that name."""
    return load_hierarchy(hierarchy) if isinstance(hierarchy, str) else hierarchy


def _defaults(name: str, overrides: Mapping[str, Any]) -> tuple[Method, dict[str, Any]]:
    """Return the method of a named model, and its own parts and options."""
    if name in METHODS:
        if "backbone" not in overrides or "hierarchy" not in overrides:
            call = f"create_model({name!r}, backbone=..., hierarchy=...)"
            raise ValueError(f"{name!r} is a method; pass a backbone and a hierarchy too: {call}")
        method, options = METHODS[name], {part: overrides[part] for part in ("backbone", "hierarchy")}
    else:
        spec = find_model(name)
        check_names(f"option of model {name!r}:", spec.options, OVERRIDES)
        options = {"backbone": spec.backbone, "hierarchy": spec.hierarchy, **select_overrides(spec.options)}
        method = METHODS[spec.method]
    return method, {"pooling": method.pooling, "head": "levels", **options}


def _merge(defaults: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge a named model's arguments with the caller's, and load trees by name."""
    parts, given = dict(defaults), dict(overrides)
    for arguments in (parts, given):
        if "hierarchy" in arguments:
            arguments["hierarchy"] = as_tree(arguments["hierarchy"])
    for part, options in OPTIONS_OF_PART.items():
        if given.get(part, parts[part]) != parts[part]:
            parts = {key: value for key, value in parts.items() if key not in options}
    for key, value in given.items():
        parts[key] = {**parts.get(key, {}), **value} if key.endswith("_options") else value
    return parts


def _preprocessing(
    backbone: str, input_size: int | None, overrides: Mapping[str, Any], backbone_options: Mapping[str, Any]
) -> tuple[Preprocessing, dict[str, Any]]:
    """Return a backbone's preprocessing, and its options with `img_size` for a ViT."""
    cfg, options = pretrained_cfg(backbone), dict(backbone_options)
    own_size = cfg.get("input_size", (3, PAPER_INPUT_SIZE, PAPER_INPUT_SIZE))
    is_fixed = cfg.get("fixed_input_size", False)
    size = input_size or (own_size[1] if is_fixed else PAPER_INPUT_SIZE)
    if is_fixed and size != own_size[1]:
        options.setdefault("img_size", size)
    known = [spec.name for spec in fields(Preprocessing) if spec.name != "input_size"]
    check_names("key in preprocessing_options:", overrides, known)
    values: dict[str, Any] = {key: cfg[key] for key in ("mean", "std", "interpolation") if key in cfg}
    values |= {key: tuple(value) if isinstance(value, list) else value for key, value in overrides.items()}
    return Preprocessing(input_size=(own_size[0], size, size), **values), options
