"""Weights in safetensors files: atomic saves, validated loads."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from c2f_zoo.io.files import fsync_file, fsync_folder
from c2f_zoo.io.meta_build import allocate

CONFIG_FILE = "config.json"
CALIBRATION_FILE = "calibration.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"

MAX_INDEX_BYTES = 64 * 2**20
MAX_CALIBRATION_BYTES = 2**20

AnyShape: TypeAlias = dict[str, tuple[int, ...] | None]  # weight name -> its shape; None: any

_MAX_SHOWN = 10
_NEW, _SAVED = ".saving", ".saved"  # folders of an unfinished save, and of a finished save before its files are moved


@contextmanager
def atomic_save(directory: Path) -> Iterator[Path]:
    """Save a model's files atomically.

    Write the files to the folder that it yields; at the end they replace those in `directory`, all or none. After a
    kill at any time, `find_file` and `weight_files` find the old model or the new one. Two processes must not save into
    one folder at the same time.

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
    for path in (directory / _NEW).iterdir():
        fsync_file(path)
    fsync_folder(directory / _NEW)
    os.rename(directory / _NEW, directory / _SAVED)  # from here on the new files are the model
    fsync_folder(directory)
    _finish_interrupted_save(directory)


def _finish_interrupted_save(directory: Path) -> None:
    """Finish a save that was killed before its files were moved to their places."""
    saved = directory / _SAVED
    if not saved.is_dir():
        return
    entry = _entry(saved)
    if entry is not None:
        kept = {entry.name, *(_read_index(entry).values() if entry.name == INDEX_FILE else ())}
        old = (WEIGHTS_FILE, INDEX_FILE, CALIBRATION_FILE)
        for path in (*(directory / name for name in old), *directory.glob(SHARDS)):
            if path.name not in kept:
                path.unlink(missing_ok=True)
        # The entry moves last: until then it marks the files beside it as new.
        for path in sorted(saved.iterdir(), key=lambda path: path == entry):
            if path == entry:
                fsync_folder(directory)
            os.replace(path, directory / path.name)
    saved.rmdir()
    fsync_folder(directory)


def find_file(directory: Path, name: str) -> Path:
    """Return the path of a saved model's file; it may not exist."""
    saved = directory / _SAVED / name
    return saved if saved.is_file() else directory / name


def _entry(folder: Path) -> Path | None:
    """Return the file of a model's weights, or their index; None if there is neither."""
    for name in (WEIGHTS_FILE, INDEX_FILE):
        if (folder / name).is_file():
            return folder / name
    return None


def write_weights(folder: Path, weights: Mapping[str, Tensor], max_shard_size: int | str) -> None:
    """Write `model.safetensors`, or shards of at most `max_shard_size` with an index.

    Args:
        folder: the folder to write to.
        weights: name -> tensor, on any device.
        max_shard_size: largest size of a file, in bytes or as `"5GB"`; a larger tensor has a file of its own.

    Raises:
        ValueError: weights share memory.
    """
    split = split_torch_state_dict_into_shards(dict(weights), max_shard_size=max_shard_size)
    for file, names in split.filename_to_tensors.items():
        shard = {name: weights[name].contiguous().cpu() for name in names}
        # save_file would create a file that only its owner can read.
        try:
            (folder / file).write_bytes(save(shard, metadata={"format": "pt"}))
        except RuntimeError as error:
            raise ValueError(_explain_unsaved(shard, error)) from error
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _explain_unsaved(weights: Mapping[str, Tensor], error: RuntimeError) -> str:
    """Return the message for weights that safetensors does not save."""
    sharing: dict[int, list[str]] = {}
    for name, tensor in weights.items():
        sharing.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    tied = " and ".join(next((names for names in sharing.values() if len(names) > 1), []))
    if not tied:
        return f"the weights cannot be saved: {error}"
    return (
        f"the weights {tied} share memory and cannot be saved; keep one of them in the module, or give each its own "
        "values with clone()"
    )


def weight_files(directory: Path) -> list[Path]:
    """Return the weights files of a saved model: one file, or all shards.

    Raises:
        FileNotFoundError: there are no weights, or a shard is missing.
        ValueError: the index is invalid, or names a file outside its folder.
    """
    entry = _entry(directory / _SAVED) or _entry(directory)
    if entry is None:
        raise FileNotFoundError(f"{directory} has no {WEIGHTS_FILE}; pass a folder written by save_pretrained")
    if entry.name == WEIGHTS_FILE:
        return [entry]
    files = [find_file(directory, name) for name in dict.fromkeys(_read_index(entry).values())]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"missing shard {file.name} of {INDEX_FILE} in {directory}")
    return files


def _read_index(path: Path) -> dict[str, str]:
    """Read an index: weight name -> file name."""
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise ValueError(f"{path} is larger than the limit of {MAX_INDEX_BYTES} bytes")
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        plain = isinstance(files, dict) and all(isinstance(file, str) for file in files.values())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not an index of weights: {error}") from error
    if not plain or not files:
        raise ValueError(f"{path} is not an index of weights: weight_map must map weight names to files")
    for file in files.values():
        if not is_plain(file) or "/" in file or not Path(file).match(SHARDS):
            raise ValueError(f"invalid shard name {file!r} in {path}; a shard is a file {SHARDS} in the same folder")
    return files


