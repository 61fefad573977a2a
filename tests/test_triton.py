"""The fused kernels give the sums and all gradients of the plain formula in float64.

Without a GPU, Triton's interpreter runs the kernels on the CPU, but only if TRITON_INTERPRET is set before anything
imports Triton, and other tests may have: `test_under_the_interpreter` runs this file in a process of its own.
With a GPU the same tests run on it, compiled.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from c2f_zoo.ops import triton_multilinear as fused

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
NO_TRITON = "Triton is not installed"


def needs_kernels(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test of the kernels."""
    reason = "test_under_the_interpreter runs it in a process of its own" if HAS_TRITON else NO_TRITON
    is_skipped = not (HAS_TRITON and (INTERPRETED or DEVICE == "cuda"))
    marked: Callable[..., None] = pytest.mark.gpu(pytest.mark.skipif(is_skipped, reason=reason)(test))
    return marked


MLP: list[tuple[int, ...]] = [(0, 1), (0, 2), (1, 2), (0, 1, 2)]
TERMS: dict[str, list[tuple[int, ...]]] = {
    "mlp": MLP,
    "hbp": MLP[:3],
    "trilinear": MLP[3:],
    "two": [(0, 1)],
    "one": [(0,)],
    "all": [(2,), (0, 1), (0, 1, 2), (1, 0), (1,)],
}
# Largest error of an element, relative to the largest of its tensor. Products of float16 or bfloat16 are exact in
# float32, so that sums are as good as in float32, except for the rounding of tensor cores. Gradients are rounded
# where slopes enter a matrix product and where they are returned: by 2^-12 each in float16, 2^-9 in bfloat16.
SUMS_OFF = {torch.float32: 1e-5, torch.float16: 1e-4, torch.bfloat16: 1e-4}
GRADIENTS_OFF = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}
DTYPES = list(SUMS_OFF)

Operands = tuple[list[Tensor], list[Tensor], list[Tensor | None]]


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_CHUNK", 128)


def draw(
    count: int = 3,
    dtype: torch.dtype = torch.float32,
    dim: int = 131,
    batch: int = 2,
    size: tuple[int, int] = (5, 14),
    bias: bool = True,
) -> Operands:
    """Return maps, weights and biases; the default sizes are no multiples of tiles."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype).requires_grad_()

    channels = (67, 35, 70)[:count]
    maps = [leaf(batch, c, *size) for c in channels]
    weights = [leaf(dim, c) for c in channels]
    return maps, weights, [leaf(dim) if bias else None for _ in channels]


def draw_upstream(maps: Sequence[Tensor], weights: Sequence[Tensor], terms: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Return a gradient for each sum."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(len(maps[0]), len(weights[0]), generator=generator).to(DEVICE) for _ in terms]


def leaves_of(maps: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """Return the distinct tensors that need a gradient."""
    given = {id(x): x for x in [*maps, *weights, *biases] if x is not None and x.requires_grad}
    return list(given.values())


def plain(operands: Operands, terms: Sequence[tuple[int, ...]], upstream: Sequence[Tensor]) -> tuple[Any, Any]:
    """Return the sums and the leaves' gradients in float64."""
    leaves = leaves_of(*operands)
    doubles = {id(x): x.detach().double().requires_grad_() for x in leaves}
    maps, weights, biases = [
        [x if x is None else doubles.get(id(x), x.detach().double()) for x in kind] for kind in operands
    ]
    projected = [
        torch.einsum("dc,nchw->ndhw", weight, x) + (0 if bias is None else bias[:, None, None])
        for x, weight, bias in zip(maps, weights, biases, strict=True)
    ]
    letters = {1: "ndhw->nd", 2: "ndhw,ndhw->nd", 3: "ndhw,ndhw,ndhw->nd"}
    sums = [torch.einsum(letters[len(term)], *(projected[index] for index in term)) for term in terms]
    pairs = [(each, gradient) for each, gradient in zip(sums, upstream, strict=True) if each.requires_grad]
    loss = torch.stack([(each * gradient).sum() for each, gradient in pairs]).sum()
    return sums, torch.autograd.grad(loss, list(doubles.values()))


