"""From a name, or from parts named one by one, to a model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from c2f_zoo.backbones import TapBackbone, create_body, pretrained_cfg
from c2f_zoo.config import WEIGHT_SOURCES, ModelConfig, Preprocessing
from c2f_zoo.heads import HEADS
from c2f_zoo.hierarchy import Hierarchy, load_hierarchy
from c2f_zoo.io.hub import download, split_revision
from c2f_zoo.io.weights import CONFIG_FILE, find_file, load_weights
from c2f_zoo.model import C2FModel, assemble, load_folder
from c2f_zoo.pooling import POOLINGS
from c2f_zoo.registry import check_options, unknown_name
from c2f_zoo.zoo import METHODS, Method, ModelSpec, fetch, find_model, find_weights, split_tag
from c2f_zoo.zoo.head_transfer import replace_head

PAPER_INPUT_SIZE = 448
LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"  # what timm calls them
# What falls away with a part of a named model in whose place the caller names another.
BELONGING = {
    "backbone": ("taps", "backbone_options"),
    "pooling": ("pooling_options",),
    "head": ("head_options",),
    "hierarchy": ("levels", "resolutions"),
}
OF_THE_HEAD = ("hierarchy", "levels", "resolutions")  # what may be named beside a saved model


def create_model(
    name: str,
    pretrained: bool = False,
    pretrained_backbone: bool = False,
    backbone_checkpoint: str | Path | None = None,
    *,
    backbone: str | None = None,
    hierarchy: str | Hierarchy | None = None,
    taps: Sequence[str] | None = None,
    pooling: str | None = None,
    head: str | None = None,
    levels: Sequence[str] | None = None,
    input_size: int | None = None,
    resolutions: Mapping[str, int | None] | None = None,
    preprocessing_options: Mapping[str, Any] | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    pooling_options: Mapping[str, Any] | None = None,
    head_options: Mapping[str, Any] | None = None,
) -> C2FModel:
    """Makes a model.

    Args:
        name: a named model (`list_models()`), any `method_backbone_hierarchy` such as
            `"hbp_convnext_tiny_cars"`, a method by itself (`"mlph"`, with `backbone` and `hierarchy`), `arch.tag` for
            the model that weights of that name were trained as (`list_models(pretrained=True)`), or a saved model,
            which comes with its weights whatever `pretrained` is: `"local-dir:PATH"`, or from the Hugging Face Hub
            `"hf-hub:OWNER/MODEL"` or `"hf-hub:OWNER/MODEL@REVISION"`.
        pretrained: load trained weights: those of the tag, or of the model's default one.
        pretrained_backbone: let timm download the backbone's own weights.
        backbone_checkpoint: a safetensors file with the backbone's weights under timm's names.
        backbone: a timm model, or a registered backbone.
        hierarchy: a registered tree's name, or a tree. A saved or pretrained model gets a new head for it, which keeps
            the classifiers of levels that have the same classes; a warning lists all weights that were not kept.
        taps: modules of the backbone to pool; None for its default.
        pooling: a pooling in place of the method's.
        head: one of `list_heads()`; None for `"levels"`.
        levels: the levels to answer; None for the method's (all, or the finest).
        input_size: height and width of the input in pixels; None for the paper's 448, or the backbone's
            own where that cannot be changed freely (ViT).
        resolutions: for each level the shorter side in pixels at which it is meant to be seen; a missing one sees the
            image as it is.
        preprocessing_options: fields of `Preprocessing` in place of the backbone's own or the defaults, e.g.
            `{"mean": (0.5, 0.5, 0.5), "shrink_filter": "lanczos", "resolution_of": "area"}`.
        backbone_options: further keyword arguments of the backbone's constructor.
        pooling_options: further keyword arguments of the pooling's, e.g. `{"dim": 2048}`.
        head_options: further keyword arguments of the head's, likewise.

    A named model may have further parts and options of its own, in place of these defaults; what is named here goes
    over them. Beside a saved or pretrained model only `hierarchy`, `levels` and `resolutions` can be named.

    Returns:
        The model, in training mode, on the CPU, in float32.

    Raises:
        ValueError: a name is unknown, the parts do not fit, or weights are missing; the message says which.
        OSError: a saved model is not there, or the Hub or a URL does not give it; see `C2FModel.from_pretrained`.

    Examples:
        >>> model = create_model("mlph_vgg16_cub")
        >>> model = create_model("mlph", backbone="resnet18", hierarchy="cub", pooling_options={"dim": 64})
        >>> model.save_pretrained("my-model")
        >>> model = create_model("local-dir:my-model")
    """
    given = {
        "pretrained_backbone": pretrained_backbone or None,
        "backbone_checkpoint": backbone_checkpoint,
        "backbone": backbone,
        "hierarchy": hierarchy,
        "taps": taps,
        "pooling": pooling,
        "head": head,
        "levels": levels,
        "input_size": input_size,
        "resolutions": resolutions,
        "preprocessing_options": preprocessing_options,
        "backbone_options": backbone_options,
        "pooling_options": pooling_options,
        "head_options": head_options,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if name.startswith((LOCAL_DIR, HF_HUB)) or pretrained or split_tag(name)[1]:
        return _saved(name, pretrained, given)
    return _new(*_parts(name, given))


def load_model(directory: str | Path) -> C2FModel:
    """Rebuilds a model that `C2FModel.save_pretrained` wrote, bit for bit.

    Args:
        directory: the folder with `config.json` and `model.safetensors`, or its shards.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the configuration is no model's, or the weights do not fit it.
    """
    return load_folder(Path(directory))


def _parts(name: str, given: Mapping[str, Any]) -> tuple[Method, dict[str, Any]]:
    """What a model's name stands for, as arguments of `create_model`, with those that the caller names over them."""
    if name in METHODS:
        if "backbone" not in given or "hierarchy" not in given:
            call = f"create_model({name!r}, backbone=..., hierarchy=...)"
            raise ValueError(f"{name!r} is a method; name its parts too: {call}")
        spec = ModelSpec(name, given["backbone"], given["hierarchy"])
    else:
        spec = find_model(name)
    check_options(f"option of model {name!r}:", create_model, spec.options)
    method = METHODS[spec.method]
    parts: dict[str, Any] = {"backbone": spec.backbone, "hierarchy": _tree(spec.hierarchy)}
    parts |= {"pooling": method.pooling, "head": "levels", **spec.options}
    given = {**given, "hierarchy": _tree(given.get("hierarchy", parts["hierarchy"]))}
    for part, options in BELONGING.items():
        if given.get(part, parts[part]) != parts[part]:
            parts = {key: value for key, value in parts.items() if key not in options}
    for key, value in given.items():
        parts[key] = {**parts.get(key, {}), **value} if key.endswith("_options") else value
    return method, parts


