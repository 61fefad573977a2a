"""Named models in timm: built, inspected, trained, saved and loaded by its public functions."""

from __future__ import annotations

import copy
import hashlib
import re
import subprocess
import sys
import types
import warnings
from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.data
import timm.loss
import timm.models
import timm.optim
import timm.scheduler
import timm.utils
import torch
from safetensors.torch import save_file

import c2f_zoo
import c2f_zoo.integrations.timm
from c2f_zoo import C2FModel, create_dataset, create_model, list_models
from c2f_zoo.level_classifier import LevelClassifier
from c2f_zoo.zoo import MODELS, ModelSpec
from c2f_zoo.zoo.pretrained import WEIGHTS, PretrainedWeights
from c2f_zoo.zoo.resolve import resolve

NAME = "mlph_resnet50_cub"
SMALL: dict[str, Any] = {"backbone": "test_convnext", "img_size": 64, "pooling_options": {"dim": 8}}
INPUT = ("input_size", "mean", "std", "interpolation", "crop_pct")
TINY: dict[str, Any] = {"img_size": 32, "pooling_options": {"dim": 64, "grad_eps": 0.1}}


@pytest.fixture
def small() -> LevelClassifier:
    return timm.create_model(NAME, num_classes=5, **SMALL)


# Registration


REGISTERS = """
import timm, c2f_zoo, c2f_zoo.integrations.timm
assert timm.list_models("mlph*") == c2f_zoo.list_models("mlph*") != []
assert timm.is_model("mlph_vgg16_cub")
assert {*c2f_zoo.list_models()} <= {*timm.list_models("*")}
"""
REGISTERS_NOTHING = """
import sys
finders = list(sys.meta_path)
import c2f_zoo
assert sys.meta_path == finders
assert "timm" not in sys.modules and "c2f_zoo.integrations.timm" not in sys.modules
import timm
for name in c2f_zoo.__all__:
    getattr(c2f_zoo, name)
assert c2f_zoo.list_models() != []
assert not {*c2f_zoo.list_models()} & {*timm.list_models("*")}
"""


@pytest.mark.slow
def test_importing_the_integration_registers_the_models_and_importing_c2f_zoo_nothing() -> None:
    firsts = [f"import {name}\n{REGISTERS}" for name in ("timm", "c2f_zoo", "c2f_zoo.zoo")]
    code = f"""
import os, sys, torch, torchvision  # which take most of the time, once for all forks
for code in {[*firsts, REGISTERS_NOTHING]!r}:
    if os.fork() == 0:
        exec(code, {{}})
        os._exit(0)
    if os.wait()[1] != 0:
        sys.exit(code)
"""
    subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", code], check=True)


def test_models_of_timm_are_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
    with pytest.warns(RuntimeWarning, match="timm has its own model 'resnet18'"):
        c2f_zoo.register_model("resnet18")(ModelSpec("mlph", "resnet50", "cub"))
    assert type(timm.create_model("resnet18")).__name__ == "ResNet"


def test_a_model_registered_later_is_known_to_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
    c2f_zoo.register_model("mlph_small_critters")(ModelSpec("mlph", "test_convnext", "critters"))
    model = timm.create_model("mlph_small_critters", img_size=64, pooling_options={"dim": 8})
    assert model.num_classes == 36


def test_our_models_are_not_listed_as_backbones() -> None:
    assert not {*list_models()} & {*c2f_zoo.list_backbones()}
    assert {"vgg16", "resnet50"} <= {*c2f_zoo.list_backbones()}
    with pytest.raises(ValueError, match=f"unknown backbone '{NAME}'"):
        create_model("mlph", backbone=NAME, hierarchy="cub")