def check_close(found: Tensor, expected: Tensor, off: float) -> None:
    assert found.shape == expected.shape
    assert expected.abs().max() > 0
    difference = (found.detach().double() - expected).abs().max() / expected.abs().max()
    assert difference < off  # False for NaN


def check(operands: Operands, terms: Sequence[tuple[int, ...]]) -> None:
    """Compare sums, all gradients and dtypes with the plain formula's."""
    dtype = operands[1][0].dtype
    upstream = draw_upstream(*operands[:2], terms)
    sums, leaves = fused.triton_multilinear_sums(*operands, terms), leaves_of(*operands)
    gradients = torch.autograd.grad(sums, leaves, upstream)
    expected_sums, expected_gradients = plain(operands, terms, upstream)
    assert len(sums) == len(terms)
    for found, expected in zip(sums, expected_sums, strict=True):
        assert found.dtype == torch.float32
        check_close(found, expected, SUMS_OFF[dtype])
    for leaf, found, expected in zip(leaves, gradients, expected_gradients, strict=True):
        assert found.dtype == leaf.dtype
        check_close(found, expected, GRADIENTS_OFF[dtype])


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason=NO_TRITON)
@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_under_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", "--noconftest", __file__]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="it needs no kernels, and starts a process")
def test_without_triton_the_module_is_imported() -> None:
    code = """
import sys
sys.modules["triton"] = None
import torch
from c2f_zoo.ops import triton_multilinear as fused
x, u = torch.ones(1, 2, 3, 3), torch.ones(4, 2)
print(fused.unsupported([x], [(0,)]))
try:
    fused.triton_multilinear_sums([x], [u], [None], [(0,)])
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    reason = "a machine without Triton: pip install triton"
    expected = [reason, f"triton_multilinear_sums does not support {reason}; use multilinear_sums"]
    assert done.stdout.splitlines() == expected, done.stderr


X = torch.ones(1, 2, 3, 3)


@pytest.mark.parametrize(
    ("maps", "terms", "reason"),
    [
        ([], [(0,)], "0 projections: the kernels hold 1 to 3"),
        ([X] * 4, MLP, "4 projections: the kernels hold 1 to 3"),
        ([X], [], "an empty list of terms"),
        ([X] * 2, [(0, 1), ()], "the term (): it needs one or more indices in 0 to 1"),
        ([X] * 2, MLP, "the term (0, 2): it needs one or more indices in 0 to 1"),
        ([X] * 2, [(0, -1)], "the term (0, -1): it needs one or more indices in 0 to 1"),
        ([X] * 2, [(0, 1), (0, 0)], "the term (0, 0): the kernels multiply each projection at most once"),
        ([X, X.double()], [(0, 1)], "a map of torch.float64"),
        ([X.long()], [(0,)], "a map of torch.int64"),
        ([X.flatten(2)], [(0,)], "a map of shape (1, 2, 9)"),
        ([X[:0]], [(0,)], "a map of shape (0, 2, 3, 3)"),
        ([X, X[:, :, 1:]], [(0, 1)], "maps of (1, 2, 3, 3) and (1, 2, 2, 3)"),
        ([X, X.expand(2, -1, -1, -1)], [(0, 1)], "maps of (1, 2, 3, 3) and (2, 2, 3, 3)"),
        ([X, X.to("meta")], [(0, 1)], "maps on cpu and meta"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_maps(maps: list[Tensor], terms: list[tuple[int, ...]], reason: str) -> None:
    found = fused.unsupported(maps, terms)
    assert found is not None and found.startswith(reason)


@pytest.mark.parametrize(
    ("terms", "dtype", "reason"),
    [
        ([(0, 3)], torch.float32, "the term (0, 3): it needs one or more indices in 0 to 2"),
        ([(1, 1)], torch.float32, "the term (1, 1): the kernels multiply each projection at most once"),
        (MLP, torch.float64, "torch.float64: the kernels compute in float32, float16 or bfloat16"),
    ],
)
def test_unsupported_kinds(terms: list[tuple[int, ...]], dtype: torch.dtype, reason: str) -> None:
    found = fused.unsupported_kind(terms, dtype, DEVICE)
    assert found is not None and found.startswith(reason)


@pytest.mark.skipif(not HAS_TRITON or INTERPRETED, reason="only compiled kernels need a GPU")
def test_maps_on_the_cpu_need_the_interpreter() -> None:
    for found in (fused.unsupported([X], [(0,)]), fused.unsupported_kind([(0,)], torch.float32, "cpu")):
        assert "TRITON_INTERPRET=1" in str(found)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_supported_maps(dtype: torch.dtype) -> None:
    assert fused.unsupported([X.to(DEVICE, dtype)] * 3, MLP) is None
    assert fused.unsupported_kind(MLP, dtype, DEVICE) is None


@needs_kernels
def test_tracing_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = fused.unsupported([X.to(DEVICE)], [(0,)])
    assert found is not None and found.startswith("a model that is being compiled, exported or traced")


@needs_kernels
def test_parameters_of_wrong_shapes_raise() -> None:
    x, weight, bias = (torch.ones(shape, device=DEVICE) for shape in ((1, 2, 3, 3), (4, 2), (4,)))
    for weights, biases, message in [
        ([weight], [bias, bias], "2 maps with 1 weights and 2 biases"),
        ([weight, weight[:, :1]], [bias, bias], r"a weight of shape \(4, 1\): this map needs \(4, 2\)"),
        ([weight, weight[:3]], [bias, bias], r"a weight of shape \(3, 2\): this map needs \(4, 2\)"),
        ([weight, weight], [bias, bias[:3]], r"a bias of shape \(3,\): these weights need \(4,\)"),
        ([weight.double()] * 2, [bias, bias], "weights of torch.float64"),
        ([weight, weight.to("meta")], [bias, bias], "a parameter on meta"),
    ]:
        with pytest.raises(ValueError, match=message):
            fused.triton_multilinear_sums([x, x], weights, biases, [(0, 1)])


@needs_kernels
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in TERMS] + [(name, half) for name in ("mlp", "all") for half in DTYPES[1:]],
)
def test_sums_and_gradients(name: str, dtype: torch.dtype) -> None:
    terms = TERMS[name]
    check(draw(count=1 + max(max(term) for term in terms), dtype=dtype), terms)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_biases(dtype: torch.dtype) -> None:
    check(draw(dtype=dtype, dim=9, bias=False), MLP)


@needs_kernels
def test_one_bias_of_three() -> None:
    maps, weights, biases = draw(dim=9)
    check((maps, weights, [None, biases[1], None]), MLP)


@needs_kernels
@pytest.mark.parametrize("size", [(1, 1), (1, 64), (3, 43)])
def test_one_image_of_few_and_many_locations(size: tuple[int, int]) -> None:
    check(draw(dim=1, batch=1, size=size), MLP)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_projections_of_one_map(dtype: torch.dtype) -> None:
    (x,), (weight,), (bias,) = draw(count=1, dtype=dtype, dim=9)
    other = weight.detach().roll(1, 0).requires_grad_()
    check(([x, x], [weight, other], [bias, None]), [(0, 1)])


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("layout", ["channels_last", "every other location", "every other channel", "one for all"])
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    maps, weights, biases = draw(dtype=dtype, dim=9)
    if layout == "channels_last":
        maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    elif layout == "every other location":
        maps = [x[:, :, 1:, ::2] for x in maps]
    elif layout == "every other channel":
        maps, weights = [x[:, ::2] for x in maps], [weight[:, ::2] for weight in weights]
    else:
        maps = [x[:1].expand(2, -1, -1, -1) for x in maps]
    maps = [x.detach().requires_grad_() for x in maps]
    weights = [weight.detach().requires_grad_() for weight in weights]
    assert not maps[0].is_contiguous()
    check((maps, weights, biases), MLP)


@needs_kernels
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_maps_gradient_has_its_layout(memory_format: torch.memory_format) -> None:
    maps, weights, biases = draw(dim=9)
    maps = [x.detach().contiguous(memory_format=memory_format).requires_grad_() for x in maps]
    upstream = draw_upstream(maps, weights, MLP)
    sums = fused.triton_multilinear_sums(maps, weights, biases, MLP)
    for gradient in torch.autograd.grad(sums, maps, upstream):
        assert gradient.is_contiguous(memory_format=memory_format)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_rounds_maps_and_weights_alone(dtype: torch.dtype) -> None:
    maps, weights, biases = draw(dim=9)
    upstream = draw_upstream(maps, weights, MLP)
    with torch.autocast(DEVICE, dtype=dtype):
        sums = fused.triton_multilinear_sums(maps, weights, biases, MLP)
    rounded = [[x.detach().to(dtype).requires_grad_() for x in kind] for kind in (maps, weights)]
    expected, _ = plain((rounded[0], rounded[1], biases), MLP, upstream)
    unrounded, expected_gradients = plain((maps, weights, biases), MLP, upstream)
    for found, same, other in zip(sums, expected, unrounded, strict=True):
        check_close(found, same, SUMS_OFF[dtype])
        assert (found - other).abs().max() > SUMS_OFF[dtype] * other.abs().max()
    gradients = torch.autograd.grad(sums, leaves_of(maps, weights, biases), upstream)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == torch.float32
        check_close(gradient, reference, 4 * GRADIENTS_OFF[dtype])  # maps and weights are rounded too


@needs_kernels
def test_backward_under_autocast_has_the_dtype_of_forward() -> None:
    operands = draw(dim=9)
    upstream = draw_upstream(*operands[:2], MLP)
    sums = fused.triton_multilinear_sums(*operands, MLP)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        gradients = torch.autograd.grad(sums, leaves_of(*operands), upstream)
    for found, expected in zip(gradients, plain(operands, MLP, upstream)[1], strict=True):
        check_close(found, expected, GRADIENTS_OFF[torch.float32])


def check_float16(operands: Operands, upstream: list[Tensor]) -> None:
    """Compare sums and gradients under float16 autocast, relative to each image's largest."""
    maps, leaves = operands[0], leaves_of(*operands)
    with torch.autocast(DEVICE, dtype=torch.float16):
        sums = fused.triton_multilinear_sums(*operands, MLP)
    gradients = torch.autograd.grad(sums, leaves, upstream)
    expected_sums, expected_gradients = plain(operands, MLP, upstream)
    for found, expected in zip(sums, expected_sums, strict=True):
        for image in range(len(found)):
            check_close(found[image], expected[image], 4 * GRADIENTS_OFF[torch.float16])
    for number, (found, expected) in enumerate(zip(gradients, expected_gradients, strict=True)):
        parts = range(len(found)) if number < len(maps) else [slice(None)]
        for part in parts:
            check_close(found[part], expected[part], 4 * GRADIENTS_OFF[torch.float16])


