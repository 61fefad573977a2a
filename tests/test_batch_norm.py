"""Batch norm with statistics and weights of its own for each level, against plain networks."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from c2f_zoo import C2FModel, create_dataset, create_model, load_hierarchy
from c2f_zoo.backbones import TapBackbone, create_body
from c2f_zoo.backbones.batch_norm import CopiedNorm, copy_batch_norm, is_batch_norm
from c2f_zoo.config import ModelConfig
from c2f_zoo.data import create_transform, load_image
from c2f_zoo.evaluation.probe import extract_features
from c2f_zoo.evaluation.scoring import score_images
from c2f_zoo.inference.predictor import Predictor
from c2f_zoo.model import build as build_untrained
from c2f_zoo.training.options import Stage, TrainOptions
from c2f_zoo.training.setup import build_model, set_train_mode

# Networks with BatchNorm2d and with timm's BatchNormAct2d.
BACKBONES = ("tiny", "test_efficientnet", "resnet18")
backbones = pytest.mark.parametrize("backbone", BACKBONES)

OWN = {"species": None, "genus": 32, "family": 12}  # as many resolutions as levels
LEVELS = ("family", "genus", "species")


def build(backbone: str = "tiny", resolutions: Any = OWN, **options: Any) -> C2FModel:
    """Build a model whose batch norms have different weights and statistics, copies too."""
    torch.manual_seed(0)
    model = create_model(
        "mlph",
        backbone=backbone,
        hierarchy="critters",
        input_size=64,
        resolutions=resolutions,
        pooling="avg",
        **{"batch_norm": "per_level", **options},
    )
    for module in model.backbone.modules():
        if is_batch_norm(module):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, 0.5, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def plain(model: C2FModel, number: int) -> C2FModel:
    """Return a new model with shared batch norm, which has the values of one copy."""
    network = build_untrained(replace(model.config, batch_norm="shared"))
    here, others = f".copies.{number}.", ".copies."
    weights = {
        name.replace(here, "."): tensor
        for name, tensor in model.state_dict().items()
        if here in name or others not in name
    }
    network.load_state_dict(weights)
    return network.train(model.training)


def images(seed: int = 0) -> Tensor:
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@backbones
def test_copies_are_those_of_plain_networks_that_see_one_level_each(backbone: str) -> None:
    model = build(backbone)
    networks = {level: plain(model, number) for level, number in model.config.norm_copies.items()}
    assert model.config.norm_copies == {"species": 0, "genus": 1, "family": 2}
    for step in range(2):
        for level in LEVELS:
            x = images(seed=10 * step + LEVELS.index(level)) * (1 + LEVELS.index(level))
            assert_same(model(x, (level,)), networks[level](x, (level,)))
    for number, level in enumerate(LEVELS[::-1]):
        expected = networks[level].state_dict()
        assert_same(plain(model, number).state_dict(), expected)
        assert any(expected[name].equal(torch.tensor(2)) for name in expected if "num_batches" in name)
        model.eval(), networks[level].eval()
        assert_same(model(images(), (level,)), networks[level](images(), (level,)))


def test_a_step_trains_the_copies_of_its_level_only() -> None:
    model = build()
    model(images(), ("genus",))["genus"].square().mean().backward()
    norms = [module for module in model.modules() if isinstance(module, CopiedNorm)]
    assert norms
    assert all(norm.copies[1].weight.grad is not None for norm in norms)
    assert all(
        weight.grad is None for norm in norms for number in (0, 2) for weight in norm.copies[number].parameters()
    )


@pytest.mark.parametrize(
    ("levels", "view", "number"),
    [
        (None, None, 0),
        (("family",), None, 1),
        (("family", "genus"), None, 1),
        (("species", "family"), None, 0),
        (LEVELS, "genus", 1),
        (("family",), "species", 0),
        ((), None, 0),
    ],
)
def test_the_finest_level_asked_for_chooses_unless_a_view_is_named(levels: Any, view: Any, number: int) -> None:
    model = build(resolutions={"genus": 32, "family": 32}).eval()
    assert model.config.norm_copies == {"species": 0, "genus": 1, "family": 1}
    assert_same(model(images(), levels, view), plain(model, number)(images(), levels))
    assert_same(
        model.forward_features(images(), view or "species"), plain(model, number if view else 0).backbone(images())
    )


def test_an_unknown_view_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown view 'genera'; known: family, genus, species"):
        build()(images(), view="genera")


def test_resolutions_need_not_shrink_with_the_levels() -> None:
    model = build(resolutions={"species": 12, "genus": 32, "family": 12})
    assert model.config.norm_copies == {"species": 0, "genus": 1, "family": 0}


# Each level at its own resolution.


def seen(model: C2FModel, resolution: int | None, count: int = 3) -> Tensor:
    dataset = create_dataset("critters", "test", per_class=1)
    transform = create_transform(model.config.preprocessing, resolution, train=False)
    return torch.stack([transform(load_image(dataset, number)) for number in range(count)])


def test_a_predictor_uses_the_batch_norm_of_each_resolution() -> None:
    model = build(resolutions={"genus": 32, "family": 32}, levels=("genus", "species")).eval()
    dataset = create_dataset("critters", "test", per_class=1)
    found = Predictor(model)._log_probs([load_image(dataset, number) for number in range(3)])
    networks = {"species": (None, plain(model, 0)), "genus": (32, plain(model, 1))}
    for level, (resolution, network) in networks.items():
        expected = network(seen(model, resolution), (level,))[level].double().log_softmax(dim=1)
        assert_same(torch.from_numpy(found[level]), expected)


@pytest.mark.parametrize(("resolution", "number"), [(None, 0), (50, 0), (32, 1), (28, 1), (13, 2), (2, 2)])
def test_scores_at_a_resolution_use_the_batch_norm_of_the_nearest(resolution: int | None, number: int) -> None:
    model = build().eval()
    dataset = create_dataset("critters", "test", per_class=1)
    accelerator = Accelerator(cpu=True)
    batches = score_images(model, dataset, range(3), {resolution: LEVELS}, batch_size=3, accelerator=accelerator)
    x = seen(model, resolution)
    assert_same(next(iter(batches)).logits[resolution], plain(model, number)(x))


@pytest.mark.slow
def test_features_of_a_probe_use_the_batch_norm_of_each_resolution() -> None:
    model = build().eval()
    dataset = create_dataset("critters", "test", per_class=1)
    found = extract_features(model, dataset, OWN)
    for level, number in model.config.norm_copies.items():
        network = plain(model, number)
        expected = network.forward_pool(network.forward_features(seen(model, OWN[level])))
        assert_same(found[level][:3], expected)


# One level as a classifier.


@pytest.mark.parametrize(("backbone", "level"), [("tiny", "species"), ("test_efficientnet", "family")])
def test_a_level_is_a_plain_network_with_shared_weights(backbone: str, level: str) -> None:
    model = build(backbone)
    network = plain(model, model.config.norm_copies[level])
    classifier = model.at_level(level)
    assert classifier.state_dict().keys() == network.at_level(level).state_dict().keys()
    weights = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    assert all(id(tensor) in weights for tensor in (*classifier.parameters(), *classifier.buffers()))
    x = images()
    classifier(x).square().mean().backward()
    assert all(weight.grad is not None for weight in classifier.parameters())
    network(x)  # updates the statistics of its batch norm as the classifier did
    assert_same(model.eval()(x, (level,))[level], network.eval()(x, (level,))[level])
    assert_same(classifier.eval()(x), network(x, (level,))[level])


def test_timm_builds_the_finest_level_as_a_plain_network() -> None:
    from c2f_zoo.integrations.timm import create_classifier

    classifier = create_classifier("mlph_tiny_critters", batch_norm="per_level")
    expected = create_classifier("mlph_tiny_critters")
    assert classifier.state_dict().keys() == expected.state_dict().keys()


# Tools of PyTorch.


class AtLevel(nn.Module):
    """A model's logits of one level."""

    def __init__(self, model: C2FModel, level: str) -> None:
        super().__init__()
        self.model, self.level = model, level

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, (self.level,))[self.level]