def test_models_from_another_module_called_timm_are_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test a name clash: timm keeps only the last part of a module name, here `timm`, as of our integration."""
    module = types.ModuleType("another.timm")
    exec("def tiny_body(pretrained=False, **options): ...", vars(module))
    monkeypatch.setitem(sys.modules, "another.timm", module)
    for name in ("_model_entrypoints", "_model_to_module", "_module_to_models"):
        monkeypatch.setattr(timm.models._registry, name, copy.deepcopy(getattr(timm.models._registry, name)))
    timm.models.register_model(module.tiny_body)
    assert timm.models.is_model_in_modules("tiny_body", ["timm"])
    assert "tiny_body" in c2f_zoo.list_backbones()


# Building


@pytest.mark.slow
def test_the_default_level_is_the_leaf_level() -> None:
    torch.manual_seed(3)
    model_in_timm = timm.create_model(NAME, **SMALL).eval()
    torch.manual_seed(3)
    model = create_model(NAME, backbone="test_convnext", input_size=64, pooling_options={"dim": 8}).eval()
    x = torch.rand(2, 3, 64, 64)
    assert model_in_timm.num_classes == 200
    assert torch.equal(model_in_timm(x), model(x)["species"])
    # distributed training requires a gradient of every parameter
    model_in_timm(x).square().sum().backward()
    assert all(weight.grad is not None for weight in model_in_timm.parameters())


def test_another_number_of_classes(small: LevelClassifier) -> None:
    assert small(torch.rand(2, 3, 64, 64)).shape == (2, 5)
    none = timm.create_model(NAME, num_classes=0, **SMALL)
    assert none(torch.rand(2, 3, 64, 64)).shape == (2, none.num_features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained": True}, "weights for 'mlph_resnet50_cub'"),
        ({"features_only": True, "out_indices": (3,)}, r"no taps \[3\]: the model has 3 taps, 0 to 2"),
        ({"global_pool": "avgmax"}, "unknown pooling 'avgmax'"),
        ({"global_pool": ""}, "a classifier of 200 classes needs a pooling; pass global_pool='avg'"),
        ({"in_chans": 0}, r"invalid input_size \(0, 64, 64\)"),
        ({"levels": ["genus"]}, r"at_level\(\.\.\.\) is a classifier of another level"),
        ({"img_size": (64, 96)}, "square images"),
        ({"pooling_option": {}}, "did you mean 'pooling_options'"),
        ({"num_classes": -1}, "num_classes is -1"),
    ],
)
def test_unsupported_options_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model(NAME, **{**SMALL, **options})


@pytest.mark.slow
def test_options_that_timms_scripts_always_pass_are_accepted() -> None:
    model = timm.create_model(
        NAME, pretrained=False, in_chans=3, num_classes=4, drop_rate=0.0, drop_path_rate=0.1, drop_block_rate=None,
        global_pool=None, bn_momentum=None, bn_eps=None, scriptable=False, checkpoint_path="", **SMALL,
    )  # fmt: skip
    assert model.num_classes == 4
    assert [type(m.drop_path).__name__ for m in model.backbone.body.stages[2].blocks][-1] == "DropPath"


def test_timms_distillation_takes_a_name_as_teacher_and_a_model_as_student() -> None:
    student = timm.create_model("mlph_tiny_critters")
    task = pytest.importorskip("timm.task").FeatureDistillationTask(
        student, "mlph_tiny_critters", device=torch.device("cpu"), criterion=torch.nn.CrossEntropyLoss()
    )
    task(torch.rand(2, 3, 96, 96), torch.tensor([0, 1]))["loss"].backward()
    assert all(weight.grad is not None for weight in student.parameters())


def test_a_model_is_created_on_a_device_in_a_dtype() -> None:
    model = timm.create_model(NAME, device=torch.device("cpu"), dtype=torch.bfloat16, **SMALL)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_options_resolved_by_timm_are_accepted() -> None:
    resolve = getattr(timm.models, "resolve_model_input_args", None)
    if resolve is None:
        pytest.skip("this version of timm has no resolve_model_input_args")
    model = timm.create_model(**resolve(NAME, {}, num_classes=4, **SMALL))
    assert timm.data.resolve_data_config(model=model)["input_size"] == (3, 64, 64)
    assert model.pretrained_cfg["interpolation"] == timm.get_pretrained_cfg("test_convnext").interpolation


def test_dropout_is_before_the_classifier_in_training_only() -> None:
    model = timm.create_model(NAME, drop_rate=1.0, num_classes=3, **SMALL)
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(model(x), model.head.bias.expand(2, 3))
    assert not torch.equal(model.eval()(x), model.head.bias.expand(2, 3))


def test_timm_resolves_the_preprocessing() -> None:
    overlay = {"mean": (0.1, 0.2, 0.3), "crop_pct": 1.0}
    model = timm.create_model(NAME, pretrained_cfg_overlay=overlay, **SMALL)
    config = timm.data.resolve_data_config(model=model)
    assert (config["input_size"], config["mean"], config["crop_pct"]) == ((3, 64, 64), (0.1, 0.2, 0.3), 1.0)
    assert model.default_cfg["classifier"] == "head"
    assert model.default_cfg["architecture"] == NAME


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> C2FModel:
    """Register `mlph_mine` with weights of two tags; return the model of the default tag."""
    for registry in (MODELS, WEIGHTS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr("c2f_zoo.zoo.pretrained._DEFAULTS", {})
    options = {"input_size": 64, "pooling_options": {"dim": 8}}
    models = {}
    for tag in ("second", "first"):
        models[tag] = create_model("mlph", backbone="test_convnext", hierarchy="critters", **options)  # type: ignore[arg-type]
        models[tag].save_pretrained(tmp_path / tag)
        files = ("config.json", "model.safetensors")
        checksums = {file: hashlib.sha256((tmp_path / tag / file).read_bytes()).hexdigest() for file in files}
        c2f_zoo.zoo.pretrained.register_weights(
            PretrainedWeights(f"mlph_mine.{tag}", f"file:{tmp_path / tag}", checksums, "apache-2.0", (3, 64, 64))
        )
    c2f_zoo.register_model("mlph_mine")(ModelSpec("mlph", "test_convnext", "critters", options))
    return models["second"].eval()


@pytest.mark.slow
def test_trained_weights_have_their_tags_in_timm(weights: C2FModel) -> None:
    assert timm.list_models("mlph_mine*", pretrained=True) == ["mlph_mine.first", "mlph_mine.second"]
    x = torch.rand(1, 3, 64, 64)
    wanted = weights(x)["species"]
    first = timm.create_model("mlph_mine.first", pretrained=True).eval()(x)
    assert torch.equal(timm.create_model("mlph_mine", pretrained=True).eval()(x), wanted)
    assert torch.equal(timm.create_model("mlph_mine.second", pretrained=True).eval()(x), wanted)
    assert not torch.equal(first, wanted)
    resolve = getattr(timm.models, "resolve_model_input_args", None)
    if resolve is not None:
        assert torch.equal(timm.create_model(**resolve("mlph_mine.first"), pretrained=True).eval()(x), first)
    with pytest.raises(ValueError, match="'frist'; did you mean 'first'"):
        timm.create_model("mlph_mine.frist", pretrained=True)
    with pytest.warns(UserWarning, match="the classifier of 'mlph_mine' was replaced"):
        fresh = timm.create_model("mlph_mine", pretrained=True, num_classes=3)
    assert torch.equal(fresh.backbone.body.stem[0].weight, weights.backbone.body.stem[0].weight)  # type: ignore[index, union-attr]
    assert fresh(x).shape == (1, 3)


def test_weights_registered_later_have_their_tags_in_timm(weights: C2FModel) -> None:
    second = WEIGHTS["mlph_mine.second"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        c2f_zoo.register_weights(replace(second, name="mlph_mine.third", licence="mit"))
        c2f_zoo.register_weights(replace(second, name="mlph_of_nobody.third"))
    tags = [name.partition(".")[2] for name in timm.list_models("mlph_mine*", pretrained=True)]
    assert tags == ["first", "second", "third"]
    assert timm.get_pretrained_cfg("mlph_mine").tag == "second"
    assert timm.get_pretrained_cfg("mlph_mine.third").license == "mit"
    assert not timm.is_model("mlph_of_nobody")
    x = torch.rand(1, 3, 64, 64)
    again = timm.create_model("mlph_mine.third", pretrained=True).eval()
    assert torch.equal(again(x), weights(x)["species"])


@pytest.mark.parametrize(("name", "classes"), [("mlph_tiny_critters", 36), ("mlph_tiny_fashion_mnist", 10)])
def test_timm_has_the_settings_of_bundled_weights(name: str, classes: int) -> None:
    cfg = timm.get_pretrained_cfg(name)
    model = timm.create_model(name, pretrained=True)
    assert {key: getattr(cfg, key) for key in INPUT} == {key: model.pretrained_cfg[key] for key in INPUT}
    assert (cfg.num_classes, cfg.license, cfg.tag) == (classes, "apache-2.0", "scratch")
    assert model.num_classes == classes


def test_settings_of_weights_do_not_change_an_untrained_model() -> None:
    resolve = getattr(timm.models, "resolve_model_input_args", None)
    if resolve is None:
        pytest.skip("this version of timm has no resolve_model_input_args")
    model = timm.create_model(**resolve("mlph_tiny_critters", {}, **TINY))
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)


@pytest.mark.slow
def test_replacing_a_trained_classifier_warns() -> None:
    saved = timm.create_model("mlph_tiny_critters", pretrained=True).get_classifier()
    for num_classes in (5, 0, 36, None):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            timm.create_model("mlph_tiny_critters", pretrained=True, num_classes=num_classes)
        if num_classes != 5:
            assert not seen
            continue
        (warning,) = seen
        features = saved.weight.shape[1]
        assert warning.filename == __file__
        assert f"head.weight: (36, {features}) saved, (5, {features}) here" in str(warning.message)
        assert "head.bias: (36,) saved, (5,) here" in str(warning.message)


@pytest.mark.slow
def test_trained_weights_accept_options_that_change_nothing() -> None:
    x = torch.rand(1, 3, 96, 96)
    wanted = timm.create_model("mlph_tiny_critters", pretrained=True).eval()(x)
    for img_size in (96, (96, 96)):
        options = {"img_size": img_size, "drop_path_rate": 0.0, "global_pool": "mlp", "in_chans": 3}
        assert torch.equal(timm.create_model("mlph_tiny_critters", pretrained=True, **options).eval()(x), wanted)
    for options in ({"img_size": 64}, {"drop_path_rate": 0.1}):
        with pytest.raises(ValueError, match="is a saved model with fixed parts"):
            timm.create_model("mlph_tiny_critters", pretrained=True, **options)


def test_every_backbone_accepts_drop_path_rate_zero() -> None:
    options = {"backbone": "vgg11", "taps": ["features"], "pooling": "avg", "img_size": 64}
    assert timm.create_model(NAME, drop_path_rate=0.0, **options).num_classes == 200
    with pytest.raises(ValueError, match=f"the backbone of '{NAME}' has no stochastic depth; omit drop_path_rate=0.1"):
        timm.create_model(NAME, drop_path_rate=0.1, **options)
    dropping = timm.create_model(NAME, backbone_options={"drop_path_rate": 0.5}, **SMALL)
    never = timm.create_model(NAME, drop_path_rate=0.0, backbone_options={"drop_path_rate": 0.5}, **SMALL)
    assert any(module.drop_prob for module in dropping.modules() if hasattr(module, "drop_prob"))
    assert not any(module.drop_prob for module in never.modules() if hasattr(module, "drop_prob"))


# pretrained_cfg


def test_timm_knows_the_settings_of_every_model() -> None:
    """Test that timm describes a model that is not built as `create_model` builds it."""
    value = timm.models.get_pretrained_cfg_value
    for name in list_models():
        config = resolve(name, {})
        for key in INPUT:
            assert value(name, key) == getattr(config.preprocessing, key)
        names = config.hierarchy.class_names(config.levels[-1])
        assert (value(name, "num_classes"), value(name, "label_names")) == (len(names), names)
        assert (value(name, "classifier"), value(name, "architecture")) == ("head", name)
    assert value("mlph_vgg16_cub", "first_conv") == "backbone.body.features.0"


@pytest.mark.parametrize("backbone", ["resnet18", "test_vit", "test_convnext", "test_efficientnet", "tiny"])
@pytest.mark.parametrize("head", ["levels", "conditional", "disentangled"])
def test_the_first_and_the_last_layer_are_named(backbone: str, head: str) -> None:
    options: dict[str, Any] = {"input_size": 160, "pooling": "avg", "head": head}
    model = create_model("mlph", backbone=backbone, hierarchy="critters", **options)
    classifier = model.at_level("genus")
    cfg = classifier.pretrained_cfg
    first = classifier.get_submodule(cfg["first_conv"])
    assert isinstance(first, torch.nn.Conv2d) and first.in_channels == 3
    maps = classifier.forward_features(torch.rand(1, 3, 160, 160))
    assert cfg["pool_size"] == maps[-1].shape[2:]
    assert classifier.get_submodule(cfg["classifier"]) is classifier.get_classifier()
    classifier.reset_classifier(7)
    assert classifier.get_submodule(cfg["classifier"]) is classifier.get_classifier()


@pytest.mark.slow
def test_a_model_of_a_fixed_input_size_says_so() -> None:
    options: dict[str, Any] = {"hierarchy": "critters", "pooling": "avg"}
    for backbone, fixed in (("vit_tiny_patch16_224", True), ("resnet18", False)):
        model = create_model("mlph", backbone=backbone, **options)
        assert model.at_level("genus").pretrained_cfg["fixed_input_size"] is fixed


def test_a_replaced_model_has_its_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
    for spec, number in ((ModelSpec("mlph", "resnet18", "cub"), 200), (ModelSpec("mlph", "resnet18", "critters"), 36)):
        c2f_zoo.register_model("mlph_mutable", override=True)(spec)
        assert timm.get_pretrained_cfg("mlph_mutable").num_classes == number


def test_a_model_with_unregistered_parts_has_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
    for name, backbone, tree in (("mlph_later", "resnet18", "later"), ("mlph_hub", "hf-hub:me/net", "cub")):
        c2f_zoo.register_model(name)(ModelSpec("mlph", backbone, tree))
        assert timm.is_model(name)
        assert timm.get_pretrained_cfg(name) is None


@pytest.mark.parametrize("level", ["family", "species"])
def test_timm_names_the_classes(level: str) -> None:
    """Test the labels as timm's inference.py reads them from a model."""
    model = create_model("mlph_tiny_critters", pretrained=True)
    cfg = model.at_level(level).pretrained_cfg
    info = timm.data.CustomDatasetInfo(cfg["label_names"], cfg["label_descriptions"])
    assert info.num_classes() == model.hierarchy.num_classes[level]
    depth = model.hierarchy.depth(level)
    for leaf in range(36):
        path = model.hierarchy.path(leaf)[: depth + 1]
        label = int(model.hierarchy.ancestors(torch.tensor(leaf))[depth])
        assert info.index_to_label_name(label) == path[-1]
        assert info.index_to_description(label) == " > ".join(path)


def test_class_names_of_the_caller_are_kept() -> None:
    names = ("a", "b", "c", "d", "e")
    overlay = {"label_names": names, "num_classes": 5}
    model = timm.create_model(NAME, num_classes=5, pretrained_cfg_overlay=overlay, **SMALL)
    assert model.pretrained_cfg["label_names"] == names
    assert "label_names" not in timm.create_model(NAME, num_classes=5, **SMALL).pretrained_cfg


# Feature maps


@pytest.fixture
def stages() -> tuple[torch.nn.Module, LevelClassifier]:
    """Return a network of timm, and a classifier of its last three stages with the same weights."""
    network = timm.create_model("resnet18", num_classes=0).eval()
    classifier = timm.create_model(NAME, backbone="resnet18", taps=["layer2", "layer3", "layer4"], pooling="avg",
                                   img_size=64).eval()  # fmt: skip
    classifier.backbone.body.load_state_dict(network.state_dict())
    return network, classifier


def test_the_taps_have_the_feature_info_of_timm(stages: tuple[torch.nn.Module, LevelClassifier]) -> None:
    network, classifier = stages
    own = timm.models.FeatureInfo(network.feature_info, (2, 3, 4))
    info = timm.models.FeatureInfo(classifier.feature_info, (0, 1, 2))
    assert info.channels() == own.channels()
    assert info.reduction() == own.reduction()
    assert info.module_name() == [f"backbone.body.{name}" for name in own.module_name()]
    assert all(classifier.get_submodule(name) is not None for name in info.module_name())


