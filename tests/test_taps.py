"""A backbone keeps no state between calls: threads, copies, processes, export, compilation, tracing, checkpointing."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from c2f_zoo.backbones import TapBackbone, create_body
from c2f_zoo.backbones.prune import Removed
from c2f_zoo.backbones.trace import run_features

SMALL: dict[str, Any] = {
    "embed_dim": 8,
    "depths": (1, 1, 3, 1),
    "num_heads": (1, 1, 2, 2),
    "img_size": 64,
    "window_size": 4,
}
# One small network of each kind: CNN, vision transformer, windowed transformer, hybrid of ResNet and transformer.
KINDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "cnn": ("test_resnet", {}, 64),
    "vit": ("test_vit", {"depth": 3}, 160),
    "swin": ("swin_tiny_patch4_window7_224", SMALL, 64),
    "hybrid": ("vit_tiny_r_s16_p8_224", {"img_size": 96, "depth": 3}, 96),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def build(kind: str) -> TapBackbone:
    name, options, size = KINDS[kind]
    torch.manual_seed(0)
    return TapBackbone(create_body(name, **options), None, (3, size, size)).eval()


def images(kind: str, seed: int = 0) -> Tensor:
    size = KINDS[kind][2]
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def plain_maps(backbone: TapBackbone, x: Tensor) -> list[Tensor]:
    """Run the network once with hooks of this test; maps of tokens become (N, C, H, W)."""
    outputs: dict[str, Any] = {}
    hooks = [
        backbone.body.get_submodule(tap).register_forward_hook(
            lambda _module, _args, output, tap=tap: outputs.update({tap: output})
        )
        for tap in backbone.taps
    ]
    run_features(backbone.body, x)
    for hook in hooks:
        hook.remove()
    maps = []
    for tap, (channels, height, width) in zip(backbone.taps, backbone.map_shapes, strict=True):
        y = outputs[tap]
        if y.ndim == 3:
            y = y[:, y.shape[1] - height * width :].transpose(1, 2).reshape(-1, channels, height, width)
        maps.append(y if y.shape[1] == channels else y.permute(0, 3, 1, 2))
    return maps


def assert_same(found: Any, expected: list[Tensor]) -> None:
    torch.testing.assert_close(list(found), expected, rtol=1e-5, atol=1e-5)


@kinds
@pytest.mark.slow
def test_maps_are_the_outputs_of_the_taps(kind: str) -> None:
    backbone, x = build(kind), images(kind)
    assert_same(backbone(x), plain_maps(backbone, x))


@kinds
@pytest.mark.slow
def test_threads_share_one_model(kind: str) -> None:
    backbone = build(kind)
    inputs = [images(kind, seed) for seed in range(4)]
    with torch.no_grad():
        expected = [backbone(x) for x in inputs]

    @torch.no_grad()
    def calls(which: int) -> list[bool]:
        return [all(map(torch.equal, backbone(inputs[which]), expected[which])) for _ in range(25)]

    with ThreadPoolExecutor(4) as pool:
        assert all(all(equal) for equal in pool.map(calls, range(4)))


def exported(backbone: nn.Module, x: Tensor, strict: bool) -> Callable[[Tensor], Any]:
    return torch.export.export(backbone, (x,), strict=strict).module()


TOOLS: dict[str, Callable[[nn.Module, Tensor], Callable[[Tensor], Any]]] = {
    "export": lambda backbone, x: exported(backbone, x, strict=False),
    "strict export": lambda backbone, x: exported(backbone, x, strict=True),
    "compile": lambda backbone, x: torch.compile(backbone, fullgraph=True, backend="aot_eager"),
    "jit.trace": lambda backbone, x: torch.jit.trace(backbone, (x,), check_trace=False),
    "deepcopy": lambda backbone, x: copy.deepcopy(backbone),
    "pickle": lambda backbone, x: pickle.loads(pickle.dumps(backbone)),
    "torch.save": lambda backbone, x: saved_and_loaded(backbone),
}


def saved_and_loaded(backbone: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(backbone, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.slow
@kinds
@pytest.mark.parametrize("tool", TOOLS)
@torch.no_grad()
def test_tools_of_pytorch_give_the_same_maps(kind: str, tool: str) -> None:
    torch.compiler.reset()
    backbone, x = build(kind), images(kind)
    expected = plain_maps(backbone, x)
    assert_same(TOOLS[tool](backbone, x)(x), expected)
    assert_same(backbone(x), expected)  # the backbone itself still works
    assert_same(copy.deepcopy(backbone)(x), expected)


@pytest.mark.slow
@kinds
def test_checkpointing_gives_the_same_maps_and_gradients(kind: str) -> None:
    backbone, x = build(kind), images(kind)
    weights = list(backbone.parameters())
    expected = backbone(x)
    gradients = torch.autograd.grad(sum(y.square().mean() for y in expected), weights)
    backbone.body.set_grad_checkpointing()
    found = backbone(x)
    assert_same(found, expected)
    for gradient, wanted in zip(
        torch.autograd.grad(sum(y.square().mean() for y in found), weights), gradients, strict=True
    ):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
    assert_same(copy.deepcopy(backbone)(x), expected)


@pytest.mark.slow
def test_checkpointing_with_a_removed_stage_gives_the_same_maps() -> None:
    # timm iterates over the stages of an EfficientNet, the removed last one too.
    backbone = TapBackbone(create_body("test_efficientnet"), ("blocks.1", "blocks.2"), (3, 64, 64)).eval()
    assert isinstance(backbone.body.blocks[4], Removed)
    x = images("cnn")
    expected = backbone(x)
    backbone.body.set_grad_checkpointing()
    assert_same(backbone(x), expected)


def send_maps(backbone: TapBackbone, x: Tensor, connection: Any) -> None:
    with torch.no_grad():
        connection.send([y.numpy() for y in backbone(x)])


@pytest.mark.slow
def test_a_spawned_process_gives_the_same_maps() -> None:
    backbone, x = build("vit"), images("vit")
    with torch.no_grad():
        expected = backbone(x)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=send_maps, args=(backbone, x, theirs))
    process.start()
    found = [torch.from_numpy(y) for y in ours.recv()]
    process.join()
    assert process.exitcode == 0
    assert_same(found, expected)


def test_replaced_taps_are_recorded() -> None:
    """`--sync-bn` of timm's train.py replaces batch norms that are taps or the last layer of one."""
    body, x = create_body("resnet10t"), torch.rand(2, 3, 64, 64)
    backbone = TapBackbone(body, ("layer3.0.downsample", "layer4.0.downsample.2"), (3, 64, 64)).eval()
    expected = backbone(x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(backbone))
    assert isinstance(converted.body.layer4[0].downsample[2], nn.SyncBatchNorm)
    assert_same(converted(x), expected)
    assert [len(module._forward_hooks) for module in converted.modules()].count(1) == 2


