"""TapBackbone on networks of many kinds, against timm's own features."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from c2f_zoo import create_model, list_backbones
from c2f_zoo.backbones import BACKBONES, TapBackbone, create_body, register_backbone
from c2f_zoo.io.files import read_csv

# One small network of each of many families: plain, residual, dense, mobile and searched CNNs, hybrids of
# convolution and attention, windowed and plain transformers, MLPs, token mixers.
FAMILIES = [
    "cait_xxs24_224",
    "coat_tiny",
    "coatnet_nano_rw_224",
    "convit_tiny",
    "convnext_atto",
    "convnextv2_atto",
    "crossvit_tiny_240",
    "davit_tiny",
    "densenet121",
    "edgenext_xx_small",
    "efficientformerv2_s0",
    "efficientvim_m1",
    "efficientvit_b0",
    "eva02_tiny_patch14_224",
    "fastvit_t8",
    "gcvit_xxtiny",
    "hgnetv2_b0",
    "inception_next_atto",
    "levit_128s",
    "mixer_s32_224",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_050",
    "mvitv2_tiny",
    "nest_tiny",
    "pit_ti_224",
    "pvt_v2_b0",
    "resnet18",
    "selecsls42",
    "starnet_s050",
    "swin_tiny_patch4_window7_224",
    "test_resnet",
    "test_vit",
    "tf_efficientnet_lite0",
    "tiny_vit_5m_224",
    "tnt_s_legacy_patch16_224",
    "twins_svt_small",
    "vgg16",
    "vit_tiny_patch16_224",
    "xcit_nano_12_p16_224",
]


def build(name: str, taps: tuple[str, ...] | None = None) -> tuple[TapBackbone, tuple[int, int, int]]:
    cfg = timm.get_pretrained_cfg(name)
    size = cfg.input_size if cfg.fixed_input_size else (3, 128, 128)
    torch.manual_seed(0)
    return TapBackbone(create_body(name), taps, size), size


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_runs_forward_and_backward(name: str) -> None:
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    model = create_model(
        "mlph", backbone=name, hierarchy="critters", input_size=None if fixed else 128, pooling_options={"dim": 8}
    )
    backbone, size = model.backbone, model.config.preprocessing.input_size
    maps: list[torch.Tensor] = []
    backbone.register_forward_hook(lambda _module, _args, output: maps.extend(output))
    x = torch.randn(2, *size)
    loss = sum(F.cross_entropy(logits, torch.tensor([0, 3])) for logits in model(x).values())
    loss.backward()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert all(weight.grad is not None for weight in trained), "layers that no tap depends on are removed"
    assert len(maps) == 3
    assert [tuple(x.shape) for x in maps] == [(2, *shape) for shape in backbone.map_shapes]
    one_size = len({x.shape[2:] for x in maps}) == 1
    assert one_size != (model.config.pooling_options.get("align") == "pool"), "maps of several sizes are pooled to one"
    assert maps[0].shape[2] == maps[0].shape[3] > 1


def test_at_least_25_families_are_tested() -> None:
    modules = {timm.models.model_entrypoint(name).__module__ for name in FAMILIES}
    assert len(modules) >= 25


def test_the_recorded_families_are_all_supported() -> None:
    rows = read_csv(Path(__file__).parents[1] / "docs" / "results" / "families.csv")
    assert {row["result"] for row in rows} == {"ok"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("vgg16", ("features.25", "features.27", "features.29")),  # relu5_1, relu5_2, relu5_3
        ("vgg16_bn", ("features.36", "features.39", "features.42")),
        ("resnet50", ("layer4.0", "layer4.1", "layer4.2")),
        ("convnext_tiny", ("stages.3.blocks.0", "stages.3.blocks.1", "stages.3.blocks.2")),
        ("tf_efficientnet_lite0", ("blocks.5.2", "blocks.5.3", "blocks.6.0")),
        ("resnet18", ("layer2", "layer3", "layer4")),
        ("vit_tiny_patch16_224", ("blocks.9", "blocks.10", "blocks.11")),
        ("swin_tiny_patch4_window7_224", ("layers.2.blocks.3", "layers.2.blocks.4", "layers.2.blocks.5")),
    ],
)
def test_default_taps(name: str, taps: tuple[str, ...]) -> None:
    with torch.device("meta"):  # without weights, which take seconds
        assert build(name)[0].taps == taps


@pytest.mark.slow
def test_default_taps_of_vgg_are_relus() -> None:
    # In VGG-16's table (Simonyan & Zisserman 2015, D) block 5 is its last three convolutions before the last pool.
    with torch.device("meta"):
        features = timm.create_model("vgg16").features
    kinds = [type(layer).__name__ for layer in features[24:31]]
    assert kinds == ["Conv2d", "ReLU", "Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d"]


@pytest.mark.slow
def test_unused_classifier_of_vgg_is_removed() -> None:
    with torch.device("meta"):
        backbone, _ = build("vgg16")
    assert sum(weight.numel() for weight in backbone.parameters()) == 14_714_688  # VGG-16's 13 convolutions
    assert len([m for m in backbone.modules() if isinstance(m, nn.Conv2d)]) == 13


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_removing_layers_does_not_change_the_maps(name: str) -> None:
    torch.manual_seed(0)
    whole = create_body(name).eval()
    backbone = TapBackbone(copy.deepcopy(whole)).eval()
    outputs = {}
    for tap in backbone.taps:
        keep = lambda _module, _args, output, tap=tap: outputs.update({tap: output.clone()})  # noqa: E731
        whole.get_submodule(tap).register_forward_hook(keep)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        whole(x)
        maps = backbone(x)
    for tap, found in zip(backbone.taps, maps, strict=True):
        expected = outputs[tap].permute(0, 3, 1, 2) if name.startswith("swin") else outputs[tap]
        assert torch.equal(found, expected), "no later layer has overwritten the tapped tensor"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224"])
def test_maps_of_tokens_equal_those_of_timm(name: str) -> None:
    backbone, size = build(name)
    whole = create_body(name)
    whole.load_state_dict(backbone.body.state_dict(), strict=False)
    x = torch.randn(2, *size)
    with torch.no_grad():
        maps = backbone.eval()(x)
        if name.startswith("swin"):  # timm returns stages; the last tap ends the third one
            expected = whole.eval().forward_intermediates(x, indices=[2], intermediates_only=True)
            maps = maps[-1:]
        else:
            expected = whole.eval().forward_intermediates(x, indices=3, intermediates_only=True)
    for found, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.slow
def test_images_need_not_be_square() -> None:
    backbone, _ = build("resnet18", ("layer3.1", "layer4.0", "layer4.1"))
    found = [tuple(x.shape) for x in backbone.eval()(torch.randn(1, 3, 96, 160))]
    assert found == [(1, 256, 6, 10), (1, 512, 3, 5), (1, 512, 3, 5)]
    vit = TapBackbone(create_body("vit_tiny_patch16_224", img_size=(64, 128)), None, (3, 64, 128))
    assert [tuple(x.shape) for x in vit(torch.randn(1, 3, 64, 128))] == [(1, 192, 4, 8)] * 3


def test_a_copy_is_independent() -> None:
    backbone, size = build("resnet18")
    backbone.eval()
    x = torch.randn(1, *size)
    expected = backbone(x)
    copied = copy.deepcopy(backbone)
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.zero_()
    for found, wanted in zip(copied(x), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.soak
def test_a_compiled_backbone_gives_the_same_maps() -> None:
    """Test the compiler's own backend; test_taps.py compiles networks of four kinds with another one."""
    backbone, _ = build("test_convnext")
    backbone.eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for found, wanted in zip(torch.compile(backbone)(x), backbone(x), strict=True):
            torch.testing.assert_close(found, wanted)