@pytest.mark.parametrize(
    ("backbone", "size", "wanted"),
    [("inception_v3", 299, [8, 16, 32]), ("inception_v3", 448, [8, 16, 32]), ("vit_tiny_patch16_224", 64, [16] * 3),
     ("vit_small_patch14_dinov2", 70, [14] * 3)],
)  # fmt: skip
@pytest.mark.slow
def test_reduction_is_the_stride(backbone: str, size: int, wanted: list[int]) -> None:
    """Test networks without padding, whose maps are smaller than size / stride, and odd patch sizes."""
    classifier = timm.create_model(NAME, backbone=backbone, pooling="avg", img_size=size)
    assert [tap["reduction"] for tap in classifier.feature_info] == wanted


def test_forward_intermediates_returns_the_maps_of_timm(stages: tuple[torch.nn.Module, LevelClassifier]) -> None:
    network, classifier = stages
    x = torch.rand(2, 3, 64, 64)
    features, maps = classifier.forward_intermediates(x)
    assert len(features) == len(maps) == 3
    assert all(map(torch.equal, features, classifier.forward_features(x)))
    for indices, of_timm in ((None, [2, 3, 4]), (2, [3, 4]), ([0, -1], [2, 4]), ((-2,), [3])):
        wanted = network.forward_intermediates(x, of_timm, intermediates_only=True)  # type: ignore[operator]
        given = classifier.forward_intermediates(x, indices, norm=True, stop_early=True, intermediates_only=True)
        assert len(given) == len(wanted)
        assert all(map(torch.equal, given, wanted))
    for indices in (0, 4, [3], [-4]):
        with pytest.raises(ValueError, match="no taps"):
            classifier.forward_intermediates(x, indices)
    with pytest.raises(ValueError, match="output_fmt='NLC' is unsupported"):
        classifier.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.slow
