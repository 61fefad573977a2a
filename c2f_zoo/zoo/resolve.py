"""Resolving the name of a model to its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from c2f_zoo.backbones import pretrained_cfg
from c2f_zoo.backbones.registry import wrapped_network
from c2f_zoo.backbones.sources import Source, has_source, resolve_source
from c2f_zoo.config import ModelConfig, Preprocessing
from c2f_zoo.hierarchy import Hierarchy, open_hierarchy
from c2f_zoo.registry import check_names
from c2f_zoo.zoo.methods import METHODS, Method
from c2f_zoo.zoo.models import find_model

PAPER_INPUT_SIZE = 448

# Options of a named model that are dropped when the caller replaces the part they belong to.
OPTIONS_OF_PART = {
    "backbone": ("taps", "backbone_options", "batch_norm"),
    "pooling": ("pooling_options",),
    "head": ("head_options",),
    "hierarchy": ("levels", "resolutions"),
}
# Arguments of `create_model` that override a named model's.
OVERRIDES = (*OPTIONS_OF_PART, *chain(*OPTIONS_OF_PART.values()), "input_size", "in_chans", "preprocessing_options")


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
        The configuration. `taps` is a number unless taps are named; `c2f_zoo.model.build` replaces it with names. A
        backbone from a folder or the Hub has its name in timm, and its weights are in `backbone_options`.

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
    source = resolve_source(parts["backbone"])
    network, _ = wrapped_network(source.name, parts.get("backbone_options", {}))
    if network != source.name:
        source = source._replace(cfg=pretrained_cfg(network))
    backbone_options = _backbone_options(parts, source)
    return ModelConfig(
        backbone=source.name,
        taps=tuple(parts.get("taps") or ()) or method.num_taps,
        pooling=parts["pooling"],
        head=parts["head"],
        hierarchy=tree,
        levels=tuple(parts.get("levels") or levels),
        preprocessing=_preprocessing(source.cfg, backbone_options, parts),
        resolutions=dict(parts.get("resolutions", {})),
        backbone_options=backbone_options,
        pooling_options=dict(parts.get("pooling_options", {})),
        head_options=dict(parts.get("head_options", {})),
        batch_norm=parts.get("batch_norm", "shared"),
    )


def adapt(
    config: ModelConfig,
    hierarchy: str | Path | Hierarchy | None = None,
    levels: Sequence[str] | None = None,
    resolutions: Mapping[str, int | None] | None = None,
    in_chans: int | None = None,
    batch_norm: str | None = None,
) -> ModelConfig:
    """Return a saved model's configuration with another tree, levels, resolutions, channels or batch norm.

    Without `levels`, a model of another tree predicts all its levels, or only the leaf level if it did so before.

    Raises:
        ValueError: the tree or a level is unknown, or the configuration could not be saved.
    """
    tree = config.hierarchy if hierarchy is None else open_hierarchy(hierarchy)
    predicted, seen_at = config.levels, config.resolutions
    if replace(tree, ragged=config.hierarchy.ragged) != config.hierarchy:
        only_leaves = len(config.hierarchy.levels) > 1 and config.levels == (config.hierarchy.finest,)
        predicted, seen_at = (tree.finest,) if only_leaves else tree.levels, {}
    seen_at = seen_at if resolutions is None else dict(resolutions)
    config = replace(
        config,
        hierarchy=tree,
        levels=tuple(levels or predicted),
        resolutions=seen_at,
        batch_norm=batch_norm or config.batch_norm,
    )
    if in_chans not in (None, config.preprocessing.input_size[0]):
        config = with_channels(config, in_chans)
    config.check()
    return config


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
            arguments["hierarchy"] = open_hierarchy(arguments["hierarchy"])
    for part, options in OPTIONS_OF_PART.items():
        if given.get(part, parts[part]) != parts[part]:
            parts = {key: value for key, value in parts.items() if key not in options}
    for key, value in given.items():
        parts[key] = {**parts.get(key, {}), **value} if key.endswith("_options") else value
    return parts


def _backbone_options(parts: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Return a backbone's options, with `in_chans` and a ViT's `img_size` if they differ from the network's own."""
    options = {**source.options, **parts.get("backbone_options", {})}
    own_channels, own_size, _ = source.cfg.get("input_size", (3, PAPER_INPUT_SIZE, PAPER_INPUT_SIZE))
    if has_source(parts["backbone"]):
        options.setdefault("pretrained_cfg", source.cfg)
    channels = parts.get("in_chans", options.pop("in_chans", own_channels))
    if not channels == own_channels == 3:
        options["in_chans"] = channels
    size = parts.get("input_size") or own_size
    registered_size = pretrained_cfg(source.name).get("input_size", (3, size, size))[1]
    if source.cfg.get("fixed_input_size", False) and not size == own_size == registered_size:
        options.setdefault("img_size", size)
    return options


def _preprocessing(
    cfg: Mapping[str, Any], backbone_options: Mapping[str, Any], parts: Mapping[str, Any]
) -> Preprocessing:
    """Return the preprocessing of a backbone with timm's `pretrained_cfg`."""
    overrides = parts.get("preprocessing_options", {})
    known = [spec.name for spec in fields(Preprocessing) if spec.name != "input_size"]
    check_names("key in preprocessing_options:", overrides, known)
    own_size = cfg["input_size"][1] if cfg.get("fixed_input_size", False) else PAPER_INPUT_SIZE
    size = parts.get("input_size") or own_size
    channels = backbone_options.get("in_chans", 3)
    values: dict[str, Any] = {key: cfg[key] for key in ("mean", "std", "interpolation") if key in cfg}
    for key in ("mean", "std"):
        values[key] = _for_channels(values.get(key, getattr(Preprocessing, key)), channels)
    values |= {key: tuple(value) if isinstance(value, list) else value for key, value in overrides.items()}
    return Preprocessing(input_size=(channels, size, size), **values)


def with_channels(config: ModelConfig, in_chans: int) -> ModelConfig:
    """Return a configuration for images of another number of channels."""
    p = config.preprocessing
    p = replace(
        p,
        input_size=(in_chans, *p.input_size[1:]),
        mean=_for_channels(p.mean, in_chans),
        std=_for_channels(p.std, in_chans),
    )
    return replace(config, preprocessing=p, backbone_options={**config.backbone_options, "in_chans": in_chans})


def _for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return a value for each channel: their mean if the number differs, as in timm."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels
