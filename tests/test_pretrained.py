"""Trained weights: names, sources, head transfer to other trees, and the weights in the package."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from conftest import SMALL
from hub_server import Hub
from in_process import run_in_process
from safetensors.torch import load_file
from typer.testing import CliRunner

import c2f_zoo
from c2f_zoo import C2FModel, Hierarchy, PretrainedWeights, create_model, list_models, load_hierarchy, register_weights
from c2f_zoo.cli import app
from c2f_zoo.data import create_dataset, create_transform
from c2f_zoo.evaluation.calibrating import calibrate_run
from c2f_zoo.inference.calibration import Calibration
from c2f_zoo.training.option_checks import check_values
from c2f_zoo.training.options import TrainOptions, read_options
from c2f_zoo.zoo import METHODS, WEIGHTS, ModelSpec, pretrained, register_model, split_tag
from c2f_zoo.zoo.models import MODELS
from c2f_zoo.zoo.pretrained import BUNDLED

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "recipes" / "bundle.py"
BUNDLED_NAMES = sorted(path.name for path in BUNDLED.glob("*"))
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
CUB100 = ROOT.parent / "shared" / "data" / "cub100"
FILES = ("config.json", "model.safetensors")


@pytest.fixture(autouse=True)
def _registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the entries that a test registers."""
    monkeypatch.setattr(WEIGHTS, "_entries", dict(WEIGHTS._entries))
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
    monkeypatch.setattr(MODELS, "_subscribers", [])
    monkeypatch.setattr(pretrained, "_DEFAULTS", dict(pretrained._DEFAULTS))


def checksums(folder: Path, *names: str) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names or FILES}


def weights_in(folder: Path, name: str = "small.first", source: str | None = None) -> PretrainedWeights:
    return PretrainedWeights(name, source or f"file:{folder}", checksums(folder), "mit", (3, 64, 64))


@pytest.fixture
def saved(small_model: C2FModel, tmp_path: Path) -> Path:
    small_model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


# Named models with default options.

TAPS = ["layer3.0.downsample", "layer4.0.downsample", "layer4.0.conv2"]
SPELT_OUT: dict[str, dict[str, Any]] = {
    "mlph_tiny_critters": {
        "hierarchy": "critters",
        "taps": TAPS,
        "input_size": 96,
        "pooling_options": {"dim": 512, "grad_eps": 0.1},
        "resolutions": {"species": None, "genus": 32, "family": 12},
    },
    "mlph_tiny_fashion_mnist": {
        "hierarchy": "fashion_mnist",
        "backbone_options": {"output_stride": 8},
        "taps": TAPS,
        "input_size": 32,
        "pooling_options": {"dim": 256, "grad_eps": 0.1},
        "resolutions": {"article": None, "group": 14, "division": 7},
    },
}


@pytest.mark.parametrize("name", SPELT_OUT)
def test_a_named_model_equals_its_options_spelt_out(name: str) -> None:
    torch.manual_seed(1)
    expected = create_model("mlph", backbone="tiny", **SPELT_OUT[name])
    torch.manual_seed(1)
    model = create_model(name)
    assert model.config == expected.config
    assert model.config.to_json() == expected.config.to_json()
    for key, weight in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], weight), key


@pytest.mark.parametrize("name", SPELT_OUT)
def test_a_recipe_trains_the_named_model(name: str) -> None:
    options = yaml.safe_load((ROOT / "recipes" / "configs" / f"{SPELT_OUT[name]['hierarchy']}.yaml").read_text())
    assert (options["model"], options.get("model_options")) == (name, None)
    model = create_model(name, hierarchy=load_hierarchy(options["dataset"]), resolutions=options["resolutions"])
    assert model.config == create_model(name).config


def test_arguments_override_default_options() -> None:
    config = create_model("mlph_tiny_critters", pooling_options={"dim": 8}, resolutions={"genus": 20}).config
    assert config.pooling_options == {"dim": 8, "grad_eps": 0.1}
    assert config.resolutions == {"genus": 20}
    assert config.taps == tuple(TAPS)