def test_features_only_returns_the_maps_of_timm(stages: tuple[torch.nn.Module, LevelClassifier]) -> None:
    network, _ = stages
    of_timm = timm.create_model("resnet18", features_only=True, out_indices=(2, 4)).eval()
    of_timm.load_state_dict(network.state_dict())
    options: dict[str, Any] = {"backbone": "resnet18", "taps": ["layer2", "layer3", "layer4"], "img_size": 64}
    model = timm.create_model(NAME, features_only=True, out_indices=(0, 2), **options, pooling="avg").eval()
    model.backbone.body.load_state_dict(network.state_dict())
    assert model.feature_info.channels() == of_timm.feature_info.channels() == [128, 512]
    assert model.feature_info.reduction() == of_timm.feature_info.reduction()
    x = torch.rand(2, 3, 64, 64)
    maps = model(x)
    assert len(maps) == 2
    assert all(map(torch.equal, maps, of_timm(x)))
    assert timm.data.resolve_data_config(model=model)["input_size"] == (3, 64, 64)
    assert len(timm.create_model(NAME, features_only=True, **options, pooling="avg")(x)) == 3
    options["taps"] = ["layer4", "layer2"]
    with pytest.raises(ValueError, match="features_only needs taps from large to small maps"):
        timm.create_model(NAME, features_only=True, **options, pooling="avg")


