"""Weights in safetensors files: replaced all at once or not at all, and read with distrust."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"

MAX_INDEX_BYTES = 64 * 2**20
# A network is built whole before what no tap needs is removed: VGG-16 has nine times the weights that are kept of it.
FACTOR, SLACK_NUMBERS = 32, 2**28
# The same in tensors; timm's deepest networks have 2000.
TENSOR_FACTOR, SLACK_TENSORS = 10, 4000

_NEW, _SAVED = ".saving", ".saved"  # folders: files that are being written; files that count, on their way out of it


@contextmanager
def atomic_save(directory: Path) -> Iterator[Path]:
    """A folder to write a model's files into, which then replace those in `directory`, all of them or none.

    A kill at any time leaves a folder from which `find_file` and `weight_files` find the old model or the new one.
    Two processes must not save into one folder at the same time.

    Examples:
        >>> with atomic_save(Path("model")) as new:
        ...     _ = (new / "config.json").write_text("{}")
        ...     write_weights(new, {"a": torch.zeros(2)}, "5GB")
        >>> sorted(path.name for path in Path("model").iterdir())
        ['config.json', 'model.safetensors']
    """
    directory.mkdir(parents=True, exist_ok=True)
    _finish_interrupted_save(directory)
    shutil.rmtree(directory / _NEW, ignore_errors=True)
    (directory / _NEW).mkdir()
    try:
        yield directory / _NEW
    except BaseException:
        shutil.rmtree(directory / _NEW, ignore_errors=True)
        raise
    os.rename(directory / _NEW, directory / _SAVED)  # from here on the new files count
    _finish_interrupted_save(directory)


def _finish_interrupted_save(directory: Path) -> None:
    """Moves the files that count to their places, where a save was killed before it had done so."""
    saved = directory / _SAVED
    if not saved.is_dir():
        return
    entry = _entry(saved)
    if entry is not None:
        kept = {entry.name, *(_read_index(entry).values() if entry.name == INDEX_FILE else ())}
        for path in (directory / WEIGHTS_FILE, directory / INDEX_FILE, *directory.glob(SHARDS)):
            if path.name not in kept:
                path.unlink(missing_ok=True)
        # What names the weights goes last: until then it says here which of the files beside it are new.
        for path in sorted(saved.iterdir(), key=lambda path: path == entry):
            os.replace(path, directory / path.name)
    saved.rmdir()


def find_file(directory: Path, name: str) -> Path:
    """The path of a saved model's file, there or not."""
    saved = directory / _SAVED / name
    return saved if saved.is_file() else directory / name


def _entry(folder: Path) -> Path | None:
    """The file that is, or names, a model's weights."""
    for name in (WEIGHTS_FILE, INDEX_FILE):
        if (folder / name).is_file():
            return folder / name
    return None