@pytest.mark.slow
def test_replacing_a_part_drops_its_default_options() -> None:
    config = create_model("mlph_tiny_fashion_mnist", backbone="resnet18").config
    assert config.backbone_options == {}
    assert config.taps == create_model("mlph", backbone="resnet18", hierarchy="cub", input_size=32).config.taps
    assert config.pooling_options == {"dim": 256, "grad_eps": 0.1, "align": "pool"}, "resnet18 has two blocks a stage"
    assert create_model("mlph_tiny_critters", pooling="avg").config.pooling_options == {}
    config = create_model("mlph_tiny_critters", hierarchy="cub", pooling_options={"dim": 8}).config
    assert (config.levels, config.resolutions) == (("family", "genus", "species"), {})
    register_model("headed")(ModelSpec("mlph", "tiny", "cub", {"head": "disentangled", "head_options": {"dim": 3}}))
    options: dict[str, Any] = {"input_size": 64, "pooling_options": {"dim": 8}}
    assert create_model("headed", **options).config.head_options == {"dim": 3}
    assert create_model("headed", head="levels", **options).config.head_options == {}


def test_an_unknown_option_of_a_model_is_an_error() -> None:
    register_model("odd")(ModelSpec("mlph", "tiny", "cub", {"pooling_option": {}}))
    with pytest.raises(ValueError, match="unknown option of model 'odd': 'pooling_option'; did you mean"):
        create_model("odd")


# Names.


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("mlph_vgg16_cub", ("mlph_vgg16_cub", "")),
        ("mlph_vgg16_cub.paper", ("mlph_vgg16_cub", "paper")),
        ("mlph_resnet50.a1_in1k_cub", ("mlph_resnet50.a1_in1k_cub", "")),
        ("mlph_resnet50.a1_in1k_cub.paper", ("mlph_resnet50.a1_in1k_cub", "paper")),
        ("mlph_resnet50_cub.in1k_cub", ("mlph_resnet50_cub", "in1k_cub")),
        ("no_model.paper", ("no_model.paper", "")),
        ("mlph", ("mlph", "")),
    ],
)
def test_names_with_tags(name: str, parts: tuple[str, str]) -> None:
    assert split_tag(name) == parts


def test_a_tag_of_timm_belongs_to_the_backbone() -> None:
    config = create_model("mlph_resnet18.a1_in1k_cub", input_size=64, pooling_options={"dim": 8}).config
    assert config.backbone == "resnet18.a1_in1k"


@pytest.mark.slow
def test_weights_are_found_by_their_name(saved: Path, small_model: C2FModel) -> None:
    register_weights(weights_in(saved))
    small_model.head.requires_grad_(False).get_classifier("genus").weight.zero_()
    small_model.save_pretrained(saved.parent / "second")
    register_weights(weights_in(saved.parent / "second", "small.second"))
    assert [name for name in list_models(pretrained=True) if name not in BUNDLED_NAMES] == [
        "small.first",
        "small.second",
    ]
    assert (
        list_models("small", pretrained=True)
        == list_models("sm*", pretrained=True)
        == [f"small.{tag}" for tag in ("first", "second")]
    )
    assert list_models("*.second", pretrained=True) == ["small.second"]
    zero = {name: not create_model(name, pretrained=True).head.get_classifier("genus").weight.any() for name in
            ("small", "small.first", "small.second")}  # fmt: skip
    assert zero == {"small": False, "small.first": False, "small.second": True}


@pytest.mark.slow
def test_a_tag_without_pretrained_gives_an_untrained_model(saved: Path, small_model: C2FModel) -> None:
    register_weights(weights_in(saved))
    torch.manual_seed(3)
    model = create_model("small.first")
    assert model.config == small_model.config
    assert not torch.equal(model.head.get_classifier("genus").weight, small_model.head.get_classifier("genus").weight)
    assert create_model("small.first", hierarchy="fashion_mnist").levels == ("division", "group", "article")


