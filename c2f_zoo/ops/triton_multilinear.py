"""Fused Triton kernels of `multilinear_sums`, which write no projection to memory.

The forward kernel keeps a tile of every projection in registers, multiplies the tiles, sums over locations and writes
only the sums. The backward pass projects again, `_CHUNK` of the d units at a time: a kernel writes the gradients of
that chunk's projections, and matrix products (cuBLAS) compute the gradients of maps and weights from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import mul
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from c2f_zoo.ops.memory_efficient import bit_masks, in_three, row_slices
from c2f_zoo.ops.precision import compute_dtype, power_of_two_above, without_autocast

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

_T = TypeVar("_T")
# Without Triton the kernels are never called.
_jit: Any = (lambda kernel: kernel) if triton is None else triton.jit

# The block of one program, and the numbers of its warps and pipeline stages. Compiled for an H100, three float32 tiles
# of block_d x block_l use up to 235 of a thread's 255 registers without spilling; 128 x 128 spills. float32 without
# TF32 has no tensor cores, so that its tiles are smaller.
_HALF_TILE = {"block_d": 128, "block_c": 64, "block_l": 64, "num_warps": 8, "num_stages": 3}
_TILES = {
    torch.float32: {"block_d": 64, "block_c": 32, "block_l": 64, "num_warps": 8, "num_stages": 2},
    torch.float16: _HALF_TILE,
    torch.bfloat16: _HALF_TILE,
}
MAX_PROJECTIONS = 3
# Units with gradients in memory at once in the backward pass: enough for efficient matrix products.
_CHUNK = 1024
# float16 slopes are scaled to at most this: far below the largest float16, 65504, and 28 powers of two above the
# smallest normal one, because the distance of the slopes from the bound is unknown.
_LARGEST_SLOPE = 2.0**14


def triton_multilinear_sums(
    maps: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    terms: Sequence[tuple[int, ...]],
) -> list[Tensor]:
    """Compute `c2f_zoo.ops.multilinear_sums` without writing projections to memory.

    Projections run in the dtype of autocast or of the weights; biases, products and sums in float32. float32 is exact
    (the kernels do not use TF32). In float16 each image's map and the gradients are scaled by powers of two, as in
    `c2f_zoo.ops.project`. There is no second derivative.

    Args:
        maps: the feature maps X_i, (N, C_i, H, W), one spatial size, at most three. Any memory layout works;
            channels_last saves a copy of the map.
        weights: the projections U_i, (d, C_i).
        biases: their biases b_i, (d,), or None.
        terms: indices of the maps of each product, each at most once.

    Returns:
        For each term a tensor (N, d), float32.

    Raises:
        ValueError: the kernels do not support these maps, terms or dtype; see `unsupported`.
    """
    reason = unsupported(maps, terms) or _unsupported_parameters(maps, weights, biases)
    if reason is not None:
        raise ValueError(f"triton_multilinear_sums does not support {reason}; use multilinear_sums")
    masks = bit_masks(terms)
    distinct = tuple(dict.fromkeys(masks))
    dtype = compute_dtype(maps[0], weights[0])
    with without_autocast(maps[0]):
        sums = _MultilinearSums.apply(distinct, dtype, *maps, *weights, *biases).unbind()
    return [sums[distinct.index(mask)] for mask in masks]


def unsupported(maps: Sequence[Tensor], terms: Sequence[tuple[int, ...]]) -> str | None:
    """Return the reason if `triton_multilinear_sums` does not support these inputs.

    Args:
        maps: the feature maps, (N, C_i, H, W).
        terms: indices of the maps of each product.

    Examples:
        >>> unsupported([torch.ones(1, 2, 3, 3, dtype=torch.float64)], [(0,)])
        'a map of torch.float64: the kernels take float32, float16 and bfloat16'
    """
    return _unsupported_terms(len(maps), terms) or _unsupported_maps(maps) or _unsupported_device(maps[0].device)


def unsupported_kind(terms: Sequence[tuple[int, ...]], dtype: torch.dtype, device: str) -> str | None:
    """Return the reason if the kernels do not support these terms, dtype and device.

    Args:
        terms: indices of the maps of each product.
        dtype: dtype of the projections.
        device: type of the device, e.g. `"cuda"`.

    Examples:
        >>> unsupported_kind([(0, 0)], torch.float32, "cuda")
        'the term (0, 0): the kernels multiply each projection at most once'
    """
    return (
        _unsupported_terms(MAX_PROJECTIONS, terms)
        or (None if dtype in _TILES else f"{dtype}: the kernels compute in float32, float16 or bfloat16")
        or _unsupported_device(torch.device(device))
    )


def _unsupported_terms(count: int, terms: Sequence[tuple[int, ...]]) -> str | None:
    if not 1 <= count <= MAX_PROJECTIONS:
        return f"{count} projections: the kernels hold 1 to {MAX_PROJECTIONS}"
    if not terms:
        return "an empty list of terms"
    for term in terms:
        if not term or not set(term) <= set(range(count)):
            return f"the term {term}: it needs one or more indices in 0 to {count - 1}"
        if len(set(term)) < len(term):
            return f"the term {term}: the kernels multiply each projection at most once"
    return None


def _unsupported_maps(maps: Sequence[Tensor]) -> str | None:
    first = maps[0]
    for x in maps:
        if x.dtype not in _TILES:
            return f"a map of {x.dtype}: the kernels take float32, float16 and bfloat16"
        if x.dim() != 4 or x.numel() == 0:
            return f"a map of shape {tuple(x.shape)}: the kernels take (N, C, H, W), none of them 0"
        if x.shape[0] != first.shape[0] or x.shape[2:] != first.shape[2:]:
            return f"maps of {tuple(first.shape)} and {tuple(x.shape)}: batch and spatial size must be equal"
        if x.device != first.device:
            return f"maps on {first.device} and {x.device}: they must be on one device"
    return None


def _unsupported_parameters(
    maps: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> str | None:
    # The kernels do not check shapes: they would read beyond the end of a small tensor.
    if not len(maps) == len(weights) == len(biases):
        return f"{len(maps)} maps with {len(weights)} weights and {len(biases)} biases: each map needs one of each"
    dtype, dim = compute_dtype(maps[0], weights[0]), len(weights[0])
    if dtype not in _TILES:
        return f"weights of {dtype}: the kernels compute in float32, float16 or bfloat16"
    for x, weight, bias in zip(maps, weights, biases, strict=True):
        if weight.shape != (dim, x.shape[1]):
            return f"a weight of shape {tuple(weight.shape)}: this map needs {(dim, x.shape[1])}"
        if bias is not None and bias.shape != (dim,):
            return f"a bias of shape {tuple(bias.shape)}: these weights need {(dim,)}"
        for parameter in (weight, bias):
            if parameter is not None and parameter.device != x.device:
                return f"a parameter on {parameter.device}: its map is on {x.device}"
    return None


def _unsupported_device(device: torch.device) -> str | None:
    if triton is None:
        return "a machine without Triton: pip install triton"
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "a model that is being compiled, exported or traced: only the plain formula does"
    if _interpreted():
        return None
    if device.type != "cuda":
        return f"maps on {device}: the kernels need a GPU (or, for tests, TRITON_INTERPRET=1)"
    if not torch.cuda.is_available():
        return "a machine without a GPU"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"maps on {torch.cuda.get_device_name(device)}: Triton needs compute capability 8.0"
    return None


class _MultilinearSums(torch.autograd.Function):
    """The sums (terms, N, d), differentiable once.

    Bit i of a mask selects projection i.
    """

    @staticmethod
    def forward(ctx: Any, masks: tuple[int, ...], dtype: torch.dtype, *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.masks, ctx.dtype = masks, dtype
        return _launch_sums(_projections(inputs, dtype), masks)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        with torch.no_grad(), without_autocast(upstream):  # backward() may run under autocast
            found = _input_gradients(saved, ctx.needs_input_grad[2:], upstream.contiguous(), ctx.masks, ctx.dtype)
        if torch.is_grad_enabled():  # create_graph=True
            found = [each if each is None else _NoSecondDerivative.apply(each, upstream, *saved) for each in found]
        return None, None, *found


class _NoSecondDerivative(torch.autograd.Function):
    """A gradient that cannot be differentiated.

    `once_differentiable` raises no error if the gradient of the sums is a constant.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *made_of: Tensor | None) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        raise RuntimeError("triton_multilinear_sums has no second derivative: use multilinear_sums")


