"""Optimizers, schedules and the moving average, against torch's, timm's and hand-made ones."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import c2f_zoo
from c2f_zoo import C2FModel, create_model
from c2f_zoo.backbones import BACKBONES
from c2f_zoo.training.optimizers import create_ema, create_optimizer, create_schedule
from c2f_zoo.training.option_checks import check_stages
from c2f_zoo.training.options import Stage, TrainOptions

OPTIONS = TrainOptions("critters", "mlph", {}, [])
BOTH = Stage(epochs=2, lr=0.1, backbone_lr=0.01)


def model_on(backbone: str, **options: Any) -> C2FModel:
    torch.manual_seed(0)
    options = {"pooling_options": {"dim": 8}, **options}
    return create_model("mlph", backbone=backbone, hierarchy="critters", **options)


@pytest.fixture(scope="module")
def tiny() -> C2FModel:
    """Return a model with batch norm and integer buffers; tests copy it."""
    return model_on("test_efficientnet", input_size=48)


def train_step(model: C2FModel, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.rand(4, *model.config.preprocessing.input_size, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    sum(logits.square().mean() for logits in model(x).values()).backward()  # type: ignore[union-attr]
    optimizer.step()


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    different = [name for (name, x), (other, y) in pairs if name != other or not torch.equal(x, y)]
    assert different == []


def by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Return the parameter group of each weight."""
    group_of = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    return {name: group_of[id(weight)] for name, weight in model.named_parameters() if id(weight) in group_of}


# The optimizer


@pytest.mark.parametrize("stage", [Stage(1, lr=0.1), BOTH], ids=["frozen", "both"])
def test_by_default_it_is_sgd_bit_for_bit(tiny: C2FModel, stage: Stage) -> None:
    ours, plain = copy.deepcopy(tiny), copy.deepcopy(tiny)
    plain.backbone.requires_grad_(stage.backbone_lr > 0)
    groups = [{"params": [*plain.pooling.parameters(), *plain.head.parameters()], "lr": stage.lr}]
    if stage.backbone_lr:
        groups.append({"params": list(plain.backbone.parameters()), "lr": stage.backbone_lr})
    reference = torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4)
    optimizer = create_optimizer(ours, stage, OPTIONS)
    assert type(optimizer) is torch.optim.SGD
    assert not optimizer.defaults["nesterov"], "timm's sgd has Nesterov's momentum"
    for step in range(3):
        train_step(ours, optimizer, step)
        train_step(plain, reference, step)
    assert_equal(ours, plain)
    assert ("backbone.body.conv_stem.weight" in by_name(ours, optimizer)) == (stage.backbone_lr > 0)


@pytest.mark.parametrize(
    ("name", "own", "reference"),
    [
        ("sgd", {"nesterov": True}, lambda w: torch.optim.SGD(w, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True)),
        ("AdamW", {"betas": [0.8, 0.9]}, lambda w: torch.optim.AdamW(w, 0.1, (0.8, 0.9), weight_decay=0.01)),
        ("adam", {}, lambda w: torch.optim.Adam(w, 0.1, weight_decay=0.01)),
    ],
)
def test_an_optimizer_and_its_options_are_torchs(tiny: C2FModel, name: str, own: dict, reference: Any) -> None:
    ours, plain = copy.deepcopy(tiny), copy.deepcopy(tiny)
    options = replace(OPTIONS, optimizer=name, optimizer_options=own, weight_decay=0.01)
    optimizer, other = create_optimizer(ours, replace(BOTH, backbone_lr=0.1), options), reference(plain.parameters())
    for step in range(3):
        train_step(ours, optimizer, step)
        train_step(plain, other, step)
    assert_equal(ours, plain)


