"""Checks of the poolings on a device, against float64 on the CPU."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from c2f_zoo.evaluation.device_measuring import autocast, tf32
from c2f_zoo.ops import IMPLEMENTATIONS
from c2f_zoo.ops.choice import Choice, SumsShape, choose
from c2f_zoo.pooling import POOLINGS, Pooling, create_pooling, list_poolings
from c2f_zoo.pooling.multilinear import MultilinearPooling
from c2f_zoo.zoo import num_taps_of

BATCH, CHANNELS, SIZE, DIM = 2, 72, (9, 14), 131  # no multiples of the kernels' tiles
# Largest error of the values and of each gradient, as norms relative to the exact ones: a few units of rounding for
# values, and more for gradients, since the roots' slopes are large where sums cancel.
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (0.01, 0.05), torch.float16: (0.002, 0.01)}
Row = dict[str, Any]


@dataclass(frozen=True)
class PoolingCase:
    """A pooling to check, with an implementation, in a dtype.

    Attributes:
        pooling: name of the pooling.
        dtype: dtype of maps and weights, or of autocast.
        mode: "cast" casts maps and weights to the dtype; "autocast" and "compiled" (by `torch.compile`) keep weights in
            float32 and run under autocast, unless the dtype is float32.
        impl: one of `c2f_zoo.ops.IMPLEMENTATIONS`; None: the default.
    """

    pooling: str
    dtype: torch.dtype
    mode: str = "cast"
    impl: str | None = None

    def __str__(self) -> str:
        return " ".join([self.pooling, self.impl or "default", str(self.dtype).removeprefix("torch."), self.mode])


def pooling_cases(names: Sequence[str] = ()) -> Iterator[PoolingCase]:
    """Yield the cases of all poolings, or of some: every implementation, dtype and mode; compilations last."""
    names = names or list_poolings()
    for name in names:
        has_impl = "impl" in inspect.signature(POOLINGS[name]).parameters
        for impl in IMPLEMENTATIONS if has_impl else (None,):
            for dtype in TOLERANCE:
                yield PoolingCase(name, dtype, "cast", impl)
                if dtype != torch.float32:
                    yield PoolingCase(name, dtype, "autocast", impl)
    for dtype in (torch.bfloat16, torch.float32):
        yield from (PoolingCase(name, dtype, "compiled") for name in names)


def check_pooling_case(case: PoolingCase, device: torch.device) -> Row:
    """Compare a pooling's values and gradients on a device with those in float64 on the CPU.

    The reference runs the implementation `plain`, from maps and weights rounded to the dtype in which they are kept.
    Float32 products run in float32, not in TF32.

    Returns:
        A row with the relative errors of values and gradients, and the outcome: "ok", "failed: ...", or the reason why
        the implementation does not support the case.
    """
    torch.manual_seed(0)
    pooling = create_case_pooling(case)
    kept = case.dtype if case.mode == "cast" else torch.float32
    maps = [torch.randn(BATCH, c, *SIZE).relu().to(kept) for c in pooling.in_channels]
    pooling = pooling.to(kept)
    reference = copy.deepcopy(pooling).double()
    if isinstance(reference, MultilinearPooling):
        reference.impl = "plain"
    exact = run(reference, [x.double() for x in maps])
    found_on = copy.deepcopy(pooling).to(device)
    inputs = [x.to(device) for x in maps]
    choice = choose_impl(found_on, case.impl, inputs, case.dtype)
    if choice is not None and choice.refused:
        return {"check": str(case), "outcome": choice.refused}
    call: Callable[..., Tensor] = found_on
    if case.mode == "compiled":
        call = torch.compile(found_on, backend="inductor" if device.type == "cuda" else "aot_eager")
    with tf32(False):
        found = run(found_on, inputs, call, autocast(device, case.dtype if case.mode != "cast" else torch.float32))
    values, gradients = TOLERANCE[case.dtype]
    if case.impl == "saved_bf16":  # which rounds gradients in every dtype
        gradients = max(gradients, TOLERANCE[torch.bfloat16][1])
    return compare(str(case), found, exact, (values, gradients))


def create_case_pooling(case: PoolingCase) -> Pooling:
    """Create the pooling of a case, with three maps where it takes three."""
    parameters = inspect.signature(POOLINGS[case.pooling]).parameters
    given = {"dim": DIM, "grad_eps": 1.0}  # bounds the root's slope, which is infinite at 0
    options: dict[str, Any] = {name: value for name, value in given.items() if name in parameters}
    if case.impl is not None:
        options["impl"] = case.impl
    widths = [CHANNELS] * num_taps_of(case.pooling)
    return create_pooling(case.pooling, widths, **options)


def choose_impl(
    pooling: nn.Module, impl: str | None, maps: Sequence[Tensor], compute_dtype: torch.dtype
) -> Choice | None:
    """Return the implementation that a pooling would run, or None if it has only one.

    Args:
        pooling: the pooling.
        impl: the requested implementation; None for the automatic choice.
        maps: its maps.
        compute_dtype: dtype of the projections: that of autocast or of the weights.
    """
    if not isinstance(pooling, MultilinearPooling):
        return None
    weights = [weight.dtype for weight in pooling.parameters()]
    shape = SumsShape(
        batch=len(maps[0]),
        channels=tuple(maps[source].shape[1] for source in pooling.sources),
        locations=maps[0].shape[2] * maps[0].shape[3],
        dim=pooling.out_features // len(pooling.terms),
        terms=pooling.terms,
        dtypes=(compute_dtype, *(x.dtype for x in maps), *weights),
        device=maps[0].device.type,
    )
    return choose(shape, impl)


def run(
    pooling: nn.Module,
    maps: Sequence[Tensor],
    call: Callable[..., Tensor] | None = None,
    context: AbstractContextManager[Any] | None = None,
) -> list[Tensor]:
    """Return the vectors, then the gradients of maps and weights for a fixed gradient of the vectors.

    Args:
        pooling: the pooling.
        maps: its maps.
        call: the pooling as it is called, e.g. compiled.
        context: context of the forward pass, e.g. autocast.
    """
    maps = [x.detach().requires_grad_() for x in maps]
    with context or nullcontext():
        vectors = pooling(maps) if call is None else call(maps)
    upstream = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1))
    leaves = [*maps, *(weight for weight in pooling.parameters() if weight.requires_grad)]
    gradients = torch.autograd.grad(vectors, leaves, upstream.to(vectors))
    return [vectors.detach(), *gradients]


def compare(name: str, found: Sequence[Tensor], exact: Sequence[Tensor], tolerance: tuple[float, float]) -> Row:
    """Return a row with the relative errors of values (the first tensor) and gradients (the others).

    Examples:
        >>> x, y = torch.ones(4), torch.ones(4).double()
        >>> compare("ones", [x, 1.5 * x], [y, y], tolerance=(0.01, 0.1))
        {'check': 'ones', 'values': 0.0, 'gradients': 0.5, 'outcome': 'failed: more than 0.01 and 0.1'}
    """
    values, *gradients = (relative_error(a, b) for a, b in zip(found, exact, strict=True))
    worst = max(gradients, key=lambda error: (math.isnan(error), error))
    passed = values <= tolerance[0] and worst <= tolerance[1]  # NaN fails
    outcome = "ok" if passed else f"failed: more than {tolerance[0]:g} and {tolerance[1]:g}"
    return {"check": name, "values": round(values, 9), "gradients": round(worst, 9), "outcome": outcome}


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Return the norm of the difference, relative to that of the exact tensor."""
    difference = (found.double().cpu() - exact.double().cpu()).norm()
    return float(difference / exact.double().norm().cpu().clamp(min=1e-30))
