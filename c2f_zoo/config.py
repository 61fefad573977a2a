"""The configuration of a model: frozen dataclasses that can be saved as JSON."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.paths import expand
from c2f_zoo.registry import check_names

# Filters that shrink an image to a resolution, and the two definitions of a resolution.
SHRINK_FILTERS = ("bilinear", "bicubic", "box", "hamming", "lanczos")
MEASURES = ("side", "area")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
BATCH_NORMS = ("shared", "per_level")

# Limits for untrusted configurations; far more than any model needs.
MAX_CONFIG_BYTES = 32 * 2**20
MAX_NAME_LENGTH = 500
MAX_LEVELS, MAX_CLASSES, MAX_TAPS = 32, 1_000_000, 64
MAX_INPUT_SIZE = 2048
MAX_RESIZE = 2 * MAX_INPUT_SIZE  # shorter side of an image before the crop
MAX_WIDTH = 4096  # numbers in a backbone's options
MAX_INT = 2**32
MIN_CROP, MIN_STD, MAX_MEAN = 1e-3, 1e-3, 10
MAX_SEED = 2**63 - 1
MAX_OPTION_LENGTH = 64

# Options of timm and ours for the source of weights. They apply when a model is built and are not saved.
WEIGHT_SOURCES = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_strict",
    "checkpoint_path",
    "cache_dir",
    "pretrained_backbone",
    "backbone_checkpoint",
)
# Options of timm for where and how a network is built; the caller of a model decides that.
PLACES = ("device", "dtype")
# Keys of config.json for timm; from_json ignores them.
TIMM_KEYS = ("architecture", "num_classes", "label_names", "pretrained_cfg")


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of an image for the network.

    The shorter side is resized to `resize` pixels, then `input_size` is cropped from it. The defaults are those of the
    paper and of HBP: shorter side 512, crop 448.

    Args:
        input_size: (channels, height, width) of the input.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].
        interpolation: `"nearest"`, `"bilinear"`, `"bicubic"` or `"lanczos"`.
        crop_pct: the crop's height as a fraction of the shorter side, in (0, 1].
        shrink_filter: the filter that shrinks an image to the resolution of a level, one of `SHRINK_FILTERS`.
        resolution_of: the definition of a resolution, which the paper leaves open: `"side"`, the length of the shorter
            side, or `"area"`, the square root of the area. See `c2f_zoo.data.Degrade`.

    Raises:
        ValueError: a filter, a measure or an interpolation is unknown, or a number is out of range or not finite.
    """

    input_size: tuple[int, int, int] = (3, 448, 448)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    crop_pct: float = 0.875
    shrink_filter: str = "bilinear"
    resolution_of: str = "side"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("shrink_filter", self.shrink_filter, SHRINK_FILTERS),
            ("resolution_of", self.resolution_of, MEASURES),
            ("interpolation", self.interpolation, INTERPOLATIONS),
        ):
            check_names(name, [value], known)
        if min(self.input_size) < 1 or not MIN_CROP <= self.crop_pct <= 1:
            raise ValueError(f"invalid input_size {self.input_size} or crop_pct {self.crop_pct}")
        if not len(self.mean) == len(self.std) == self.input_size[0]:
            raise ValueError(
                f"mean {self.mean} and std {self.std} need a number for each of {self.input_size[0]} channels"
            )
        # Normalized pixels are then finite in half precision. NaN is in no range.
        for name, values, least in (("mean", self.mean, -MAX_MEAN), ("std", self.std, MIN_STD)):
            if not all(least <= value <= MAX_MEAN for value in values):
                raise ValueError(f"{name} {values} must be in [{least}, {MAX_MEAN}], for pixels in [0, 1]")

    @property
    def resize(self) -> int:
        """The length of the shorter side before the crop, in pixels."""
        return round(min(self.input_size[1:]) / self.crop_pct)


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a `C2FModel`: all but its weights.

    Args:
        backbone: a timm model name, or one from `register_backbone`.
        taps: names of the backbone's modules to pool, or a number of default taps, counted from the last. The
            configuration of a built model has the names.
        pooling: one of `list_poolings()`.
        head: one of `list_heads()`.
        hierarchy: the class tree.
        levels: the levels the model predicts, coarse to fine.
        preprocessing: the preprocessing of an image.
        resolutions: level -> resolution in pixels at which the level sees an image. None or missing: full size.
        backbone_options: additional keyword arguments of the backbone's constructor.
        pooling_options: additional keyword arguments of the pooling's constructor.
        head_options: additional keyword arguments of the head's constructor.
        batch_norm: `"shared"`, or `"per_level"` for a copy of the backbone's batch norm (statistics and weights) for
            each distinct resolution of the predicted levels, see `norm_copies`.
    """

    backbone: str
    taps: tuple[str, ...] | int
    pooling: str
    head: str
    hierarchy: Hierarchy
    levels: tuple[str, ...]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    resolutions: Mapping[str, int | None] = field(default_factory=dict)
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    pooling_options: Mapping[str, Any] = field(default_factory=dict)
    head_options: Mapping[str, Any] = field(default_factory=dict)
    batch_norm: str = "shared"

    def __post_init__(self) -> None:
        check_names("batch_norm", [self.batch_norm], BATCH_NORMS)
        check_names("level", (*self.levels, *self.resolutions), self.hierarchy.levels)
        if not self.levels:
            raise ValueError(f"levels is empty; name one or more of {self.hierarchy.levels}")

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The input's size, mean, std, interpolation and crop, as timm names them."""
        names = ("input_size", "mean", "std", "interpolation", "crop_pct")
        return {"architecture": self.backbone} | {name: getattr(self.preprocessing, name) for name in names}

    @property
    def norm_copies(self) -> dict[str, int]:
        """The number of each predicted level's copy of batch norm, finest level first, for `"per_level"`.

        Levels of the same resolution share a copy, since one forward pass predicts them.
        """
        numbers: dict[int | None, int] = {}
        return {level: numbers.setdefault(self.resolutions.get(level), len(numbers)) for level in self.levels[::-1]}

    def nearest_level(self, resolution: int | None) -> str:
        """Return the finest of the predicted levels whose resolution is nearest, by ratio; None is full size."""
        full = self.preprocessing.resize
        ratios = {level: (self.resolutions.get(level) or full) / (resolution or full) for level in self.levels[::-1]}
        return min(ratios, key=lambda level: abs(math.log(ratios[level])))

    def to_dict(self) -> dict[str, Any]:
        """Convert the configuration to JSON-compatible values for `from_dict`."""
        return json.loads(json.dumps(asdict(self)))

    def check(self) -> None:
        """Check that the configuration can be saved and loaded again.

        Raises:
            ValueError: a value is invalid; the message names it.
        """
        validate(ModelConfig, self, ModelConfig.__name__)
        _check_sizes(self)

    def to_json(self) -> str:
        """Return the text of a model's `config.json`.

        The values of `to_dict` are followed by keys for timm, which describe the finest predicted level: `architecture`
        (not a timm name, since timm cannot build the model), `num_classes`, `label_names` and `pretrained_cfg` (for
        `timm.data.resolve_data_config`).

        Raises:
            ValueError: the configuration is invalid or too large.
        """
        self.check()
        names = self.hierarchy.class_names(self.levels[-1])
        for_timm = ("c2f_zoo", len(names), names, self.pretrained_cfg)
        data = asdict(self) | dict(zip(TIMM_KEYS, for_timm, strict=True))
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            lines = text.split("\n")
            wrong = next(line for line in lines if line != line.encode(errors="ignore").decode())
            raise ValueError(f"the name {wrong.strip()!a} is not UTF-8 and cannot be saved; rename it") from error
        if size > MAX_CONFIG_BYTES:
            raise ValueError(f"the configuration is larger than the limit of {MAX_CONFIG_BYTES} bytes")
        return text

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Build a configuration from the values of `to_dict`.

        The values may be untrusted: every key, type and size is validated. An option is a number, a short word or a
        list of these, never a path or a URL.

        Raises:
            ValueError: a key is missing or unknown, a value has the wrong type or is too large, or an option is
                invalid.
        """
        config = validate(cls, data, cls.__name__)
        _check_sizes(config)
        return config

    @classmethod
    def from_json(cls, path: str | Path) -> ModelConfig:
        """Read a `config.json` that `to_json` wrote.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is too large, not JSON or not a configuration; the message names it.
        """
        path = expand(path)
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"{path} is larger than the limit of {MAX_CONFIG_BYTES} bytes")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(data, dict):
                data = {key: value for key, value in data.items() if key not in TIMM_KEYS}
            return cls.from_dict(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from error


def format_resolution(resolution: int | str | None) -> str:
    """Format a resolution for display; None or an empty CSV cell is full size.

    Examples:
        >>> format_resolution(32), format_resolution(None)
        ('32 px', 'full size')
    """
    return "full size" if resolution in (None, "") else f"{resolution} px"


def validate(hint: Any, value: Any, where: str) -> Any:
    """Validate a value by an annotation; build tuples and dataclasses.

    Raises:
        ValueError: the value has another type; the message names the key.
    """
    if is_dataclass(hint):
        return _read_dataclass(hint, value, where)
    if hint == tuple[str, ...] | int:
        return value if _is_number(value, whole=True) else validate(tuple[str, ...], value, where)
    origin, inner = get_origin(hint), get_args(hint)
    if origin is tuple and isinstance(value, (list, tuple)):
        hints = inner[:1] * len(value) if inner[-1] is ... else inner
        if len(hints) == len(value):
            items = zip(hints, value, strict=True)
            return tuple(validate(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(items))
    elif origin is Mapping and isinstance(value, Mapping):
        for key in value:
            validate(str, key, f"a key of {where}")
        if inner[1] is Any:
            return {key: _option(key, item, where) for key, item in value.items()}
        return {key: validate(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    elif NoneType in inner:
        return None if value is None else validate(inner[0], value, where)
    elif hint is str:
        if isinstance(value, str) and len(value) <= MAX_NAME_LENGTH:
            return value
    elif hint in (int, float) and _is_number(value, whole=hint is int):
        return value
    raise ValueError(f"{where} is {_short(value)}, expected {_describe_type(hint)}")


def _read_dataclass(cls: Any, value: Any, where: str) -> Any:
    at = "" if where == cls.__name__ else f"{where}."
    if isinstance(value, cls):  # a configuration that was not read from JSON
        for name, hint in _hints(cls).items():
            validate(hint, getattr(value, name), at + name)
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is of type {type(value).__name__}, expected a mapping")
    specs, hints = {spec.name: spec for spec in fields(cls)}, _hints(cls)
    check_names(f"key in {cls.__name__}", (str(key)[:MAX_NAME_LENGTH] for key in value), specs)
    missing = [name for name, spec in specs.items() if _is_required(spec) and name not in value]
    if missing:
        raise ValueError(f"missing keys in {cls.__name__}: {', '.join(missing)}")
    return cls(**{key: validate(hints[key], item, at + key) for key, item in value.items()})


_hints = functools.cache(get_type_hints)


def _describe_type(hint: Any) -> str:
    if hint is str:
        return f"text of at most {MAX_NAME_LENGTH} characters"
    return getattr(hint, "__name__", str(hint)) if not get_args(hint) else str(hint).replace("collections.abc.", "")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown[:60] + "..." * (len(shown) > 60)


def _is_number(value: Any, whole: bool = False, most: int = MAX_INT) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return False
    return abs(value) <= most and math.isfinite(value)


def _option(name: str, value: Any, where: str) -> Any:
    """Validate an option of a part; none may make the part read or write a file."""
    if name in (*WEIGHT_SOURCES, *PLACES) or not name.isidentifier() or name.startswith("_"):
        raise ValueError(f"the key {name!r} is not allowed in {where}")
    if isinstance(value, (list, tuple)) and len(value) <= MAX_OPTION_LENGTH:
        return [_option(name, item, where) for item in value]
    if isinstance(value, str) and re.fullmatch(rf"[\w-]{{,{MAX_OPTION_LENGTH}}}", value):
        return value
    if value is None or isinstance(value, bool) or _is_number(value, most=MAX_SEED if name == "seed" else MAX_INT):
        return value  # a large seed does no harm
    raise ValueError(
        f"{where}.{name} is {_short(value)}; an option is a number, a word of letters, digits, '_' and '-', or a short "
        "list of these"
    )


def _largest(value: Any) -> int:
    """Return the largest integer of an option, or 0."""
    if isinstance(value, list):
        return max(map(_largest, value), default=0)
    return value if isinstance(value, int) else 0


def _check_sizes(config: ModelConfig) -> None:
    tree = config.hierarchy
    for what, number, most in (
        ("levels", len(tree.levels), MAX_LEVELS),
        ("classes", sum(tree.num_classes.values()), MAX_CLASSES),
        ("taps", config.taps if isinstance(config.taps, int) else len(config.taps), MAX_TAPS),
        ("pixels on a side of the input", max(config.preprocessing.input_size), MAX_INPUT_SIZE),
    ):
        if number > most:
            raise ValueError(f"the configuration has {number} {what}; the limit is {most}")
    preprocessing = config.preprocessing
    if preprocessing.resize > MAX_RESIZE:
        raise ValueError(
            f"crop_pct {preprocessing.crop_pct} resizes images to {preprocessing.resize} pixels before the crop; the "
            f"limit is {MAX_RESIZE}"
        )
    for name, value in config.backbone_options.items():
        if _largest(value) > MAX_WIDTH:
            raise ValueError(f"backbone_options.{name} is {value}; the limit is {MAX_WIDTH}")
    for level, resolution in config.resolutions.items():
        if resolution is not None and not 1 <= resolution <= MAX_INPUT_SIZE:
            raise ValueError(f"the resolution of {level} is {resolution}; it must be 1 to {MAX_INPUT_SIZE} pixels")


def _is_required(spec: Field) -> bool:
    return spec.default is MISSING and spec.default_factory is MISSING