def test_errors_in_names_suggest_a_fix(saved: Path) -> None:
    register_weights(weights_in(saved, "mlph_tiny_critters.rehearsed"))
    with pytest.raises(ValueError, match="unknown tag of 'mlph_tiny_critters': 'rehersed'; did you mean 'rehearsed'"):
        create_model("mlph_tiny_critters.rehersed", pretrained=True)
    with pytest.raises(ValueError, match=r"unknown model 'mlph_tiny_criters.rehearsed'; did you mean.*'mlph_tiny_cr"):
        create_model("mlph_tiny_criters.rehearsed")
    for name in ("mlph_vgg16_cub", "mlph_vgg16_cub.paper", "mlph"):
        arch = name.split(".")[0]
        with pytest.raises(ValueError, match=f"no trained weights for '{arch}'. Available: .*critters.rehearsed"):
            create_model(name, pretrained=True)
    with pytest.raises(ValueError, match="no trained weights for 'mlph_vgg16_cub'"):
        create_model("mlph_vgg16_cub.paper")
    with pytest.raises(ValueError, match=r"rehearsed' is a saved model with fixed parts.*not taps, input_size"):
        create_model("mlph_tiny_critters.rehearsed", pretrained=True, taps=["layer4"], input_size=64)
    with pytest.raises(ValueError, match=r"with fixed parts.*not pretrained_backbone"):
        create_model("mlph_tiny_critters.rehearsed", pretrained=True, pretrained_backbone=True)
    with pytest.raises(ValueError, match=r"'mlph_tiny_critters.rehearsed' is registered already"):
        register_weights(weights_in(saved, "mlph_tiny_critters.rehearsed"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "untagged"}, "invalid name of weights 'untagged'; use 'arch.tag'"),
        ({"name": "../up.first"}, "invalid name of weights '../up.first'"),
        ({"source": "/models"}, "invalid source '/models' of small.first; use 'bundled', or start with"),
        ({"sha256": {"model.safetensors": "0" * 64}}, "needs the checksums of config.json and of the weights"),
        (
            {"sha256": {"config.json": "0" * 64, "model.safetensors": "123"}},
            "invalid sha256 '123' of 'model.safetensors' in small.first: not 64",
        ),
        ({"sha256": {"config.json": "0" * 64, "../up": "0" * 64}}, "of '../up' in small.first"),
    ],
)
def test_invalid_weights_are_an_error(saved: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(weights_in(saved), **change)


# Sources.


def test_a_file_with_another_checksum_is_an_error(saved: Path) -> None:
    for file in FILES:
        right = weights_in(saved).sha256[file]
        wrong = {**weights_in(saved).sha256, file: "0" * 64}
        register_weights(replace(weights_in(saved), sha256=wrong), override=True)
        with pytest.raises(ValueError, match=f"{file} has the checksum {right}; small.first expects {'0' * 64}"):
            create_model("small", pretrained=True)
    missing = {**weights_in(saved).sha256, "model-00001-of-00002.safetensors": "0" * 64}
    register_weights(replace(weights_in(saved), sha256=missing), override=True)
    with pytest.raises(FileNotFoundError, match=r"missing file of small.first: .*model-00001-of-00002.safetensors"):
        create_model("small", pretrained=True)


@pytest.mark.slow
def test_checksums_of_shards_are_verified(small_model: C2FModel, tmp_path: Path) -> None:
    small_model.save_pretrained(tmp_path / "shards", max_shard_size=100_000)
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "shards").iterdir()}
    assert len(files) > 3
    weights = PretrainedWeights("small.shards", f"file:{tmp_path / 'shards'}", files, "mit", (3, 64, 64))
    register_weights(weights)
    model = create_model("small", pretrained=True)
    assert all(torch.equal(model.state_dict()[key], weight) for key, weight in small_model.state_dict().items())
    shard = next(path for path in sorted((tmp_path / "shards").glob("model-*")))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=f"{shard.name} has the checksum"):
        create_model("small", pretrained=True)


@pytest.mark.parametrize("stray", ["model.safetensors", ".saved/model.safetensors", ".saved/config.json"])
def test_a_file_without_a_checksum_is_not_loaded(
    small_model: C2FModel, saved: Path, tmp_path: Path, stray: str
) -> None:
    shards = tmp_path / "shards"
    small_model.save_pretrained(shards, max_shard_size=100_000)
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shards.iterdir()}
    register_weights(PretrainedWeights("small.shards", f"file:{shards}", files, "mit", (3, 64, 64)))
    (shards / ".saved").mkdir()
    (shards / stray).write_bytes((saved / Path(stray).name).read_bytes())
    message = rf"small.shards would load files without a registered checksum: {re.escape(str(shards / stray))}"
    with pytest.raises(ValueError, match=message):
        create_model("small", pretrained=True)


class _Server(BaseHTTPRequestHandler):
    """A server of `files` at any path: /half/ interrupts the weights, /none/ has no weights."""

    files: ClassVar[dict[str, bytes]] = {}
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        _, fault, name = self.path.split("/")
        body = self.files[name]
        self.requests.append(self.path)
        if fault == "none" and name == "model.safetensors":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "half" and name == "model.safetensors" else body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the saved model and return the address; torch's cache is an empty folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(_Server, "files", {name: (saved / name).read_bytes() for name in FILES})
    monkeypatch.setattr(_Server, "requests", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def cached(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "torch").rglob("*") if path.is_file())