@pytest.mark.parametrize("name", ["lamb", "lion", "muon", "rmsprop", "adafactor"])
def test_an_optimizer_of_timm_resumes_exactly(tiny: C2FModel, name: str) -> None:
    if name not in timm.optim.list_optimizers():
        pytest.skip(f"this version of timm has no {name}")
    options = replace(OPTIONS, optimizer=name, filter_bias_and_bn=True, layer_decay=0.8)
    whole, stopped = copy.deepcopy(tiny), copy.deepcopy(tiny)
    optimizer, first = (create_optimizer(model, BOTH, options) for model in (whole, stopped))
    for step in range(4):
        train_step(whole, optimizer, step)
    for step in range(2):
        train_step(stopped, first, step)
    resumed = copy.deepcopy(tiny)
    resumed.load_state_dict(stopped.state_dict())
    second = create_optimizer(resumed, BOTH, options)
    second.load_state_dict(first.state_dict())
    for step in (2, 3):
        train_step(resumed, second, step)
    assert_equal(resumed, whole)
    with pytest.raises(AssertionError):
        assert_equal(whole, tiny)


# Weight decay and layer decay

LAST_BLOCKS = [("test_vit", 160, "blocks.5"), ("test_convnext", 64, "stages.3"), ("test_resnet", 64, "layer4")]


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("filter_bias_and_bn", [True, False])
@pytest.mark.parametrize(("backbone", "size", "tap"), LAST_BLOCKS)
def test_groups_of_the_backbone_are_timms(
    backbone: str, size: int, tap: str, layer_decay: float | None, filter_bias_and_bn: bool
) -> None:
    model = model_on(backbone, input_size=size, taps=[tap], pooling="avg", pooling_options={})
    options = replace(OPTIONS, weight_decay=0.05, layer_decay=layer_decay, filter_bias_and_bn=filter_bias_and_bn)
    ours = by_name(model, create_optimizer(model, BOTH, options))
    assert {id(weight) for weight in model.parameters()} == {id(w) for g in ours.values() for w in g["params"]}
    whole = timm.create_model(backbone, num_classes=5)  # with the classifier, which comes after the last block
    if not filter_bias_and_bn:
        whole.no_weight_decay = lambda: set()
    timms = by_name(
        whole,
        timm.optim.create_optimizer_v2(
            whole, "sgd", weight_decay=0.05, layer_decay=layer_decay, filter_bias_and_bn=filter_bias_and_bn
        ),
    )
    compared = 0
    for name, group in ours.items():
        if name.startswith("backbone.body."):
            reference = timms[name.removeprefix("backbone.body.")]
            assert group["lr"] == pytest.approx(BOTH.backbone_lr * reference.get("lr_scale", 1.0))
            compared += 1
        else:
            is_exempt = filter_bias_and_bn and name.endswith("bias")
            reference = {"weight_decay": 0.0 if is_exempt else 0.05}
            assert group["lr"] == BOTH.lr
        assert group["weight_decay"] == reference["weight_decay"], name
    assert compared > 20
    if layer_decay:
        assert len({group["lr"] for group in ours.values()}) > 4
    if backbone == "test_vit" and filter_bias_and_bn:
        assert ours["backbone.body.pos_embed"]["weight_decay"] == 0


def test_layers_count_from_the_deepest_tap() -> None:
    model = model_on("test_vit", input_size=160, taps=["blocks.2"], pooling="avg", pooling_options={})
    groups = by_name(model, create_optimizer(model, BOTH, replace(OPTIONS, layer_decay=0.5)))
    lrs = [groups[f"backbone.body.blocks.{block}.attn.qkv.weight"]["lr"] for block in (2, 1, 0)]
    assert [*lrs, groups["backbone.body.pos_embed"]["lr"]] == [0.01 * 0.5**depth for depth in (1, 2, 3, 4)]