def write_weights(folder: Path, weights: Mapping[str, Tensor], max_shard_size: int | str) -> None:
    """Writes `model.safetensors`, or shards and an index where that would be larger than `max_shard_size`.

    Args:
        folder: where to.
        weights: name -> tensor, on any device.
        max_shard_size: size of a file at most, in bytes or as `"5GB"`; a larger tensor has a file of its own.
    """
    split = split_torch_state_dict_into_shards(dict(weights), max_shard_size=max_shard_size)
    for file, names in split.filename_to_tensors.items():
        shard = {name: weights[name].contiguous().cpu() for name in names}
        # Not save_file: it makes a file that only its owner can read.
        (folder / file).write_bytes(save(shard, metadata={"format": "pt"}))
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a saved model's weights: one, or the shards that its index names.

    Raises:
        FileNotFoundError: there are none, or a shard is missing.
        ValueError: the index is none, or names a file that is not beside it.
    """
    entry = _entry(directory / _SAVED) or _entry(directory)
    if entry is None:
        raise FileNotFoundError(f"{directory} holds no {WEIGHTS_FILE}; name a folder that save_pretrained wrote")
    if entry.name == WEIGHTS_FILE:
        return [entry]
    files = [find_file(directory, name) for name in dict.fromkeys(_read_index(entry).values())]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{directory} lacks {file.name}, which its {INDEX_FILE} names")
    return files


def _read_index(path: Path) -> dict[str, str]:
    """Which file holds a weight, from an index."""
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_INDEX_BYTES} bytes; it is no index of weights")
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        plain = isinstance(files, dict) and all(isinstance(file, str) for file in files.values())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no index of weights: {error}") from error
    if not plain or not files:
        raise ValueError(f"{path} is no index of weights: its weight_map is not one of names to files")
    for file in files.values():
        if not is_plain(file) or "/" in file or not Path(file).match(SHARDS):
            raise ValueError(f"{path} names the file {file!r}; shards lie beside it and are called {SHARDS}")
    return files


def is_plain(name: str) -> bool:
    """Whether a name from outside is one of a file in a folder, or below it, on any system."""
    parts = name.split("/")
    return "\\" not in name and ":" not in name and all(part not in ("", ".", "..") for part in parts)


def read_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in safetensors files; only their headers are read.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not a whole safetensors file, or a name is in two of them.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"there is no weights file {path}")
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
        for name in found:
            if name in shapes:
                raise ValueError(f"{path} holds {name}, as another shard does")
        shapes |= found
    return shapes


def load_weights(module: nn.Module, files: Sequence[Path], partly: bool = False) -> None:
    """Loads safetensors files, cast to the module's dtypes; together they must hold every weight of the module.

    Names, shapes and kinds of numbers are compared before a weight is changed.

    Args:
        module: what to load into.
        files: one file, or the shards of one.
        partly: let the files hold more than the module has (a backbone without its last layers).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not a whole safetensors file, or they do not fit the module; the message names what.
    """
    shapes, own = read_shapes(files), module.state_dict()
    where = files[0] if len(files) == 1 else f"{files[0].parent} ({len(files)} shards)"
    missing = [name for name in own if name not in shapes and not name.endswith("num_batches_tracked")]
    extra = [] if partly else [name for name in shapes if name not in own]
    differing = [
        f"{name} {shapes[name]} for {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in shapes and shapes[name] != tuple(tensor.shape)
    ]
    for fault, names in (("lacks", missing), ("has too much:", extra), ("has other shapes:", differing)):
        _refuse(module, where, fault, names)
    weights = {name: tensor for file in files for name, tensor in load_file(file).items() if name in own}
    mistyped = [
        f"{name} {tensor.dtype} for {own[name].dtype}"
        for name, tensor in weights.items()
        if tensor.dtype != own[name].dtype and not (tensor.is_floating_point() and own[name].is_floating_point())
    ]
    _refuse(module, where, "has other kinds of numbers:", mistyped)
    module.load_state_dict(weights, strict=False)


def _refuse(module: nn.Module, where: object, fault: str, names: Sequence[str]) -> None:
    if names:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise ValueError(f"{where} does not fit the {type(module).__name__}: it {fault} {shown}")


class TooLargeError(ValueError):
    """A network is far larger than the weights there are for it."""


@contextmanager
def no_larger_than(numbers: int, tensors: int) -> Iterator[None]:
    """Stops the making of a network that is far larger than the weights there are for it.

    Each tensor is counted when a module takes it, before it is filled: what was never filled takes no memory. Tensors
    that no module takes must be no larger than the whole network may be. Numbers of 8 bytes count twice. Under
    `torch.device("meta")`, where nothing takes memory, tensors of the meta device count; elsewhere they do not.

    Args:
        numbers: how many numbers the files hold.
        tensors: in how many tensors.

    Raises:
        TooLargeError: the network has more than some times as many numbers or tensors (its unused layers count), or
            makes a tensor of that many numbers.

    Examples:
        >>> with no_larger_than(1000, 2):
        ...     small = torch.nn.Linear(30, 30)
        >>> with torch.device("meta"), no_larger_than(1000, 2):
        ...     large = torch.ones(2**20).outer(torch.ones(2**20))
        Traceback (most recent call last):
        TooLargeError: the configuration asks for a network of more than 268467456 numbers, ...
    """
    budget, most = FACTOR * numbers + SLACK_NUMBERS, TENSOR_FACTOR * tensors + SLACK_TENSORS
    taken = count = 0

    def refuse(size: str, there: int) -> None:
        raise TooLargeError(
            f"the configuration asks for a network of more than {size}, but there are weights of {there}"
        )

    def check(size: int) -> None:
        if size > budget:
            refuse(f"{budget} numbers", numbers)

    def register(module: nn.Module, name: str, tensor: Any) -> None:
        nonlocal taken, count
        taken, count = taken + (_size(tensor) if isinstance(tensor, Tensor) else 0), count + 1
        check(taken)
        if count > most:
            refuse(f"{most} tensors", tensors)

    with ExitStack() as stack:
        for hook in (
            torch_module.register_module_parameter_registration_hook,
            torch_module.register_module_buffer_registration_hook,
        ):
            stack.callback(hook(register).remove)
        stack.enter_context(_Watch(check))
        yield


class _Watch(TorchDispatchMode):
    """Tells the size of each tensor that is made on the default device."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        super().__init__()
        self.tell = tell
        self.kind = torch.get_default_device().type  # not asked below, where torch.device("meta") is out of sight

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor) and tensor.device.type == self.kind:
                self.tell(_size(tensor))
        return made


def _size(tensor: Tensor) -> int:
    """How many float32 take as much memory."""
    return tensor.numel() * tensor.element_size() // 4