def _input_gradients(
    inputs: Sequence[Tensor | None],
    wanted: Sequence[bool],
    upstream: Tensor,
    masks: tuple[int, ...],
    dtype: torch.dtype,
) -> list[Tensor | None]:
    """Return the gradients of maps, weights and biases; None if not wanted."""
    projections = _projections(inputs, dtype)
    factors = _gradient_factors(projections, upstream, masks)
    gradients = [_Gradients(*its) for its in zip(projections, factors, *in_three(wanted), strict=True)]
    for units in row_slices(upstream.shape[2], _CHUNK):
        slopes, bias_parts = _launch_slopes(gradients, upstream, masks, units)
        for index, each in enumerate(gradients):
            if each.wanted:
                each.add(units, slopes[index].to(dtype), bias_parts[index])
    found = [each.like(*its) for each, *its in zip(gradients, *in_three(inputs), strict=True)]
    return [gradient for kind in zip(*found, strict=True) for gradient in kind]


class _Projection(NamedTuple):
    """The tensors of one projection, in the kernels' layout.

    Attributes:
        rows: the map, one row per location, (N * H * W, C), in the compute dtype; for float16 divided by `scale`.
        weight: (d, C), in the compute dtype.
        bias: (d,), float32; zeros if there is none.
        scale: factor of each image's product of `weight` and `rows`, (N,), float32.
    """

    rows: Tensor
    weight: Tensor
    bias: Tensor
    scale: Tensor