def test_groups_hold_the_weights_of_replaced_modules(tiny: C2FModel) -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(tiny))
    options = replace(OPTIONS, layer_decay=0.5, filter_bias_and_bn=True)
    before, after = (by_name(one, create_optimizer(one, BOTH, options)) for one in (copy.deepcopy(tiny), model))
    values = [{name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} for groups in (before, after)]
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adamww"}, "unknown optimizer 'adamww'; did you mean 'adamw'"),
        ({"optimizer": "adahessian"}, "'adahessian' needs second derivatives"),
        ({"optimizer_options": {"nesterof": True}}, "option of optimizer 'sgd': 'nesterof'; did you mean 'nesterov'"),
        ({"optimizer_options": {"lr": 1.0}}, "must not have lr"),
        ({"optimizer": "adamw", "optimizer_options": {"betas": 0.9}}, "do not fit 'adamw'"),
        ({"optimizer": "adamw", "optimizer_options": {"betas": [2, 3]}}, "beta"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
    ],
)
def test_errors_name_the_option(tiny: C2FModel, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_optimizer(copy.deepcopy(tiny), BOTH, replace(OPTIONS, **options))


def test_layer_decay_needs_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))

    @c2f_zoo.register_backbone("plain")
    def plain(pretrained: bool = False) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())

    model = create_model("mlph", backbone="plain", hierarchy="critters", input_size=32, pooling="avg", taps=["1"])
    with pytest.raises(ValueError, match="Sequential has no timm group_matcher"):
        create_optimizer(model, BOTH, replace(OPTIONS, layer_decay=0.5))


# The schedule

STEPS = 4  # in an epoch


def expected_factor(stage: Stage, step: int) -> float:
    """Return the learning rate in a step as a fraction of the stage's."""
    warmup, total = int(stage.warmup_epochs * STEPS), stage.epochs * STEPS
    if step < warmup:
        return step / warmup
    if stage.schedule == "step":
        return 0.5 ** (step // (stage.halve_every * STEPS))
    done = (step - warmup) / (total - warmup)
    return (1 + math.cos(math.pi * done)) / 2 if stage.schedule == "cosine" else 1 - done


def weights_at(*lrs: float) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs]
    return torch.optim.SGD(groups, momentum=0.9)


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("schedule", ["step", "cosine", "linear"])
def test_every_learning_rate_is_that_of_the_formula(schedule: Any, warmup: float) -> None:
    stage = Stage(epochs=3, lr=0.4, backbone_lr=0.01, schedule=schedule, halve_every=2, warmup_epochs=warmup)
    optimizer = weights_at(stage.lr, stage.backbone_lr)
    created = create_schedule(optimizer, stage, STEPS)
    found = []
    for step in range(stage.epochs * STEPS):
        found.append([group["lr"] for group in optimizer.param_groups])
        created.step_update(step + 1)
    factors = [expected_factor(stage, step) for step in range(len(found))]
    torch.testing.assert_close(Tensor(found), Tensor([[0.4 * factor, 0.01 * factor] for factor in factors]))
    if schedule != "step":
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0, 0], abs=1e-12)
    for step in (7, 2, 5):  # in any order: it has no state
        created.step_update(step)
        assert [group["lr"] for group in optimizer.param_groups] == found[step]


def test_halving_equals_steplr() -> None:
    stage = Stage(epochs=6, lr=0.3, halve_every=2)
    ours, theirs = weights_at(0.3), weights_at(0.3)
    created, reference = create_schedule(ours, stage, STEPS), torch.optim.lr_scheduler.StepLR(theirs, 2, gamma=0.5)
    for epoch in range(6):
        for step in range(STEPS):
            assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
            created.step_update(epoch * STEPS + step + 1)
        theirs.step()
        reference.step()


def test_a_resumed_schedule_needs_only_the_number_of_the_step() -> None:
    stage = Stage(epochs=3, lr=0.4, schedule="cosine", warmup_epochs=1)
    optimizer = weights_at(0.4)
    created = create_schedule(optimizer, stage, STEPS)
    created.step_update(6)
    saved = copy.deepcopy(optimizer.state_dict())
    resumed = weights_at(0.4)
    again = create_schedule(resumed, stage, STEPS)
    resumed.load_state_dict(saved)
    for step in (6, 7, 11):
        created.step_update(step)
        again.step_update(step)
        assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("schedule", ["step", "cosine", "linear"])
def test_a_stage_of_one_step_has_its_learning_rate(schedule: Any) -> None:
    optimizer = weights_at(0.1)
    create_schedule(optimizer, Stage(epochs=1, lr=0.1, schedule=schedule, warmup_epochs=0.9), steps_per_epoch=1)
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("warmup", [-1, 2, 2.5])
def test_a_warm_up_is_shorter_than_the_stage(warmup: float) -> None:
    with pytest.raises(ValueError, match=f"warmup_epochs is {warmup}; .* less than the stage's 2 epochs"):
        check_stages([BOTH, Stage(epochs=2, lr=0.1, warmup_epochs=warmup)])
    check_stages([BOTH, Stage(epochs=2, lr=0.1, warmup_epochs=1.9)])


