"""Backbone checkpoints: only weights of the same network are loaded, and the message says how to convert others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from c2f_zoo import C2FModel, create_model

Weights = dict[str, Tensor]
FIRST, LAST = "layer1.0.bn1.weight", "layer4.0.conv2.weight"  # the last stage is not tapped, and removed


def save(weights: Weights, path: Path) -> Path:
    save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, path)
    return path


def create(checkpoint: Path, backbone: str = "test_resnet") -> C2FModel:
    """Create a model whose backbone has all of a network but the last stage and the classifier."""
    parts = {"backbone": backbone, "hierarchy": "critters", "pooling": "avg", "taps": ["layer3.0"]}
    return create_model("mlph", backbone_checkpoint=checkpoint, input_size=64, **parts)  # type: ignore[arg-type]


@pytest.fixture
def whole() -> Weights:
    """Return the weights of a whole network whose classifier has another number of classes."""
    return timm.create_model("test_resnet", num_classes=7).state_dict()


@pytest.mark.slow
def test_the_weights_of_a_deeper_network_are_an_error(tmp_path: Path) -> None:
    deeper = save(timm.create_model("resnet34").state_dict(), tmp_path / "resnet34.safetensors")
    # ResNet-34 has 1, 2, 4 and 1 blocks more; each has 2 convolutions and 2 batch norms of 5 tensors: 8 * 12 = 96.
    message = r"resnet34.safetensors does not fit the ResNet: unexpected keys: layer1.2.bn1.bias, .* \(96 in all\)$"
    with pytest.raises(ValueError, match=message):
        create(deeper, "resnet18")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema": torch.zeros(1)}, "unexpected keys: ema$"),
        ({LAST: torch.zeros(7)}, rf"shape mismatch: {LAST} \(7,\), expected \(96, 96, 3, 3\)$"),
        ({FIRST: None, "ema": torch.zeros(1)}, f"missing keys: {FIRST}; unexpected keys: ema$"),
        ({FIRST: torch.full((32,), torch.inf)}, f"values that are not finite: {FIRST}$"),
    ],
)
def test_weights_that_differ_are_named(
    whole: Weights, tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    weights = {name: tensor for name, tensor in {**whole, **changes}.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        create(save(weights, tmp_path / "w.safetensors"))


def test_a_classifier_and_removed_weights_are_ignored(whole: Weights, tmp_path: Path) -> None:
    own = create(save(whole, tmp_path / "w.safetensors")).backbone.body.state_dict()
    assert whole.keys() - own.keys() > {"fc.weight", "fc.bias", LAST}
    assert all(torch.equal(own[name], whole[name]) for name in own)
    save({name: whole[name] for name in own}, tmp_path / "w.safetensors")
    assert create(tmp_path / "w.safetensors").backbone.body.state_dict().keys() == own.keys()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model.", "ema.", "backbone.body."])
def test_a_prefix_is_named_and_the_printed_command_removes_it(whole: Weights, tmp_path: Path, prefix: str) -> None:
    wrapped = {f"{prefix}{name}": tensor for name, tensor in whole.items()} | {"other.weight": torch.zeros(1)}
    path = save(wrapped, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=rf"w.safetensors have the prefix '{prefix}', which the ResNet") as error:
        create(path)
    exec(str(error.value).partition("remove it: ")[2], {"OLD": path, "NEW": path})
    assert load_file(path).keys() == whole.keys()
    create(path)


class _Code:
    """A pickle of it creates a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_of_torch_save_is_not_read(tmp_path: Path, new_format: bool) -> None:
    evil = tmp_path / "evil.pth"
    torch.save({"x": _Code(tmp_path / "created")}, evil, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match=r"evil.pth is a file of torch.save, which may contain code and is not read"):
        create(evil)
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_the_printed_command_converts_a_file_of_torch_save(whole: Weights, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in whole.items()}}, path)
    with pytest.raises(ValueError, match="convert it once: from timm") as error:
        create(path)
    if path.suffix == ".safetensors":
        assert f"not read; rename it to {tmp_path / 'w.pth'}, and convert" in str(error.value)
        path.rename(tmp_path / "w.pth")
    exec(str(error.value).partition("convert it once: ")[2], {})
    assert torch.equal(create(tmp_path / "w.safetensors").backbone.body.state_dict()[FIRST], whole[FIRST])