@pytest.mark.slow
def test_weights_from_a_url(site: str, saved: Path, small_model: C2FModel, tmp_path: Path) -> None:
    register_weights(weights_in(saved, source=f"{site}/good/model.safetensors"))
    model = create_model("small", pretrained=True)
    assert model.config == small_model.config
    assert all(torch.equal(model.state_dict()[key], weight) for key, weight in small_model.state_dict().items())
    create_model("small", pretrained=True)
    assert _Server.requests == ["/good/config.json", "/good/model.safetensors"], "the second load uses the cache"
    assert cached(tmp_path) == list(FILES)
    next((tmp_path / "torch").rglob("model.safetensors")).write_bytes(b"rotten")
    create_model("small", pretrained=True)
    assert _Server.requests[2:] == ["/good/model.safetensors"], "a changed file in the cache is downloaded again"
    folder = next((tmp_path / "torch").rglob("model.safetensors")).parent
    (folder / ".saved").mkdir()
    (folder / ".saved" / "config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"small.first would load files without a registered checksum: .*\.saved.config.json"
    ):
        create_model("small", pretrained=True)


def test_a_url_with_another_file_is_an_error(site: str, saved: Path, tmp_path: Path) -> None:
    weights = weights_in(saved, source=f"{site}/good/model.safetensors")
    wrong, right = "0" * 64, weights.sha256["model.safetensors"]
    register_weights(replace(weights, sha256={**weights.sha256, "model.safetensors": wrong}))
    with pytest.raises(
        ValueError, match=f"small.first: the download of {site}/good/model.safetensors is .*{wrong}.*{right}"
    ):
        create_model("small", pretrained=True)
    assert cached(tmp_path) == ["config.json"]


def test_missing_file_at_a_url(site: str, saved: Path, tmp_path: Path) -> None:
    register_weights(weights_in(saved, source=f"{site}/none/model.safetensors"))
    with pytest.raises(FileNotFoundError, match=f"small.first: {site}/none/model.safetensors failed with 404"):
        create_model("small", pretrained=True)
    assert cached(tmp_path) == ["config.json"]