def _new(method: Method, parts: Mapping[str, Any]) -> C2FModel:
    """Makes an untrained model of a method from arguments of `create_model`."""
    pooling, head, tree = parts["pooling"], parts["head"], parts["hierarchy"]
    POOLINGS[pooling], HEADS[head]  # an unknown name fails here, before anything large is made
    backbone, options = parts["backbone"], dict(parts.get("backbone_options", {}))
    preprocessing, options = _input_of(backbone, parts.get("input_size"), options)
    preprocessing = _changed(preprocessing, parts.get("preprocessing_options", {}))
    body = create_body(backbone, pretrained=parts.get("pretrained_backbone", False), **options)
    tap_backbone = TapBackbone(body, parts.get("taps") or method.num_taps, preprocessing.input_size)
    if "backbone_checkpoint" in parts:
        load_weights(tap_backbone.body, [Path(parts["backbone_checkpoint"])], partly=True)
    config = ModelConfig(
        backbone=backbone,
        taps=tap_backbone.taps,
        pooling=pooling,
        head=head,
        hierarchy=tree,
        levels=tuple(parts.get("levels") or (tree.levels if method.every_level else (tree.finest,))),
        preprocessing=preprocessing,
        resolutions=dict(parts.get("resolutions", {})),
        backbone_options={key: value for key, value in options.items() if key not in WEIGHT_SOURCES},
        pooling_options=dict(parts.get("pooling_options", {})),
        head_options=dict(parts.get("head_options", {})),
    )
    config.check()  # or the model could be made and trained, and not be saved
    return assemble(tap_backbone, config)