def test_maps_are_in_the_order_of_the_taps() -> None:
    backbone, size = build("resnet18", ("layer3", "layer1"))
    assert backbone.out_channels == [256, 64]
    assert [x.shape[1] for x in backbone(torch.randn(1, *size))] == [256, 64]
    assert not [key for key in backbone.state_dict() if "layer4" in key]


def test_an_unknown_tap_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown tap 'layer5'; did you mean 'layer4'"):
        build("resnet18", ("layer5",))


def test_a_tap_without_a_feature_map_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"the output of tap 'global_pool' is not a feature map"):
        build("resnet18", ("global_pool",))


def test_a_tap_overwritten_in_place_is_an_error() -> None:
    # timm's ResNet adds the shortcut to the output of bn2 in place.
    with pytest.raises(ValueError, match=r"the output of tap 'layer4.1.bn2' is not a feature map, or a later layer"):
        build("resnet18", ("layer4.1.bn2",))


def test_no_default_taps_is_an_error_that_lists_candidates() -> None:
    two_layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(ValueError, match=r"no default taps for Sequential; pass taps=\[...\]; .* are \['0', '1'\]"):
        TapBackbone(two_layers, None, (3, 8, 8))


def test_an_unsupported_input_size_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"VisionTransformer does not run on an input of \(3, 100, 100\)"):
        TapBackbone(create_body("vit_tiny_patch16_224"), None, (3, 100, 100))


def test_an_unknown_backbone_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet5O'; did you mean 'resnet50'"):
        create_body("resnet5O")


def test_a_registered_backbone_is_listed_with_those_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))

    @register_backbone("three_convs")
    def three_convs(pretrained: bool = False) -> nn.Module:
        layers = [nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.ReLU()) for c in (3, 4, 4)]
        return nn.Sequential(*layers)

    assert "three_convs" in list_backbones("three*")
    assert {"resnet50", "three_convs"} <= set(list_backbones())
    backbone = TapBackbone(create_body("three_convs"), None, (3, 8, 8))
    assert backbone.taps == ("0.1", "1.1", "2.1")
    assert backbone(torch.randn(1, 3, 8, 8))[2].shape == (1, 4, 8, 8)


def test_a_backbone_is_built_under_no_grad() -> None:
    with torch.no_grad():
        without = TapBackbone(create_body("test_convnext"), None, (3, 32, 32))
    with_gradients = TapBackbone(create_body("test_convnext"), None, (3, 32, 32))
    assert list(without.state_dict()) == list(with_gradients.state_dict())