def saved_and_loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


TOOLS: dict[str, Callable[[nn.Module, Tensor], Callable[[Tensor], Any]]] = {
    "export": lambda module, x: torch.export.export(module, (x,), strict=False).module(),
    "strict export": lambda module, x: torch.export.export(module, (x,), strict=True).module(),
    "jit.trace": lambda module, x: torch.jit.trace(module, (x,), check_trace=False),
    "deepcopy": lambda module, x: copy.deepcopy(module),
    "pickle": lambda module, x: pickle.loads(pickle.dumps(module)),
    "torch.save": lambda module, x: saved_and_loaded(module),
}


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_tools_of_pytorch_choose_the_same_copy(tool: str) -> None:
    torch.compiler.reset()
    model, x = build().eval(), images()
    expected = plain(model, 2)(x, ("family",))["family"]
    assert_same(TOOLS[tool](AtLevel(model, "family"), x)(x), expected)
    assert_same(model(x), plain(model, 0)(x))  # the model itself still works


@pytest.mark.slow
def test_a_compiled_backbone_chooses_the_copy_in_every_call() -> None:
    torch.compiler.reset()
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    backbone = TapBackbone(body, ("1", "4"), (3, 64, 64))
    backbone.copy_batch_norm([0, 0, 0])
    for norm in (body[1], body[4]):
        for number, copied in enumerate(norm.copies):
            nn.init.constant_(copied.bias, number)
    expected = copy.deepcopy(backbone)
    backbone.compile(fullgraph=True, backend="aot_eager")
    for number in (0, 2, 1, 0):
        for network in (backbone, expected):
            sum(y.square().mean() for y in network(images(), number)).backward()
    assert_same(backbone.state_dict(), expected.state_dict())
    for weight, wanted in zip(backbone.parameters(), expected.parameters(), strict=True):
        assert_same(weight.grad, wanted.grad)