def _saved(name: str, pretrained: bool, given: Mapping[str, Any]) -> C2FModel:
    """A model whose parts are in a saved configuration; without its weights where only their tag was named."""
    weights = None if name.startswith((LOCAL_DIR, HF_HUB)) else find_weights(name)
    others = [key for key in given if key not in OF_THE_HEAD]
    if others:
        raise ValueError(
            f"{weights.name if weights else name!r} is a saved model, which has its parts; beside it only "
            f"{', '.join(OF_THE_HEAD)} can be named, not {', '.join(others)}"
        )
    if weights:
        folder = fetch(weights)
    elif name.startswith(LOCAL_DIR):
        folder = Path(name.removeprefix(LOCAL_DIR))
    else:
        folder = download(*split_revision(name.removeprefix(HF_HUB)))
    if weights and not pretrained:
        config = _config_for(ModelConfig.from_json(find_file(folder, CONFIG_FILE)), **given)
        body = create_body(config.backbone, **config.backbone_options)
        return assemble(TapBackbone(body, config.taps, config.preprocessing.input_size), config)
    model = load_folder(folder)
    config = _config_for(model.config, **given)
    if (config.hierarchy, config.levels) == (model.hierarchy, model.levels):
        model.config = config
        return model
    lines = replace_head(model, config)
    if lines:
        listed = "".join(f"\n  {line}" for line in lines)
        warnings.warn(f"not all weights of {name!r} fit the other classes or levels:{listed}", stacklevel=3)
    return model


def _config_for(
    config: ModelConfig,
    hierarchy: str | Hierarchy | None = None,
    levels: Sequence[str] | None = None,
    resolutions: Mapping[str, int | None] | None = None,
) -> ModelConfig:
    """A saved model's configuration with another tree, other levels or resolutions.

    Without levels another tree has all of its answered, or the finest alone where the model answered its finest alone.
    """
    tree = config.hierarchy if hierarchy is None else _tree(hierarchy)
    if tree == config.hierarchy:
        answered, seen_at = config.levels, config.resolutions
    else:
        only_finest = len(config.hierarchy.levels) > 1 and config.levels == (config.hierarchy.finest,)
        answered, seen_at = (tree.finest,) if only_finest else tree.levels, {}
    seen_at = seen_at if resolutions is None else dict(resolutions)
    config = replace(config, hierarchy=tree, levels=tuple(levels or answered), resolutions=seen_at)
    config.check()
    return config


def _tree(hierarchy: str | Hierarchy) -> Hierarchy:
    return load_hierarchy(hierarchy) if isinstance(hierarchy, str) else hierarchy


def _input_of(backbone: str, input_size: int | None, options: dict[str, Any]) -> tuple[Preprocessing, dict[str, Any]]:
    """The preprocessing for a backbone, and its options with `img_size` where its input is fixed (ViT)."""
    cfg = pretrained_cfg(backbone)
    own_size = cfg.get("input_size", (3, PAPER_INPUT_SIZE, PAPER_INPUT_SIZE))
    if cfg.get("fixed_input_size", False):
        if input_size not in (None, own_size[1]):
            options.setdefault("img_size", input_size)
        size = input_size or own_size[1]
    else:
        size = input_size or PAPER_INPUT_SIZE
    known = {key: cfg[key] for key in ("mean", "std", "interpolation") if key in cfg}
    return Preprocessing(input_size=(own_size[0], size, size), **known), options


def _changed(preprocessing: Preprocessing, options: Mapping[str, Any]) -> Preprocessing:
    known = [spec.name for spec in fields(Preprocessing) if spec.name != "input_size"]
    for key in options:
        if key not in known:
            raise unknown_name("key in preprocessing_options:", key, known)
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return replace(preprocessing, **values)
