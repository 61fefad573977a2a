"""Creating models by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from c2f_zoo.backbones.sources import HF_HUB, LOCAL_DIR
from c2f_zoo.config import ModelConfig
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.io.hub import download, split_revision
from c2f_zoo.io.weights import CONFIG_FILE, find_file, read_shapes
from c2f_zoo.model import C2FModel, build, load_model
from c2f_zoo.paths import expand
from c2f_zoo.zoo.backbone_checkpoint import check_source, checkpoint_network, load_backbone
from c2f_zoo.zoo.head_transfer import replace_head
from c2f_zoo.zoo.input_channels import replace_input
from c2f_zoo.zoo.models import find_weights, split_tag
from c2f_zoo.zoo.pretrained import fetch
from c2f_zoo.zoo.resolve import adapt, resolve, select_overrides

ADAPTABLE = ("hierarchy", "levels", "resolutions", "in_chans", "batch_norm")  # arguments that a saved model accepts


def create_model(
    name: str,
    pretrained: bool = False,
    pretrained_backbone: bool = False,
    backbone_checkpoint: str | Path | None = None,
    *,
    backbone: str | None = None,
    hierarchy: str | Path | Hierarchy | None = None,
    taps: Sequence[str] | None = None,
    pooling: str | None = None,
    head: str | None = None,
    levels: Sequence[str] | None = None,
    input_size: int | None = None,
    in_chans: int | None = None,
    resolutions: Mapping[str, int | None] | None = None,
    preprocessing_options: Mapping[str, Any] | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    pooling_options: Mapping[str, Any] | None = None,
    head_options: Mapping[str, Any] | None = None,
    batch_norm: str | None = None,
) -> C2FModel:
    """Create a model.

    Args:
        name: a named model (`list_models()`), any `method_backbone_hierarchy` such as
            `"hbp_convnext_tiny_cars"`, a method (`"mlph"`, with `backbone` and `hierarchy`), `arch.tag` for
            the model of these trained weights (`list_models(pretrained=True)`), or a saved model:
            `"local-dir:PATH"`, or on the Hugging Face Hub `"hf-hub:OWNER/MODEL"` or
            `"hf-hub:OWNER/MODEL@REVISION"`. A saved model is always loaded with its weights.
        pretrained: load trained weights: those of the tag, or of the model's default tag.
        pretrained_backbone: let timm download the backbone's weights.
        backbone_checkpoint: a safetensors file with the backbone's weights under timm's names; a classifier in it is
            ignored. See `docs/how-to/pretrained.md` for files of other kinds.
        backbone: a timm model, a registered backbone, or a network that timm saved: `"local-dir:PATH"`, or on the
            Hugging Face Hub `"hf-hub:OWNER/MODEL"`; `"timm/NAME"` is timm's model `NAME`. The saved configuration names
            the architecture; the weights are loaded only with `pretrained_backbone`.
        hierarchy: a registered tree's name, the path of a tree's CSV file (`Hierarchy.from_csv`), or a tree. A saved
            or pretrained model gets a new head for it (head transfer): classifiers of levels with the same classes are
            kept, and a warning lists all other weights.
        taps: names of the backbone's modules to pool. Default: the method's number of default taps.
        pooling: one of `list_poolings()`. Default: the method's.
        head: one of `list_heads()`. Default: `"levels"`.
        levels: the levels the model predicts. Default: the method's, all or the leaf level.
        input_size: height and width of the input in pixels. Default: 448 as in the paper, or the backbone's own size
            if that is fixed (ViT).
        in_chans: number of channels of the images. Default: 3. Pretrained weights of the first layer are adapted as
            timm does, and mean and standard deviation are averaged over the channels.
        resolutions: level -> resolution in pixels at which the level sees an image. Missing: full size.
        preprocessing_options: overrides of `Preprocessing`'s fields, e.g.
            `{"mean": (0.5, 0.5, 0.5), "shrink_filter": "lanczos", "resolution_of": "area"}`.
        backbone_options: additional keyword arguments of the backbone.
        pooling_options: additional keyword arguments of the pooling, e.g. `{"dim": 2048}`.
        head_options: additional keyword arguments of the head.
        batch_norm: `"shared"`, or `"per_level"`: the backbone's batch norm has statistics and weights of its own for
            each distinct resolution. Pretrained or shared ones are loaded into every copy. Default: `"shared"`, or the
            saved model's.

    A named model may have default options. Arguments override them; options are merged key by key. Default options of
    a part are dropped when the part is replaced: taps with the backbone, levels and resolutions with the hierarchy. A
    saved or pretrained model accepts only `hierarchy`, `levels`, `resolutions`, `in_chans` and `batch_norm`.

    Returns:
        The model, in training mode, on the CPU, in float32.

    Raises:
        ValueError: a name is unknown, the parts are incompatible, or the model has no trained weights.
        OSError: a saved model does not exist, or a download failed; see `C2FModel.from_pretrained`.

    Examples:
        >>> model = create_model("mlph_vgg16_cub")
        >>> model = create_model("mlph", backbone="resnet18", hierarchy="cub", pooling_options={"dim": 64})
        >>> model.save_pretrained("my-model")
        >>> model = create_model("local-dir:my-model")
    """
    overrides = select_overrides(locals())  # at this point, the arguments
    if name.startswith((LOCAL_DIR, HF_HUB)) or pretrained or split_tag(name)[1]:
        _check_adaptable(name, overrides, pretrained_backbone, backbone_checkpoint)
        return _create_saved(name, pretrained, overrides)
    if backbone_checkpoint is None:
        config = resolve(name, overrides)
        if pretrained_backbone:
            check_source(config)
        return build(config, pretrained_backbone)
    files = [expand(backbone_checkpoint)]
    batch_norm = resolve(name, overrides).batch_norm
    overrides["batch_norm"] = "shared"  # copies are made of the loaded weights
    model = build(resolve(name, overrides), pretrained_backbone)
    channels = overrides.pop("in_chans", None)
    if channels and not _fit(checkpoint_network(model), files):  # weights of another number of channels are adapted
        model = build(resolve(name, overrides), pretrained_backbone)
    load_backbone(model, files)
    if channels:
        model = replace_input(model, channels)
    model.set_config(replace(model.config, batch_norm=batch_norm))
    return model


def _fit(body: nn.Module, files: Sequence[Path]) -> bool:
    """Return whether weights in files have the shapes of a network's weights of those names."""
    shapes, weights = read_shapes(files), body.state_dict()
    return all(tuple(shapes[name]) == weights[name].shape for name in shapes.keys() & weights.keys())