@pytest.mark.slow
def test_threads_may_ask_for_different_levels() -> None:
    model, x = build().eval(), images()
    with torch.no_grad():
        expected = {level: plain(model, number)(x, (level,)) for level, number in model.config.norm_copies.items()}

    @torch.no_grad()
    def calls(level: str) -> list[bool]:
        return [torch.allclose(model(x, (level,))[level], expected[level][level], atol=1e-6) for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        assert all(all(equal) for equal in pool.map(calls, [*LEVELS, "family"]))


@pytest.mark.parametrize("backbone", BACKBONES[:2])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.slow
def test_checkpointing_recomputes_with_the_same_copies(backbone: str, together: bool) -> None:
    """The gradients of a loss of each level in turn, or of one that adds forward passes at all levels."""

    def train(model: C2FModel) -> dict[str, Tensor | None]:
        losses = []
        for number, level in enumerate(LEVELS):
            losses.append(model(images(number), (level,))[level].square().mean())
            if not together:
                losses.pop().backward()
        if together:
            torch.stack(losses).sum().backward()
        return {name: weight.grad for name, weight in model.named_parameters()}

    model = build(backbone)
    model.backbone.body.set_grad_checkpointing()  # type: ignore[operator]
    expected = train(build(backbone))
    found = train(model)
    assert all(gradient is not None for gradient in expected.values())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_ddp_trains_the_same(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, expected = build(), build()
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        for level in LEVELS:
            for network in (wrapped, expected):
                network(images(), (level,))[level].square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert_same(model.state_dict(), expected.state_dict())
    for weight, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        assert_same(weight.grad, wanted.grad)


def test_sync_batch_norm_replaces_the_copies() -> None:
    model, x = build().eval(), images()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in converted.modules()) == 3 * sum(
        isinstance(module, CopiedNorm) for module in model.modules()
    )
    for level in LEVELS:
        assert_same(converted(x, (level,)), model(x, (level,)))


def test_a_batch_norm_used_twice_has_one_set_of_copies() -> None:
    norm = nn.BatchNorm2d(4)
    body = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Conv2d(4, 4, 1), norm)
    expected = body.eval()(images())
    copy_batch_norm(body, [0, 0])
    assert isinstance(body[1], CopiedNorm)
    assert body[1] is body[3]
    assert_same(body(images()), expected)


