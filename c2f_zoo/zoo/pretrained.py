"""Trained weights by name, `arch.tag`: sources, scores and downloads."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin

import torch

from c2f_zoo.io.files import atomic_write, checksum_of, is_read_only
from c2f_zoo.io.hub import download, split_revision
from c2f_zoo.io.weights import CALIBRATION_FILE, CONFIG_FILE, find_file, is_plain, weight_files
from c2f_zoo.paths import expand
from c2f_zoo.registry import Registry

BUNDLED = Path(__file__).parent / "weights"  # a folder for each name
WEIGHTS_JSON = "weights.json"


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of one level at one resolution.

    Args:
        level: the level.
        resolution: the resolution of the images in pixels; None: full size.
        own: whether it is the level's own resolution.
        accuracy: fraction of correct predictions, in [0, 1].
        images: number of images.
    """

    level: str
    resolution: int | None
    own: bool
    accuracy: float
    images: int


@dataclass(frozen=True)
class Metrics:
    """Metrics of trained weights on a dataset.

    Args:
        dataset: one of `list_datasets()`.
        dataset_options: additional keyword arguments of the dataset.
        split: the split.
        every: only every `every`-th image was scored, starting with the first.
        accuracy: the accuracy of every level at every level's resolution.
        date: the date, e.g. `"2026-11-25"`.
        device: the device that computed the scores.
        command: the command that computed the scores.
    """

    dataset: str
    dataset_options: Mapping[str, Any]
    split: str
    every: int
    accuracy: tuple[Accuracy, ...]
    date: str
    device: str
    command: str