def digest_weights(weights: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of weights rounded to half precision, which a model saved in half precision keeps.

    Args:
        weights: name -> tensor, on any device.

    Examples:
        >>> weight = torch.tensor([0.1])
        >>> digest_weights({"a": weight}) == digest_weights({"a": weight.half()})
        True
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu()
        tensor = tensor.half() if tensor.is_floating_point() else tensor
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_calibration(directory: Path) -> dict[str, Any] | None:
    """Read the calibration of a saved model; None if it has none.

    Raises:
        ValueError: the file is larger than 1 MiB or not a JSON object.
    """
    path = find_file(directory, CALIBRATION_FILE)
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_CALIBRATION_BYTES:
        raise ValueError(f"{path} is larger than the limit of {MAX_CALIBRATION_BYTES} bytes")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}; calibrate the model again, or delete it") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} is not a JSON object; calibrate the model again, or delete it")
    return data


def is_plain(name: str) -> bool:
    """Return whether an untrusted file name stays inside its folder, on any system."""
    parts = name.split("/")
    return "\\" not in name and ":" not in name and all(part not in ("", ".", "..") for part in parts)


def read_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Read names and shapes of weights from the headers of safetensors files.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not a complete safetensors file, or a name is in two of them.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"the weights file {path} does not exist")
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            if not _is_pickled(path):
                raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
            raise ValueError(_explain_pickled(path)) from error
        for name in found:
            if name in shapes:
                raise ValueError(f"the weight {name} of {path} is in another shard too")
        shapes |= found
    return shapes


def _is_pickled(path: Path) -> bool:
    """Return whether a file looks like one of `torch.save`: a zip archive or a pickle."""
    with path.open("rb") as file:
        head = file.read(8)
    # The size of a safetensors header, in the first 8 bytes, is far below 2 ** 32.
    return head.startswith((b"PK\x03\x04", b"\x80")) and head[4:] != bytes(4)


def _explain_pickled(path: Path) -> str:
    """Return the message for a file of `torch.save`, with the command that converts it."""
    named = path.with_suffix(".pth") if path.suffix == ".safetensors" else path  # timm reads it by its extension
    rename = f"rename it to {named}, and " if named != path else ""
    return (
        f"{path} is a file of torch.save, which may contain code and is not read; {rename}convert it once: from "
        "timm.models import load_state_dict; from safetensors.torch import save_file; save_file({k: v.clone() "
        f"for k, v in load_state_dict({str(named)!r}, weights_only=True).items()}}, "
        f"{str(path.with_suffix('.safetensors'))!r})"
    )


def load_weights(module: nn.Module, files: Sequence[Path], others: AnyShape | None = None) -> None:
    """Load safetensors files into a module, cast to its dtypes.

    Names, shapes and dtypes are compared before a weight is changed; all weights must be present. Weights on the meta
    device are allocated on the CPU.

    Args:
        module: the module to load into.
        files: one file, or the shards of one.
        others: names of weights that the module lacks and the files may have -> their shapes, or None for any.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not a complete safetensors file, or the weights do not fit the module; the message lists
            missing keys, unexpected keys, shape mismatches, incompatible dtypes, and values that are not finite, and
            names a prefix of all names.
    """
    shapes, own = read_shapes(files), module.state_dict(keep_vars=True)
    expected: AnyShape = {**(others or {}), **{name: tuple(tensor.shape) for name, tensor in own.items()}}
    faults = {
        "missing keys": [name for name in own if name not in shapes and not name.endswith("num_batches_tracked")],
        "unexpected keys": [name for name in shapes if name not in expected],
        "shape mismatch": [
            f"{name} {shape}, expected {expected[name]}"
            for name, shape in shapes.items()
            if expected.get(name) not in (None, shape)
        ],
    }
    prefix = _find_prefix(faults["missing keys"], shapes)
    if prefix:
        keep = f"{{k.removeprefix({prefix!r}): v for k, v in load_file(OLD).items() if k.startswith({prefix!r})}}"
        raise ValueError(
            f"the weights in {files[0]} have the prefix {prefix!r}, which the {type(module).__name__} does not; remove "
            f"it: from safetensors.torch import load_file, save_file; save_file({keep}, NEW)"
        )
    _refuse(module, files, faults)
    weights = {name: tensor for file in files for name, tensor in load_file(file).items() if name in own}
    incompatible = [
        f"{name} {tensor.dtype}, expected {own[name].dtype}"
        for name, tensor in weights.items()
        if tensor.dtype != own[name].dtype and not (tensor.is_floating_point() and own[name].is_floating_point())
    ]
    _refuse(module, files, {"incompatible dtypes": incompatible})
    weights = {name: tensor.to(own[name].dtype) for name, tensor in weights.items()}
    _refuse(module, files, {"values that are not finite": find_not_finite(weights)})
    allocate(module, weights)
    module.load_state_dict(weights, strict=False)


def find_not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the weights with values that are infinite or not a number."""
    return [name for name, x in weights.items() if x.is_floating_point() and not x.isfinite().all()]


def _refuse(module: nn.Module, files: Sequence[Path], faults: Mapping[str, Sequence[str]]) -> None:
    """Raise a ValueError that lists the faults of files, if there are any."""
    listed = [
        f"{fault}: {', '.join(names[:_MAX_SHOWN])}" + f", ... ({len(names)} in all)" * (len(names) > _MAX_SHOWN)
        for fault, names in faults.items()
        if names
    ]
    if listed:
        where = files[0] if len(files) == 1 else f"{files[0].parent} ({len(files)} shards)"
        raise ValueError(f"{where} does not fit the {type(module).__name__}: {'; '.join(listed)}")


def _find_prefix(missing: Sequence[str], present: Collection[str]) -> str:
    """Return a prefix, e.g. `"module."`, with which all missing weights are present; or an empty text."""
    for name in present if missing else ():
        prefix = name.removesuffix(missing[0])
        if prefix != name and all(prefix + key in present for key in missing):
            return prefix
    return ""