def _projections(inputs: Sequence[Tensor | None], dtype: torch.dtype) -> list[_Projection]:
    return [_projection(*each, dtype) for each in zip(*in_three(inputs), strict=True)]


def _projection(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> _Projection:
    scale = x.new_ones(len(x), dtype=torch.float32)
    if dtype == torch.float16:
        powers = power_of_two_above(x)
        x, scale = x.float() / powers, powers.flatten()
    # Channels last needs no copy if the map has that layout. Its rows, unlike those of 14 x 14 or 7 x 7 locations,
    # start at addresses from which the GPU loads 16 bytes at a time.
    rows = x.to(dtype, memory_format=torch.channels_last).permute(0, 2, 3, 1).reshape(-1, x.shape[1]).contiguous()
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    # The interpreter does not support bfloat16: its kernels get the rounded values in float32.
    held = torch.float32 if dtype == torch.bfloat16 and _interpreted() else dtype
    return _Projection(rows.to(held), weight.to(dtype).to(held).contiguous(), bias.float().contiguous(), scale)


class _Gradients:
    """The gradients of one projection's map, weight and bias, accumulated in float32."""

    def __init__(self, projection: _Projection, factor: Tensor, of_map: bool, of_weight: bool, of_bias: bool) -> None:
        """Allocate the wanted gradients.

        Args:
            projection: the projection.
            factor: factor of each image's slopes before they are rounded to the compute dtype, (N,).
            of_map: allocate the map's gradient.
            of_weight: allocate the weight's gradient.
            of_bias: allocate the bias's gradient.
        """
        self.projection, self.factor, self.wanted = projection, factor, of_map or of_weight or of_bias
        self.map = torch.zeros_like(projection.rows, dtype=torch.float32) if of_map else None
        self.weight = torch.zeros_like(projection.weight, dtype=torch.float32) if of_weight else None
        self.bias = torch.zeros_like(projection.bias) if of_bias else None
        self.rows, self.largest = _weighted_rows(projection, factor) if of_weight else (projection.rows, None)

    def add(self, units: slice, slopes: Tensor, bias_parts: Tensor) -> None:
        """Add the gradients of a chunk.

        Args:
            units: the chunk.
            slopes: the gradients of its projections times `factor`, (units, N * H * W), in the compute dtype.
            bias_parts: their sums over blocks of locations, without the factor, (parts, units), float32.
        """
        if self.map is not None:
            self.map += _matmul_float32(slopes.t(), self.projection.weight[units])
        if self.weight is not None:
            product = _matmul_float32(slopes, self.rows)
            self.weight[units] = product if self.largest is None else product * self.largest
        if self.bias is not None:
            self.bias[units] = bias_parts.sum(dim=0)

    def like(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor | None]:
        """Return the gradients in their inputs' dtypes and layouts; None if not wanted."""
        of_map = None
        if self.map is not None:
            channels_last = self.map.view(len(x), *x.shape[2:], x.shape[1]).div_(self.factor[:, None, None, None])
            of_map = torch.empty_like(x).copy_(channels_last.permute(0, 3, 1, 2))
        of_weight = None if self.weight is None else self.weight.to(weight.dtype)
        of_bias = None if self.bias is None or bias is None else self.bias.to(bias.dtype)
        return [of_map, of_weight, of_bias]


def _weighted_rows(projection: _Projection, factor: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the rows and the factor of the weight's gradient from scaled slopes.

    An image with less than 2^-24 of the weight of another adds nothing, as in a float32 sum.
    """
    if projection.rows.dtype != torch.float16:
        return projection.rows, None
    # In float64: if a map and its gradient are zeros, both factors are 1e-30.
    weights = projection.scale.double() / factor
    largest = weights.amax()
    ratios = (weights / largest).half()
    rows = projection.rows.view(len(ratios), -1) * ratios[:, None]
    return rows.view_as(projection.rows), largest


def _gradient_factors(projections: list[_Projection], upstream: Tensor, masks: tuple[int, ...]) -> list[Tensor]:
    """Return powers of two (N,) that scale a projection's slopes to float16's range."""
    if projections[0].rows.dtype != torch.float16:
        return [torch.ones_like(projection.scale) for projection in projections]
    largest = [_largest(projection) for projection in projections]
    factors = []
    for index in range(len(projections)):
        bound = torch.zeros_like(upstream[0])
        for mask, gradient in zip(masks, upstream, strict=True):
            if mask >> index & 1:
                others = [each for other, each in enumerate(largest) if other != index and mask >> other & 1]
                bound += reduce(mul, others, gradient.abs())
        factors.append(_LARGEST_SLOPE / power_of_two_above(bound[:, :, None, None]).flatten())
    return factors


def _largest(projection: _Projection) -> Tensor:
    """Return a bound of |P| over the locations, (N, d), by Cauchy-Schwarz."""
    norms = torch.linalg.vector_norm(projection.rows, dim=1, dtype=torch.float32)
    norm = norms.view(len(projection.scale), -1).amax(dim=1) * projection.scale
    weight_norms = torch.linalg.vector_norm(projection.weight, dim=1, dtype=torch.float32)
    return norm[:, None] * weight_norms + projection.bias.abs()


def _matmul_float32(a: Tensor, b: Tensor) -> Tensor:
    """Return the product in float32 of two matrices of the same dtype."""
    if a.is_cuda and a.dtype != torch.float32:
        if "dtype" in torch.ops.aten.mm.overloads() and torch.version.hip is None:  # torch 2.8
            return torch.mm(a, b, out_dtype=torch.float32)
        if a.dtype == torch.bfloat16:
            return (a @ b).float()
    return a.float() @ b.float()  # also for older torch: float16 would overflow


def _launch_sums(projections: list[_Projection], masks: tuple[int, ...]) -> Tensor:
    first = projections[0]
    batch, dim = len(first.scale), len(first.weight)
    tile = _TILES[first.rows.dtype]
    sums = first.scale.new_empty(len(masks), batch, dim)
    with torch.cuda.device_of(sums):
        _sums_kernel[(triton.cdiv(dim, tile["block_d"]) * batch,)](
            *_pointers(projections),
            sums,
            batch,
            len(first.rows) // batch,
            dim,
            *_channels(projections),
            **_constants(tile, projections, masks),
            columns=triton.next_power_of_2(len(masks)),
        )
    return sums


def _launch_slopes(
    gradients: list[_Gradients], upstream: Tensor, masks: tuple[int, ...], units: slice
) -> tuple[Tensor, Tensor]:
    """Return each projection's scaled slopes and their sums over blocks of locations.

    Slopes are (projections, units, N * H * W), sums (projections, blocks, units).
    """
    projections = [each.projection for each in gradients]
    first = projections[0]
    batch, width = len(first.scale), units.stop - units.start
    locations = len(first.rows) // batch
    tile = _TILES[first.rows.dtype]
    places = batch * triton.cdiv(locations, tile["block_l"])
    slopes = first.rows.new_empty(len(projections), width, batch * locations)
    bias_parts = first.scale.new_empty(len(projections), places, width)
    with torch.cuda.device_of(slopes):
        _slopes_kernel[(triton.cdiv(width, tile["block_d"]) * places,)](
            *_pointers(projections),
            *_three([each.factor for each in gradients]),
            upstream,
            slopes,
            bias_parts,
            batch,
            locations,
            upstream.shape[2],
            *_channels(projections),
            units.start,
            units.stop,
            **_constants(tile, projections, masks),
            wanted=sum(each.wanted << index for index, each in enumerate(gradients)),
        )
    return slopes, bias_parts


def _pointers(projections: list[_Projection]) -> list[Tensor]:
    return [tensor for kind in zip(*_three(projections), strict=True) for tensor in kind]


def _channels(projections: list[_Projection]) -> list[int]:
    return [projection.rows.shape[1] for projection in _three(projections)]


def _three(items: list[_T]) -> list[_T]:
    """Pad a list to three items; the kernels ignore items beyond `count`."""
    return (items + items[:1] * 2)[:3]


def _constants(tile: dict[str, int], projections: list[_Projection], masks: tuple[int, ...]) -> dict[str, int]:
    term_bits = sum(mask << 3 * number for number, mask in enumerate(masks))
    return {"count": len(projections), "terms": len(masks), "term_bits": term_bits, **tile}


# The kernels. `term_bits` has three bits per term, one for each of its projections. Offsets in maps, weights and slopes
# are int64, since they may exceed 2^31.


@_jit
def _project_tile(
    rows, weight, bias, scale, image, locations, units, length, channels, stop,
    block_d: tl.constexpr, block_c: tl.constexpr, block_l: tl.constexpr,
):  # fmt: skip
    """Return P at a tile of units and locations, float32; 0 outside the map."""
    inside, exists = locations < length, units < stop
    row = rows + (image * length + locations)[None, :] * channels
    column = weight + units.to(tl.int64)[:, None] * channels
    tile = tl.zeros((block_d, block_l), tl.float32)
    for first in range(0, channels, block_c):
        channel = first + tl.arange(0, block_c)
        known = channel < channels
        a = tl.load(column + channel[None, :], mask=exists[:, None] & known[None, :], other=0.0)
        b = tl.load(row + channel[:, None], mask=known[:, None] & inside[None, :], other=0.0)
        tile = tl.dot(a, b, tile, input_precision="ieee")
    tile = tile * tl.load(scale + image) + tl.load(bias + units, mask=exists, other=0.0)[:, None]
    return tl.where(inside[None, :], tile, 0.0)  # no bias outside the map


@_jit
def _product(p0, p1, p2, bits: tl.constexpr):
    """Return the product of the projections in a bit mask; 1 for none."""
    product = tl.full(p0.shape, 1.0, tl.float32)
    if bits & 1:
        product = product * p0
    if bits & 2:
        product = product * p1
    if bits & 4:
        product = product * p2
    return product


@_jit
def _project_tiles(
    x0, x1, x2, u0, u1, u2, b0, b1, b2, s0, s1, s2, image, locations, units, length, c0, c1, c2, stop,
    count: tl.constexpr, block_d: tl.constexpr, block_c: tl.constexpr, block_l: tl.constexpr,
):  # fmt: skip
    p0 = _project_tile(x0, u0, b0, s0, image, locations, units, length, c0, stop, block_d, block_c, block_l)
    p1 = p0
    p2 = p0
    if count > 1:
        p1 = _project_tile(x1, u1, b1, s1, image, locations, units, length, c1, stop, block_d, block_c, block_l)
    if count > 2:
        p2 = _project_tile(x2, u2, b2, s2, image, locations, units, length, c2, stop, block_d, block_c, block_l)
    return p0, p1, p2


@_jit
def _sums_kernel(
    x0, x1, x2, u0, u1, u2, b0, b1, b2, s0, s1, s2, sums, batch, length, dim, c0, c1, c2,
    count: tl.constexpr, terms: tl.constexpr, term_bits: tl.constexpr, columns: tl.constexpr,
    block_d: tl.constexpr, block_c: tl.constexpr, block_l: tl.constexpr,
):  # fmt: skip
    """Compute the sums of one image at one block of units.

    Programs of one image run next to each other and share its map.
    """
    blocks = tl.cdiv(dim, block_d)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    units = tl.program_id(0) % blocks * block_d + tl.arange(0, block_d)
    column = tl.arange(0, columns)
    total = tl.zeros((block_d, columns), tl.float32)
    for first in range(0, length, block_l):
        locations = first + tl.arange(0, block_l)
        p0, p1, p2 = _project_tiles(
            x0, x1, x2, u0, u1, u2, b0, b1, b2, s0, s1, s2, image, locations, units, length, c0, c1, c2, dim,
            count, block_d, block_c, block_l,
        )  # fmt: skip
        for term in tl.static_range(terms):
            part = tl.sum(_product(p0, p1, p2, (term_bits >> (3 * term)) & 7), axis=1)
            total += tl.where(column[None, :] == term, part[:, None], 0.0)
    place = sums + (column[None, :] * batch + image) * dim + units[:, None]
    tl.store(place, total, mask=(units < dim)[:, None] & (column < terms)[None, :])


@_jit
def _slopes_kernel(
    x0, x1, x2, u0, u1, u2, b0, b1, b2, s0, s1, s2, f0, f1, f2, upstream, slopes, bias_parts,
    batch, length, dim, c0, c1, c2, start, stop,
    count: tl.constexpr, terms: tl.constexpr, term_bits: tl.constexpr, wanted: tl.constexpr,
    block_d: tl.constexpr, block_c: tl.constexpr, block_l: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of the projections at a tile of units and locations."""
    blocks = tl.cdiv(stop - start, block_d)
    place = tl.program_id(0) // blocks
    length_blocks = tl.cdiv(length, block_l)
    image = (place // length_blocks).to(tl.int64)
    locations = place % length_blocks * block_l + tl.arange(0, block_l)
    units = start + tl.program_id(0) % blocks * block_d + tl.arange(0, block_d)
    p0, p1, p2 = _project_tiles(
        x0, x1, x2, u0, u1, u2, b0, b1, b2, s0, s1, s2, image, locations, units, length, c0, c1, c2, stop,
        count, block_d, block_c, block_l,
    )  # fmt: skip
    for index in tl.static_range(count):
        if (wanted >> index) & 1:
            slope = tl.zeros((block_d, block_l), tl.float32)
            for term in tl.static_range(terms):
                if (term_bits >> (3 * term + index)) & 1:
                    gradient = upstream + (term * batch + image) * dim + units
                    slope += tl.load(gradient, mask=units < stop, other=0.0)[:, None] * _product(
                        p0, p1, p2, ((term_bits >> (3 * term)) & 7) - (1 << index)
                    )
            # Outside the map too, a term of one projection has the product 1.
            slope = tl.where((locations < length)[None, :], slope, 0.0)
            row = index * (stop - start) + units - start
            parts = bias_parts + (index * batch * length_blocks + place) * (stop - start) + units - start
            tl.store(parts, tl.sum(slope, axis=1), mask=units < stop)
            factor = tl.load(f0 + image)
            if index == 1:
                factor = tl.load(f1 + image)
            if index == 2:
                factor = tl.load(f2 + image)
            entry = slopes + row.to(tl.int64)[:, None] * (batch * length) + image * length + locations[None, :]
            exists = (units < stop)[:, None] & (locations < length)[None, :]
            tl.store(entry, (slope * factor).to(slopes.dtype.element_ty), mask=exists)


def _interpreted() -> bool:
    return not isinstance(_sums_kernel, triton.runtime.JITFunction)
