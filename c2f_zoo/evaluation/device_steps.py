"""Time and memory of forward and backward passes on a device: of a pooling, and of a model's training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2f_zoo.evaluation.device_checks import choose_impl
from c2f_zoo.evaluation.device_measuring import PRECISIONS, autocast, count_flops, tf32, time_and_memory
from c2f_zoo.model import C2FModel
from c2f_zoo.ops import IMPLEMENTATIONS
from c2f_zoo.pooling import create_pooling
from c2f_zoo.zoo.create import create_model

Plain = Callable[[nn.Module, Sequence[Tensor]], Tensor]
# "eager": as most code writes it; "compiled": that, by `torch.compile`; "ours": the automatic choice.
VARIANTS = ("eager", "compiled", "ours", *IMPLEMENTATIONS)
Row = dict[str, Any]


def measure_pooling(
    name: str,
    variant: str,
    precision: str,
    batch: int,
    plain: Plain,
    device: torch.device,
    channels: int = 512,
    size: int = 28,
    dim: int = 8192,
) -> Row:
    """Measure a forward and backward pass of a pooling of three maps; the default shape is the paper's.

    Args:
        name: name of the pooling.
        variant: one of `VARIANTS`.
        precision: one of `c2f_zoo.evaluation.device_measuring.PRECISIONS`; "bf16" has float32 weights under autocast.
        batch: number of images.
        plain: a function of the pooling and its maps that computes the vectors as most code writes it.
        device: the device.
        channels: number of channels of each map.
        size: height and width of the maps.
        dim: output dimension of the pooling.

    Returns:
        A row with the implementation that ran, time and memory (see `time_and_memory`), and the rate in 1e12
        floating-point operations a second, counted in the plain formula. The peak is beyond maps, weights and their
        gradients.

    Raises:
        ValueError: the implementation does not support the case.
    """
    dtype, allow_tf32 = PRECISIONS[precision]
    torch.manual_seed(0)
    impl = variant if variant in IMPLEMENTATIONS else None
    module = create_pooling(name, [channels] * 3, dim=dim, impl=impl).to(device)
    shape = (batch, channels, size, size)
    maps = [torch.rand(shape, device=device, dtype=dtype).requires_grad_() for _ in range(3)]
    choice = choose_impl(module, impl, maps, dtype)
    if choice is not None and choice.refused:
        raise ValueError(choice.refused)
    call: Callable[..., Tensor] = module
    if variant in ("eager", "compiled"):
        choice = None
        call = partial(torch.compile(plain, dynamic=False) if variant == "compiled" else plain, module)

    def step(call: Callable[..., Tensor], maps: Sequence[Tensor]) -> None:
        for tensor in (*maps, *module.parameters()):
            tensor.grad = None
        with autocast(device, dtype):
            vectors = call(maps)
        vectors.backward(torch.ones_like(vectors))

    one_image = [x[:1].detach().requires_grad_() for x in maps]
    with tf32(allow_tf32):
        flops = batch * count_flops(lambda: step(partial(plain, module), one_image))
        row = {"impl": choice and choice.impl, **time_and_memory(lambda: step(call, maps), device)}
    return {**row, "tflops": rate(flops, row)}


def measure_training_step(
    batch: int,
    plain: Plain | None,
    device: torch.device,
    model: str = "mlph_vgg16_cub",
    compiled: bool = False,
    **options: Any,
) -> Row:
    """Measure a training step of a model at its leaf level: bf16 autocast, SGD with momentum, channels-last.

    Args:
        batch: number of images.
        plain: a function of the pooling and its maps that replaces the pooling; None for the pooling itself.
        device: the device.
        model: name of the model.
        compiled: compile the model with `torch.compile`.
        **options: additional keyword arguments of `create_model`.

    Returns:
        A row with time and memory (see `time_and_memory`), images a second, and the rate in 1e12 floating-point
        operations a second, counted in the model with a plain pooling.
    """
    torch.manual_seed(0)
    net = create_model(model, **options).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
    size = net.config.preprocessing.input_size
    images = torch.rand(batch, *size, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % net.hierarchy.num_classes[net.levels[-1]]
    flops = batch * count_model_flops(net, images[:1], labels[:1])
    if plain is not None:
        net.pooling.forward = partial(plain, net.pooling)  # type: ignore[method-assign]
    call: Callable[..., dict[str, Tensor]] = torch.compile(net, dynamic=False) if compiled else net

    def step() -> None:
        backward(call, net, images, labels)
        optimizer.step()
        optimizer.zero_grad()

    row: Row = time_and_memory(step, device)
    return {**row, "images_s": round(1e3 * batch / row["ms"], 2), "tflops": rate(flops, row)}


def backward(call: Callable[..., dict[str, Tensor]], net: C2FModel, images: Tensor, labels: Tensor) -> None:
    level = net.levels[-1]
    with autocast(images.device, torch.bfloat16):
        logits = call(images, levels=(level,))[level]
    F.cross_entropy(logits.float(), labels).backward()


def count_model_flops(net: C2FModel, images: Tensor, labels: Tensor) -> int:
    """Count the operations of a step's passes, with the plain implementation of the pooling if it has several."""
    pooling: Any = net.pooling
    impl = getattr(pooling, "impl", None)
    if hasattr(pooling, "impl"):
        pooling.impl = "plain"
    flops = count_flops(lambda: backward(net, net, images, labels))
    net.zero_grad()
    if hasattr(pooling, "impl"):
        pooling.impl = impl
    return flops


def rate(flops: float, row: Row) -> float:
    """Return the rate of a row in 1e12 operations a second."""
    return round(1e-9 * flops / row["ms"], 4)