@needs_kernels
@pytest.mark.parametrize("sizes", [(1e4, 1e4), (1e-8, 1e-8), (1e4, 1e-8), (1e-3, 1.0)], ids=str)
def test_float16_neither_overflows_nor_vanishes(sizes: tuple[float, float]) -> None:
    maps, weights, _ = draw(dim=131)
    images = torch.tensor(sizes, device=DEVICE)[:, None, None, None]
    maps = [(x.detach() * images * 10**number).requires_grad_() for number, x in enumerate(maps)]
    operands: Operands = (maps, weights, [None] * 3)
    upstream = draw_upstream(maps, weights, MLP)
    # The norm after the sums makes the gradients of small sums large, image by image.
    sums, _ = plain(operands, MLP, upstream)
    upstream = [g / each.abs().amax(dim=1, keepdim=True).float() for g, each in zip(upstream, sums, strict=True)]
    check_float16(operands, upstream)


@needs_kernels
@pytest.mark.parametrize("size", [1e-9, 1e6])
def test_float16_with_small_and_large_gradients(size: float) -> None:
    maps, weights, biases = draw(dim=9)
    check_float16((maps, weights, biases), [size * each for each in draw_upstream(maps, weights, MLP)])


@needs_kernels
def test_float16_with_an_image_of_zeros() -> None:
    maps, weights, biases = draw(dim=9)
    maps = [(x.detach() * torch.tensor([1.0, 0.0], device=DEVICE)[:, None, None, None]).requires_grad_() for x in maps]
    check_float16((maps, weights, biases), draw_upstream(maps, weights, MLP))


