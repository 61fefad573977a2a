"""What a model is made of, as frozen dataclasses that survive a round trip through JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any

from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.registry import unknown_name


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the network's input.

    The shorter side is resized to `resize` pixels, then `input_size` is cropped from it. The default is
    the paper's (and HBP's): shorter side 512, crop 448.

    Args:
        input_size: (channels, height, width) of the input.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, likewise.
        interpolation: `"nearest"`, `"bilinear"`, `"bicubic"` or `"lanczos"`.
        crop_pct: the crop's height as a share of the shorter side, in (0, 1].
    """

    input_size: tuple[int, int, int] = (3, 448, 448)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    crop_pct: float = 0.875

    @property
    def resize(self) -> int:
        """Length in pixels of the shorter side before the crop."""
        return round(min(self.input_size[1:]) / self.crop_pct)


@dataclass(frozen=True)
class ModelConfig:
    """Everything that `C2FModel` needs to be built again, but for its weights.

    Args:
        backbone: a timm model name, or one from `register_backbone`.
        taps: names of the backbone's modules whose outputs are pooled.
        pooling: one of `list_poolings()`.
        head: one of `list_heads()`.
        hierarchy: the class tree.
        levels: the levels that the head answers, coarse to fine.
        preprocessing: how a picture becomes the network's input.
        resolutions: for each level the length in pixels of the shorter side at which it is meant to be
            seen; a level that is missing, or None, sees the picture as it is.
        backbone_options: further keyword arguments of the backbone's constructor.
        pooling_options: further keyword arguments of the pooling's constructor.
        head_options: further keyword arguments of the head's constructor.
    """

    backbone: str
    taps: tuple[str, ...]
    pooling: str
    head: str
    hierarchy: Hierarchy
    levels: tuple[str, ...]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    resolutions: Mapping[str, int | None] = field(default_factory=dict)
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    pooling_options: Mapping[str, Any] = field(default_factory=dict)
    head_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for level in (*self.levels, *self.resolutions):
            if level not in self.hierarchy.levels:
                raise unknown_name("level", level, self.hierarchy.levels)
        if not self.levels:
            raise ValueError(f"levels is empty; name one or more of {self.hierarchy.levels}")

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON-able values; `from_dict` reads it back."""
        return _jsonable(asdict(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Rebuilds what `to_dict` wrote.

        Raises:
            ValueError: a key is missing, or unknown (the message names the closest one).
        """
        values = _checked(cls, data)
        values["hierarchy"] = Hierarchy.from_dict(values["hierarchy"])
        if "preprocessing" in values:
            preprocessing = _checked(Preprocessing, values["preprocessing"])
            values["preprocessing"] = Preprocessing(**preprocessing)
        return cls(**values)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value


def _checked(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """A dataclass's keyword arguments from JSON: known keys only, lists as tuples."""
    known = [spec.name for spec in fields(cls)]
    for key in data:
        if key not in known:
            raise unknown_name(f"key in {cls.__name__}", key, known)
    missing = [spec.name for spec in fields(cls) if _is_required(spec) and spec.name not in data]
    if missing:
        raise ValueError(f"{cls.__name__} lacks the keys {missing}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def _is_required(spec: Field) -> bool:
    return spec.default is MISSING and spec.default_factory is MISSING
