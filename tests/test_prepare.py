"""Channels-last, gradient checkpointing and compilation against the plain model."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partialmethod

import pytest
import torch
from torch import Tensor, nn

from c2f_zoo import C2FModel, create_model
from c2f_zoo.training.optimizers import create_optimizer
from c2f_zoo.training.options import Stage, TrainOptions
from c2f_zoo.training.setup import count_graphs, prepare_for_training

PLAIN = TrainOptions("critters", "mlph", {}, [], channels_last=False)
BOTH = Stage(epochs=1, lr=0.1, backbone_lr=0.01)


@pytest.fixture(scope="module")
def tiny() -> C2FModel:
    """Return a model with batch norm; tests copy it."""
    torch.manual_seed(0)
    return create_model(
        "mlph", backbone="test_efficientnet", hierarchy="critters", input_size=48, pooling_options={"dim": 8}
    )


def train(model: nn.Module, parts: C2FModel, steps: int = 3) -> None:
    """Train for a few steps, each at one level; `model` may wrap `parts`."""
    optimizer = create_optimizer(parts, BOTH, PLAIN)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        x = torch.rand(4, 3, 48, 48, generator=generator)
        optimizer.zero_grad()
        level = parts.levels[step % len(parts.levels)]
        model(x, levels=(level,))[level].square().mean().backward()
        optimizer.step()


def assert_close(found: nn.Module, expected: nn.Module, rtol: float, atol: float) -> None:
    assert list(found.state_dict()) == list(expected.state_dict()), "the names have no prefixes"
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=rtol, atol=atol, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize(
    "options",
    [
        {"channels_last": True},
        {"gradient_checkpointing": True},
        {"channels_last": True, "gradient_checkpointing": True},
    ],
    ids=lambda options: "+".join(options),
)
def test_weights_and_statistics_are_those_of_the_plain_run(tiny: C2FModel, options: dict) -> None:
    plain, prepared = copy.deepcopy(tiny), copy.deepcopy(tiny)
    prepare_for_training(prepared, replace(PLAIN, **options))
    train(plain, plain)
    train(prepared, prepared)
    tolerance = 1e-4 if options.get("channels_last") else 0  # another order of sums
    assert_close(prepared, plain, rtol=tolerance, atol=tolerance)
    with pytest.raises(AssertionError):
        assert_close(prepared, tiny, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_checkpointing_knows_the_batch_norm_of_each_level() -> None:
    """Test the sum of all levels' losses, each with batch norm of its own, in one backward pass."""
    resolutions = {"species": None, "genus": 32, "family": 12}
    settings = {"backbone": "test_efficientnet", "input_size": 48, "pooling_options": {"dim": 8}}
    plain = create_model("mlph", hierarchy="critters", batch_norm="per_level", resolutions=resolutions, **settings)
    prepared = copy.deepcopy(plain)
    prepare_for_training(prepared, replace(PLAIN, gradient_checkpointing=True))
    for model in (plain, prepared):
        generator = torch.Generator().manual_seed(0)
        images = {level: torch.rand(4, 3, 48, 48, generator=generator) for level in model.levels}
        sum(model(x, levels=(level,))[level].square().mean() for level, x in images.items()).backward()
    assert_close(prepared, plain, rtol=0, atol=0)
    counts = [value for name, value in plain.state_dict().items() if name.endswith("num_batches_tracked")]
    assert set(map(int, counts)) == {1}, "each was used once"
    for found, expected in zip(prepared.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-6, atol=1e-8)


def saved_bytes(model: C2FModel) -> int:
    """Return the bytes of distinct tensors that autograd keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model.forward_features(torch.rand(4, 3, 48, 48))
    return sum(kept.values())


def test_checkpointing_keeps_less(tiny: C2FModel) -> None:
    plain, prepared = copy.deepcopy(tiny), copy.deepcopy(tiny)
    prepare_for_training(prepared, replace(PLAIN, gradient_checkpointing=True))
    assert saved_bytes(prepared) < 0.6 * saved_bytes(plain)


def test_checkpointing_excludes_compilation(tiny: C2FModel) -> None:
    with pytest.raises(ValueError, match="set either it or compile to false"):
        prepare_for_training(copy.deepcopy(tiny), replace(PLAIN, gradient_checkpointing=True, compile=True))


def test_channels_last_is_the_default(tiny: C2FModel) -> None:
    weight = "backbone.body.conv_stem.weight"
    for options, contiguous in ((PLAIN, False), (TrainOptions("critters", "mlph", {}, []), True)):
        model = copy.deepcopy(tiny)
        prepare_for_training(model, options)
        assert model.get_parameter(weight).is_contiguous(memory_format=torch.channels_last) == contiguous


@pytest.mark.slow
def test_a_compiled_model_has_few_graphs_and_the_plain_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    # The default backend takes minutes to compile for a CPU; graphs and names do not depend on it.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    plain = create_model("mlph_tiny_critters", input_size=48)  # few layers: compiled in seconds
    prepared = copy.deepcopy(plain)
    prepare_for_training(prepared, replace(PLAIN, compile=True))
    graphs = []
    for _ in range(2):
        train(plain, plain)
        train(prepared, prepared)
        graphs.append(count_graphs())
    assert_close(prepared, plain, rtol=1e-3, atol=1e-4)
    assert graphs == [2, 2], "one of the backbone and one of the pooling, for three levels"
    assert not torch._dynamo.utils.counters["graph_break"]
    averaged = copy.deepcopy(prepared)  # as the moving average does
    x = torch.rand(2, 3, 48, 48)
    for level, logits in averaged.eval()(x).items():
        torch.testing.assert_close(logits, plain.eval()(x)[level], rtol=1e-3, atol=1e-3)