def test_features_only_of_trained_weights() -> None:
    model = create_model("mlph_tiny_critters", pretrained=True).eval()
    features = timm.create_model("mlph_tiny_critters", pretrained=True, features_only=True).eval()
    x = torch.rand(2, 3, 96, 96)
    assert all(map(torch.equal, features(x), model.forward_features(x)))
    features.train()
    sum(y.square().sum() for y in features(x)).backward()  # type: ignore[union-attr]
    assert all(weight.grad is not None for weight in features.parameters())


# LevelClassifier


@pytest.mark.parametrize("head", c2f_zoo.list_heads())
def test_reset_classifier_does_not_change_the_model(head: str) -> None:
    model = create_model("mlph", hierarchy="critters", head=head, backbone="test_convnext", input_size=64,
                         pooling_options={"dim": 8}).eval()  # fmt: skip
    x = torch.rand(2, 3, 64, 64)
    before = model(x)["species"]
    classifier = model.at_level("species").eval()
    assert torch.equal(classifier(x), before)
    assert classifier.get_classifier() is model.head.get_classifier("species")  # type: ignore[operator]
    classifier.reset_classifier(9)
    linear = classifier.get_classifier()
    v = classifier.forward_head(classifier.forward_features(x), pre_logits=True)
    torch.testing.assert_close(classifier(x), v @ linear.weight.T + linear.bias)
    assert (classifier.num_classes, linear.out_features) == (9, 9)
    assert torch.equal(model(x)["species"], before)
    classifier.reset_classifier(0)
    assert isinstance(classifier.get_classifier(), torch.nn.Identity)
    assert torch.equal(classifier(x), v)
    assert v.shape[1] == classifier.num_features == classifier.head_hidden_size


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_reset_classifier_replaces_the_pooling(small_model: C2FModel, pool: str) -> None:
    x = torch.rand(2, 3, 64, 64)
    before = small_model.eval()(x)["species"]
    classifier = small_model.at_level("species").eval()
    assert len(classifier.pretrained_cfg["label_names"]) == 200
    maps = classifier.forward_features(x)
    classifier.reset_classifier(5, pool)
    pooled = torch.cat([y.mean((2, 3)) if pool == "avg" else y.amax((2, 3)) for y in maps], dim=1)
    linear = classifier.get_classifier()
    torch.testing.assert_close(classifier(x), pooled @ linear.weight.T + linear.bias)
    assert "label_names" not in classifier.pretrained_cfg
    classifier.reset_classifier(0, "")  # timm: neither pooling nor classifier
    assert torch.equal(classifier(x), maps[-1])
    assert classifier.num_features == maps[-1].shape[1]
    with pytest.raises(ValueError, match="a classifier of 4 classes needs a pooling"):
        classifier.reset_classifier(4)
    with pytest.raises(ValueError, match="unknown pooling 'sum'"):
        classifier.reset_classifier(4, "sum")
    assert torch.equal(small_model(x)["species"], before)


def test_global_pool_replaces_the_pooling() -> None:
    x = torch.rand(2, 3, 64, 64)
    model = timm.create_model(NAME, global_pool="avg", num_classes=5, **SMALL).eval()
    pooled = torch.cat([y.mean((2, 3)) for y in model.forward_features(x)], dim=1)
    torch.testing.assert_close(model(x), pooled @ model.head.weight.T + model.head.bias)
    maps = timm.create_model(NAME, global_pool="", num_classes=0, **SMALL).eval()
    assert torch.equal(maps(x), maps.forward_features(x)[-1])


def test_reset_classifier_keeps_the_dtype(small: LevelClassifier) -> None:
    small.double().reset_classifier(2)
    assert small(torch.rand(1, 3, 64, 64).double()).dtype == torch.float64


@pytest.mark.parametrize("backbone", ["test_convnext", "resnet18", "test_vit"])
def test_checkpointing_keeps_the_gradients_and_the_model_can_be_copied(backbone: str) -> None:
    size = 160 if backbone == "test_vit" else 64
    model = timm.create_model(NAME, **{**SMALL, "backbone": backbone, "img_size": size}).eval()
    x = torch.rand(2, 3, size, size)
    wanted = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    model.set_grad_checkpointing()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        loss = model(x).square().sum()
    loss.backward()
    torch.testing.assert_close([weight.grad for weight in model.parameters()], list(wanted))
    assert copy.deepcopy(model)(x).shape == (2, 200)
    model.set_grad_checkpointing(False)
    more: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: more.append(t.numel()) or t, lambda t: t):
        model(x)
    assert sum(kept) < sum(more)


def test_a_backbone_without_checkpointing_is_an_error() -> None:
    model = timm.create_model(NAME, backbone="dla46x_c", taps=["level4"], pooling="avg", img_size=64)
    model.set_grad_checkpointing(False)
    with pytest.raises(ValueError, match="the backbone DLA does not support gradient checkpointing"):
        model.set_grad_checkpointing()


