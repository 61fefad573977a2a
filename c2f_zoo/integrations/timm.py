"""c2f_zoo as a guest in timm: `timm.create_model` makes the named models, each as a classifier of its finest level.

Imports nothing heavy: `c2f_zoo` calls `register_models` when it is imported, and timm may come later or never.
"""

from __future__ import annotations

import sys
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from c2f_zoo.registry import check_options

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

    from c2f_zoo.model import LevelClassifier

# What a configuration of timm's may say of the input, and where it may say that weights lie.
_INPUT = ("input_size", "test_input_size", "mean", "std", "interpolation", "crop_pct", "test_crop_pct", "crop_mode")
_SOURCES = ("url", "file", "state_dict", "hf_hub_id")
_OURS = "c2f_zoo:"  # what we give timm for the address of weights that we load ourselves

default_cfgs: dict[str, Any] = {}  # timm's register_model looks here for the tags of a model's trained weights


def register_models() -> None:
    """Registers the named models with timm: now where it is imported, or else as soon as it is."""
    if sys.modules.get("timm"):
        _register_all()
    elif not any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TimmFinder())


class _TimmFinder(MetaPathFinder):
    """Finds timm as the other finders do, with a loader that tells when it has been imported."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = find(fullname, path, target) if find else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _TimmLoader(spec.loader, self)
                return spec
        return None


class _TimmLoader(Loader):
    """Stands before timm's own loader until timm is imported, and then leaves no trace."""

    def __init__(self, loader: Any, finder: _TimmFinder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        _register_all()


def _register_all() -> None:
    try:
        from c2f_zoo.zoo import MODELS, WEIGHTS

        MODELS.watch(_register)
        WEIGHTS.watch(_register_weights)
    except Exception as error:  # a guest breaks nothing in the house
        warnings.warn(f"timm does not know c2f_zoo's models: {error}", RuntimeWarning, stacklevel=2)


def _register(name: str) -> None:
    """Makes one named model known to timm, with its tags; it is not built, nor is a plug-in imported."""
    import timm
    from timm.models import DefaultCfg

    from c2f_zoo.zoo.pretrained import default_tag, tags_of

    known = _is_guest(name)
    if timm.is_model(name) and not known:
        warnings.warn(f"timm has a model {name!r} of its own; use c2f_zoo.create_model", RuntimeWarning, stacklevel=2)
        return
    tags = deque(tags_of(name))
    if tags:
        tags.remove(default_tag(name))
        tags.appendleft(default_tag(name))
        cfg = DefaultCfg(tags, {tag: _cfg_of(f"{name}.{tag}") for tag in tags}, is_pretrained=True)
        known = known and default_cfgs.get(name) == cfg
        default_cfgs[name] = cfg
    if not known:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", f"Overwriting {name} in registry")  # by itself, with another tag
            timm.models.register_model(_entrypoint(name))


def _register_weights(name: str) -> None:
    """Makes weights, `arch.tag`, known to timm where it knows their model already."""
    arch = name.rpartition(".")[0]
    if _is_guest(arch):
        _register(arch)


def _is_guest(name: str) -> bool:
    """Whether timm has a model of that name from here."""
    import timm

    return timm.models.is_model_in_modules(name, [__name__.rpartition(".")[2]])


def _cfg_of(name: str) -> PretrainedCfg:
    """What is known of weights before they are loaded: all of bundled ones, of a plug-in's that there are some."""
    from timm.models import PretrainedCfg

    from c2f_zoo.config import ModelConfig
    from c2f_zoo.zoo.pretrained import BUNDLED, CONFIG_FILE, WEIGHTS

    cfg: dict[str, Any] = {"url": f"{_OURS}{name}"}
    weights, file = WEIGHTS.registered(name), BUNDLED / name / CONFIG_FILE
    if weights:
        cfg |= {"input_size": weights.input, "license": weights.licence}
    if weights and weights.source == "bundled" and file.is_file():
        config = ModelConfig.from_json(file)
        cfg |= {key: config.pretrained_cfg[key] for key in ("mean", "std", "interpolation", "crop_pct")}
        cfg["num_classes"] = config.hierarchy.num_classes[config.levels[-1]]
    return PretrainedCfg(**cfg)


def _entrypoint(name: str) -> Callable[..., LevelClassifier]:
    """What timm calls for a name: a function of that name in this module."""

    def create(pretrained: bool = False, **options: Any) -> LevelClassifier:
        return create_classifier(name, pretrained, **options)

    create.__name__ = create.__qualname__ = name
    return create


def create_classifier(
    name: str,
    pretrained: bool = False,
    *,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float | None = None,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    cache_dir: Any = None,
    **options: Any,
) -> LevelClassifier:
    """Makes a named model as a classifier of its finest level, from the arguments that timm's models take.

    This is what `timm.create_model(name, ...)` calls.

    Args:
        name: a named model, without a tag.
        pretrained: load trained weights, as `c2f_zoo.create_model` does; or those that `pretrained_cfg` points to.
        num_classes: None for the finest classes of the model's tree. Another number makes a new, untrained classifier
            of that many classes without a tree, and warns where that drops a trained one; 0 makes none.
        img_size: height and width of the input in pixels; trained weights take their own only.
        drop_rate: dropout before the classifier, in training.
        drop_path_rate: the backbone's stochastic depth, where it has that; 0 turns it off in any.
        pretrained_cfg: a tag, or timm's configuration (`PretrainedCfg`, or a dict): what it says of the input, other
            than timm's defaults, is what `timm.data.resolve_data_config` will read from the model.
        pretrained_cfg_overlay: the same, put over it.
        cache_dir: where timm keeps what it downloads, if `pretrained_cfg` points to weights.
        **options: further arguments of `c2f_zoo.create_model`, e.g. `pooling_options={"dim": 2048}`.

    Raises:
        ValueError: an argument is unknown or makes no sense for these models, or there are no such weights.

    Examples:
        >>> model = timm.create_model("mlph_resnet50_cub", num_classes=7, img_size=64, pooling_options={"dim": 8})
        >>> model(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 7])
    """
    from timm.layers import DropPath
    from timm.models import load_pretrained

    from c2f_zoo.zoo import find_weights
    from c2f_zoo.zoo.create import create_model

    _check(name, options)
    cfg = {**_as_dict(pretrained_cfg), **(pretrained_cfg_overlay or {})}
    elsewhere = pretrained and _points_elsewhere(cfg)
    if drop_path_rate:
        options["backbone_options"] = {"drop_path_rate": drop_path_rate, **(options.get("backbone_options") or {})}
    # timm's scripts fill in the default tag whether weights are wanted or not
    tag = cfg.get("tag") if pretrained or isinstance(pretrained_cfg, str) else None
    full_name, trained = f"{name}.{tag}" if tag else name, pretrained and not elsewhere
    own_size = find_weights(full_name).input[1:] if tag or trained else None
    if img_size is not None and own_size != (_side(img_size), _side(img_size)):
        options["input_size"] = _side(img_size)
    try:
        model = create_model(full_name, trained, **options)
    except TypeError as error:
        if drop_path_rate and "drop_path_rate" in str(error):
            raise ValueError(f"the backbone of {name!r} takes no drop_path_rate={drop_path_rate}; omit it") from error
        raise
    if drop_path_rate == 0:
        for module in model.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
    classifier = model.at_level(model.levels[-1], drop_rate)
    if num_classes is not None and num_classes != classifier.num_classes:
        _reset(classifier, num_classes, full_name if trained else None)
    classifier.pretrained_cfg.update({key: cfg[key] for key in _INPUT if cfg.get(key)}, architecture=name)
    if elsewhere:
        load_pretrained(classifier, {**classifier.pretrained_cfg, **cfg}, classifier.num_classes, cache_dir=cache_dir)
    return classifier


def _reset(classifier: LevelClassifier, num_classes: int, trained: str | None) -> None:
    """Makes a new classifier; a warning names what is dropped of one with trained weights of that name."""
    saved = dict(classifier.get_classifier().named_parameters())
    classifier.reset_classifier(num_classes)
    lines = [
        f"\n  head.{key}: {tuple(saved[key].shape)} saved, {tuple(weight.shape)} here"
        for key, weight in classifier.get_classifier().named_parameters()
        if key in saved
    ]
    if trained and lines:
        message = f"the classifier of {trained!r} was dropped for a new one of num_classes={num_classes}:"
        warnings.warn(message + "".join(lines), stacklevel=5)  # who called timm.create_model


def _check(name: str, options: dict[str, Any]) -> None:
    """Refuses arguments that timm's models may take and these cannot."""
    from c2f_zoo.zoo.create import create_model

    for key, way_out in {
        "features_only": f"c2f_zoo.create_model({name!r}).forward_features gives the maps",
        "global_pool": "name another pooling=...",
        "head": f"c2f_zoo.create_model({name!r}, head=...).at_level(...) is such a classifier",
        "levels": f"c2f_zoo.create_model({name!r}).at_level(...) is a classifier of another level",
    }.items():
        if options.get(key):
            raise ValueError(f"{name!r} as a classifier of timm's has no {key}={options[key]!r}; {way_out}")
    if options.pop("in_chans", 3) != 3:
        raise ValueError(f"{name!r} takes images of 3 channels; convert yours, as timm's loaders do")
    for key in ("features_only", "global_pool", "pretrained_model_args"):  # false, empty, and of no use here
        options.pop(key, None)
    check_options(f"argument of {name!r}:", create_model, options)


def _as_dict(cfg: Any) -> dict[str, Any]:
    """A tag, or what a configuration says.

    What equals that which timm hands on by itself says nothing: what it knows of the weights from here, or where it
    knows nothing of a model, its own defaults.
    """
    from timm.models import PretrainedCfg

    if cfg is None or isinstance(cfg, str):
        return {"tag": cfg}
    given = cfg.to_dict() if isinstance(cfg, PretrainedCfg) else dict(cfg)
    if _points_elsewhere(given):
        return given
    arch, _, tag = str(given.get("url", "")).removeprefix(_OURS).rpartition(".")
    handed_on = default_cfgs[arch].cfgs.get(tag, PretrainedCfg()) if arch in default_cfgs else PretrainedCfg()
    return {key: value for key, value in given.items() if value != getattr(handed_on, key, None)}


def _points_elsewhere(cfg: Mapping[str, Any]) -> bool:
    """Whether a configuration says where weights lie, other than here."""
    return any(cfg.get(key) and not str(cfg[key]).startswith(_OURS) for key in _SOURCES)


def _side(img_size: int | tuple[int, int]) -> int:
    sides = {img_size} if isinstance(img_size, int) else set(img_size)
    if len(sides) != 1:
        raise ValueError(f"img_size is {img_size!r}; these models take square images, name one number")
    return sides.pop()
