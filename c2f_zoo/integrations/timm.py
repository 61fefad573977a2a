"""Register the named models with timm when this module is imported.

`timm.create_model` then builds every named model, including models that are registered later, as a classifier of its
finest predicted level.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
from timm.layers import DropPath
from timm.models import DefaultCfg, FeatureInfo, PretrainedCfg, load_pretrained
from torch import Tensor, nn

from c2f_zoo.backbones.sources import has_source
from c2f_zoo.config import ModelConfig
from c2f_zoo.hierarchy import HIERARCHIES
from c2f_zoo.level_classifier import LevelClassifier, choose_taps, level_cfg
from c2f_zoo.model import C2FModel
from c2f_zoo.registry import check_options
from c2f_zoo.zoo import MODELS, WEIGHTS, find_weights
from c2f_zoo.zoo.create import create_model
from c2f_zoo.zoo.pretrained import BUNDLED, CONFIG_FILE, default_tag, tags_of
from c2f_zoo.zoo.resolve import resolve

# Keys of timm's pretrained_cfg for the input, for the classes, and for the source of the weights.
_INPUT = ("input_size", "test_input_size", "mean", "std", "interpolation", "crop_pct", "test_crop_pct", "crop_mode")
_LABELS = ("label_names", "label_descriptions")
_SOURCES = ("url", "file", "state_dict", "hf_hub_id")
_OUR_URL = "c2f_zoo:"  # url prefix of weights that c2f_zoo loads instead of timm

default_cfgs: dict[str, Any] = {}  # timm's register_model reads a model's tags from here


def register_models() -> None:
    """Register all named models with timm, and each new model when it is registered."""
    MODELS.subscribe(_register_model)
    WEIGHTS.subscribe(_register_weights)


def _register_model(name: str) -> None:
    """Register one model and its tags, without building it or importing a plug-in."""
    ours = _is_ours(name)
    if timm.is_model(name) and not ours:
        warnings.warn(f"timm has its own model {name!r}; use c2f_zoo.create_model", RuntimeWarning, stacklevel=2)
        return
    trained = sorted(tags_of(name), key=lambda tag: tag != default_tag(name))  # the default tag first
    known = {tag: _known_cfg(name, tag) for tag in trained or [""]}
    cfgs = {tag: PretrainedCfg(**cfg) for tag, cfg in known.items() if cfg}
    cfg = DefaultCfg(deque(cfgs), cfgs, is_pretrained=bool(trained)) if cfgs else None
    if ours and cfg == default_cfgs.get(name):
        return
    default_cfgs.pop(name, None)
    if cfg:
        default_cfgs[name] = cfg
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f"Overwriting {name} in registry")  # the same model with another tag
        timm.models.register_model(_entrypoint(name))


def _register_weights(name: str) -> None:
    """Register the tag of weights `arch.tag` if timm has their model."""
    arch = name.rpartition(".")[0]
    if _is_ours(arch):
        _register_model(arch)


def _is_ours(name: str) -> bool:
    """Return whether timm's model of that name was registered by this module."""
    return timm.is_model(name) and timm.model_entrypoint(name).__module__ == __name__


def _known_cfg(arch: str, tag: str) -> dict[str, Any]:
    """Return timm's description of a model, or of its weights, before it is built.

    A model with parts that are not registered yet, or that are plug-ins which are not imported yet, has none; its
    weights have a url.
    """
    config = _config_of(arch, tag)
    cfg = level_cfg(config, config.levels[-1]) if config else {}
    if tag:
        cfg["url"] = f"{_OUR_URL}{arch}.{tag}"
    weights = WEIGHTS.registered(f"{arch}.{tag}")
    return cfg | ({"input_size": weights.input, "license": weights.licence} if weights else {})


def _config_of(arch: str, tag: str) -> ModelConfig | None:
    """Return the configuration of bundled weights, or else of a model; None if it needs an import or a download."""
    file = BUNDLED / f"{arch}.{tag}" / CONFIG_FILE
    if file.is_file():
        return ModelConfig.from_json(file)
    spec = MODELS.registered(arch)
    if not spec or not HIERARCHIES.registered(spec.hierarchy) or has_source(spec.backbone):
        return None
    try:
        return resolve(arch, {})
    except (ValueError, OSError):  # the error is raised when the model is created
        return None


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    """Return the function that timm calls to build a model; it has the model's name."""

    def create(pretrained: bool = False, device: Any = None, dtype: Any = None, **options: Any) -> nn.Module:
        return create_classifier(name, pretrained, **options).to(device=device, dtype=dtype)

    create.__name__ = create.__qualname__ = name
    return create