@dataclass(frozen=True)
class PretrainedWeights:
    """Trained weights: their name, source, checksums, licence and scores.

    Args:
        name: `arch.tag`: the model's name, and a tag without a dot for how the weights were trained.
        source: `"bundled"` (in this package), `"hf-hub:OWNER/MODEL@REVISION"`, the URL of `model.safetensors`
            (`"https://..."`) with the other files beside it, or `"file:FOLDER"`.
        sha256: file -> checksum: `config.json` and `model.safetensors`, or the shards and their index, and the
            `calibration.json` if there is one.
        licence: the SPDX identifier, e.g. `"apache-2.0"`.
        input: (channels, height, width) of the network's input.
        recipe: how they were trained: a command, or the file with it.
        metrics: their scores; the first is the main one.

    Raises:
        ValueError: the name has no tag, or the source or a checksum is invalid or missing.

    Examples:
        >>> weights = PretrainedWeights(
        ...     name="mlph_vgg16_cub.mine",
        ...     source="file:/models/birds",
        ...     sha256={"config.json": "0" * 64, "model.safetensors": "1" * 64},
        ...     licence="cc-by-4.0",
        ...     input=(3, 448, 448),
        ... )
        >>> weights.arch
        'mlph_vgg16_cub'
    """

    name: str
    source: str
    sha256: Mapping[str, str]
    licence: str
    input: tuple[int, int, int]
    recipe: str = ""
    metrics: tuple[Metrics, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+\.[\w-]+", self.name):
            raise ValueError(f"invalid name of weights {self.name!r}; use 'arch.tag', e.g. 'mlph_vgg16_cub.paper'")
        if not re.match(r"bundled$|(hf-hub|file|https?):.", self.source):
            raise ValueError(
                f"invalid source {self.source!r} of {self.name}; use 'bundled', or start with hf-hub:, https: or file:"
            )
        if CONFIG_FILE not in self.sha256 or len(self.sha256) < 2:
            raise ValueError(f"{self.name} needs the checksums of {CONFIG_FILE} and of the weights, not {self.sha256}")
        for file, checksum in self.sha256.items():
            if not is_plain(file) or "/" in file or not re.fullmatch("[0-9a-f]{64}", checksum):
                raise ValueError(f"invalid sha256 {checksum!r} of {file!r} in {self.name}: not 64 hexadecimal digits")

    @property
    def arch(self) -> str:
        """The name without the tag."""
        return self.name.rpartition(".")[0]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PretrainedWeights:
        """Build weights from the result of `dataclasses.asdict`, read from JSON or not."""
        metrics = tuple(
            Metrics(**{**one, "accuracy": tuple(Accuracy(**row) for row in one["accuracy"])})
            for one in data.get("metrics", ())
        )
        return cls(**{**data, "input": tuple(data["input"]), "metrics": metrics})


WEIGHTS: Registry[PretrainedWeights] = Registry(
    "pretrained weights", "c2f_zoo.weights", fits=lambda entry: isinstance(entry, PretrainedWeights)
)
_DEFAULTS: dict[str, str] = {}  # the default tag of each arch


def register_weights(weights: PretrainedWeights, *, override: bool = False) -> PretrainedWeights:
    """Register trained weights; the first of a model are its default.

    Args:
        weights: the weights.
        override: replace weights of the same name. Default: a duplicate is an error.

    Raises:
        ValueError: the name is registered and `override` is false.
    """
    _DEFAULTS.setdefault(weights.arch, weights.name.rpartition(".")[2])  # before subscribers of the registry read it
    return WEIGHTS.register(weights.name, override=override)(weights)


def tags_of(arch: str) -> list[str]:
    """Return the tags of a model's trained weights, sorted."""
    return [tag for name, _, tag in (name.rpartition(".") for name in WEIGHTS.names()) if name == arch]


def default_tag(arch: str) -> str:
    """Return the default tag: the first registered, or the plug-ins' first by name."""
    return _DEFAULTS.get(arch) or tags_of(arch)[0]


def fetch(weights: PretrainedWeights) -> Path:
    """Return a folder with the files of weights, after checking their checksums.

    Downloads are cached in `torch.hub.get_dir()`, and from the Hub in huggingface_hub's cache.

    Raises:
        FileNotFoundError: a file is missing, on disk or at the source.
        PermissionError: the cache cannot be written.
        ValueError: a checksum differs from the registered one (the message names both), or a file has none.
        ConnectionError: the server cannot be reached, or the download was interrupted.
    """
    kind, _, place = weights.source.partition(":")
    if kind in ("http", "https"):
        return _fetch_url(weights)
    if kind == "hf-hub":
        folder = download(*split_revision(place))
    else:
        folder = BUNDLED / weights.name if kind == "bundled" else expand(place)
    for file, checksum in weights.sha256.items():
        if not (folder / file).is_file():
            raise FileNotFoundError(f"missing file of {weights.name}: {folder / file}")
        found = checksum_of(folder / file)
        if found != checksum:
            raise ValueError(f"{folder / file} has the checksum {found}; {weights.name} expects {checksum}")
    return _only_registered(weights, folder)


def renew_checksum(folder: Path, file: str) -> None:
    """Write the checksum of a file of a bundled model to its `weights.json`; other folders have none.

    Args:
        folder: the model's folder.
        file: the name of the file, which has changed.
    """
    record = folder / WEIGHTS_JSON
    if record.is_file():
        about = json.loads(record.read_text(encoding="utf-8"))
        about["sha256"][file] = checksum_of(folder / file)
        text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
        atomic_write(record, lambda part: part.write_text(text, encoding="utf-8"))


def _only_registered(weights: PretrainedWeights, folder: Path) -> Path:
    """Check that only files with a registered checksum are loaded."""
    used = {find_file(folder, CONFIG_FILE), *weight_files(folder)}
    used.update(path for path in [find_file(folder, CALIBRATION_FILE)] if path.is_file())
    other = sorted(str(path) for path in used if path.parent != folder or path.name not in weights.sha256)
    if other:
        raise ValueError(f"{weights.name} would load files without a registered checksum: {', '.join(other)}")
    return folder


def _fetch_url(weights: PretrainedWeights) -> Path:
    version = hashlib.sha256("".join(weights.sha256.values()).encode()).hexdigest()[:8]
    folder = Path(torch.hub.get_dir(), "checkpoints", f"{weights.name}-{version}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, checksum in weights.sha256.items():
            if not (folder / file).is_file() or checksum_of(folder / file) != checksum:
                _download(urljoin(weights.source, file), folder / file, checksum, weights.name)
    except OSError as error:
        if not is_read_only(error):
            raise
        raise PermissionError(
            f"{weights.name}: the cache cannot be written ({error}); set TORCH_HOME to choose another"
        ) from error
    return _only_registered(weights, folder)


def _download(url: str, path: Path, checksum: str, name: str) -> None:
    """Download a weights file to `path`, atomically and with its checksum."""
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=checksum, progress=sys.stderr.isatty())
    except HTTPError as error:
        kind = FileNotFoundError if error.code in (404, 410) else ConnectionError
        raise kind(f"{name}: {url} failed with {error.code} ({error.reason})") from error
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise ConnectionError(f"{name}: the download of {url} failed ({error}); try again later") from error
    except RuntimeError as error:  # it names both checksums
        raise ValueError(f"{name}: the download of {url} is incomplete or another file: {error}") from error


for _path in sorted(BUNDLED.glob(f"*/{WEIGHTS_JSON}")):
    register_weights(PretrainedWeights.from_dict(json.loads(_path.read_text(encoding="utf-8"))))
