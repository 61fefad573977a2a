"""c2f_zoo as a guest in timm: `timm.create_model` makes the named models, each as a classifier of its finest level.

Imports nothing heavy: `c2f_zoo` calls `move_in` when it is imported, and timm may come later or never.
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
    from c2f_zoo.model import LevelClassifier

# What a configuration of timm's may say of the input, and where it may say that weights lie.
_INPUT = ("input_size", "test_input_size", "mean", "std", "interpolation", "crop_pct", "test_crop_pct", "crop_mode")
_SOURCES = ("url", "file", "state_dict", "hf_hub_id")
_OURS = "c2f_zoo:"  # what we give timm for the address of weights that we load ourselves

default_cfgs: dict[str, Any] = {}  # timm's register_model looks here for the tags of a model's trained weights


def move_in() -> None:
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
        from c2f_zoo.zoo import MODELS

        MODELS.watch(_register)
    except Exception as error:  # a guest breaks nothing in the house
        warnings.warn(f"timm does not know c2f_zoo's models: {error}", RuntimeWarning, stacklevel=2)


def _register(name: str) -> None:
    """Makes one named model known to timm, with its tags; it is not built, nor is a plug-in imported."""
    import timm
    from timm.models import DefaultCfg, PretrainedCfg

    from c2f_zoo.zoo.pretrained import default_tag, tags_of

    if timm.models.is_model_in_modules(name, [__name__.rpartition(".")[2]]):
        return
    if timm.is_model(name):
        warnings.warn(f"timm has a model {name!r} of its own; use c2f_zoo.create_model", RuntimeWarning, stacklevel=2)
        return
    tags = deque(tags_of(name))
    if tags:
        tags.remove(default_tag(name))
        tags.appendleft(default_tag(name))
        cfgs = {tag: PretrainedCfg(url=f"{_OURS}{name}.{tag}") for tag in tags}
        default_cfgs[name] = DefaultCfg(tags, cfgs, is_pretrained=True)
    timm.models.register_model(_entrypoint(name))


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
            of that many classes without a tree; 0 makes none.
        img_size: height and width of the input in pixels.
        drop_rate: dropout before the classifier, in training.
        drop_path_rate: the backbone's stochastic depth, where it has that.
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
    from timm.models import load_pretrained

    from c2f_zoo.factory import create_model

    _check(name, options)
    cfg = {**_as_dict(pretrained_cfg), **(pretrained_cfg_overlay or {})}
    elsewhere = pretrained and _points_elsewhere(cfg)
    if drop_path_rate is not None:
        options["backbone_options"] = {"drop_path_rate": drop_path_rate, **(options.get("backbone_options") or {})}
    if img_size is not None:
        options["input_size"] = _side(img_size)
    # timm's scripts fill in the default tag whether weights are wanted or not
    tag = cfg.get("tag") if pretrained or isinstance(pretrained_cfg, str) else None
    model = create_model(f"{name}.{tag}" if tag else name, pretrained and not elsewhere, **options)
    classifier = model.at_level(model.levels[-1], drop_rate)
    if num_classes is not None and num_classes != classifier.num_classes:
        classifier.reset_classifier(num_classes)
    classifier.pretrained_cfg.update({key: cfg[key] for key in _INPUT if cfg.get(key)}, architecture=name)
    if elsewhere:
        load_pretrained(classifier, {**classifier.pretrained_cfg, **cfg}, classifier.num_classes, cache_dir=cache_dir)
    return classifier


def _check(name: str, options: dict[str, Any]) -> None:
    """Refuses arguments that timm's models may take and these cannot."""
    from c2f_zoo.factory import create_model

    for key, way_out in {
        "features_only": f"c2f_zoo.create_model({name!r}).forward_features gives the maps",
        "global_pool": "name another pooling=...",
        "head": f"c2f_zoo.create_model({name!r}, head=...).at_level(...) is such a classifier",
        "levels": f"c2f_zoo.create_model({name!r}).at_level(...) is a classifier of another level",
    }.items():
        if options.get(key):
            raise ValueError(f"{name!r} as a classifier of timm's has no {key}={options[key]!r}; {way_out}")
    if options.pop("in_chans", 3) != 3:
        raise ValueError(f"{name!r} takes pictures of 3 channels; convert yours, as timm's loaders do")
    for key in ("features_only", "pretrained_model_args"):  # the one is false, the other of no use here
        options.pop(key, None)
    check_options(f"argument of {name!r}:", create_model, options)


def _as_dict(cfg: Any) -> dict[str, Any]:
    """A tag, or what a configuration says.

    Where timm knows nothing of a model it hands on its own defaults: what equals them says nothing.
    """
    from timm.models import PretrainedCfg

    if cfg is None or isinstance(cfg, str):
        return {"tag": cfg}
    given = cfg.to_dict() if isinstance(cfg, PretrainedCfg) else dict(cfg)
    if _points_elsewhere(given):
        return given
    return {key: value for key, value in given.items() if value != getattr(PretrainedCfg(), key, None)}


def _points_elsewhere(cfg: Mapping[str, Any]) -> bool:
    """Whether a configuration says where weights lie, other than here."""
    return any(cfg.get(key) and not str(cfg[key]).startswith(_OURS) for key in _SOURCES)


def _side(img_size: int | tuple[int, int]) -> int:
    sides = {img_size} if isinstance(img_size, int) else set(img_size)
    if len(sides) != 1:
        raise ValueError(f"img_size is {img_size!r}; these models take square pictures, name one number")
    return sides.pop()