def create_classifier(
    name: str,
    pretrained: bool = False,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    global_pool: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float | None = None,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    cache_dir: Any = None,
    **options: Any,
) -> LevelClassifier | TapFeatures:
    """Build a named model as a classifier of its finest predicted level.

    `timm.create_model` calls this function.

    Args:
        name: a named model, without a tag.
        pretrained: load trained weights, as `c2f_zoo.create_model` does, or the weights of `pretrained_cfg`.
        num_classes: number of classes. Default: the model's. Another number gives a new, untrained classifier, with a
            warning if a trained one is dropped; 0 gives no classifier.
        in_chans: number of channels of the images. The weights of the first layer are adapted as timm does.
        global_pool: another pooling, or `""` for none, see `LevelClassifier.reset_classifier`. The classifier is new.
        img_size: height and width of the input in pixels; trained weights accept only their own size.
        features_only: return the taps' feature maps, see `TapFeatures`.
        out_indices: the taps of `features_only`, as in timm. Default: all.
        drop_rate: probability of dropout before the classifier, in [0, 1].
        drop_path_rate: the backbone's stochastic depth, in [0, 1]; 0 turns it off.
        pretrained_cfg: a tag, or timm's configuration (`PretrainedCfg` or a dict). Its input settings override the
            model's.
        pretrained_cfg_overlay: settings that override those of `pretrained_cfg`.
        cache_dir: timm's download folder for the weights of `pretrained_cfg`.
        **options: additional keyword arguments of `c2f_zoo.create_model`, e.g. `pooling_options={"dim": 2048}`.

    Raises:
        ValueError: an argument is unknown or unsupported, or the model has no trained weights.

    Examples:
        >>> model = timm.create_model("mlph_resnet50_cub", num_classes=7, img_size=64, pooling_options={"dim": 8})
        >>> model(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 7])
    """
    _check_options(name, options)
    cfg = {**_as_dict(pretrained_cfg), **(pretrained_cfg_overlay or {})}
    load_by_timm = pretrained and _names_other_weights(cfg)
    load_here = pretrained and not load_by_timm
    # timm's scripts fill in the default tag even without pretrained=True
    tag = cfg.get("tag") if pretrained or isinstance(pretrained_cfg, str) else None
    full_name = f"{name}.{tag}" if tag else name
    trained_size = find_weights(full_name).input[1:] if tag or load_here else None
    if img_size is not None and trained_size != (_side(img_size), _side(img_size)):
        options["input_size"] = _side(img_size)
    model = _create(full_name, load_here, drop_path_rate, {**options, "in_chans": in_chans})
    classifier = model.at_level(model.levels[-1], drop_rate)
    if load_by_timm and num_classes is None:
        num_classes = cfg.get("num_classes")
    if global_pool == model.config.pooling:
        global_pool = None
    if global_pool is not None or num_classes not in (None, classifier.num_classes):
        _reset_classifier(classifier, num_classes, global_pool, full_name if load_here else None)
    source = {**classifier.pretrained_cfg, "input_size": _source_size(name, classifier), **cfg}
    _describe_input(classifier, name, cfg)
    if load_by_timm:
        load_pretrained(classifier, source, classifier.num_classes, classifier.in_chans, cache_dir=cache_dir)
    return TapFeatures(classifier, out_indices) if features_only else classifier


