"""create_model; outputs, saving and loading of models."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import SMALL
from safetensors.torch import load_file, save_file
from torch import nn

import c2f_zoo
from c2f_zoo import C2FModel, create_model, list_heads, list_models, list_poolings, load_hierarchy
from c2f_zoo.backbones import BACKBONES, create_body
from c2f_zoo.config import ModelConfig
from c2f_zoo.io.deferred_init import DeferredInit
from c2f_zoo.zoo import num_taps_of


def test_model_of_the_paper() -> None:
    model = create_model("mlph_vgg16_cub")
    assert model.config.taps == ("features.25", "features.27", "features.29")
    assert model.backbone.map_shapes == [(512, 28, 28)] * 3  # 448 / 16
    assert model.levels == ("family", "genus", "species")
    parameters = {part: sum(w.numel() for w in model.get_submodule(part).parameters()) for part in ("pooling", "head")}
    assert parameters["pooling"] == 3 * (512 * 8192 + 8192)
    assert parameters["head"] == (4 * 8192 + 1) * (36 + 113 + 200)
    preprocessing = model.config.preprocessing
    assert (preprocessing.input_size, preprocessing.resize) == ((3, 448, 448), 512)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "levels", "features"),
    [
        ("mlp_vgg16_cub", {"species": 200}, 4 * 16),
        ("hbp_vgg16_cub", {"species": 200}, 3 * 16),
        ("trilinear_resnet50_cars", {"species": 196}, 16),
        ("mlph_resnet50_cub", {"family": 36, "genus": 113, "species": 200}, 4 * 16),
        ("hbp_convnext_atto_fashion_mnist", {"article": 10}, 3 * 16),
        ("fbp_vgg16_cub", {"species": 200}, 16),
        ("cbcnn_resnet18_cub", {"species": 200}, 16),
        ("kp_vgg16_cars", {"species": 196}, 512 + 3 * 16),
        ("isqrt_resnet50_cub", {"species": 200}, 16 * 17 // 2),
    ],
)
def test_names_of_models(name: str, levels: dict[str, int], features: int) -> None:
    model = create_model(name, input_size=64, pooling_options={"dim": 16})
    logits = model(torch.randn(2, 3, 64, 64))
    assert {level: tuple(z.shape) for level, z in logits.items()} == {lv: (2, n) for lv, n in levels.items()}
    assert model.pooling.out_features == features


def test_every_method_is_in_the_list_on_the_papers_backbone() -> None:
    methods = ("bcnn", "cbcnn", "kp", "fbp", "hbp", "trilinear", "mlp", "isqrt", "mlph")
    names = {f"{method}_vgg16_cub" for method in methods} | {"part_rcnn_vgg16_cub"}  # mlph on the regions of VGG-16
    assert list_models("*_vgg16_cub") == sorted(names)


def test_taps_of_different_sizes_are_aligned_with_align_pool() -> None:
    taps = ["layer2", "layer3", "layer4"]
    options = {"dim": 8, "align": "pool"}
    model = create_model("mlph_resnet18_cub", taps=taps, input_size=64, pooling_options=options)
    assert model(torch.randn(1, 3, 64, 64))["genus"].shape == (1, 113)
    model = create_model("mlph_resnet18_cub", taps=taps, input_size=64, pooling="avg")
    assert model(torch.randn(1, 3, 64, 64))["genus"].shape == (1, 113)


def test_bcnn_pools_the_last_tap() -> None:
    model = create_model("bcnn_vgg16_cub", input_size=64)
    assert model.config.taps == ("features.29",)  # relu5_3
    assert model.pooling.out_features == 512 * 512


@pytest.mark.slow
def test_parts_given_as_arguments() -> None:
    model = create_model("hbp", backbone="vit_tiny_patch16_224", hierarchy="cars", pooling_options={"dim": 8})
    assert model.config.preprocessing.input_size == (3, 224, 224), "a ViT keeps its own input size"
    assert model.hierarchy == load_hierarchy("cars")
    model = create_model("mlph", backbone="vit_tiny_patch16_224", hierarchy="cub", input_size=64, head="levels",
                         pooling="trilinear", levels=["genus"], pooling_options={"dim": 8})  # fmt: skip
    assert {level: tuple(z.shape) for level, z in model(torch.randn(1, 3, 64, 64)).items()} == {"genus": (1, 113)}


def test_list_models_takes_a_wildcard() -> None:
    assert list_models("mlp_*") == ["mlp_resnet50_cars", "mlp_resnet50_cub", "mlp_vgg16_cars", "mlp_vgg16_cub"]
    assert {f"{method}_vgg16_cub" for method in ("bcnn", "hbp", "mlp", "mlph")} <= set(list_models())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mlhp_vgg16_cub"}, "unknown model 'mlhp_vgg16_cub'; did you mean .*'mlph_vgg16_cub'"),
        ({"name": "mlph_resnet5O_cub"}, "unknown backbone.*'resnet5O'; did you mean 'resnet50'"),
        ({"name": "mlph"}, "'mlph' is a method; pass a backbone and a hierarchy too"),
        ({"name": "mlph", "backbone": "resnet18", "hierarchy": "cup"}, "unknown hierarchy 'cup'; did you mean 'cub'"),
        ({"name": "mlph_resnet18_cub", "pooling": "mlq"}, "unknown pooling 'mlq'; did you mean 'mlp'"),
        ({"name": "mlph_resnet18_cub", "head": "level"}, "unknown head 'level'; did you mean 'levels'"),
        ({"name": "mlph_resnet18_cub", "levels": ["specie"]}, "unknown level 'specie'; did you mean 'species'"),
        ({"name": "mlph_resnet18_cub", "taps": ["layer4"]}, "mlp pools 2 or more maps, not 1"),
        (
            {"name": "mlph_resnet18_cub", "taps": ["layer2", "layer3", "layer4"]},
            r"differ in spatial size \(8 x 8, 4 x 4, 2 x 2\); choose taps of one size",
        ),
        ({"name": "mlph_resnet18_cub", "pretrained": True}, "no trained weights for 'mlph_resnet18_cub'"),
        ({"name": "mlph_resnet18_cub", "resolutions": {"kind": 3}}, "unknown level 'kind'"),
        ({"name": "mlph_resnet18_cub", "head_options": {"dim": 3}}, "unknown option of head 'levels': 'dim'"),
    ],
)
def test_invalid_arguments_are_errors(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(**arguments, input_size=64)


def test_only_requested_levels_are_computed(small_model: C2FModel) -> None:
    x = torch.randn(2, 3, 64, 64)
    small_model.eval()
    everything = small_model(x)
    assert list(everything) == ["family", "genus", "species"]
    genus = small_model(x, levels=("genus",))
    assert list(genus) == ["genus"]
    assert torch.equal(genus["genus"], everything["genus"])
    with pytest.raises(ValueError, match="unknown level 'order'"):
        small_model(x, levels=("order",))


def test_forward_is_features_pooling_and_head(small_model: C2FModel) -> None:
    x = torch.randn(2, 3, 64, 64)
    small_model.eval()
    v = small_model.forward_pool(small_model.forward_features(x))
    for level, logits in small_model(x).items():
        classifier = small_model.head.get_classifier(level)
        torch.testing.assert_close(logits, v @ classifier.weight.T + classifier.bias)


def test_at_level_returns_a_timm_classifier(small_model: C2FModel) -> None:
    genus = small_model.eval().at_level("genus")
    x = torch.randn(2, 3, 64, 64)
    out = genus(x)
    assert isinstance(out, torch.Tensor)
    assert out.shape == (2, genus.num_classes) == (2, 113)
    assert genus.get_classifier().out_features == 113
    assert genus.forward_head(genus.forward_features(x), pre_logits=True).shape == (2, genus.num_features)
    assert torch.equal(out, small_model(x)["genus"])
    with pytest.raises(ValueError, match="unknown level 'order'"):
        small_model.at_level("order")


def test_timm_resolves_the_preprocessing(small_model: C2FModel) -> None:
    config = timm.data.resolve_data_config(model=small_model)
    assert config["input_size"] == (3, 64, 64)
    assert config["mean"] == timm.get_pretrained_cfg("test_convnext").mean
    assert config["crop_pct"] == 0.875


def test_reset_classifier(small_model: C2FModel) -> None:
    small_model.reset_classifier(load_hierarchy("fashion_mnist"))
    logits = small_model(torch.randn(1, 3, 64, 64))
    assert {level: z.shape[1] for level, z in logits.items()} == {"division": 2, "group": 6, "article": 10}


@pytest.mark.slow
def test_head_options_survive_reset_and_saving(tmp_path: Path) -> None:
    model = create_model("mlph", hierarchy="cub", head="disentangled", head_options={"dim": 3}, **SMALL)  # type: ignore[arg-type]
    assert model.head.get_classifier("species").in_features == 3
    model.reset_classifier(load_hierarchy("fashion_mnist"))
    assert model.head.get_classifier("division").in_features == 3 * 3
    model.save_pretrained(tmp_path)
    again = create_model(f"local-dir:{tmp_path}")
    assert again.config == model.config
    assert again.head.get_classifier("group").in_features == 2 * 3
    with pytest.raises(ValueError, match="is a saved model with fixed parts"):
        create_model(f"local-dir:{tmp_path}", head_options={"dim": 3})


@pytest.mark.slow
def test_a_loaded_model_gives_bitwise_equal_logits(small_model: C2FModel, tmp_path: Path) -> None:
    small_model.config = replace(small_model.config, resolutions={"species": None, "family": 32})
    x = torch.randn(2, 3, 64, 64)
    small_model(x)  # updates batch statistics, if there are any
    small_model.eval().save_pretrained(tmp_path / "saved")
    modes = {path.stat().st_mode for path in (tmp_path / "saved").iterdir()}
    assert len(modes) == 1, "others may read the weights if they may read the configuration"
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]
    again = create_model(f"local-dir:{tmp_path / 'saved'}").eval()
    assert again.config == small_model.config
    assert again.hierarchy.class_names("species")[0] == "001.Black_footed_Albatross"
    for level, logits in small_model(x).items():
        assert torch.equal(again(x)[level], logits)


def equal_tensors(model: nn.Module, other: nn.Module) -> bool:
    """Return whether all weights and buffers are equal, including those that are not saved."""
    tensors, others = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (model, other))
    assert tensors.keys() == others.keys()
    return all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    "parts",
    [
        *({"pooling": name} for name in list_poolings()),
        *({"head": name, "pooling": "avg"} for name in list_heads()),
        # Backbones with tables that are not saved, and with weights that modules refer to in lists of their own.
        *(
            {"backbone": name, "pooling": "avg"}
            for name in (
                "test_vit_relpos",
                "swin_tiny_patch4_window7_224",
                "levit_128s",
                "sequencer2d_s",
            )
        ),
    ],
    ids=lambda parts: "-".join(parts.values()),
)
@pytest.mark.slow
def test_a_loaded_model_has_all_saved_and_unsaved_tensors(parts: dict, tmp_path: Path) -> None:
    arguments = {"backbone": "test_convnext", "hierarchy": "critters", **parts}
    if arguments["backbone"] == "test_convnext":
        arguments["input_size"] = 64
    if arguments["backbone"] == "sequencer2d_s":  # its LSTMs are slow on the meta device
        arguments |= {"backbone_options": {"layers": [1, 1, 1, 1]}, "input_size": 56}
    num_taps = num_taps_of(arguments["pooling"])
    model = create_model("bcnn" if num_taps == 1 else "hbp", levels=["family", "species"], **arguments)
    model.save_pretrained(tmp_path)
    again = create_model(f"local-dir:{tmp_path}")
    assert again.config == model.config
    assert equal_tensors(model, again)
    assert [w.requires_grad for w in model.parameters()] == [w.requires_grad for w in again.parameters()]
    x = torch.randn(1, *model.config.preprocessing.input_size)
    for level, logits in model.eval()(x).items():
        assert torch.equal(again.eval()(x)[level], logits)


@pytest.mark.slow
def test_a_backbone_is_built_and_traced_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = {"create_body": 0, "trace_maps": 0}

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)

        def counting(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*args, **options)

        monkeypatch.setattr(module, name, counting)

    counted(c2f_zoo.model, "create_body")
    counted(c2f_zoo.backbones.tap_backbone, "trace_maps")
    model = create_model("mlph", hierarchy="critters", **SMALL)  # type: ignore[arg-type]
    assert calls == {"create_body": 1, "trace_maps": 1}
    model.save_pretrained(tmp_path)
    create_model(f"local-dir:{tmp_path}")
    assert calls == {"create_body": 2, "trace_maps": 2}


def test_deferred_initialization_gives_the_same_distributions() -> None:
    def build() -> list[torch.Tensor]:
        torch.manual_seed(0)
        weights = [torch.empty(1024, 1024) for _ in range(5)]
        weights[0].normal_(1.0, 2.0)
        nn.init.uniform_(weights[1], -3.0, 5.0)
        weights[1][0] = 7.0  # after the deferred initialization
        weights[2].uniform_(-1.0, 1.0).mul_(3.0).add_(1.0)
        weights[3].normal_()
        weights[3].copy_(weights[4].normal_(5.0, 1.0))
        return weights

    with DeferredInit() as init:
        deferred = build()
    init.run()
    for weight, expected in zip(deferred, build(), strict=True):
        assert weight.mean().item() == pytest.approx(expected.mean().item(), abs=0.02)
        assert weight.std().item() == pytest.approx(expected.std().item(), abs=0.02)
    assert (deferred[1][0] == 7.0).all()
    assert torch.equal(deferred[3], deferred[4])


def test_deferred_initialization_leaves_later_values_alone() -> None:
    with DeferredInit() as init:
        replaced = nn.Linear(1024, 1024)
        replaced.weight.data = torch.zeros(1024, 1024)
        copied = torch.empty(1024, 1024).normal_(5.0, 1.0)
        copied.copy_(copied.detach())
    init.run()
    assert not replaced.weight.any()
    assert copied.mean().item() == pytest.approx(5.0, abs=0.02)


class SeededPlugIn(nn.Module):
    """A backbone with a fixed random table that is not saved, and with large weights that are set through NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 1024, 1)
        self.mixed = nn.Conv2d(1024, 1024, 1)
        self.mixed.weight.data.numpy()[:] = 3.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.register_buffer("table", torch.empty(1024, 1024).normal_(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixed(self.features(x))


def test_the_constructor_of_a_plug_in_may_do_anything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(BACKBONES._entries, "seeded", lambda pretrained: SeededPlugIn())
    model = create_model("mlph", backbone="seeded", hierarchy="critters", taps=["mixed"], pooling="avg", input_size=16)
    model.save_pretrained(tmp_path)
    again, expected = create_model(f"local-dir:{tmp_path}"), SeededPlugIn()
    for built in (model, again):
        assert (built.backbone.body.mixed.weight == 3.0).all()  # type: ignore[union-attr, operator]
        assert torch.equal(built.backbone.body.table, expected.table)  # type: ignore[arg-type]


def test_deferred_initialization_leaves_small_weights_unchanged() -> None:
    torch.manual_seed(0)
    expected = create_body("tiny").state_dict()
    torch.manual_seed(0)
    with DeferredInit() as init:
        body = create_body("tiny")
    init.run()
    assert all(torch.equal(weight, expected[name]) for name, weight in body.state_dict().items())


@pytest.fixture
def saved(small_model: C2FModel, tmp_path: Path) -> Path:
    small_model.save_pretrained(tmp_path)
    return tmp_path


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_an_unknown_key_in_a_config_is_an_error(saved: Path) -> None:
    change_config(saved, poolling="mlp")
    with pytest.raises(ValueError, match=r"config.json: unknown key in ModelConfig 'poolling'; did you mean 'pooling'"):
        create_model(f"local-dir:{saved}")


def test_a_missing_key_in_a_config_is_an_error(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    del config["taps"]
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json: missing keys in ModelConfig: taps"):
        create_model(f"local-dir:{saved}")


def test_a_config_that_is_not_json_is_an_error(saved: Path) -> None:
    (saved / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: "):
        create_model(f"local-dir:{saved}")


def test_truncated_weights_are_an_error(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is not a complete safetensors file"):
        create_model(f"local-dir:{saved}")


def test_weights_of_another_model_are_an_error(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    weights["head.classifiers.0.bias"] = torch.zeros(7)
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"shape mismatch: head.classifiers.0.bias \(7,\), expected \(36,\)"):
        create_model(f"local-dir:{saved}")


def test_parts_of_a_saved_model_cannot_be_replaced(saved: Path) -> None:
    with pytest.raises(ValueError, match="is a saved model with fixed parts"):
        create_model(f"local-dir:{saved}", input_size=32)
    with pytest.raises(ValueError, match="is a saved model with fixed parts"):
        create_model("hf-hub:someone/model", pooling="avg")


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config.json"):
        create_model(f"local-dir:{tmp_path}")


@pytest.mark.slow
def test_a_backbone_checkpoint_in_half_precision_is_loaded_as_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    body = timm.create_model("resnet18", num_classes=7)
    weights = {name: w.half() if w.is_floating_point() else w for name, w in body.state_dict().items()}
    save_file(weights, tmp_path / "resnet18.safetensors")
    model = create_model("mlph_resnet18_cub", backbone_checkpoint=tmp_path / "resnet18.safetensors", input_size=64)
    for name, weight in model.backbone.body.state_dict().items():
        assert torch.equal(weight, weights[name].to(weight.dtype)), name
    assert model.backbone.body.conv1.weight.dtype == torch.float32


@pytest.mark.slow
def test_a_backbone_checkpoint_with_missing_weights_is_an_error(tmp_path: Path) -> None:
    weights = create_body("resnet18").state_dict()
    del weights["layer1.0.conv1.weight"]
    save_file(weights, tmp_path / "part.safetensors")
    with pytest.raises(
        ValueError, match=r"part.safetensors does not fit the ResNet: missing keys: layer1.0.conv1.weight"
    ):
        create_model("mlph_resnet18_cub", backbone_checkpoint=tmp_path / "part.safetensors", input_size=64)
    with pytest.raises(FileNotFoundError, match=r"the weights file .* does not exist"):
        create_model("mlph_resnet18_cub", backbone_checkpoint=tmp_path / "none.safetensors", input_size=64)


def test_a_configuration_survives_json() -> None:
    model = create_model("mlph", hierarchy="cub", resolutions={"family": 32}, taps=["stages.0", "stages.0", "stages.0"],
                         backbone_options={"drop_rate": 0.1}, **SMALL)  # type: ignore[arg-type] # fmt: skip
    again = ModelConfig.from_dict(json.loads(json.dumps(model.config.to_dict())))
    assert again == model.config
    with pytest.raises(ValueError, match="unknown key in Preprocessing 'meen'; did you mean 'mean'"):
        ModelConfig.from_dict({**model.config.to_dict(), "preprocessing": {"meen": 1}})


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_preprocessing_that_is_not_finite_is_an_error(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} \(0.5, {value}, 0.5\) must be in \["):
        create_model("mlph_resnet18_cub", preprocessing_options={name: (0.5, value, 0.5)})