# Configurations, weights and changes of a model.


@pytest.mark.parametrize("batch_norm", ["shared", "per_level"])
def test_a_saved_model_is_loaded_bit_for_bit(batch_norm: str, tmp_path: Path) -> None:
    model = build(batch_norm=batch_norm)
    model(images(), ("family",))
    model.save_pretrained(tmp_path)
    again = create_model(f"local-dir:{tmp_path}")
    assert again.config == model.config
    assert again.config.batch_norm == batch_norm
    weights, loaded = model.state_dict(), again.state_dict()
    assert weights.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    for level in LEVELS:
        assert torch.equal(again.eval()(images(), (level,))[level], model.eval()(images(), (level,))[level])


def test_a_configuration_without_batch_norm_is_one_with_shared() -> None:
    data = build(batch_norm="shared").config.to_dict()
    assert data.pop("batch_norm") == "shared"
    assert ModelConfig.from_dict(data).batch_norm == "shared"
    with pytest.raises(ValueError, match="unknown batch_norm 'per_levels'; did you mean 'per_level'"):
        ModelConfig.from_dict({**data, "batch_norm": "per_levels"})
    with pytest.raises(ValueError, match=r"batch_norm is \['per_level'\], expected text"):
        ModelConfig.from_dict({**data, "batch_norm": ["per_level"]})


def test_weights_of_another_configuration_are_refused(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "batch_norm": "shared"}))
    with pytest.raises(ValueError, match=r"missing keys: backbone.body.conv1.1.weight"):
        create_model(f"local-dir:{tmp_path}")


def test_a_shared_model_is_loaded_into_every_copy(tmp_path: Path) -> None:
    model = build(batch_norm="shared").eval()
    model.save_pretrained(tmp_path)
    copied = create_model(f"local-dir:{tmp_path}", batch_norm="per_level").eval()
    assert copied.config == replace(model.config, batch_norm="per_level")
    assert copied.backbone.num_copies == 3
    for level in LEVELS:
        assert_same(copied(images(), (level,)), model(images(), (level,)))


@pytest.mark.slow
def test_a_backbone_checkpoint_is_loaded_into_every_copy(tmp_path: Path) -> None:
    body = create_body("tiny")
    for tensor in (*body.parameters(), *body.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    save_file(body.state_dict(), tmp_path / "body.safetensors")
    options: dict[str, Any] = {"backbone": "tiny", "hierarchy": "critters", "input_size": 64, "resolutions": OWN}
    for channels in (3, 1):
        options |= {"backbone_checkpoint": tmp_path / "body.safetensors", "in_chans": channels}
        shared = create_model("mlph", **options).eval()
        copied = create_model("mlph", batch_norm="per_level", **options).eval()
        x = images()[:, :channels]
        for level in LEVELS:
            assert_same(copied.forward_features(x, level), shared.forward_features(x))


def test_separate_batch_norm_cannot_be_shared_again(tmp_path: Path) -> None:
    model = build()
    model.save_pretrained(tmp_path)
    for change in (
        lambda: model.set_config(replace(model.config, batch_norm="shared")),
        lambda: create_model(f"local-dir:{tmp_path}", batch_norm="shared"),
    ):
        with pytest.raises(ValueError, match=r"differs between levels .* cannot be shared; at_level\(\.\.\.\)"):
            change()


@pytest.mark.parametrize(
    ("resolutions", "sources"),
    [
        ({"genus": 32, "family": 12}, {"species": 0, "genus": 1, "family": 2}),
        ({"genus": 24, "family": 8}, {"species": 0, "genus": 1, "family": 2}),
        ({"genus": 13, "family": 12}, {"species": 0, "genus": 2, "family": 2}),
        ({"genus": 60, "family": 32}, {"species": 0, "genus": 0, "family": 1}),
        ({}, {"species": 0, "genus": 0, "family": 0}),
    ],
)
@pytest.mark.slow
def test_new_resolutions_take_the_copies_of_the_nearest(
    resolutions: dict[str, int], sources: dict[str, int], tmp_path: Path
) -> None:
    model = build().eval()
    model.save_pretrained(tmp_path)
    changed = create_model(f"local-dir:{tmp_path}", resolutions=resolutions).eval()
    assert changed.backbone.num_copies == len({None, *resolutions.values()})
    for level, source in sources.items():
        assert_same(changed(images(), (level,)), plain(model, source)(images(), (level,)))


@pytest.mark.slow
def test_a_new_tree_keeps_the_batch_norm_of_its_resolutions(tmp_path: Path) -> None:
    model = build().eval()
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="do not fit the new classes"):
        birds = create_model(f"local-dir:{tmp_path}", hierarchy="fashion_mnist", resolutions={"division": 12}).eval()
    assert birds.config.norm_copies == {"article": 0, "group": 0, "division": 1}
    for level, source in {"article": 0, "group": 0, "division": 2}.items():
        assert_same(birds.forward_features(images(), level), plain(model, source).backbone(images()))
    expected = plain(model, 0).backbone(images())
    model.reset_classifier(load_hierarchy("fashion_mnist"))
    assert model.backbone.num_copies == 1
    assert_same(model.forward_features(images()), expected)