def test_layer_groups_are_those_of_the_backbone_then_the_new_layers(small: LevelClassifier) -> None:
    body = small.backbone.body
    own = timm.models.group_parameters(body, body.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    layers = timm.models.group_parameters(small, small.group_matcher(), reverse=True)
    assert {name: layers[f"backbone.body.{name}"] for name in own} == own
    new = {layer for name, layer in layers.items() if not name.startswith("backbone.")}
    assert new == {max(own.values()) + 1}
    modules = timm.models.group_modules(small, small.group_matcher(coarse=True))
    assert set(modules[max(modules)]) == {"head", *(f"pooling.projections.{i}" for i in range(3))}


def test_a_registered_backbone_is_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch import nn

    from c2f_zoo.backbones import BACKBONES

    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))

    @c2f_zoo.register_backbone("plain")
    def plain(pretrained: bool = False) -> nn.Module:
        return nn.Sequential(*[nn.Sequential(nn.Conv2d(c, 8, 3), nn.ReLU()) for c in (3, 8, 8)])

    model = create_model("hbp", backbone="plain", hierarchy="cub", input_size=32, pooling="avg", taps=["2"])
    classifier = model.at_level("species")
    layers = timm.models.group_parameters(classifier, classifier.group_matcher(), reverse=True)
    assert {name.partition(".")[0]: layer for name, layer in layers.items()} == {"backbone": 0, "head": 1}
    assert classifier.no_weight_decay() == set()
    with pytest.raises(ValueError, match="does not support gradient checkpointing"):
        classifier.set_grad_checkpointing()


def test_layer_decay_and_weight_decay_reach_the_right_weights() -> None:
    model = timm.create_model(NAME, **{**SMALL, "backbone": "test_vit", "img_size": 160})
    assert "backbone.body.pos_embed" in model.no_weight_decay() & {name for name, _ in model.named_parameters()}
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.5)
    group_of = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    named = {name: group_of[id(weight)] for name, weight in model.named_parameters()}
    assert named["head.weight"]["lr_scale"] == named["pooling.projections.0.weight"]["lr_scale"] == 1
    assert named["backbone.body.pos_embed"]["weight_decay"] == 0
    assert named["backbone.body.blocks.5.attn.qkv.weight"]["weight_decay"] == 0.1
    scales = [named[f"backbone.body.blocks.{i}.attn.qkv.weight"]["lr_scale"] for i in range(6)]
    assert [later / earlier for earlier, later in pairwise(scales)] == [2.0] * 5


@pytest.mark.slow
def test_a_checkpoint_of_other_classes_is_loaded_without_classifier(tmp_path: Path, small: LevelClassifier) -> None:
    """Test the rule of timm: if the number of classes differs, the classifier is not loaded."""
    path = tmp_path / "model.safetensors"
    save_file(small.state_dict(), path)
    for num_classes in (5, 7):
        source = {"file": str(path), "num_classes": 5}
        again = timm.create_model(NAME, True, num_classes=num_classes, pretrained_cfg_overlay=source, **SMALL)
        for name, weight in small.state_dict().items():
            if num_classes == 5 or not name.startswith("head."):
                assert torch.equal(again.state_dict()[name], weight)
    x = torch.rand(1, 3, 64, 64)
    loaded = timm.create_model(NAME, num_classes=5, checkpoint_path=str(path), **SMALL).eval()
    assert torch.equal(loaded(x), small.eval()(x))


@pytest.mark.parametrize(
    "options", [{}, {"in_chans": 1}, {"num_classes": 5, "global_pool": "avg"}, {"num_classes": 0, "global_pool": ""}]
)
def test_a_folder_saved_by_timm_is_loaded(tmp_path: Path, options: dict[str, Any]) -> None:
    if not hasattr(timm.models, "save_for_hf"):
        pytest.skip("this version of timm has no public save_for_hf")
    model = timm.create_model(NAME, **options, **SMALL).eval()
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.rand(1, model.in_chans, 64, 64)
    assert torch.equal(again(x), model(x))
    assert (again.num_classes, again.in_chans) == (model.num_classes, model.in_chans)
    for key in ("input_size", "mean", "std", "label_names"):
        saved, loaded = (list(one.pretrained_cfg.get(key, ())) for one in (model, again))
        assert loaded == saved


@pytest.mark.slow
def test_the_code_of_the_documentation_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[1] / "docs" / "how-to" / "use-in-timm.md"
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, {})
    assert "torch.Size([2, 7])" in capsys.readouterr().out
    assert (tmp_path / "species-model" / "config.json").is_file()


# timm's loop


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write critters to one folder for each family, for timm's folder reader."""
    root = tmp_path_factory.mktemp("critters")
    for split in ("train", "test"):
        critters = create_dataset("critters", split, per_class=4)
        tree = critters.hierarchy
        for index in range(len(critters)):
            image, label = critters[index]
            family = tree.class_names("family")[tree.ancestors(torch.tensor([label]))[0, 0]]
            (root / split / family).mkdir(parents=True, exist_ok=True)
            image.save(root / split / family / f"{index}.png")
    return root