def test_an_interrupted_download_leaves_no_file(site: str, saved: Path, tmp_path: Path) -> None:
    register_weights(weights_in(saved, source=f"{site}/half/model.safetensors"))
    with pytest.raises(
        (ValueError, ConnectionError), match=f"the download of {site}/half/model.safetensors (is incomplete|failed)"
    ):
        create_model("small", pretrained=True)
    assert cached(tmp_path) == ["config.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="/sys cannot be written on Linux, not even by root")
def test_a_cache_that_cannot_be_written(site: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_weights(weights_in(saved, source=f"{site}/good/model.safetensors"))
    monkeypatch.setattr(torch.hub, "_hub_dir", "/sys/kernel")
    with pytest.raises(PermissionError, match=r"small.first: the cache cannot be written .*; set TORCH_HOME to"):
        create_model("small", pretrained=True)


def test_unreachable_server(site: str, saved: Path, tmp_path: Path) -> None:
    register_weights(weights_in(saved, source="http://127.0.0.1:9/model.safetensors"))
    with pytest.raises(ConnectionError, match=r"small.first: the download of http://127.0.0.1:9/config.json failed"):
        create_model("small", pretrained=True)
    assert cached(tmp_path) == []


def run_python(code: str, **environment: str) -> dict[str, Any]:
    """Run code in a new process and return the JSON that it prints."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = {**kept, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_weights_from_the_hub(saved: Path, tmp_path: Path) -> None:
    """Use the real client with hub_server.py: a revision is pinned, and its checksums are verified."""
    code = f"""
import json, torch
from c2f_zoo import PretrainedWeights, create_model, register_weights
model = create_model("local-dir:{saved}")
address = model.push_to_hub("me/birds")
with torch.no_grad():
    model.head.get_classifier("genus").weight.zero_()
model.push_to_hub("me/birds")
right, result = {checksums(saved)!r}, {{}}
for name, sha256 in ("right", right), ("wrong", {{**right, "model.safetensors": "0" * 64}}):
    source = "hf-hub:me/birds@" + address.split("/")[-1]
    register_weights(PretrainedWeights(f"small.{{name}}", source, sha256, "mit", (3, 64, 64)))
result["zero"] = not create_model("small", pretrained=True).head.get_classifier("genus").weight.any()
try:
    create_model("small.wrong", pretrained=True)
except ValueError as error:
    result["wrong"] = str(error)
print(json.dumps(result))
"""
    with Hub({"mine": "me"}).serving() as hub:
        home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        result = run_python(code, HF_ENDPOINT=hub.endpoint, HF_TOKEN="mine", **home)
    assert result["zero"] is False, "the first revision, not the latest"
    assert f"has the checksum {checksums(saved)['model.safetensors']}; small.wrong expects 000" in result["wrong"]


# Head transfer: trained models with another tree.


def kept_of(model: C2FModel, other: C2FModel, part: str) -> bool:
    weights = other.get_submodule(part).state_dict()
    return all(torch.equal(weights[key], weight) for key, weight in model.get_submodule(part).state_dict().items())


def lines_of(warning: pytest.WarningsRecorder) -> list[str]:
    assert len(warning) == 1
    return str(warning[0].message).split("\n  ")[1:]


def same_classifier(model: C2FModel, level: str, other: C2FModel, other_level: str) -> bool:
    a, b = model.head.get_classifier(level), other.head.get_classifier(other_level)
    return torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


@pytest.mark.slow
def test_head_transfer_keeps_matching_classifiers_and_lists_the_others(saved: Path, small_model: C2FModel) -> None:
    cub = load_hierarchy("cub")
    tree = Hierarchy(  # CUB's genera and families, no species, and one level above
        ("kingdom", "clan", "genus"),
        (("animals",), cub.class_names("family"), cub.class_names("genus")),
        ((0,) * 36, cub.parents[0]),
    )
    register_weights(weights_in(saved))
    for name in ("small", f"local-dir:{saved}"):
        with pytest.warns(UserWarning, match=f"some weights of '{name}' do not fit") as warning:
            model = create_model(name, pretrained=True, hierarchy=tree, resolutions={"genus": 20})
        assert (model.hierarchy, model.levels, model.config.resolutions) == (tree, tree.levels, {"genus": 20})
        assert kept_of(model, small_model, "backbone")
        assert kept_of(model, small_model, "pooling")
        assert same_classifier(model, "genus", small_model, "genus")
        assert same_classifier(model, "clan", small_model, "family"), "the same classes under another name of the level"
        # The vector has four terms of 8. The classifiers of families and genera have moved by one place.
        assert lines_of(warning) == [
            "head.classifiers.0.weight: none saved, (1, 32) here",
            "head.classifiers.0.bias: none saved, (1,) here",
            "head.classifiers.2.weight: (200, 32) saved, left over",
            "head.classifiers.2.bias: (200,) saved, left over",
        ]
        assert model(torch.rand(2, 3, 64, 64))["clan"].shape == (2, 36)
    assert warning[0].filename == __file__


@pytest.mark.slow
def test_shape_mismatches_are_listed(saved: Path, small_model: C2FModel) -> None:
    with pytest.warns(UserWarning) as warning:
        model = create_model(f"local-dir:{saved}", hierarchy="fashion_mnist", levels=["group", "article"])
    assert model.levels == ("group", "article")
    assert lines_of(warning) == [
        "head.classifiers.0.weight: (36, 32) saved, (6, 32) here",
        "head.classifiers.0.bias: (36,) saved, (6,) here",
        "head.classifiers.1.weight: (113, 32) saved, (10, 32) here",
        "head.classifiers.1.bias: (113,) saved, (10,) here",
        "head.classifiers.2.weight: (200, 32) saved, left over",
        "head.classifiers.2.bias: (200,) saved, left over",
    ]


@pytest.mark.slow
def test_classifiers_of_other_classes_of_the_same_number_are_not_kept(saved: Path, small_model: C2FModel) -> None:
    cub = load_hierarchy("cub")
    tree = replace(cub, classes=(cub.classes[0], cub.classes[1], tuple(reversed(cub.classes[2]))))
    with pytest.warns(UserWarning) as warning:
        model = create_model(f"local-dir:{saved}", hierarchy=tree)
    assert lines_of(warning) == [
        "head.classifiers.2.weight: (200, 32) saved, (200, 32) here, of other classes or levels",
        "head.classifiers.2.bias: (200,) saved, (200,) here, of other classes or levels",
    ]
    assert same_classifier(model, "genus", small_model, "genus")
    assert not same_classifier(model, "species", small_model, "species")


@pytest.mark.filterwarnings("error")
@pytest.mark.slow
def test_the_same_tree_changes_nothing(saved: Path, small_model: C2FModel) -> None:
    cub = load_hierarchy("cub")
    for options in ({"hierarchy": "cub"}, {"hierarchy": replace(cub, version="9")}, {"levels": cub.levels}):
        model = create_model(f"local-dir:{saved}", **options)  # type: ignore[arg-type]
        assert kept_of(model, small_model, "head"), options
    assert create_model(f"local-dir:{saved}", resolutions={"genus": 9}).config.resolutions == {"genus": 9}


@pytest.mark.slow
@pytest.mark.parametrize("head", ["levels", "conditional", "hex", "marginal", "disentangled"])
def test_every_head_keeps_the_classifier_of_a_common_level(head: str, tmp_path: Path) -> None:
    old = create_model("mlph", hierarchy="cub", head=head, **SMALL)  # type: ignore[arg-type]
    old.save_pretrained(tmp_path)
    cub = load_hierarchy("cub")
    # The families are in another order; the genera are unchanged, each under its old parent.
    place = [(label + 1) % 36 for label in range(36)]
    families = tuple(cub.classes[0][place.index(label)] for label in range(36))
    tree = Hierarchy(
        cub.levels, (families, *cub.classes[1:]), (tuple(place[f] for f in cub.parents[0]), cub.parents[1])
    )
    with warnings.catch_warnings(record=True) as caught:
        new = create_model(f"local-dir:{tmp_path}", hierarchy=tree)
    assert bool(caught) == (head != "marginal"), "a marginal head has no weights for families"
    x = torch.rand(2, 3, 64, 64)
    old, new = old.eval(), new.eval()
    with torch.inference_mode():
        if head != "marginal":
            assert not same_classifier(new, "family", old, "family")
        assert same_classifier(new, "species", old, "species")
        if head in ("levels", "disentangled", "marginal"):  # the other heads' species depend on the families' weights
            assert torch.equal(new(x)["species"], old(x)["species"])


@pytest.mark.slow
def test_features_of_a_head_are_not_kept_for_other_levels(tmp_path: Path) -> None:
    model = create_model("mlph", hierarchy="cub", head="disentangled", head_options={"dim": 4}, **SMALL)  # type: ignore[arg-type]
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning) as warning:
        again = create_model(f"local-dir:{tmp_path}", levels=["species"])
    assert "head.features.0.0.weight: (4, 32) saved, (4, 32) here, of other classes or levels" in lines_of(warning)
    assert not torch.equal(again.head.features[0][0].weight, model.head.features[0][0].weight)


@pytest.mark.slow
def test_a_model_of_the_leaf_level_keeps_to_the_leaf_level(tmp_path: Path) -> None:
    create_model("mlp", hierarchy="cub", **SMALL).save_pretrained(tmp_path)  # type: ignore[arg-type]
    with pytest.warns(UserWarning):
        model = create_model(f"local-dir:{tmp_path}", hierarchy="fashion_mnist")
    assert model.levels == ("article",)
    with pytest.raises(ValueError, match="unknown level 'articles'; did you mean 'article'"):
        create_model(f"local-dir:{tmp_path}", hierarchy="fashion_mnist", levels=["articles"])


# The weights in the package.


def test_bundled_weights_are_listed_small_and_in_the_wheel() -> None:
    assert BUNDLED_NAMES == [
        "mlph_tf_efficientnet_lite0_cub100.any_resolution",
        "mlph_tiny_critters.scratch",
        "mlph_tiny_fashion_mnist.scratch",
    ]
    assert set(BUNDLED_NAMES) <= set(list_models(pretrained=True))
    files = [path for path in BUNDLED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10e6
    (patterns,) = re.findall(r"package-data\]\nc2f_zoo = \[(.*)\]", (ROOT / "pyproject.toml").read_text())
    for path in files:
        name = str(path.relative_to(ROOT / "c2f_zoo"))
        assert any(fnmatch(name, pattern) for pattern in patterns.replace('"', "").split(", ")), f"no wheel has {name}"


@pytest.mark.parametrize("name", BUNDLED_NAMES)
@pytest.mark.slow
def test_bundled_weights_match_their_model_and_recipe(name: str) -> None:
    weights = WEIGHTS[name]
    model = create_model(weights.arch, pretrained=True)
    licence = "cc-by-nc-4.0" if MODELS[weights.arch].hierarchy == "cub100" else "apache-2.0"  # CUB is for research
    assert (weights.name, weights.source, weights.licence) == (name, "bundled", licence)
    assert Calibration.from_dict(model.calibration or {}).risk == 0.1
    assert model.config == create_model(weights.arch).config == create_model(name).config
    assert weights.input == model.config.preprocessing.input_size
    stored = load_file(BUNDLED / name / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.int64}, "int64: batch norm's counts"
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert weights.recipe == f"recipes/train.py --config c2f_zoo/zoo/weights/{name}/recipe.yaml"
    # The recipe may be older than the one in recipes/configs; train.py must still read it.
    made = read_options(TrainOptions, [BUNDLED / name / "recipe.yaml"])
    options = {key: value for key, value in made.model_options.items() if key != "backbone_checkpoint"}
    tree = MODELS[weights.arch].hierarchy
    trained = create_model(made.model, hierarchy=tree, resolutions=made.resolutions, **options)
    assert trained.config == model.config
    assert made.dataset == weights.metrics[0].dataset
    check_values(made, num_processes=1)


@pytest.mark.slow
def test_bundled_weights_need_no_network(tmp_path: Path) -> None:
    code = f"""
import json, torch
from c2f_zoo import create_model
shapes = {{}}
for name in {BUNDLED_NAMES!r}:
    model = create_model(name.split(".")[0], pretrained=True).eval()
    logits = model(torch.zeros(1, *model.config.preprocessing.input_size))
    shapes[name] = {{level: list(z.shape) for level, z in logits.items()}}
print(json.dumps(shapes))
"""
    dead = "http://127.0.0.1:9"
    proxies = {
        key: dead for key in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    }
    homes = {"HF_HOME": str(tmp_path / "hf"), "TORCH_HOME": str(tmp_path / "torch"), "HOME": str(tmp_path)}
    shapes = run_python(code, HF_HUB_OFFLINE="1", **proxies, **homes)
    classes = {name: load_hierarchy(MODELS[name.split(".")[0]].hierarchy).num_classes for name in BUNDLED_NAMES}
    assert shapes == {name: {lv: [1, n] for lv, n in levels.items()} for name, levels in classes.items()}


@torch.inference_mode()
def measure(model: C2FModel, dataset: Any, every: int) -> dict[tuple[str, int | None], float]:
    """Return the accuracy of every level at the resolution of every level."""
    images = [dataset[index] for index in range(0, len(dataset), every)]
    truth = model.hierarchy.ancestors(torch.tensor([label for _, label in images]))
    found = {}
    for resolution in {model.config.resolutions.get(level) for level in model.levels}:
        transform = create_transform(model.config.preprocessing, resolution, train=False)
        batches = torch.stack([transform(image) for image, _ in images]).split(64)
        logits = [model.eval()(batch) for batch in batches]
        for depth, level in enumerate(model.levels):
            right = torch.cat([z[level].argmax(dim=1) for z in logits]) == truth[:, depth]
            found[level, resolution] = right.double().mean().item()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLED_NAMES)
def test_bundled_weights_reach_the_recorded_accuracies(name: str) -> None:
    weights, metrics = WEIGHTS[name], WEIGHTS[name].metrics[1]
    options = dict(metrics.dataset_options)
    if metrics.dataset == "fashion_mnist":
        if not FASHION_MNIST.is_dir():
            pytest.skip(f"Fashion-MNIST is not in {FASHION_MNIST}, where Debian's dataset-fashion-mnist puts it")
        options = {"root": str(FASHION_MNIST)}
    if metrics.dataset == "cub":
        if not CUB100.is_dir():
            pytest.skip(f"cub100 is not in {CUB100}")
        options = {"root": str(CUB100)}
    model = create_model(weights.name, pretrained=True)
    dataset = create_dataset(metrics.dataset, metrics.split, **options)
    found = measure(model, dataset, metrics.every)
    recorded = {(row.level, row.resolution): row.accuracy for row in metrics.accuracy}
    whole = {(row.level, row.resolution): row for row in weights.metrics[0].accuracy}
    assert found.keys() == recorded.keys() == whole.keys()
    for cell, accuracy in recorded.items():
        assert found[cell] == pytest.approx(accuracy, abs=0.005), cell  # rounding differs between processors
        # The subset agrees with all images within four standard errors, or one or two images.
        p, part = whole[cell].accuracy, whole[cell].images / metrics.every
        assert accuracy == pytest.approx(p, abs=4 * (p * (1 - p) / part) ** 0.5 + 2 / part), cell
        assert whole[cell].images == len(dataset)


# Bundling.


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run folder as train.py writes it, but with an untrained model."""
    model = create_model("mlph_tiny_critters")
    with torch.no_grad():
        model.eval().head.get_classifier("species").bias.copy_(torch.linspace(-1, 1, 36))
    model.save_pretrained(tmp_path / "run")
    options = yaml.safe_load((ROOT / "recipes" / "configs" / "critters.yaml").read_text())
    options |= {"dataset_options": {"per_class": 2}, "batch_size": 8, "val_fraction": 0.5}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(options))
    (tmp_path / "run" / "test.csv").touch()
    return tmp_path / "run"


@pytest.mark.slow
def test_a_run_is_bundled(run: Path, tmp_path: Path) -> None:
    options = ["mlph_tiny_critters.new", "--license", "cc0-1.0", "--folder", str(tmp_path / "weights")]
    code, _, errors = run_in_process(BUNDLE, [str(run), *options], tmp_path)
    assert code == 0, errors
    folder = tmp_path / "weights" / "mlph_tiny_critters.new"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*FILES, "calibration.json", "recipe.yaml", "weights.json"]
    )
    weights = PretrainedWeights.from_dict(json.loads((folder / "weights.json").read_text()))
    assert (weights.name, weights.licence, weights.input) == ("mlph_tiny_critters.new", "cc0-1.0", (3, 96, 96))
    assert weights.sha256 == checksums(folder, *FILES, "calibration.json")
    register_weights(replace(weights, source=f"file:{folder}"))
    model, trained = create_model(weights.name, pretrained=True), create_model(f"local-dir:{run}")
    assert model.config == trained.config
    for key, weight in trained.state_dict().items():
        expected = weight.half().float() if weight.is_floating_point() else weight
        assert torch.equal(model.state_dict()[key], expected), key
    options = yaml.safe_load((run / "config.yaml").read_text())
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == {**options, "dataset_options": {"per_class": 2}}
    for metrics, every in zip(weights.metrics, (1, 5), strict=True):
        found = measure(model, create_dataset("critters", "test", per_class=2), every)
        assert (metrics.dataset, metrics.split, metrics.every) == ("critters", "test", every)
        assert {(row.level, row.resolution): row.accuracy for row in metrics.accuracy} == pytest.approx(found)
        assert {row.images for row in metrics.accuracy} == {len(range(0, 72, every))}
        assert [row.level for row in metrics.accuracy if row.own] == ["species", "genus", "family"]
    calibrate_run(str(folder), 0.3)  # keeps it loadable
    again = PretrainedWeights.from_dict(json.loads((folder / "weights.json").read_text()))
    assert again.sha256 == checksums(folder, *FILES, "calibration.json")
    assert again.sha256["calibration.json"] != weights.sha256["calibration.json"]


