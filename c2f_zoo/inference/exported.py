"""What an exported file says about its model: the metadata that a predictor needs beside the network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from c2f_zoo.config import MAX_CONFIG_BYTES, ModelConfig, validate
from c2f_zoo.inference.calibration import Calibration
from c2f_zoo.registry import check_names

METADATA_KEY = "c2f_zoo"  # of ONNX's metadata_props
EXTRA_FILE = "c2f_zoo.json"  # of torch.export's extra_files
FORMAT = 1
DTYPES = ("float32", "float16", "int8")


@dataclass(frozen=True)
class View:
    """A forward pass of an exported network: a resolution, and the levels that are predicted at it.

    Args:
        input: the name of the network's input.
        resolution: the resolution in pixels to which the image is shrunk; None for full size.
        levels: the levels, which are the names of the outputs.
    """

    input: str
    resolution: int | None
    levels: tuple[str, ...]


@dataclass(frozen=True)
class ExportedModel:
    """The metadata of an exported file.

    Args:
        config: the model's configuration, with the exported levels.
        views: the forward passes that predict all levels. Passes with the same input run the network one by one;
            inputs of several names (`batch_norm="per_level"`) are passed together.
        levels_are_marginals: see `Head`.
        calibration: the model's calibration; None if it has none, or if it needs levels that are not exported.
        dtype: the type in which the network computes, one of `DTYPES`; inputs and outputs are float32.
        version: the version of c2f_zoo that exported the file.

    Raises:
        ValueError: the views do not predict each level once, or `dtype` is unknown.
    """

    config: ModelConfig
    views: tuple[View, ...]
    levels_are_marginals: bool
    calibration: Calibration | None
    dtype: str
    version: str

    def __post_init__(self) -> None:
        check_names("dtype", [self.dtype], DTYPES)
        predicted = [level for view in self.views for level in view.levels]
        if sorted(predicted) != sorted(self.config.levels):
            raise ValueError(f"the views predict the levels {predicted}, expected {list(self.config.levels)}")

    @property
    def inputs(self) -> dict[str, tuple[str, ...]]:
        """The names of the network's inputs, each with the levels that it predicts, coarse to fine."""
        predicted: dict[str, set[str]] = {view.input: set() for view in self.views}
        for view in self.views:
            predicted[view.input].update(view.levels)
        return {
            name: tuple(level for level in self.config.levels if level in levels) for name, levels in predicted.items()
        }

    def to_json(self) -> str:
        """Return the text of the metadata."""
        data = {
            "format": FORMAT,
            "version": self.version,
            "dtype": self.dtype,
            "levels_are_marginals": self.levels_are_marginals,
            "views": [asdict(view) for view in self.views],
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "config": self.config.to_dict(),
        }
        return json.dumps(data, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, name: str) -> ExportedModel:
        """Read the text of `to_json`. It may be untrusted: every value is validated.

        Args:
            text: the text.
            name: the file's name, for messages.

        Raises:
            ValueError: it is no such text; the message names the value.
        """
        if len(text) > MAX_CONFIG_BYTES:
            raise ValueError(f"{name}: the metadata are larger than the limit of {MAX_CONFIG_BYTES} bytes")
        try:
            return cls._from_data(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}: invalid metadata: {error}; export the model again") from error

    @classmethod
    def _from_data(cls, data: Any) -> ExportedModel:
        keys = {"format", "version", "dtype", "levels_are_marginals", "views", "calibration", "config"}
        if not isinstance(data, Mapping) or not keys <= data.keys():
            raise ValueError(f"expected an object with the keys {', '.join(sorted(keys))}")
        if data["format"] != FORMAT:
            raise ValueError(f"the format is {data['format']!r}; this c2f_zoo reads {FORMAT}")
        if not isinstance(data["levels_are_marginals"], bool):
            raise ValueError(f"levels_are_marginals is {data['levels_are_marginals']!r}, expected true or false")
        calibration = data["calibration"]
        config = ModelConfig.from_dict(data["config"])
        if calibration is not None:
            calibration = Calibration.from_dict(calibration)
            calibration.check_levels(config.levels)
        return cls(
            config=config,
            views=validate(tuple[View, ...], data["views"], "views"),
            levels_are_marginals=data["levels_are_marginals"],
            calibration=calibration,
            dtype=validate(str, data["dtype"], "dtype"),
            version=validate(str, data["version"], "version"),
        )


def select_views(
    levels_at: Mapping[int | None, Sequence[str]], levels: Sequence[str], one_input: bool
) -> tuple[View, ...]:
    """Return the forward passes that predict some levels.

    Args:
        levels_at: resolution -> the levels that the model predicts at it.
        levels: the levels to export.
        one_input: whether one input serves all resolutions.

    Examples:
        >>> views = select_views({20: ["family"], None: ["genus", "species"]}, ["family", "species"], one_input=False)
        >>> [(view.input, view.levels) for view in views]
        [('images_20', ('family',)), ('images', ('species',))]
    """
    views = []
    for resolution, of in levels_at.items():
        chosen = tuple(level for level in of if level in levels)
        name = "images" if one_input or resolution is None else f"images_{resolution}"
        views += [View(name, resolution, chosen)] if chosen else []
    return tuple(views)