def test_an_error_in_a_call_leaves_no_state() -> None:
    backbone, x = build("cnn"), images("cnn")
    expected = backbone(x)
    with pytest.raises(RuntimeError):
        backbone(torch.rand(2, 4, 64, 64))
    run_features(backbone.body, x)  # outside a call of the backbone, hooks do nothing
    assert_same(backbone(x), expected)


# Weights that no tap depends on.


class Gate(nn.Module):
    """A layer with a weight of its own beside a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale


class ThreeGates(nn.Module):
    """The convolution of the last gate can be tapped; its scale and the channels after it are behind that tap."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.gates = nn.Sequential(Gate(), Gate(), Gate())
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=in_place)
        self.wide = nn.Conv2d(4, 6, 1)
        self.last = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.wide(self.act(self.norm(self.gates(self.stem(x))))))


def test_single_weights_behind_the_taps_become_constants() -> None:
    whole = ThreeGates()
    taps = ("gates.0", "gates.1", "gates.2.conv")
    backbone = TapBackbone(copy.deepcopy(whole), taps, (3, 8, 8))
    names = {name for name, _ in backbone.named_parameters()}
    used = ["stem", "gates.0.conv", "gates.1.conv", "gates.2.conv"]
    assert names == {f"body.{layer}.{key}" for layer in used for key in ("weight", "bias")} | {
        "body.gates.0.scale",
        "body.gates.1.scale",
    }
    assert "body.gates.2.scale" not in backbone.state_dict()
    x = torch.rand(2, 3, 8, 8)
    maps = backbone(x)
    sum(y.sum() for y in maps).backward()
    assert all(weight.grad is not None for weight in backbone.parameters())
    inside = whole.gates[0](whole.stem(x))
    assert_same(maps, [inside, whole.gates[1](inside), whole.gates[2].conv(whole.gates[1](inside))])


def test_a_removed_layer_does_not_let_a_later_one_overwrite_a_tap() -> None:
    backbone = TapBackbone(ThreeGates(in_place=True), ("gates.0", "gates.1", "gates.2"), (3, 8, 8)).eval()
    assert isinstance(backbone.body.norm, Removed)
    x = torch.rand(2, 3, 8, 8)
    expected = backbone.body.gates(backbone.body.stem(x))
    assert bool((expected < 0).any()), "the in-place ReLU would change the map"
    assert torch.equal(backbone(x)[2], expected)


class FixedStem(nn.Module):
    """A network whose stem runs without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)
        self.conv = nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.stem(x)
        return self.last(self.conv(x))


def test_a_stem_that_runs_without_gradients_is_kept() -> None:
    whole = FixedStem()
    backbone = TapBackbone(copy.deepcopy(whole), ("conv",), (3, 8, 8))
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(backbone(x)[0], whole.conv(whole.stem(x)))
    assert "body.last.weight" not in backbone.state_dict()


class SharedActivation(nn.Module):
    """A network that applies one activation module in a Sequential and again later."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Sigmoid()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 1), self.act)
        self.second = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.second(self.first(x)))


def test_a_shared_last_layer_does_not_stand_for_its_sequential() -> None:
    backbone = TapBackbone(SharedActivation(), ("first", "second"), (3, 8, 8))
    x = torch.rand(2, 3, 8, 8)
    first = backbone.body.first(x)
    assert_same(backbone(x), [first, backbone.body.second(first)])


def test_a_replaced_tap_is_hooked_or_an_error_says_so() -> None:
    backbone, x = build("cnn"), images("cnn")
    expected = backbone(x)
    assert_same(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(backbone))(x), expected)
    backbone.body.forward_features = lambda x: x  # no tap runs
    with pytest.raises(RuntimeError, match=r"the taps \['layer2', .*\] were replaced; run the model once"):
        backbone(x)