def test_a_backbone_without_batch_norm_is_refused() -> None:
    for backbone in ("test_convnext", "test_vit"):
        with pytest.raises(
            ValueError, match=r"has no batch norm: its norm does not depend on the batch, so .*'shared'"
        ):
            create_model("mlph", backbone=backbone, hierarchy="critters", batch_norm="per_level")


def test_a_tap_inside_a_batch_norm_is_refused() -> None:
    options: dict[str, Any] = {"backbone": "test_efficientnet", "hierarchy": "critters", "input_size": 64}
    taps = ["blocks.4.0.bn2.act", "blocks.4.0.bn3"]
    create_model("hbp", taps=taps, pooling="avg", **options)
    with pytest.raises(ValueError, match=r"tap 'blocks.4.0.bn2.act' is a part of a batch norm.* tap 'blocks.4.0.bn2'"):
        create_model("hbp", taps=taps, pooling="avg", batch_norm="per_level", **options)


# Training.


def options_of(**values: Any) -> TrainOptions:
    defaults: dict[str, Any] = {"dataset": "critters", "model": "mlph_tiny_critters", "resolutions": OWN}
    return TrainOptions(**defaults | {"stages": [Stage(epochs=1, lr=0.1)]} | values)


def test_the_option_reaches_the_model() -> None:
    tree = load_hierarchy("critters")
    assert build_model(options_of(batch_norm="per_level"), tree).backbone.num_copies == 3
    for batch_norm in ("shared", "frozen"):
        assert build_model(options_of(batch_norm=batch_norm), tree).config.batch_norm == "shared"
    chosen = options_of(model_options={"batch_norm": "per_level"})
    assert build_model(chosen, tree).config.batch_norm == "per_level"


@pytest.mark.parametrize("values", [{"batch_norm": "per_level"}, {"model_options": {"batch_norm": "per_level"}}])
def test_images_of_any_resolution_have_no_batch_norm_of_a_level(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"'any_resolution' .* use batch_norm 'shared' or 'frozen'"):
        build_model(options_of(objective="any_resolution", **values), load_hierarchy("critters"))


@pytest.mark.parametrize("backbone", BACKBONES[:2])
def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_weights(backbone: str) -> None:
    model, reference = (build(backbone, batch_norm="shared") for _ in range(2))
    stage = Stage(epochs=1, lr=0.1, backbone_lr=0.1)
    set_train_mode(model, model, stage, options_of(batch_norm="frozen"))
    assert_same(model(images()), reference.eval()(images()))
    model(images())["species"].square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for name, value in reference.named_buffers():
        assert torch.equal(model.get_buffer(name), value), name
    norms = {name for name, module in reference.named_modules() if is_batch_norm(module)}
    for name in norms:
        assert not torch.equal(model.get_parameter(f"{name}.weight"), reference.get_parameter(f"{name}.weight")), name
    set_train_mode(model, model, stage, options_of())
    model(images())
    assert all(
        not torch.equal(model.get_buffer(f"{name}.running_mean"), reference.get_buffer(f"{name}.running_mean"))
        for name in norms
    )
