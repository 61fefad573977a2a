"""Models for images of one or four channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import c2f_zoo.integrations.timm  # noqa: F401  (registers the models)
from c2f_zoo import Predictor, create_model, register_backbone
from c2f_zoo.backbones import BACKBONES
from c2f_zoo.config import Preprocessing
from c2f_zoo.data.transforms import create_transform
from c2f_zoo.zoo.input_channels import replace_input

SMALL: dict[str, Any] = {"hierarchy": "critters", "pooling": "avg", "input_size": 64}


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
@pytest.mark.slow
def test_trained_weights_are_adapted_as_in_timm(channels: int, tmp_path: Path) -> None:
    """Compare with timm's own loading of a checkpoint into a network of these channels."""
    network = timm.create_model("resnet18", num_classes=0)
    save_file(network.state_dict(), tmp_path / "network.safetensors")
    overlay = {"file": str(tmp_path / "network.safetensors"), "num_classes": 0}
    own = timm.create_model("resnet18", True, pretrained_cfg_overlay=overlay, num_classes=0, in_chans=channels)
    model = create_model("mlph", backbone="resnet18", backbone_checkpoint=tmp_path / "network.safetensors",
                         in_chans=channels, **SMALL)  # fmt: skip
    for name, weight in own.state_dict().items():
        assert torch.equal(model.backbone.body.state_dict()[name], weight), name


@pytest.mark.parametrize("backbone", ["resnet18", "test_vit", "tiny"])
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.slow
def test_the_channels_are_saved(backbone: str, channels: int, tmp_path: Path) -> None:
    size = 160 if backbone == "test_vit" else 64
    model = create_model("mlph", backbone=backbone, in_chans=channels, **{**SMALL, "input_size": size}).eval()
    model.save_pretrained(tmp_path)
    again = create_model(f"local-dir:{tmp_path}").eval()
    assert again.config == model.config
    p = again.config.preprocessing
    assert (p.input_size, len(p.mean), len(p.std)) == ((channels, size, size), channels, channels)
    x = torch.rand(2, channels, size, size)
    assert torch.equal(again(x)["species"], model(x)["species"])


@pytest.mark.slow
def test_trained_models_of_timm_and_ours_are_adapted_alike() -> None:
    trained = create_model("mlph_tiny_critters", pretrained=True).eval()
    grey = create_model("mlph_tiny_critters", pretrained=True, in_chans=1).eval()
    in_timm = timm.create_model("mlph_tiny_critters", pretrained=True, in_chans=1).eval()
    x = torch.rand(3, 1, 96, 96)
    # one channel: the weights are summed, so a grey image gives what it gave as three equal channels
    wanted = trained(x.expand(-1, 3, -1, -1))
    for level, logits in grey(x).items():
        torch.testing.assert_close(logits, wanted[level], atol=1e-4, rtol=1e-4)
    assert torch.equal(in_timm(x), grey(x)["species"])
    assert in_timm.in_chans == 1
    assert timm.data.resolve_data_config({}, model=in_timm)["input_size"] == (1, 96, 96)
    assert create_model("mlph_tiny_critters", pretrained=True, in_chans=3).config == trained.config


@pytest.mark.slow
def test_a_trained_model_gets_channels_and_classes(tmp_path: Path) -> None:
    create_model("mlph", backbone="test_convnext", **SMALL).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="do not fit the new classes"):
        model = create_model(f"local-dir:{tmp_path}", hierarchy="fashion_mnist", in_chans=4)
    assert model(torch.rand(1, 4, 64, 64))["article"].shape == (1, 10)
    model.save_pretrained(tmp_path / "four")
    with pytest.raises(ValueError, match="the weights expect 4 channels; only weights for 3 can be adapted to 1"):
        create_model(f"local-dir:{tmp_path / 'four'}", in_chans=1)