def test_errors_of_bundle(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import bundle as recipe

    with pytest.raises(ValueError, match="the weights have no licence; name one"):
        recipe.main(str(run), "mlph_tiny_critters.new")
    with pytest.raises(ValueError, match="the run's model is not 'mlph_tiny_fashion_mnist': it differs in hier"):
        recipe.check_arch("mlph_tiny_fashion_mnist.new", create_model("mlph_tiny_critters").config)
    with pytest.raises(ValueError, match=r"head.bias has values outside the range of half precision"):
        recipe.to_half("head.bias", torch.tensor([1.0, 7e4]))
    (run / "test.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"not a finished run of train.py: test.csv is missing"):
        recipe.main(str(run), "mlph_tiny_critters.new", "mit")


def test_bundled_options_contain_no_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import bundle as recipe

    given = {"root": "/data", "file": "a.csv", "download": True, "cache": "/tmp", "per_class": 3, "mini": True}
    about = {"dataset": "critters", "dataset_options": given, "seed": 0}
    assert recipe.portable(about) == {**about, "dataset_options": {"per_class": 3, "mini": True}}
    assert recipe.portable({"seed": 0}) == {"seed": 0, "dataset_options": {}}
    for name in BUNDLED_NAMES:
        options = yaml.safe_load((BUNDLED / name / "recipe.yaml").read_text())
        assert recipe.portable(options) == options
        for metrics in WEIGHTS[name].metrics:
            assert metrics.dataset_options == options["dataset_options"]


# The command line.


def shown(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    return done.output if done.exit_code == 0 else str(done.exception)


def test_the_command_line_lists_weights() -> None:
    assert shown("list", "models", "*critters", "--pretrained").split() == [n for n in BUNDLED_NAMES if "critters" in n]
    assert "--pretrained applies to models, not heads" in shown("list", "heads", "--pretrained")


@pytest.mark.skipif(not BUNDLED_NAMES, reason="the package has no weights yet")
@pytest.mark.slow
def test_info_shows_the_source_and_accuracy_of_weights() -> None:
    name = BUNDLED_NAMES[0]
    metrics = WEIGHTS[name].metrics[0]
    for asked in (name, name.split(".")[0]):
        text = shown("info", asked)
        for row in metrics.accuracy:
            at = f" at {row.resolution} px" if row.resolution else ""
            assert (f"{row.level} {100 * row.accuracy:.1f} %{at}" in text) or not row.own
        tag = name.rpartition(".")[2]
        for part in (f"weights .{tag}", "bundled (default)", WEIGHTS[name].licence, WEIGHTS[name].recipe, metrics.date):
            assert part in text, part
    assert "none trained" in shown("info", "mlph_resnet18_cub")


def test_methods_have_no_weights() -> None:
    assert not [name for name in list_models(pretrained=True) if name.split(".")[0] in METHODS]
    assert "PretrainedWeights" in c2f_zoo.__all__
