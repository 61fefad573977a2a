"""Backbones that timm saved, named by a folder or by a repository on the Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.models
import torch
from hub_server import Hub, Repo, lfs_file, plain_file
from safetensors.torch import load_file, save, save_file

from c2f_zoo import create_model
from c2f_zoo.backbones.sources import resolve_source
from c2f_zoo.zoo.resolve import resolve

SMALL: dict[str, Any] = {"hierarchy": "critters", "pooling": "avg"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Save a network of four channels with timm."""
    if not hasattr(timm.models, "save_for_hf"):
        pytest.skip("this version of timm has no public save_for_hf")
    network = timm.create_model("resnet18", in_chans=4, num_classes=3, output_stride=16)
    mean = {"pretrained_cfg": {"mean": [0.1, 0.2, 0.3, 0.4], "std": [0.5, 0.6, 0.7, 0.8]}}
    timm.models.save_for_hf(network, str(tmp_path / "network"), model_config=mean, safe_serialization=True)
    return tmp_path / "network"


def write_config(folder: Path, config: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return f"local-dir:{folder}"


@pytest.mark.slow
def test_a_saved_network_is_a_backbone(folder: Path, tmp_path: Path) -> None:
    name = f"local-dir:{folder}"
    model = create_model("mlph", backbone=name, pretrained_backbone=True, input_size=64, **SMALL).eval()
    saved = load_file(folder / "model.safetensors")
    for key, weight in model.backbone.body.state_dict().items():
        assert torch.equal(weight, saved[key])
    # the saved output stride is 16
    assert [shape[1:] for shape in model.backbone.map_shapes] == [(4, 4)] * 3
    p = model.config.preprocessing
    assert (p.input_size, p.mean, p.std) == ((4, 64, 64), (0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8))
    # the configuration names timm's architecture, not the folder
    assert model.config.backbone.split(".")[0] == "resnet18"
    assert str(tmp_path) not in model.config.to_json()
    model.save_pretrained(tmp_path / "model")
    again = create_model(f"local-dir:{tmp_path / 'model'}").eval()
    x = torch.rand(1, 4, 64, 64)
    assert torch.equal(again(x)["species"], model(x)["species"])
    untrained = create_model("mlph", backbone=name, input_size=64, **SMALL)
    assert untrained.config == model.config
    assert not torch.equal(untrained.backbone.body.conv1.weight, saved["conv1.weight"])  # type: ignore[arg-type, union-attr]


def test_saved_weights_of_another_network_are_an_error(folder: Path) -> None:
    def create() -> None:
        create_model("mlph", backbone=f"local-dir:{folder}", pretrained_backbone=True, input_size=64, **SMALL)

    file = folder / "model.safetensors"
    weights = load_file(file)
    missing = {name: tensor for name, tensor in weights.items() if name != "bn1.weight"}
    cases = {"unexpected keys: ema": {**weights, "ema": torch.zeros(1)}, "missing keys: bn1.weight": missing}
    for message, changed in cases.items():
        save_file(changed, file)
        with pytest.raises(ValueError, match=f"model.safetensors does not fit the ResNet: {message}$"):
            create()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model.safetensors is not a complete safetensors file"):
        create()
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"the weights file .*model.safetensors does not exist"):
        create()


def test_the_channels_of_a_saved_network_can_be_changed(tmp_path: Path) -> None:
    network = timm.create_model("resnet18", num_classes=0)
    cfg = {"num_classes": 0, "first_conv": "conv1", "input_size": [3, 224, 224]}
    name = write_config(tmp_path / "rgb", {"architecture": "resnet18", "pretrained_cfg": cfg})
    save_file(network.state_dict(), tmp_path / "rgb" / "model.safetensors")
    model = create_model("mlph", backbone=name, pretrained_backbone=True, input_size=64, in_chans=1, **SMALL)
    grey = network.conv1.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(model.backbone.body.conv1.weight, grey)  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_fixed_size_of_a_saved_network_is_kept(tmp_path: Path) -> None:
    cfg = {"fixed_input_size": True, "input_size": [3, 96, 96], "num_classes": 0}
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": cfg}
    for args in ({}, {"img_size": 96}, {"img_size": [96, 96]}):
        name = write_config(tmp_path / "vit", {**config, "model_args": args})
        model = create_model("mlph", backbone=name, **SMALL)
        assert model.config.preprocessing.input_size == (3, 96, 96)
        assert model.backbone.body.pos_embed.shape[1] == 1 + 6 * 6  # type: ignore[index, union-attr]
        model.save_pretrained(tmp_path / "model")
        assert create_model(f"local-dir:{tmp_path / 'model'}").config == model.config
    model = create_model("mlph", backbone=name, input_size=64, **SMALL)
    assert model.backbone.body.pos_embed.shape[1] == 1 + 4 * 4  # type: ignore[index, union-attr]