@needs_kernels
def test_float16_with_zeros_has_gradients_of_zero() -> None:
    maps, weights, _ = draw(dim=9, dtype=torch.float16)
    maps = [torch.zeros_like(x).requires_grad_() for x in maps]
    sums = fused.triton_multilinear_sums(maps, weights, [None] * 3, MLP)
    upstream = [torch.zeros_like(each) for each in sums]
    for gradient in torch.autograd.grad(sums, maps + weights, upstream):
        assert not gradient.any()  # NaN counts as true


@needs_kernels
@pytest.mark.parametrize("wanted", ["maps", "weights", "biases", "one map", "one projection"])
def test_frozen_inputs_get_no_gradient(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operands = maps, weights, biases = draw(dim=9)
    kinds: dict[str, Sequence[Tensor | None]] = {
        "maps": maps,
        "weights": weights,
        "biases": biases,
        "one map": [maps[1]],
        "one projection": [maps[2], weights[2], biases[2]],
    }
    wants = kinds[wanted]
    for leaf in leaves_of(*operands):
        leaf.requires_grad_(any(leaf is each for each in wants))
    matmul = Mock(wraps=fused._matmul_float32)
    monkeypatch.setattr(fused, "_matmul_float32", matmul)
    check(operands, MLP)
    assert matmul.call_count == sum(each is not None and each.dim() > 1 for each in wants)


@needs_kernels
def test_a_second_derivative_raises() -> None:
    operands = draw(dim=9)
    sums = fused.triton_multilinear_sums(*operands, MLP)
    for loss in (sums[0].sum(), sums[0].square().sum()):
        for leaf in leaves_of(*operands)[:2]:
            (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
            with pytest.raises(RuntimeError, match="no second derivative: use multilinear_sums"):
                (loss + gradient.sum()).backward(retain_graph=True)


class Largest(TorchDispatchMode):
    """Record the bytes of the largest tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.size = max([self.size, *(x.nbytes for x in tree_leaves(found) if isinstance(x, Tensor))])
        return found


@needs_kernels
@pytest.mark.skipif(DEVICE != "cpu", reason="the GPU's backward pass runs in another thread")
def test_no_projection_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_CHUNK", 64)
    operands = maps, weights, _ = draw(dim=200)
    locations = 2 * 5 * 14
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with Largest() as forward, hooks:
        sums = fused.triton_multilinear_sums(*operands, MLP)
    given = {leaf.data_ptr() for leaf in leaves_of(*operands)}
    assert {x.data_ptr() for x in kept} == given
    assert forward.size == max(x.nbytes for x in [*maps, *weights])
    with Largest() as backward:
        torch.autograd.grad(sums, leaves_of(*operands), draw_upstream(maps, weights, MLP))
    assert backward.size == 3 * 64 * locations * 4 < 200 * locations * 4


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason=NO_TRITON)
@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["_sums_kernel", "_slopes_kernel"])
def test_the_kernels_compile_for_an_h100_without_one(
    name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget

    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 3):
        pytest.skip("before Triton 3.3 what is to be compiled is described in another way")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel, tile = getattr(fused, name), fused._TILES[dtype]
    numbers = {"batch", "length", "dim", "c0", "c1", "c2", "start", "stop"}
    element = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}[dtype]
    constants = {"count": 3, "terms": 4, "term_bits": 0b111_110_101_011, "columns": 4, "wanted": 7}
    constants |= {name: tile[name] for name in ("block_d", "block_c", "block_l")}
    signature = {}
    for argument in kernel.arg_names:
        in_dtype = argument == "slopes" or re.fullmatch("[xu][012]", argument)
        of_tensor = element if in_dtype else "*fp32"
        signature[argument] = "i32" if argument in numbers else "constexpr" if argument in constants else of_tensor
    # Addresses and sizes are multiples of 16 as in practice: 512 channels, 784 locations.
    aligned = [number for number, argument in enumerate(kernel.arg_names) if argument not in {"batch", *constants}]
    source = triton.compiler.ASTSource(
        kernel,
        signature,
        {argument: value for argument, value in constants.items() if argument in signature},
        {(number,): [["tt.divisibility", 16]] for number in aligned},
    )
    options = {name: tile[name] for name in ("num_warps", "num_stages")}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.metadata.shared <= 99 * 1024  # the size on a small GPU; an H100 has 227 KiB
    assert "cp.async.cg" in compiled.asm["ptx"]  # loads of 16 bytes, ahead of their use
    assert ("wgmma.mma_async" in compiled.asm["ptx"]) == (dtype != torch.float32)