def _create_saved(name: str, pretrained: bool, overrides: Mapping[str, Any]) -> C2FModel:
    """Load a saved model, or build it untrained, and adapt it to other classes."""
    weights = None if name.startswith((LOCAL_DIR, HF_HUB)) else find_weights(name)
    if weights:
        folder = fetch(weights)
    elif name.startswith(LOCAL_DIR):
        folder = expand(name.removeprefix(LOCAL_DIR))
    else:
        folder = download(*split_revision(name.removeprefix(HF_HUB)))
    if weights and not pretrained:
        return build(adapt(ModelConfig.from_json(find_file(folder, CONFIG_FILE)), **overrides))
    model = load_model(folder)
    if "in_chans" in overrides:
        model = replace_input(model, overrides["in_chans"])
    config = adapt(model.config, **overrides)
    if (config.hierarchy, config.levels) == (model.hierarchy, model.levels):
        model.set_config(config)
        return model
    lines = replace_head(model, config)
    if lines:
        listed = "".join(f"\n  {line}" for line in lines)
        warnings.warn(f"some weights of {name!r} do not fit the new classes or levels:{listed}", stacklevel=3)
    return model


def _check_adaptable(
    name: str, overrides: Mapping[str, Any], pretrained_backbone: bool, backbone_checkpoint: str | Path | None
) -> None:
    """Raise an error for arguments that a saved model does not accept."""
    others = [key for key in overrides if key not in ADAPTABLE]
    sources = {"pretrained_backbone": pretrained_backbone, "backbone_checkpoint": backbone_checkpoint}
    others += [key for key, value in sources.items() if value]
    if others:
        name = name if name.startswith((LOCAL_DIR, HF_HUB)) else find_weights(name).name
        raise ValueError(
            f"{name!r} is a saved model with fixed parts; it accepts {', '.join(ADAPTABLE)}, not {', '.join(others)}"
        )
