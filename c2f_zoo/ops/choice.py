"""The choice among the implementations of the multilinear sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from c2f_zoo.ops import triton_multilinear
from c2f_zoo.registry import check_names

IMPLEMENTATIONS = {
    "plain": "projections, products and sums as PyTorch operations; all are kept for the backward pass",
    "tiled": "tile by tile, in float32; the backward pass projects again; memory constant in d and N",
    "saved_bf16": "tile by tile, in float32; the projections are kept in bfloat16, which rounds gradients",
    "gram": "pairs only: products with the cross-Gram matrix of the maps replace projections, in float32",
    "triton": "fused GPU kernels, in the dtype of autocast or the weights; the backward pass projects again",
}

SMALL = 2**22  # numbers in all projections together, 16 MiB in float32


@dataclass(frozen=True)
class SumsShape:
    """The shapes, dtypes and device of the inputs of multilinear sums.

    Attributes:
        batch: number of images N.
        channels: number of channels of each map.
        locations: number of locations H * W.
        dim: width d of the projections.
        terms: indices of the projections of each product.
        dtypes: the dtype in which projections would run, then those of maps and weights.
        device: type of the device, e.g. `"cuda"`.
        exporting: whether `torch.export` is running.
    """

    batch: int
    channels: tuple[int, ...]
    locations: int
    dim: int
    terms: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    device: str = "cpu"
    exporting: bool = False


@dataclass(frozen=True)
class Choice:
    """An implementation, and the reasons.

    Attributes:
        impl: one of `IMPLEMENTATIONS`.
        reason: the reason for the choice.
        refused: the reason against the requested implementation, or None.
    """

    impl: str
    reason: str
    refused: str | None = None


def choose(shape: SumsShape, impl: str | None = None) -> Choice:
    """Choose an implementation by the table in `docs/explanation/fast-pooling.md`.

    Raises:
        ValueError: `impl` is unknown.
    """
    refused = None
    if impl is not None:
        check_names("impl", [impl], IMPLEMENTATIONS)
        reason = _unsupported_reason(impl, shape)
        if reason is None:
            return Choice(impl, "requested")
        refused = f"impl={impl!r} is unsupported: {reason}"
    for candidate, applies, why in _table(shape):
        if applies and _unsupported_reason(candidate, shape) is None:
            return Choice(candidate, why, refused)
    return Choice("plain", "nothing else is supported", refused)


def explain(
    shape: tuple[int, int, int, int],
    dim: int = 8192,
    terms: Sequence[tuple[int, ...]] = ((0, 1), (0, 2), (1, 2), (0, 1, 2)),
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    impl: str | None = None,
) -> None:
    """Print the implementation of the multilinear sums that would run, and the reason.

    Args:
        shape: (N, C, H, W) of every map.
        dim: width d of the projections.
        terms: indices of the maps of each product; the default is `mlp`'s.
        dtype: dtype of the projections, by autocast or by the weights.
        device: type of the device.
        impl: the requested one of `IMPLEMENTATIONS`.

    Raises:
        ValueError: `impl` is unknown.

    Examples:
        >>> explain((8, 512, 28, 28))
        tiled: the projections are large
        the projections hold 147.00 x 2^20 numbers; C / L + C / d = 0.72
    """
    batch, channels, height, width = shape
    maps = 1 + max(index for term in terms for index in term)
    sums = SumsShape(batch, (channels,) * maps, height * width, dim, tuple(terms), (dtype,), device)
    choice = choose(sums, impl)
    print(f"{choice.impl}: {choice.reason}" + (f" ({choice.refused})" if choice.refused else ""))
    numbers, cost = _projected_numbers(sums) / 2**20, _gram_cost(sums)
    print(f"the projections hold {numbers:.2f} x 2^20 numbers; C / L + C / d = {cost:.2f}")


def _projected_numbers(shape: SumsShape) -> int:
    """Return the total number of entries of all projections."""
    return shape.batch * shape.dim * shape.locations * len(shape.channels)


def _gram_cost(shape: SumsShape) -> float:
    """Return the ratio of the multiplications of `gram` to those of projections."""
    widest = max(shape.channels)
    return widest / shape.locations + widest / shape.dim


def _table(shape: SumsShape) -> Iterator[tuple[str, bool, str]]:
    """Yield (implementation, whether it applies, reason), in order of preference."""
    # This row comes first because sizes may be symbols in an export.
    yield "plain", shape.exporting, "an exported program contains PyTorch's own operations only"
    on_gpu_in_half = shape.device == "cuda" and shape.dtypes[0] in (torch.float16, torch.bfloat16)
    yield "plain", _projected_numbers(shape) <= SMALL, "the projections are small, 2^22 numbers or fewer"
    yield "triton", on_gpu_in_half, "half precision on a GPU"
    yield "plain", on_gpu_in_half, "half precision on a GPU: float32 would not use its matrix units"
    yield "gram", _gram_cost(shape) < 1, "pairs only, and C / L + C / d < 1"
    yield "tiled", True, "the projections are large"


def _unsupported_reason(impl: str, shape: SumsShape) -> str | None:
    """Return the reason if an implementation does not support these inputs, or None."""
    if impl == "plain":
        return None
    if shape.exporting:
        return "an exported program contains PyTorch's own operations only"
    if any(len(set(term)) < len(term) for term in shape.terms):
        return "a term multiplies a map with itself; give the map twice"
    if torch.float64 in shape.dtypes and len(set(shape.dtypes)) > 1:
        return "float64 beside other dtypes"
    if impl == "gram" and any(len(term) != 2 for term in shape.terms):
        return "not every term is a pair"
    if impl == "triton":
        if shape.batch == 0 or len(shape.channels) > triton_multilinear.MAX_PROJECTIONS:
            return f"{shape.batch} images and {len(shape.channels)} projections"
        return triton_multilinear.unsupported_kind(shape.terms, shape.dtypes[0], shape.device)
    return None