def test_names_of_timm_may_name_timm() -> None:
    config = resolve("mlph", {"backbone": "timm/resnet18.a1_in1k", "hierarchy": "cub"})
    assert config == resolve("mlph", {"backbone": "resnet18.a1_in1k", "hierarchy": "cub"})
    with pytest.raises(ValueError, match="unknown backbone 'resnet5O'; did you mean 'resnet50'"):
        create_model("mlph", backbone="timm/resnet5O", **SMALL)
    for name, wanted in (("swin_tiny", "swin_tiny_patch4_window7_224"), ("resnet18.a1_in1", "resnet18.a1_in1k")):
        with pytest.raises(ValueError, match=f"unknown backbone '{name}'; did you mean '{wanted}'"):
            create_model("mlph", backbone=name, **SMALL)


def test_faulty_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config.json; name a folder that timm's save_for_hf wrote"):
        resolve_source(f"local-dir:{tmp_path / 'nothing'}")
    for config in ("{", "[]", {"pretrained_cfg": {}}, {"architecture": "resnet18", "pretrained_cfg": 3}):
        with pytest.raises(ValueError, match=r"its config.json is not that of a model of timm"):
            resolve_source(write_config(tmp_path / "faulty", config))
    for arch in ("resnet5O", "c2f_zoo", "a/b"):
        name = write_config(tmp_path / "faulty", {"architecture": arch, "pretrained_cfg": {}})
        with pytest.raises(ValueError, match=f"unknown architecture of backbone '{name}': '{arch}'"):
            resolve_source(name)


@pytest.mark.parametrize(
    "args",
    [
        {"checkpoint_path": "/tmp/any.pth"},
        {"pretrained_cfg": {"url": "http://127.0.0.1:9/any.pth"}},
        {"pretrained_cfg_overlay": {"file": "/tmp/any.pth"}},
        {"pretrained": True},
    ],
)
def test_a_saved_network_cannot_name_other_weights(tmp_path: Path, args: dict[str, Any]) -> None:
    """A network's configuration may be untrusted: it must not read files or download."""
    name = write_config(tmp_path / "untrusted", {"architecture": "resnet18", "model_args": args, "pretrained_cfg": {}})
    with pytest.raises(ValueError, match=f"the key '{next(iter(args))}' is not allowed in model_args"):
        create_model("mlph", backbone=name, input_size=64, **SMALL)


@pytest.mark.parametrize("cfg", [{"mean": 0.5}, {"input_size": "abc"}, {"input_size": [3]}, {"std": ["a"]}])
def test_invalid_settings_of_a_saved_network_are_errors(tmp_path: Path, cfg: dict[str, Any]) -> None:
    name = write_config(tmp_path / "faulty", {"architecture": "resnet18", "pretrained_cfg": cfg})
    with pytest.raises(ValueError, match=f"its config.json is not that of a model of timm: .*{next(iter(cfg))}"):
        resolve_source(name)


def test_a_saved_network_cannot_choose_the_file_of_its_weights(tmp_path: Path) -> None:
    cfg = {"hf_hub_filename": "other.bin", "custom_load": True, "url": "http://127.0.0.1:9/x", "hf_hub_id": "me/other"}
    source = resolve_source(write_config(tmp_path / "own", {"architecture": "resnet18", "pretrained_cfg": cfg}))
    assert source.cfg == {"file": str(tmp_path / "own" / "model.safetensors")}