class TapFeatures(nn.Module):
    """The feature maps of the taps, as timm's models with `features_only=True`.

    Args:
        classifier: the classifier; its backbone is shared.
        out_indices: the taps: an int for that many of the last, or positions; negative ones count from the end.
            Default: all.

    Attributes:
        feature_info: timm's `FeatureInfo` with `channels()`, `reduction()` and `module_name()`.
        pretrained_cfg: timm's description of the input; `default_cfg` is the same.

    Raises:
        ValueError: there is no such tap, or a tap is followed by one of a larger map, which timm does not support.

    Examples:
        >>> model = timm.create_model("mlph_resnet50_cub", features_only=True, out_indices=(0, -1), img_size=64)
        >>> model.feature_info.channels(), [tuple(x.shape) for x in model(torch.rand(1, 3, 64, 64))]
        ([2048, 2048], [(1, 2048, 2, 2), (1, 2048, 2, 2)])
    """

    def __init__(self, classifier: LevelClassifier, out_indices: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.backbone = classifier.backbone
        self.out_indices = choose_taps(out_indices, len(self.backbone.taps))
        info = [dict(tap) for tap in classifier.feature_info]
        reductions = [tap["reduction"] for tap in info]
        if reductions != sorted(reductions):
            raise ValueError(f"features_only needs taps from large to small maps, not {self.backbone.taps}")
        self.feature_info = FeatureInfo(info, tuple(self.out_indices))
        cfg = classifier.pretrained_cfg
        self.pretrained_cfg = {key: cfg[key] for key in cfg if key not in ("num_classes", "classifier", *_LABELS)}
        self.default_cfg = self.pretrained_cfg
        self.in_chans = classifier.in_chans

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute feature maps (N, C_i, H_i, W_i) of images (N, channels, height, width)."""
        maps = self.backbone(x)
        return [maps[index] for index in self.out_indices]


def _source_size(name: str, classifier: LevelClassifier) -> tuple[int, int, int]:
    """Return the input size of weights that do not state it: that of the registered model."""
    known = timm.get_pretrained_cfg(name)
    return known.input_size if known else classifier.pretrained_cfg["input_size"]


def _describe_input(classifier: LevelClassifier, name: str, cfg: Mapping[str, Any]) -> None:
    """Override a classifier's description of input and classes with the caller's."""
    own = classifier.pretrained_cfg
    keys = _INPUT if cfg.get("num_classes", classifier.num_classes) != classifier.num_classes else (*_INPUT, *_LABELS)
    own.update({key: cfg[key] for key in keys if cfg.get(key)}, architecture=name)
    for key in ("input_size", "test_input_size"):
        if own.get(key):
            own[key] = (classifier.in_chans, *own[key][1:])


def _create(full_name: str, pretrained: bool, drop_path_rate: float | None, options: dict[str, Any]) -> C2FModel:
    """Build the model with the backbone's stochastic depth."""
    if drop_path_rate:
        options["backbone_options"] = {"drop_path_rate": drop_path_rate, **(options.get("backbone_options") or {})}
    try:
        model = create_model(full_name, pretrained, **options)
    except TypeError as error:
        if drop_path_rate and "drop_path_rate" in str(error):
            raise ValueError(
                f"the backbone of {full_name!r} has no stochastic depth; omit drop_path_rate={drop_path_rate}"
            ) from error
        raise
    if drop_path_rate == 0:
        for module in model.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
    return model


def _reset_classifier(
    classifier: LevelClassifier, num_classes: int | None, global_pool: str | None, trained: str | None
) -> None:
    """Replace the classifier; warn with names and shapes if it had trained weights."""
    if num_classes is None:
        num_classes = classifier.num_classes
    saved = dict(classifier.get_classifier().named_parameters())
    classifier.reset_classifier(num_classes, global_pool)
    lines = [
        f"\n  head.{key}: {tuple(saved[key].shape)} saved, {tuple(weight.shape)} here"
        for key, weight in classifier.get_classifier().named_parameters()
        if key in saved
    ]
    if trained and lines:
        message = f"the classifier of {trained!r} was replaced with a new one of num_classes={num_classes}:"
        warnings.warn(message + "".join(lines), stacklevel=5)  # points at the call of timm.create_model


def _check_options(name: str, options: dict[str, Any]) -> None:
    """Raise a ValueError for unsupported options of timm's models."""
    for key, hint in {
        "head": f"use c2f_zoo.create_model({name!r}, head=...).at_level(...)",
        "levels": f"c2f_zoo.create_model({name!r}).at_level(...) is a classifier of another level",
    }.items():
        if options.get(key):
            raise ValueError(f"unsupported option {key}={options[key]!r} of {name!r} in timm; {hint}")
    options.pop("pretrained_model_args", None)  # passed by timm's scripts, and unused here
    check_options(f"argument of {name!r}:", create_model, options)


def _as_dict(cfg: Any) -> dict[str, Any]:
    """Return the caller's settings in a `pretrained_cfg`.

    timm passes a model's registered configuration, or its defaults for a model without weights. Values equal to these
    are left out.
    """
    if cfg is None or isinstance(cfg, str):
        return {"tag": cfg}
    given = cfg.to_dict() if isinstance(cfg, PretrainedCfg) else dict(cfg)
    if _names_other_weights(given):
        return given
    known = default_cfgs.get(given.get("architecture", ""))
    passed_on = known.cfgs.get(given.get("tag") or "") if known else None
    passed_on = passed_on or PretrainedCfg()
    return {key: value for key, value in given.items() if value != getattr(passed_on, key, None)}


def _names_other_weights(cfg: Mapping[str, Any]) -> bool:
    """Return whether a configuration names weights that timm has to load."""
    return any(cfg.get(key) and not str(cfg[key]).startswith(_OUR_URL) for key in _SOURCES)


def _side(img_size: int | tuple[int, int]) -> int:
    sides = {img_size} if isinstance(img_size, int) else set(img_size)
    if len(sides) != 1:
        raise ValueError(f"img_size is {img_size!r}, but these models expect square images; pass one number")
    return sides.pop()


register_models()
