"""Names of backbones: every timm model, and registered ones."""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from c2f_zoo.registry import Registry, unknown_name

_INTEGRATION = "c2f_zoo.integrations.timm"  # registers our named models with timm; they are not backbones


def is_timm_model(name: str) -> bool:
    """Return whether timm has a model of that name, other than one of ours."""
    import timm

    # timm checks only the text before the first dot, but builds the model named after the last slash.
    plain = re.fullmatch(r"[\w.-]+", name) is not None
    return plain and timm.is_model(name) and timm.model_entrypoint(name).__module__ != _INTEGRATION


BACKBONES: Registry[Callable[..., nn.Module]] = Registry("backbone", "c2f_zoo.backbones", reserved=is_timm_model)
register_backbone = BACKBONES.register


def list_backbones(pattern: str = "*") -> list[str]:
    """List the names of backbones: timm's models and the registered ones.

    A listed network may have no default taps; name taps for it.

    Args:
        pattern: a shell-style wildcard, e.g. `"resnet*"`.
    """
    import timm

    of_timm = filter(is_timm_model, timm.list_models())
    return sorted({*fnmatch.filter(of_timm, pattern), *BACKBONES.names(pattern)})


def create_body(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
    """Build a backbone's whole network, without a classifier.

    Raises:
        ValueError: the name is neither registered nor a timm model.
    """
    import timm

    if name in BACKBONES:
        return BACKBONES[name](pretrained=pretrained, **options)
    if not is_timm_model(name):
        raise unknown_name("backbone", name, list_backbones())
    return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)


def create_whole(name: str, **options: Any) -> nn.Module:
    """Build a backbone's whole network with random weights; a network of timm has its classifier.

    Raises:
        ValueError: the name is neither registered nor a timm model.
    """
    import timm

    if name in BACKBONES or not is_timm_model(name):
        return create_body(name, **options)
    return timm.create_model(name, **options)


def wrapped_network(name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the network whose pretrained weights and preprocessing a backbone has, with its options.

    A registered backbone with an argument `network` wraps that network: its module has it as a `TapBackbone` named
    `network`. Every other backbone is a network itself.

    Args:
        name: the backbone.
        options: additional keyword arguments of the backbone.

    Examples:
        >>> wrapped_network("part_rcnn", {"network": "resnet18", "cells": 5, "in_chans": 1})
        ('resnet18', {'in_chans': 1})
        >>> wrapped_network("resnet18", {"in_chans": 1})
        ('resnet18', {'in_chans': 1})
    """
    known = inspect.signature(BACKBONES[name]).parameters if name in BACKBONES else {}
    if "network" not in known:
        return name, dict(options)
    own = {key: value for key, value in options.items() if key not in known}
    return options.get("network", known["network"].default), own


def pretrained_cfg(name: str) -> dict[str, Any]:
    """Return timm's `pretrained_cfg` of a backbone (input size, mean, ...), or {}.

    Raises:
        ValueError: timm's model has no such tag.
    """
    import timm

    if name in BACKBONES or not is_timm_model(name):
        return {}
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tagged = timm.list_models(f"{name.partition('.')[0]}.*", include_tags=True)
        raise unknown_name("backbone", name, tagged) from error
    return cfg.to_dict() if cfg else {}
