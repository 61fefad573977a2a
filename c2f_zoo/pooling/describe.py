"""Descriptions and costs of poolings, for tables."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import c2f_zoo.ops.tiled  # noqa: F401  # registers torch.ops.c2f_zoo.tiled_sums
from c2f_zoo.pooling.registry import POOLINGS, create_pooling


@dataclass(frozen=True)
class PoolingDescription:
    """A row of the table of poolings.

    Attributes:
        description: the pooling's `description`.
        source: the pooling's `source`.
        parameters: number of trainable parameters.
        out_features: length of the vector.
        multiply_adds: multiply-adds of a forward pass of one image in evaluation mode, with `impl="plain"` if the
            pooling has this option. An element-wise product, power or comparison counts as one, an FFT of n real
            numbers as 5/4 n log2(n); root and norm of the vector are left out.
        uncounted: the custom operators that it calls and whose operations are not in `multiply_adds`.
    """

    description: str
    source: str
    parameters: int
    out_features: int
    multiply_adds: int
    uncounted: tuple[str, ...] = ()


def describe_pooling(
    name: str, in_channels: Sequence[int], size: tuple[int, int], **options: object
) -> PoolingDescription:
    """Describe a pooling and count its parameters and operations.

    Operations of a custom operator are counted by the formula that `torch.utils.flop_counter.register_flop_formula`
    registered for it.

    Args:
        name: one of `list_poolings()`.
        in_channels: number of channels of each map.
        size: (height, width) of the maps.
        **options: options of `create_pooling`.

    Examples:
        >>> row = describe_pooling("mlp", [512, 512, 512], (2, 2), dim=16)
        >>> row.source, row.parameters, row.out_features
        ('Huo et al., SIGIR 2019, eq. 6', 24624, 64)
    """
    if "impl" in inspect.signature(POOLINGS[name]).parameters:
        options = {"impl": "plain", **options}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        pooling = create_pooling(name, in_channels, **options).eval()  # batch norm's statistics cost once for a batch
        maps = [torch.ones(1, channels, *size) for channels in in_channels]
        with _CustomOperators() as custom, FlopCounterMode(display=False, custom_mapping=_FLOPS) as counter:
            pooling(maps)
    return PoolingDescription(
        description=pooling.description,
        source=pooling.source,
        parameters=sum(weight.numel() for weight in pooling.parameters()),
        out_features=pooling.out_features,
        multiply_adds=counter.get_total_flops() // 2,
        uncounted=tuple(str(operator) for operator in custom.called if operator not in counter.flop_registry),
    )


class _CustomOperators(TorchDispatchMode):
    """Notes the operators of other libraries than PyTorch that are called while the context is open."""

    def __init__(self) -> None:
        super().__init__()
        self.called: dict[Any, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace not in ("aten", "prim", "prims", "mkldnn"):
            self.called[func.overloadpacket] = None
        return func(*args, **(kwargs or {}))


def _of_output(*args: Any, out_val: Tensor, **kwargs: Any) -> int:
    return 2 * out_val.numel() * (4 if out_val.is_complex() else 1)


def _of_input(x: Tensor, *args: Any, out_val: Tensor, **kwargs: Any) -> int:
    return 2 * x.numel()


def _of_fft(x: Tensor, dims: list[int], *args: Any, out_val: Tensor, **kwargs: Any) -> int:
    real = out_val if x.is_complex() else x
    return round(2.5 * real.numel() * math.log2(real.shape[dims[-1]]))


def _of_product(a: Tensor, b: Tensor, *args: Any, out_val: Tensor, **kwargs: Any) -> int:
    return 2 * out_val.numel() * a.shape[2]


def _of_tiled_sums(
    maps: list[Tensor], weights: list[Tensor], biases: Any, masks: list[int], *args: Any, out_val: Any, **kwargs: Any
) -> int:
    projections = sum(weight.numel() for weight in weights)
    products = len(weights[0]) * sum(mask.bit_count() - 1 for mask in masks)
    return 2 * maps[0].shape[0] * maps[0].shape[2] * (projections + products)


# PyTorch counts its own matrix products and convolutions.
_FLOPS: dict[Any, Any] = {
    torch.ops.aten.mul: _of_output,
    torch.ops.c2f_zoo.bmm: _of_product,
    torch.ops.c2f_zoo.tiled_sums: _of_tiled_sums,
    torch.ops.aten.pow: _of_output,
    torch.ops.aten.mean: _of_input,
    torch.ops.aten.amax: _of_input,
    torch.ops.aten._fft_r2c: _of_fft,
    torch.ops.aten._fft_c2r: _of_fft,
}
for _count in _FLOPS.values():
    _count._get_raw = True  # FlopCounterMode then passes tensors, not shapes