@pytest.mark.slow
def test_a_checkpoint_of_timm_is_adapted(tmp_path: Path) -> None:
    options: dict[str, Any] = {"backbone": "test_convnext", "img_size": 64, "pooling_options": {"dim": 8}}
    rgb = timm.create_model("mlph_resnet50_cub", **options)
    save_file(rgb.state_dict(), tmp_path / "model.safetensors")
    overlay = {"file": str(tmp_path / "model.safetensors")}
    grey = timm.create_model("mlph_resnet50_cub", True, pretrained_cfg_overlay=overlay, in_chans=1, **options)
    first = grey.pretrained_cfg["first_conv"]
    wanted = rgb.get_submodule(first).weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(grey.get_submodule(first).weight, wanted)
    assert torch.equal(grey.head.weight, rgb.head.weight)


def test_a_linear_first_layer_cannot_be_adapted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))

    @register_backbone("linear_stem")
    def linear_stem(pretrained: bool = False, in_chans: int = 3) -> nn.Module:
        return nn.Sequential(nn.PixelUnshuffle(8), _Pixelwise(64 * in_chans, 8))

    model = create_model("mlp", backbone="linear_stem", taps=["1"], **SMALL)
    with pytest.raises(ValueError, match=r"timm cannot adapt backbone.body.1.layer.weight \(8, 192\) to 1 channels"):
        replace_input(model, 1)
    assert create_model("mlp", backbone="linear_stem", taps=["1"], in_chans=1, **SMALL)(torch.rand(2, 1, 64, 64))


class _Pixelwise(nn.Module):
    """A linear layer at each location."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(channels, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.movedim(1, -1)).movedim(-1, 1)


def test_mean_and_std_are_averaged_unless_given() -> None:
    options: dict[str, Any] = {"backbone": "resnet18", "in_chans": 2, **SMALL}
    p = create_model("mlph", **options).config.preprocessing
    assert p.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,) * 2)
    assert p.std == pytest.approx(((0.229 + 0.224 + 0.225) / 3,) * 2)
    given = {"mean": (0.1, 0.2), "std": (0.3, 0.4)}
    p = create_model("mlph", preprocessing_options=given, **options).config.preprocessing
    assert (p.mean, p.std) == ((0.1, 0.2), (0.3, 0.4))


@pytest.mark.parametrize("interpolation", ["bilinear", "lanczos"])
def test_an_image_for_one_channel_is_grey(interpolation: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    p = Preprocessing((1, 84, 84), mean=(0.5,), std=(0.25,), interpolation=interpolation)
    x = create_transform(p, None, train=False)(image)
    three = Preprocessing((3, 84, 84), mean=(0.5,) * 3, std=(0.25,) * 3, interpolation=interpolation)
    wanted = create_transform(three, None, train=False)(image.convert("L").convert("RGB"))
    torch.testing.assert_close(x, wanted[:1], atol=2 / 255 / 0.25, rtol=0)
    model = create_model("mlph_tiny_critters", pretrained=True, in_chans=1)
    assert len(Predictor(model)(image).path) == 3
    with pytest.raises(ValueError, match="an image has 3 channels, or 1 if converted to grey; the model expects 4"):
        create_transform(Preprocessing((4, 84, 84), mean=(0.5,) * 4, std=(0.25,) * 4), None, train=False)


def test_a_checkpoint_of_that_number_of_channels_is_loaded_as_it_is(tmp_path: Path) -> None:
    grey = timm.create_model("test_resnet", in_chans=1, num_classes=0)
    save_file(grey.state_dict(), tmp_path / "grey.safetensors")
    options = {"backbone": "test_resnet", "hierarchy": "critters", "input_size": 64, "pooling": "avg"}
    model = create_model("mlph", backbone_checkpoint=tmp_path / "grey.safetensors", in_chans=1, **options)
    assert torch.equal(model.backbone.body.conv1[0].weight, grey.conv1[0].weight)
    assert model.config.preprocessing.input_size == (1, 64, 64)