@pytest.mark.slow
def test_given_channels_override_those_of_a_saved_network(tmp_path: Path) -> None:
    config = {"architecture": "resnet18", "model_args": {"in_chans": 1}, "pretrained_cfg": {"input_size": [1, 64, 64]}}
    name = write_config(tmp_path / "grey", config)
    colour = create_model("mlph", backbone=name, in_chans=3, input_size=64, **SMALL)
    assert colour.config.preprocessing.input_size == (3, 64, 64)
    assert colour.backbone.body.conv1.weight.shape[1] == 3
    assert create_model("mlph", backbone=name, input_size=64, **SMALL).backbone.body.conv1.weight.shape[1] == 1


@pytest.mark.slow
def test_a_saved_model_cannot_name_a_folder_as_its_backbone(tmp_path: Path) -> None:
    """A model's own configuration may be untrusted: it must not read files or download."""
    create_model("mlph", backbone="test_convnext", input_size=64, **SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for backbone in (f"local-dir:{tmp_path}", "hf-hub:me/net", "timm/test_convnext"):
        write_config(tmp_path, {**config, "backbone": backbone})
        with pytest.raises(ValueError, match=f"unknown backbone '{backbone}'"):
            create_model(f"local-dir:{tmp_path}")


@pytest.mark.slow
def test_a_network_on_the_hub_is_a_backbone(folder: Path, tmp_path: Path) -> None:
    """Use the real client and hub_server.py."""
    code = f"""
import json, torch
from safetensors.torch import load_file
from c2f_zoo import create_model
options = dict(hierarchy="critters", pooling="avg", input_size=64)
result = {{}}
model = create_model("mlph", backbone="hf-hub:me/net@v1", **options)
result["untrained"] = model.config.preprocessing.mean
model = create_model("mlph", backbone="hf-hub:me/net", pretrained_backbone=True, **options)
saved = load_file({str(folder / "model.safetensors")!r})
weights = model.backbone.body.state_dict()
result["equal"] = all(torch.equal(weight, saved[key]) for key, weight in weights.items())
result["config"] = model.config.to_json()
for name in ("me/nothing", "me/empty", "me/net@v2", "me/other"):
    try:
        create_model("mlph", backbone="hf-hub:" + name, pretrained_backbone=True, **options)
    except (OSError, ValueError) as error:
        result[name] = str(error)
print(json.dumps(result))
"""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    with Hub({"mine": "me"}).serving() as hub:
        files = {"config.json": plain_file((folder / "config.json").read_bytes()),
                 "model.safetensors": lfs_file((folder / "model.safetensors").read_bytes())}  # fmt: skip
        deeper = lfs_file(save(timm.create_model("resnet34", in_chans=4).state_dict()))
        stored = (*files.values(), deeper)
        hub.store |= {str(blob.sha256): blob.data for blob in stored if blob.sha256}
        hub.repos["me/other"] = Repo("me", private=False)
        hub.repos["me/other"].commit("main", files | {"model.safetensors": deeper}, "first")
        net = hub.repos["me/net"] = Repo("me", private=False)
        net.tags["v1"] = net.commit("main", files, "first")
        hub.repos["me/empty"] = Repo("me", private=False)
        hub.repos["me/empty"].commit("main", {"README.md": plain_file(b"nothing")}, "first")
        home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        environment = {**kept, **home, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "mine", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        downloads = [request for request in hub.requests if request.startswith("GET") and "resolve" in request]
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["untrained"] == [0.1, 0.2, 0.3, 0.4]
    assert result["equal"]
    assert "me/net" not in result["config"]
    assert "there is no such model" in result["me/nothing"]
    assert "has no config.json; it is not a model of timm" in result["me/empty"]
    assert "no such branch, tag or commit" in result["me/net@v2"]
    assert "model.safetensors does not fit the ResNet: unexpected keys: layer1.2.bn1.bias, " in result["me/other"]
    assert "v1" in downloads[0] and downloads[0].endswith("config.json"), "an untrained network needs no weights"
