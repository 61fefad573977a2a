"""Untrusted configurations and weights are rejected, and an interrupted save keeps a whole model."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import SMALL
from safetensors.torch import load_file, save, save_file
from torch import Tensor

import c2f_zoo.integrations.timm  # noqa: F401  # registers our models with timm
from c2f_zoo import C2FModel, Hierarchy, create_model
from c2f_zoo.backbones import BACKBONES
from c2f_zoo.config import WEIGHT_SOURCES, ModelConfig
from c2f_zoo.io.weights import atomic_save, find_file, load_weights, weight_files, write_weights
from c2f_zoo.model import build

# Audit events while a model is loaded. An audit hook cannot be removed, so it records only while this is a list.
EVENTS: list[tuple[str, Any]] | None = None


def record_event(event: str, args: Any) -> None:
    if EVENTS is not None and not isinstance(args, dict):
        EVENTS.append((event, args))


sys.addaudithook(record_event)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the small model, in one file and in shards."""
    folder = tmp_path_factory.mktemp("originals")
    model = create_model("mlph", hierarchy="cub", **SMALL)  # type: ignore[arg-type]
    model.save_pretrained(folder / "saved")
    model.save_pretrained(folder / "sharded", max_shard_size=100_000)
    return folder


@pytest.fixture
def saved(originals: Path, tmp_path: Path) -> Path:
    return shutil.copytree(originals / "saved", tmp_path / "saved")


@pytest.fixture
def sharded(originals: Path, tmp_path: Path) -> Path:
    return shutil.copytree(originals / "sharded", tmp_path / "sharded")


