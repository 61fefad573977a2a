"""From a name, or from parts named one by one, to a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from c2f_zoo.backbones import TapBackbone, create_body, pretrained_cfg
from c2f_zoo.config import ModelConfig, Preprocessing
from c2f_zoo.heads import HEADS, create_head
from c2f_zoo.hierarchy import Hierarchy, load_hierarchy
from c2f_zoo.model import CONFIG_FILE, WEIGHTS_FILE, C2FModel
from c2f_zoo.pooling import POOLINGS, create_pooling
from c2f_zoo.pooling.registry import check_one_size
from c2f_zoo.zoo import METHODS, Method, find_model

PAPER_INPUT_SIZE = 448
LOCAL_DIR = "local-dir:"


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
    head: str = "levels",
    levels: Sequence[str] | None = None,
    input_size: int | None = None,
    resolutions: Mapping[str, int | None] | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    pooling_options: Mapping[str, Any] | None = None,
    head_options: Mapping[str, Any] | None = None,
) -> C2FModel:
    """Makes a model.

    Args:
        name: a named model (`list_models()`), any `method_backbone_hierarchy` such as
            `"hbp_convnext_tiny_cars"`, a method by itself (`"mlph"`, with `backbone` and `hierarchy`), or
            `"local-dir:PATH"` for a saved one.
        pretrained: load trained weights; there are none yet, so this is an error.
        pretrained_backbone: let timm download the backbone's own weights.
        backbone_checkpoint: a safetensors file with the backbone's weights under timm's names.
        backbone: a timm model, or a registered backbone.
        hierarchy: a registered tree's name, or a tree.
        taps: modules of the backbone to pool; None for its default.
        pooling: a pooling in place of the method's.
        head: one of `list_heads()`.
        levels: the levels to answer; None for the method's (all, or the finest).
        input_size: height and width of the input in pixels; None for the paper's 448, or the backbone's
            own where that cannot be changed freely (ViT).
        resolutions: for each level the shorter side in pixels at which it is meant to be seen.
        backbone_options: further keyword arguments of the backbone's constructor.
        pooling_options: further keyword arguments of the pooling's, e.g. `{"dim": 2048}`.
        head_options: further keyword arguments of the head's, likewise.

    Returns:
        The model, in training mode, on the CPU, in float32.

    Raises:
        ValueError: a name is unknown, the parts do not fit, or weights are missing; the message says which.

    Examples:
        >>> model = create_model("mlph_vgg16_cub")
        >>> model = create_model("mlph", backbone="resnet18", hierarchy="cub", pooling_options={"dim": 64})
        >>> model.save_pretrained("my-model")
        >>> model = create_model("local-dir:my-model")
    """
    if name.startswith(LOCAL_DIR):
        parts = (backbone, hierarchy, taps, pooling, levels, input_size, resolutions, backbone_checkpoint)
        if any(part is not None for part in (*parts, backbone_options, pooling_options, head_options)):
            raise ValueError(f"{name!r} is a saved model, which has its parts; name no others beside it")
        return load_model(name.removeprefix(LOCAL_DIR))
    if name.startswith("hf-hub:"):
        raise ValueError(f"{name!r}: models cannot be loaded from the Hub yet; use {LOCAL_DIR!r} and a folder")
    if pretrained:
        raise ValueError(
            f"there are no trained weights for {name!r} yet; train it with recipes/train.py, or start from the "
            "backbone's: pretrained_backbone=True, or backbone_checkpoint=FILE"
        )
    method, backbone, tree = _resolve(name, backbone, hierarchy)
    pooling = pooling or method.pooling
    POOLINGS[pooling], HEADS[head]  # an unknown name fails here, before anything large is made
    preprocessing, options = _input_of(backbone, input_size, dict(backbone_options or {}))
    body = create_body(backbone, pretrained=pretrained_backbone, **options)
    tap_backbone = TapBackbone(body, taps or method.num_taps, preprocessing.input_size)
    if backbone_checkpoint is not None:
        _load_weights(tap_backbone.body, Path(backbone_checkpoint), partly=True)
    config = ModelConfig(
        backbone=backbone,
        taps=tap_backbone.taps,
        pooling=pooling,
        head=head,
        hierarchy=tree,
        levels=tuple(levels or (tree.levels if method.every_level else (tree.finest,))),
        preprocessing=preprocessing,
        resolutions=dict(resolutions or {}),
        backbone_options=options,
        pooling_options=dict(pooling_options or {}),
        head_options=dict(head_options or {}),
    )
    return _assemble(tap_backbone, config)


def load_model(directory: str | Path) -> C2FModel:
    """Rebuilds a model that `C2FModel.save_pretrained` wrote, bit for bit.

    Args:
        directory: the folder with `config.json` and `model.safetensors`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the configuration is no model's, or the weights do not fit it.
    """
    directory = Path(directory)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} holds no {name}; name a folder that save_pretrained wrote")
    try:
        config = ModelConfig.from_dict(json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{directory / CONFIG_FILE}: {error}") from error
    body = create_body(config.backbone, **config.backbone_options)
    model = _assemble(TapBackbone(body, config.taps, config.preprocessing.input_size), config)
    _load_weights(model, directory / WEIGHTS_FILE)
    return model


def _assemble(backbone: TapBackbone, config: ModelConfig) -> C2FModel:
    pooling = create_pooling(config.pooling, backbone.out_channels, **config.pooling_options)
    if getattr(pooling, "one_size", True):
        check_one_size([(height, width) for _, height, width in backbone.map_shapes])
    features: int = pooling.out_features  # type: ignore[assignment]
    head = create_head(config.head, features, config.hierarchy, config.levels, **config.head_options)
    return C2FModel(backbone, pooling, head, config)


def _resolve(name: str, backbone: str | None, hierarchy: str | Hierarchy | None) -> tuple[Method, str, Hierarchy]:
    """What a model's name says, with the parts named beside it put first."""
    if name in METHODS:
        method = METHODS[name]
        if backbone is None or hierarchy is None:
            call = f"create_model({name!r}, backbone=..., hierarchy=...)"
            raise ValueError(f"{name!r} is a method; name its parts too: {call}")
    else:
        spec = find_model(name)
        method = METHODS[spec.method]
        backbone, hierarchy = backbone or spec.backbone, hierarchy or spec.hierarchy
    return method, backbone, load_hierarchy(hierarchy) if isinstance(hierarchy, str) else hierarchy


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


def _load_weights(module: nn.Module, path: Path, partly: bool = False) -> None:
    """Loads a safetensors file, cast to the module's dtypes; it must hold every weight of the module.

    Args:
        module: what to load into.
        path: the file.
        partly: let the file hold more than the module has (a backbone without its last layers).
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    own = module.state_dict()
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    extra = [] if partly else [name for name in weights if name not in own]
    differing = [
        f"{name} {tuple(weights[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    for fault, names in (("lacks", missing), ("has too much:", extra), ("has other shapes:", differing)):
        if names:
            more = ", ..." if len(names) > 5 else ""
            shown = ", ".join(names[:5]) + more
            raise ValueError(f"{path} does not fit the {type(module).__name__}: it {fault} {shown}")
    module.load_state_dict(weights, strict=False)
