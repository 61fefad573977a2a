"""Backbones named by a folder or by a repository on the Hugging Face Hub, as timm names them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from c2f_zoo.backbones.registry import is_timm_model, list_backbones, pretrained_cfg
from c2f_zoo.config import MAX_CONFIG_BYTES, validate
from c2f_zoo.io.hub import download_config, split_revision
from c2f_zoo.io.weights import CONFIG_FILE, WEIGHTS_FILE
from c2f_zoo.paths import expand
from c2f_zoo.registry import unknown_name

LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"  # as timm writes them
# The settings of the input that are used here, and their types.
_INPUT: dict[str, Any] = {
    "input_size": tuple[int, int, int],
    "mean": tuple[float, ...],
    "std": tuple[float, ...],
    "interpolation": str,
}
# The settings of timm's `pretrained_cfg` for the source of weights; a saved configuration may not have them.
_OF_WEIGHTS = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load"}
_OF_CLASSIFIER = ("num_classes", "global_pool", "drop_rate")  # saved options that a network without classifier lacks


class Source(NamedTuple):
    """A backbone as timm saved it.

    Attributes:
        name: the name in timm's registry, with its tag if timm knows that.
        options: the options of the network's constructor.
        cfg: timm's `pretrained_cfg`: the input, and where the weights are.
    """

    name: str
    options: dict[str, Any]
    cfg: dict[str, Any]


def has_source(name: str) -> bool:
    """Return whether a backbone's name is that of a folder or of a repository."""
    return name.startswith((LOCAL_DIR, HF_HUB))


def resolve_source(name: str) -> Source:
    """Return the architecture, the options and the weights of a backbone.

    Args:
        name: a name of timm's registry or of `register_backbone`, `"timm/NAME"` for timm's, `"local-dir:PATH"` for a
            folder that timm's `save_for_hf` wrote, or `"hf-hub:OWNER/MODEL"` or `"hf-hub:OWNER/MODEL@REVISION"`, of
            which only `config.json` is downloaded.

    Raises:
        ValueError: the configuration is not one of timm's models.
        OSError: there is no such folder or repository, or the Hub cannot be reached.

    Examples:
        >>> resolve_source("timm/resnet18.a1_in1k").name
        'resnet18.a1_in1k'
    """
    if not has_source(name):
        name = name.removeprefix("timm/")
        return Source(name, {}, pretrained_cfg(name))
    if name.startswith(LOCAL_DIR):
        folder = expand(name.removeprefix(LOCAL_DIR))
        file = folder / CONFIG_FILE
        if not file.is_file():
            raise FileNotFoundError(f"{folder} has no {CONFIG_FILE}; name a folder that timm's save_for_hf wrote")
        weights = {"file": str(folder / WEIGHTS_FILE)}
    else:
        repo = name.removeprefix(HF_HUB)
        file = download_config(*split_revision(repo))
        weights = {"hf_hub_id": repo, "source": "hf-hub"}
    return _read_config(name, file, weights)


def _read_config(name: str, file: Path, weights: dict[str, Any]) -> Source:
    """Read a configuration that timm wrote.

    It may be untrusted: no option may name a file, an address or other weights.
    """
    from timm.models import PretrainedCfg, is_model_pretrained

    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{name}: its {CONFIG_FILE} is larger than the limit of {MAX_CONFIG_BYTES} bytes")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        arch, cfg = str(saved["architecture"]), dict(saved.get("pretrained_cfg", saved))
        options = validate(Mapping[str, Any], saved.get("model_args") or {}, "model_args")
        cfg |= {key: validate(_INPUT[key], cfg[key], key) for key in _INPUT.keys() & cfg.keys()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name}: its {CONFIG_FILE} is not that of a model of timm: {error!r}") from error
    if not is_timm_model(arch):
        raise unknown_name(f"architecture of backbone {name!r}:", arch, list_backbones())
    known = {field.name for field in fields(PretrainedCfg)} - _OF_WEIGHTS
    cfg = {key: tuple(value) if isinstance(value, list) else value for key, value in cfg.items() if key in known}
    options = {key: value for key, value in options.items() if key not in _OF_CLASSIFIER}
    if cfg.get("fixed_input_size") and "img_size" in options and "input_size" in cfg:
        size = options.pop("img_size")
        cfg["input_size"] = (cfg["input_size"][0], *([size] * 2 if isinstance(size, int) else size))
    tagged = f"{arch}.{cfg.get('tag')}"
    return Source(tagged if is_model_pretrained(tagged) else arch, options, cfg | weights)
