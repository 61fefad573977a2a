"""Names of backbones: every timm model, and registered ones."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
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