# The moving average


def decay_at(step: int, limit: float) -> float:
    """Return the decay in a step: that of a plain mean's power, up to the limit."""
    return min(limit, 1 - step ** (-2 / 3))


def test_the_average_is_that_of_a_hand_made_loop(tiny: C2FModel) -> None:
    model = copy.deepcopy(tiny)
    optimizer, ema = create_optimizer(model, BOTH, OPTIONS), create_ema(model, replace(OPTIONS, ema=0.5))
    assert ema is not None
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for step in range(1, 6):
        train_step(model, optimizer, step)
        ema.update(model, step=step)
        decay = decay_at(step, 0.5)
        for name, value in model.state_dict().items():
            is_float = value.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * value.double() if is_float else value.double()
    counted = [name for name in expected if name.endswith("num_batches_tracked")]
    averaged = [name for name in expected if name.endswith("running_mean")]
    assert counted and averaged
    for name, value in ema.module.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert all(ema.module.state_dict()[name] == 5 for name in counted), "integers are copied"
    assert not torch.equal(ema.module.state_dict()[averaged[0]], model.state_dict()[averaged[0]])
    assert not ema.module.training


def test_the_first_average_is_the_model(tiny: C2FModel) -> None:
    model = copy.deepcopy(tiny)
    ema = create_ema(model, replace(OPTIONS, ema=0.9999))
    assert ema is not None
    train_step(model, create_optimizer(model, BOTH, OPTIONS), 0)
    ema.update(model, step=1)
    assert_equal(ema.module, model)


def test_a_stopped_and_restored_average_is_identical(tiny: C2FModel, tmp_path: Any) -> None:
    options = replace(OPTIONS, ema=0.9, optimizer="adamw")

    def run(steps: range, load: bool, save: bool) -> tuple[C2FModel, C2FModel]:
        model = copy.deepcopy(tiny)
        optimizer, ema = create_optimizer(model, BOTH, options), create_ema(model, options)
        assert ema is not None
        parts = {"model": model, "optimizer": optimizer, "ema": ema}
        if load:
            for name, state in torch.load(tmp_path / "state.pt", weights_only=True).items():
                parts[name].load_state_dict(state)
        for step in steps:
            train_step(model, optimizer, step)
            ema.update(model, step=step)
        if save:
            torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "state.pt")
        return model, ema.module

    whole = run(range(1, 7), load=False, save=False)
    run(range(1, 4), load=False, save=True)
    resumed = run(range(4, 7), load=True, save=False)
    for a, b in zip(whole, resumed, strict=True):
        assert_equal(a, b)


def test_the_average_is_a_model_that_can_be_saved(tiny: C2FModel, tmp_path: Any) -> None:
    model = copy.deepcopy(tiny)
    ema = create_ema(model, replace(OPTIONS, ema=0.5))
    assert ema is not None
    train_step(model, create_optimizer(model, BOTH, OPTIONS), 0)
    ema.update(model, step=3)
    ema.module.save_pretrained(tmp_path)
    x = torch.rand(2, 3, 48, 48)
    loaded = C2FModel.from_pretrained(tmp_path).eval()
    for level, logits in ema.module(x).items():
        assert torch.equal(loaded(x)[level], logits)
        assert not torch.equal(model.eval()(x)[level], logits)


def test_no_average_by_default(tiny: C2FModel) -> None:
    assert create_ema(tiny, OPTIONS) is None
    with pytest.raises(ValueError, match=r"ema is 1\.0"):
        create_ema(tiny, replace(OPTIONS, ema=1.0))


def test_shared_weights_have_no_average(tiny: C2FModel) -> None:
    model = copy.deepcopy(tiny)
    model.pooling.projections[1] = model.pooling.projections[0]  # type: ignore[index, operator]
    with pytest.raises(ValueError, match="2 weights of the model are shared"):
        create_ema(model, replace(OPTIONS, ema=0.9))