def change(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        if key in ("preprocessing", "hierarchy") and isinstance(value, dict):
            config[key] |= value
        else:
            config[key] = value
    (folder / "config.json").write_text(json.dumps(config))


BAD = {
    "a number for a name": ({"backbone": 5}, "backbone is 5, expected text"),
    "text for a list": ({"taps": "stages.0"}, "taps is 'stages.0', expected tuple"),
    "a list for text": ({"pooling": ["mlp"]}, r"pooling is \['mlp'\], expected text"),
    "true for a number": ({"preprocessing": {"crop_pct": True}}, "preprocessing.crop_pct is True, expected float"),
    "no number": ({"preprocessing": {"mean": [float("nan")] * 3}}, r"preprocessing.mean\[0\] is nan, expected fl"),
    "two sides": ({"preprocessing": {"input_size": [3, 64]}}, r"input_size is \[3, 64\], expected tuple\[int, int"),
    "a large input": ({"preprocessing": {"input_size": [3, 64, 10**6]}}, "has 1000000 pixels on a side"),
    "no input": ({"preprocessing": {"input_size": [3, 0, 64]}}, r"invalid input_size \(3, 0, 64\) or crop_pct"),
    "a small crop": ({"preprocessing": {"crop_pct": 0.002}}, "crop_pct 0.002 resizes images to 32000 pixels before"),
    "a crop of no pixel": ({"preprocessing": {"crop_pct": 1e-320}}, "invalid input_size .* or crop_pct 1e-320"),
    "a device": ({"backbone_options": {"device": "meta"}}, "the key 'device' is not allowed in backbone_options"),
    "a dtype": ({"pooling_options": {"dtype": "float16"}}, "the key 'dtype' is not allowed in pooling_options"),
    "no deviation": ({"preprocessing": {"std": [1, 1, 0]}}, r"std \(1, 1, 0\) must be in \[0.001, 10\]"),
    "a deviation that overflows": ({"preprocessing": {"std": [1, 1, 1e-40]}}, r"must be in \[0.001, 10\], for pixels"),
    "a mean of 8-bit values": ({"preprocessing": {"mean": [127.5] * 3}}, r"must be in \[-10, 10\], for pixels in \[0"),
    "two means": ({"preprocessing": {"mean": [0.5, 0.5]}}, "need a number for each of 3 channels"),
    "an unknown filter": ({"preprocessing": {"interpolation": "magic"}}, "unknown interpolation 'magic'"),
    "no list": ({"preprocessing": []}, "preprocessing is of type list, expected a mapping"),
    "a number for a class": (
        {"hierarchy": {"classes": [[1], ["a"], ["b"]]}},
        r"hierarchy.classes\[0\]\[0\] is 1, expected text",
    ),
    "a parent that is none": ({"hierarchy": {"parents": [[0] * 113, [-1] * 200]}}, "is an orphan: its parent -1"),
    "a long name": ({"hierarchy": {"version": "x" * 501}}, "hierarchy.version is 'xxx.*expected text of at most 500"),
    "an unknown level": ({"levels": ["specie"]}, "unknown level 'specie'; did you mean 'species'"),
    "a resolution in words": ({"resolutions": {"species": "64"}}, "resolutions.species is '64', expected int"),
    "a resolution below 1": ({"resolutions": {"species": 0}}, "resolution of species is 0; it must be 1 to"),
    "a path": ({"pooling_options": {"dim": "/etc/passwd"}}, "pooling_options.dim is '/etc/passwd'; an option is"),
    "an address": ({"backbone_options": {"x": ["http://a.b"]}}, r"backbone_options.x is 'http://a.b'; an option is"),
    "a mapping": ({"head_options": {"dim": {"a": 1}}}, r"head_options.dim is {'a': 1}; an option is a number"),
    "our model behind timm's name": ({"backbone": "resnet18.x/mlph_resnet50_cub"}, "unknown backbone 'resnet18.x/ml"),
    "a huge number": ({"pooling_options": {"dim": 2**40}}, "pooling_options.dim is 1099511627776; an option is"),
    "a hidden name": ({"pooling_options": {"__class__": 1}}, "the key '__class__' is not allowed in pooling_options"),
    "a huge network": ({"backbone_options": {"depths": [10**6]}}, r"depths is \[1000000\]; the limit is 4096"),
    "an unknown option": (
        {"pooling_options": {"dims": 8}},
        "unknown option of pooling 'mlp': 'dims'; did you mean 'di",
    ),
    "an odd option": ({"backbone_options": {"depths": "deep"}}, "cannot build this model: "),
    "the hub as a backbone": ({"backbone": "hf-hub:timm/resnet18.a1_in1k"}, "unknown backbone 'hf-hub:timm/resn"),
    "a folder as a backbone": ({"backbone": "local-dir:/tmp"}, "unknown backbone 'local-dir:/tmp'"),
    "an unknown pooling": ({"pooling": "os.system"}, "unknown pooling 'os.system'"),
    "an unknown tap": ({"taps": ["stages.0", "stages.1", "exec"]}, "unknown tap 'exec'"),
    **{
        f"{name} of timm": ({"backbone_options": {name: "x"}}, f"the key '{name}' is not allowed in backbone_options")
        for name in sorted(WEIGHT_SOURCES)
    },
}


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_config_is_an_error(saved: Path, case: str) -> None:
    changes, message = BAD[case]
    change(saved, **changes)
    with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
        create_model(f"local-dir:{saved}")


@pytest.mark.parametrize("text", ["", "null", "[]", "[" * 100_000, '{"levels": NaN}', "9" * 5000, "\x00"])
def test_a_malformed_config_file_is_an_error(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: "):
        create_model(f"local-dir:{saved}")


def test_a_config_file_that_is_too_large_is_an_error(saved: Path) -> None:
    with open(saved / "config.json", "ab") as file:
        file.truncate(33 * 2**20)
    with pytest.raises(ValueError, match=r"config\.json is larger than the limit of 33554432 bytes"):
        create_model(f"local-dir:{saved}")


def test_too_many_levels_are_an_error(small_model: C2FModel) -> None:
    names = [f"level {i}" for i in range(33)]
    tree = {"levels": names, "classes": [["a"]] * 33, "parents": [[0]] * 32, "version": ""}
    with pytest.raises(ValueError, match="the configuration has 33 levels; the limit is 32"):
        ModelConfig.from_dict({**small_model.config.to_dict(), "hierarchy": tree, "levels": names})


@pytest.mark.slow
def test_loading_runs_imports_and_writes_nothing(saved: Path, sharded: Path) -> None:
    global EVENTS
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps(Path("x")))
    (saved / "config.py").write_text("raise SystemExit")
    create_model(f"local-dir:{sharded}")  # imports all that is imported on first use
    before = set(sys.modules)
    EVENTS = []
    try:
        create_model(f"local-dir:{saved}")
    finally:
        recorded, EVENTS = EVENTS, None
    assert set(sys.modules) == before
    opened = [args for event, args in recorded if event == "open"]
    assert {Path(str(args[0])).name for args in opened} >= {"config.json"}, "the hook records"
    assert not [args for args in opened if isinstance(args[1], str) and set(args[1]) & set("wax+")]
    assert not [args for args in opened if Path(str(args[0])).name in ("pytorch_model.bin", "config.py")]
    forbidden = ("pickle.find_class", "import", "exec", "compile", "os.system", "subprocess.Popen", "socket.connect")
    assert not [(event, args) for event, args in recorded if event in forbidden]


def test_weight_sources_are_removed_from_saved_options() -> None:
    options = {"drop_rate": 0.1, "pretrained_cfg_overlay": {"mean": (0.1, 0.2, 0.3)}, "cache_dir": "x"}
    model = create_model("mlph", backbone="test_convnext", hierarchy="cub", input_size=64, backbone_options=options)
    assert model.config.backbone_options == {"drop_rate": 0.1}


# Loads folders in a new process, because the peak memory of this one may come from other tests.
LOAD = """
import resource, sys, torch
from c2f_zoo import create_model
torch.set_num_threads(1)
create_model("mlph_tiny_critters")  # imports on first use take memory too
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 2**20)
before = peak()
for folder in sys.argv[1:]:
    try:
        create_model("local-dir:" + folder)
    except ValueError as error:
        print(peak() - before, error)
"""
LARGE: dict[str, tuple[dict[str, Any], str]] = {
    "a wide pooling": ({"pooling_options": {"dim": 2**24}}, r"\d+ numbers"),
    "wide layers": ({"backbone_options": {"dims": [4096] * 4, "depths": [2, 2, 18, 2]}}, r"\d+ numbers"),
    "a table that a layer computes": (
        {
            "backbone": "swin_tiny_patch4_window7_224",
            "backbone_options": {"img_size": 1024, "window_size": 112},
        },
        r"\d+ numbers",
    ),
    "one table of large integers": (
        {
            "backbone": "swin_tiny_patch4_window7_224",
            "backbone_options": {"img_size": 512, "window_size": 128, "depths": [1, 1, 1, 1]},
        },
        r"\d+ numbers",
    ),
    "a table that is drawn on the CPU": (
        {"pooling": "compact_bilinear", "pooling_options": {"sketch": "random_maclaurin", "dim": 2**25}, "taps": 1},
        r"\d+ numbers",
    ),
    "many small layers": ({"backbone_options": {"depths": [1, 1, 4096, 1], "dims": [1] * 4}}, r"\d+ tensors"),
}


@pytest.mark.slow
def test_a_network_larger_than_its_weights_is_not_allocated(saved: Path, tmp_path: Path) -> None:
    folders = [str(shutil.copytree(saved, tmp_path / case)) for case in LARGE]
    for folder, (changes, _) in zip(folders, LARGE.values(), strict=True):
        change(Path(folder), **changes)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOAD, *folders]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    for line, (case, (_, size)) in zip(done.stdout.splitlines(), LARGE.items(), strict=True):
        found = re.fullmatch(rf"(\d+) .*the network has more than {size}, but its weights files have \d+", line)
        assert found and int(found[1]) < 500, f"{case}: {line} (MiB)"


