"""Steps measured on the CPU: operations counted by hand, equal weights, kinds of numbers."""

from __future__ import annotations

import pytest
import torch
from reference.poolings import PLAIN

from c2f_zoo import create_model
from c2f_zoo.evaluation.device_measuring import PRECISIONS, product_rate, tf32, time_and_memory
from c2f_zoo.evaluation.device_steps import count_model_flops, measure_pooling, measure_training_step

CPU = torch.device("cpu")
SMALL = {"hierarchy": "critters", "backbone": "test_convnext", "input_size": 64}


@pytest.mark.parametrize(("variant", "impl"), [("eager", None), ("ours", "plain"), ("tiled", "tiled")])
def test_operations_of_a_pooling_by_hand(variant: str, impl: str | None) -> None:
    row = measure_pooling("mlp", variant, "bf16", 3, PLAIN["mlp"], CPU, channels=6, size=4, dim=5)
    # 3 images, 3 maps, 16 locations: products with (5, 6) in the forward pass and for both gradients.
    flops = 3 * 3 * 16 * 2 * 5 * 6 * 3
    assert row["tflops"] == pytest.approx(1e-9 * flops / row["ms"], abs=1e-4)
    assert (row["impl"], row["peak_mib"]) == (impl, None)


def test_an_unsupported_implementation_is_an_error() -> None:
    with pytest.raises(ValueError, match="impl='gram' is unsupported: not every term is a pair"):
        measure_pooling("mlp", "gram", "fp32", 1, PLAIN["mlp"], CPU, channels=6, size=4, dim=5)


@pytest.mark.slow
def test_operations_of_a_model_do_not_depend_on_the_implementation() -> None:
    counts = []
    for impl in ("plain", "tiled"):
        net = create_model("mlph", pooling_options={"dim": 8, "impl": impl}, **SMALL)  # type: ignore[arg-type]
        counts.append(count_model_flops(net, torch.rand(1, 3, 64, 64), torch.tensor([0])))
        assert net.pooling.impl == impl
        assert all(weight.grad is None for weight in net.parameters())
    assert counts[0] == counts[1] > 0


@pytest.mark.slow
def test_a_training_step_with_a_plain_pooling() -> None:
    calls = []

    def plain(pooling: torch.nn.Module, maps: list[torch.Tensor]) -> torch.Tensor:
        calls.append(len(maps))
        return PLAIN["mlp"](pooling, maps)

    options = {"model": "mlph", "pooling_options": {"dim": 8}, **SMALL}
    row = measure_training_step(2, plain, CPU, **options)  # type: ignore[arg-type]
    assert calls and set(calls) == {3}
    assert row["images_s"] == pytest.approx(2e3 / row["ms"], abs=0.01)


def test_tf32_is_set_within_the_block() -> None:
    def setting() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = setting()
    for allowed in (True, False):
        with tf32(allowed):
            assert setting() == (allowed, allowed)
        assert setting() == before


def test_rates_and_calls() -> None:
    assert all(product_rate(name, CPU, size=32) > 0 for name in PRECISIONS)
    calls = []
    row = time_and_memory(lambda: calls.append(1), CPU, repeats=5)
    assert row["calls"] == 5 and len(calls) == 8  # three before the measurement