def _validate(model: torch.nn.Module, loader: Any) -> OrderedDict[str, float]:
    """Validate as the body of timm's validate.py does."""
    losses, top1 = timm.utils.AverageMeter(), timm.utils.AverageMeter()
    criterion = torch.nn.CrossEntropyLoss()
    model.eval()
    with torch.no_grad():
        for image, target in loader:
            output = model(image)
            losses.update(criterion(output, target).item(), len(target))
            top1.update(timm.utils.accuracy(output, target, topk=(1,))[0].item(), len(target))
    return OrderedDict(loss=losses.avg, top1=top1.avg)


@pytest.mark.slow
def test_functions_of_timm_train_save_and_resume_the_classifier(images: Path, tmp_path: Path) -> None:
    """Train as timm's train.py does: loader, optimizer, schedule, loss, moving average, checkpoints."""
    model = timm.create_model("mlph_tiny_critters", num_classes=4, drop_rate=0.05, **TINY)
    config = timm.data.resolve_data_config({}, model=model)
    loaders = {
        split: timm.data.create_loader(
            timm.data.create_dataset("", root=images, split=split, is_training=split == "train"),
            batch_size=24, is_training=split == "train", num_workers=0, use_prefetcher=False,
            persistent_workers=False, device=torch.device("cpu"), no_aug=True,
            **{key: config[key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct")},
        )
        for split in ("train", "test")
    }  # fmt: skip
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.05, layer_decay=0.9)
    scheduler, epochs = timm.scheduler.create_scheduler_v2(optimizer, sched="cosine", num_epochs=6, warmup_epochs=1)
    criterion = timm.loss.LabelSmoothingCrossEntropy(smoothing=0.05)
    ema = timm.utils.ModelEmaV3(model, decay=0.5)
    saver = timm.utils.CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=str(tmp_path), max_history=2)
    scores = [_validate(model, loaders["train"])]
    for epoch in range(epochs):
        model.train()
        for image, target in loaders["train"]:
            loss = criterion(model(image), target)
            optimizer.zero_grad()
            loss.backward()
            timm.utils.dispatch_clip_grad(model.parameters(), 1.0)
            optimizer.step()
            ema.update(model)
        scheduler.step(epoch + 1)
        scores.append(_validate(model, loaders["train"]))
        saver.save_checkpoint(epoch, metric=scores[-1]["top1"])
    assert scores[-1]["loss"] < 0.8 * scores[0]["loss"]
    assert scores[-1]["top1"] > 50  # of four families

    last = tmp_path / "last.pth.tar"
    tested = _validate(model, loaders["test"])
    again = timm.create_model("mlph_tiny_critters", num_classes=4, **TINY)
    timm.models.load_checkpoint(again, str(last), use_ema=False)
    assert _validate(again, loaders["test"]) == tested
    averaged = timm.create_model("mlph_tiny_critters", num_classes=4, checkpoint_path=str(last), **TINY)
    assert _validate(averaged, loaders["test"]) == _validate(ema.module, loaders["test"])
    resumed = timm.create_model("mlph_tiny_critters", num_classes=4, **TINY)
    fresh = timm.optim.create_optimizer_v2(resumed, opt="adamw", lr=1e-2, weight_decay=0.05, layer_decay=0.9)
    assert timm.models.resume_checkpoint(resumed, str(last), fresh) == epochs
    momenta = zip(fresh.state_dict()["state"].values(), optimizer.state_dict()["state"].values(), strict=True)
    assert all(torch.equal(a["exp_avg"], b["exp_avg"]) for a, b in momenta)


def test_the_classifier_runs_in_a_task_of_timm(small: LevelClassifier) -> None:
    task = pytest.importorskip("timm.task").ClassificationTask(small, torch.nn.CrossEntropyLoss(), verbose=False)
    result = task(torch.rand(2, 3, 64, 64), torch.tensor([0, 4]))
    result["loss"].backward()
    assert result["output"].shape == (2, 5)
    assert all(weight.grad is not None for weight in small.parameters())


def test_training_by_timm_trains_the_weights_of_the_model(small_model: C2FModel) -> None:
    """Test that training one level with timm trains the weights of the model."""
    species = small_model.at_level("species")
    optimizer = timm.optim.create_optimizer_v2(species, opt="sgd", lr=0.1)
    x, target = torch.rand(2, 3, 64, 64), torch.tensor([3, 150])
    before = torch.nn.functional.cross_entropy(small_model(x)["species"], target)
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(species(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.nn.functional.cross_entropy(small_model(x)["species"], target) < before