@pytest.mark.slow
def test_a_model_that_takes_too_much_memory_is_an_error(saved: Path) -> None:
    # An image of 512 channels and 2048 x 2048 pixels in float32 is 8 GiB; the maps of this network are small.
    size = {"input_size": [512, 2048, 2048], "mean": [0.5] * 512, "std": [0.5] * 512}
    change(saved, preprocessing=size, backbone_options={"in_chans": 512})
    message = r"an image of 2048 x 2048 pixels takes about 8\.[0-3] GiB beyond the weights; the limit is 4 GiB"
    with pytest.raises(ValueError, match=rf"config.json: cannot build this model: .*{message}"):
        create_model(f"local-dir:{saved}")
    with pytest.raises(ValueError, match=message):  # it could be trained, but not loaded
        build(ModelConfig.from_json(saved / "config.json"))


def test_a_backbone_that_cannot_be_built_on_meta_is_limited_too(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reads_a_number(pretrained: bool = False, size: int = 1) -> torch.nn.Module:
        torch.zeros(1).item()
        torch.empty(size, 2**20)  # never filled, so that it takes no memory
        return timm.create_model("test_convnext", num_classes=0)

    monkeypatch.setattr(BACKBONES, "_entries", {**BACKBONES._entries, "reads": reads_a_number})
    change(saved, backbone="reads")
    create_model(f"local-dir:{saved}")
    change(saved, backbone_options={"size": 1024})
    with pytest.raises(ValueError, match=r"the network has more than \d+ numbers"):
        create_model(f"local-dir:{saved}")


UNSAVABLE: dict[str, tuple[dict[str, Any], str]] = {
    "a class": ({"backbone_options": {"act_layer": torch.nn.GELU}}, "backbone_options.act_layer is <class .*an option"),
    "a large resolution": (
        {"resolutions": {"species": 5000}},
        "resolution of species is 5000; it must be 1 to 2048 pixels",
    ),
    "a large input": (
        {"input_size": 5000},
        "the configuration has 5000 pixels on a side of the input; the limit is 2048",
    ),
    "a long name": (
        {"hierarchy": Hierarchy(("kind",), (("a", "b" * 501),), ())},
        r"hierarchy.classes\[0\]\[1\] is 'bbb.*expected text of at most 500 characters",
    ),
}


@pytest.mark.parametrize("case", UNSAVABLE)
def test_creating_a_model_that_cannot_be_loaded_is_an_error(case: str) -> None:
    options, message = UNSAVABLE[case]
    with pytest.raises(ValueError, match=message):
        create_model("mlph", **{"hierarchy": "cub", **SMALL, **options})  # type: ignore[arg-type]


@pytest.mark.slow
def test_saving_a_model_that_cannot_be_loaded_is_an_error(small_model: C2FModel, saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    small_model.config = replace(small_model.config, resolutions={"species": 5000})
    with pytest.raises(ValueError, match="resolution of species is 5000"):
        small_model.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    with pytest.raises(ValueError, match="resolution of species is 5000"):
        create_model(f"local-dir:{saved}", resolutions={"species": 5000})


@pytest.mark.slow
def test_a_large_seed_is_saved_and_loaded(tmp_path: Path) -> None:
    options = {"dim": 16, "seed": 2**63 - 1}
    model = create_model("cbcnn", hierarchy="cub", **{**SMALL, "pooling_options": options})  # type: ignore[arg-type]
    model.save_pretrained(tmp_path)
    assert C2FModel.from_pretrained(tmp_path).config == model.config


def test_a_model_larger_than_memory_is_an_error(saved: Path) -> None:
    change(saved, pooling_options={"dim": 2**32})
    with pytest.raises(ValueError, match=r"config.json: cannot build this model: "):
        create_model(f"local-dir:{saved}")


def lying_header(data: bytes) -> bytes:
    """Return the file with a header that claims to be far longer than the file."""
    return (2**62).to_bytes(8, "little") + data[8:]


def lying_offsets(data: bytes) -> bytes:
    """Return the file with a first tensor that claims to be 2**40 times as large."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    first = next(name for name in header if name != "__metadata__")
    header[first]["shape"][0] *= 2**40
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:100],
        lambda data: data[:4],
        lambda data: b"",
        lambda data: data + b"more",
        lying_header,
        lying_offsets,
        lambda data: pickle.dumps({"weight": 1}),
    ],
)
def test_a_malformed_safetensors_file_is_an_error(saved: Path, damage: Callable[[bytes], bytes]) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.safetensors is not a complete safetensors file: "):
        create_model(f"local-dir:{saved}")


def changed_weights(saved: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    weights = load_file(saved / "model.safetensors")
    edit(weights)
    save_file(weights, saved / "model.safetensors")


def test_mismatched_weights_do_not_change_the_model(small_model: C2FModel, tmp_path: Path) -> None:
    own = small_model.state_dict()
    first, *_, last = own
    before = {name: tensor.clone() for name, tensor in own.items()}
    cases: dict[str, dict[str, Tensor]] = {
        rf"missing keys: {last}": {name: tensor for name, tensor in own.items() if name != last},
        "unexpected keys: evil": {**own, "evil": torch.zeros(1)},
        rf"shape mismatch: {last} \(1, 7\), expected ": {**own, last: torch.zeros(1, 7)},
        rf"incompatible dtypes: {last} torch.int64, expected torch.float32": {**own, last: own[last].long()},
        rf"incompatible dtypes: {last} torch.bool, expected torch.float32": {**own, last: own[last] > 0},
        f"values that are not finite: {last}": {**own, last: torch.full_like(own[last], torch.nan)},
        f"not finite: {last}": {**own, last: torch.full_like(own[last], 1e300, dtype=torch.float64)},  # as float32
    }
    for message, weights in cases.items():
        changed = {name: tensor + 1 if name == first else tensor for name, tensor in weights.items()}
        save_file({name: tensor.contiguous().clone() for name, tensor in changed.items()}, tmp_path / "w.safetensors")
        with pytest.raises(ValueError, match=rf"w.safetensors does not fit the C2FModel: .*{message}"):
            load_weights(small_model, [tmp_path / "w.safetensors"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_model.state_dict().items())


@pytest.mark.slow
def test_weights_in_half_precision_are_cast(saved: Path) -> None:
    def halve(weights: dict[str, Tensor]) -> None:
        weights.update({name: w.half() if w.is_floating_point() else w for name, w in weights.items()})

    changed_weights(saved, halve)
    model, halves = create_model(f"local-dir:{saved}"), load_file(saved / "model.safetensors")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, halves[name].to(weight.dtype)), name


@pytest.mark.slow
def test_shards_respect_the_maximum_size_and_load(saved: Path, sharded: Path) -> None:
    shards = sorted(sharded.glob("*.safetensors"))
    assert len(shards) > 2 and not (sharded / "model.safetensors").exists()
    for shard in shards:
        tensors = load_file(shard)
        assert sum(t.numel() * t.element_size() for t in tensors.values()) <= 100_000 or len(tensors) == 1
    again, whole = C2FModel.from_pretrained(sharded).state_dict(), load_file(saved / "model.safetensors")
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/passwd", "a/model-1-of-2.safetensors", "C:\\model-1-of-2.safetensors", "x.bin", ""],
)
def test_an_index_with_a_path_is_an_error(sharded: Path, name: str) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    index["weight_map"] |= {next(iter(index["weight_map"])): name}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"invalid shard name '.*' in .*index\.json; a shard is a file model-"):
        C2FModel.from_pretrained(sharded)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_a_malformed_index_is_an_error(sharded: Path, text: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json is not an index of weights: "):
        C2FModel.from_pretrained(sharded)


def test_duplicate_and_missing_shards_are_errors(sharded: Path) -> None:
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=r"the weight .* of .* is in another shard too"):
        C2FModel.from_pretrained(sharded)
    second.unlink()
    with pytest.raises(FileNotFoundError, match=rf"missing shard {second.name} of model.safetensors.index.json"):
        C2FModel.from_pretrained(sharded)


# Interrupted saves. The state of a folder is the text of its configuration and its weights.
State = tuple[str, dict[str, list[float]]]
SAVES = {"whole": ("5GB", 1.0), "other whole": ("5GB", 2.0), "shards": (12, 3.0), "more shards": (4, 4.0)}


def save_state(folder: Path, kind: str) -> None:
    max_shard_size, value = SAVES[kind]
    with atomic_save(folder) as new:
        write_weights(new, {name: torch.full((3,), value) for name in "abc"}, max_shard_size)
        (new / "config.json").write_text(kind)


def state_of(folder: Path) -> State:
    weights = {name: tensor.tolist() for file in weight_files(folder) for name, tensor in load_file(file).items()}
    return find_file(folder, "config.json").read_text(), weights


class Killed(BaseException):
    """A simulated kill: nothing changes on disk after it."""


def save_and_kill(folder: Path, kind: str, step: int) -> bool:
    """Save, but stop just before a step; return False if the save has fewer steps."""
    left = step

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return function(*args, **options)

        return counting

    with pytest.MonkeyPatch.context() as patch:
        for owner, names in (
            (os, ("rename", "replace", "unlink", "rmdir", "mkdir")),
            (Path, ("unlink", "rmdir", "mkdir", "write_bytes", "write_text")),
        ):
            for name in names:
                patch.setattr(owner, name, counted(getattr(owner, name)))
        try:
            save_state(folder, kind)
        except Killed:
            return True
    return False


@pytest.mark.parametrize("new", SAVES)
@pytest.mark.parametrize("old", SAVES)
def test_a_killed_save_leaves_the_old_or_the_new_model(tmp_path: Path, old: str, new: str) -> None:
    expected = {kind: (kind, {name: [SAVES[kind][1]] * 3 for name in "abc"}) for kind in (old, new)}
    save_state(tmp_path / "clean", new)
    clean = sorted(path.name for path in (tmp_path / "clean").iterdir())
    seen, step, killed = set(), 0, True
    while killed:
        folder = tmp_path / str(step)
        save_state(folder, old)
        killed = save_and_kill(folder, new, step)
        assert state_of(folder) in expected.values(), f"killed before step {step}"
        seen.add(state_of(folder)[0])
        save_and_kill(folder, old, step // 2)  # a second kill
        assert state_of(folder) in expected.values()
        save_state(folder, new)
        assert state_of(folder) == expected[new]
        assert sorted(path.name for path in folder.iterdir()) == clean
        step += 1
    assert seen == {old, new} and step > 5


def test_a_failed_save_leaves_the_old_model(tmp_path: Path) -> None:
    save_state(tmp_path, "shards")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(RuntimeError), atomic_save(tmp_path) as new:
        (new / "model.safetensors").write_bytes(save({"a": torch.zeros(1)}))
        raise RuntimeError("no space left, say")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert state_of(tmp_path)[0] == "shards"
