"""Every implementation of the multilinear sums equals the float64 formula."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from c2f_zoo import create_pooling
from c2f_zoo.ops import IMPLEMENTATIONS, cross_gram, explain, multilinear, multilinear_sums, tiled
from c2f_zoo.ops.choice import SMALL, SumsShape, choose
from c2f_zoo.testing import HARD_INPUTS

MLP = ((0, 1), (0, 2), (1, 2), (0, 1, 2))
HBP = MLP[:3]
MEMORY_EFFICIENT = ("tiled", "saved_bf16", "gram")  # triton: tests/test_triton.py


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small shapes have several tiles, the last one incomplete."""
    monkeypatch.setattr(tiled, "_TILE_ROWS", 4)
    monkeypatch.setattr(cross_gram, "_ROWS", 4)


@dataclass
class Case:
    maps: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor | None]
    terms: Sequence[tuple[int, ...]]

    def inputs(self) -> list[Tensor]:
        return [x for x in (*self.maps, *self.weights, *self.biases) if x is not None]

    def to(self, dtype: torch.dtype) -> Case:
        def cast(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().to(dtype).requires_grad_()

        groups = ([cast(x) for x in group] for group in (self.maps, self.weights, self.biases))
        return Case(*groups, self.terms)  # type: ignore[arg-type]

    def run(self, impl: str) -> Tensor:
        return torch.stack(multilinear_sums(self.maps, self.weights, self.biases, self.terms, impl))

    def formula(self) -> Tensor:
        """The formula without the library: one einsum per term."""
        projected = []
        for x, weight, bias in zip(self.maps, self.weights, self.biases, strict=True):
            projected.append(torch.einsum("dc,nchw->ndhw", weight, x))
            if bias is not None:
                projected[-1] = projected[-1] + bias[None, :, None, None]
        letters = [",".join("ndhw" for _ in term) + "->nd" for term in self.terms]
        return torch.stack(
            [torch.einsum(e, *(projected[i] for i in term)) for e, term in zip(letters, self.terms, strict=True)]
        )

    def values_and_gradients(self, sums: Tensor) -> list[Tensor]:
        # A fixed gradient of the sums: that of the signed root would make rounding errors of sums near 0 large.
        generator = torch.Generator().manual_seed(9)
        upstream = torch.randn(sums.shape, generator=generator).to(sums.dtype)
        return [sums, *torch.autograd.grad(sums, self.inputs(), upstream)]


def make_case(
    channels: Sequence[int],
    terms: Sequence[tuple[int, ...]] = MLP,
    batch: int = 2,
    size: tuple[int, int] = (3, 5),
    dim: int = 9,
    bias: bool = True,
    layout: str = "contiguous",
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    maps = [draw(batch, c, *size) for c in channels]
    if layout == "channels_last":
        maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    if layout == "strided":
        maps = [torch.stack([x, -x], dim=-1)[..., 0] for x in maps]
    weights = [draw(dim, c) / c**0.5 for c in channels]
    case = Case(maps, weights, [draw(dim) if bias else None for _ in channels], terms)
    for x in case.inputs():
        x.requires_grad_()
    return case


def all_terms(count: int) -> list[tuple[int, ...]]:
    return [term for size in range(1, count + 1) for term in itertools.combinations(range(count), size)]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    channels = draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    terms = draw(st.lists(st.sampled_from(all_terms(len(channels))), min_size=1, max_size=5, unique=True))
    return make_case(
        channels,
        terms,
        batch=draw(st.integers(1, 3)),
        size=(draw(st.integers(1, 5)), draw(st.integers(1, 5))),
        dim=draw(st.integers(1, 13)),
        bias=draw(st.booleans()),
        layout=draw(st.sampled_from(["contiguous", "channels_last", "strided"])),
        seed=draw(st.integers(0, 2**16)),
    )


def serves(impl: str, case: Case) -> bool:
    return impl != "gram" or all(len(term) == 2 for term in case.terms)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["plain", "tiled", "gram"])
@given(case=cases())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_values_and_gradients_in_float64(impl: str, case: Case) -> None:
    if impl == "gram":
        case.terms = [term for term in case.terms if len(term) == 2] or [(0, 1)]
    used = {index for term in case.terms for index in term}
    expected = case.formula() + 0 * sum(x.sum() for x in case.inputs())  # a map in no term: a gradient of zero
    sums = case.run(impl)
    if len(used) < len(case.maps) and impl == "plain":
        sums = sums + 0 * sum(x.sum() for x in case.inputs())
    for found, wanted in zip(case.values_and_gradients(sums), case.values_and_gradients(expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


# Relative to a tensor's norm. Kept in bfloat16 (8 bits), each projection is off by up to 2^-9, and products by more.
TOLERANCE = {"plain": 1e-5, "tiled": 1e-5, "saved_bf16": 5e-2, "gram": 1e-5}


def assert_near(impl: str, found: Tensor, wanted: Tensor) -> None:
    # Sums cancel: rounding errors are those of their terms, of the size of 1.
    assert (found.double() - wanted).norm() <= TOLERANCE[impl] * (wanted.double().norm() + wanted.numel() ** 0.5)


@pytest.mark.parametrize("impl", TOLERANCE)
@given(case=cases())
@settings(max_examples=30, deadline=None, derandomize=True)
@pytest.mark.slow
def test_values_and_gradients_in_float32(impl: str, case: Case) -> None:
    case.terms = [term for term in case.terms if len(term) == 2] or [(0, 1)] if impl == "gram" else case.terms
    zero = 0 * sum(x.sum() for x in case.inputs())
    expected = case.values_and_gradients(case.formula() + zero)
    single = case.to(torch.float32)
    zero32 = 0 * sum(x.sum() for x in single.inputs())
    for found, wanted in zip(single.values_and_gradients(single.run(impl) + zero32), expected, strict=True):
        assert_near(impl, found, wanted)


@pytest.mark.parametrize("impl", ["tiled", "gram"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(impl: str, dtype: torch.dtype) -> None:
    case = make_case((3, 4, 2), HBP).to(dtype)
    exact = case.to(torch.float64)
    sums = case.run(impl)
    assert sums.dtype == torch.float32
    found, wanted = case.values_and_gradients(sums), exact.values_and_gradients(exact.formula())
    torch.testing.assert_close(found[0].double(), wanted[0], rtol=1e-5, atol=1e-5)
    for x, gradient, reference in zip(case.inputs(), found[1:], wanted[1:], strict=True):
        assert gradient.dtype == x.dtype
        torch.testing.assert_close(gradient.double(), reference, rtol=1e-2, atol=1e-2)  # rounded once, to half


@pytest.mark.parametrize("impl", MEMORY_EFFICIENT)
def test_frozen_inputs_get_no_gradient(impl: str) -> None:
    case = make_case((3, 4, 2), HBP)
    for frozen in (case.maps[0], case.weights[1], case.biases[2]):
        assert frozen is not None
        frozen.requires_grad_(False)
    wanted = [x for x in case.inputs() if x.requires_grad]
    exact = torch.autograd.grad(case.formula().sum(), wanted)
    for found, reference in zip(torch.autograd.grad(case.run(impl).sum(), wanted), exact, strict=True):
        assert_near(impl, found, reference)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["tiled", "gram"])
def test_the_second_derivative_is_correct(impl: str) -> None:
    case = make_case((2, 3, 2), HBP, batch=1, size=(2, 1), dim=5)
    count = len(case.maps)

    def run(*inputs: Tensor) -> list[Tensor]:
        maps, weights, biases = (inputs[i * count : (i + 1) * count] for i in range(3))
        return multilinear_sums(maps, weights, biases, case.terms, impl)

    assert torch.autograd.gradgradcheck(run, tuple(case.inputs()))


@pytest.mark.parametrize("impl", MEMORY_EFFICIENT)
def test_memory_kept_for_the_backward_pass(impl: str) -> None:
    case = make_case((3, 4, 2), HBP)
    known = {x.untyped_storage().data_ptr() for x in case.inputs()}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        case.run(impl)
    numbers = sum(x.numel() for x in kept if x.untyped_storage().data_ptr() not in known)
    projections, grams = 3 * 2 * 9 * 15, 2 * (3 * 4 + 3 * 2 + 4 * 2)  # x N x d x locations; N x C_i C_j
    assert numbers == {"tiled": 0, "gram": grams}.get(impl, projections)


@pytest.mark.slow
@pytest.mark.parametrize("impl", MEMORY_EFFICIENT)
def test_compiled_checkpointed_and_under_autocast(impl: str) -> None:
    case = make_case((3, 4, 2), HBP).to(torch.float32)
    expected = case.values_and_gradients(case.formula())
    torch.compiler.reset()
    compiled = torch.compile(lambda: case.run(impl), fullgraph=True, backend="aot_eager")()
    recomputed = checkpoint(lambda: case.run(impl), use_reentrant=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = case.run(impl)
    for sums in (compiled, recomputed, autocast):
        assert sums.dtype == torch.float32
        for found, wanted in zip(case.values_and_gradients(sums), expected, strict=True):
            assert_near(impl, found, wanted)


@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    case = make_case((3, 4, 2)).to(torch.float32)
    torch.compiler.reset()
    sums = torch.compile(lambda: case.run("tiled"), fullgraph=True)()
    for found, wanted in zip(case.values_and_gradients(sums), case.values_and_gradients(case.formula()), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_export_falls_back_on_the_plain_formula() -> None:
    pooling = create_pooling("mlp", (3, 4, 2), dim=5, impl="tiled")
    maps = [torch.randn(2, c, 4, 3) for c in (3, 4, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the fallback
        program = torch.export.export(pooling, (maps,))
    assert not any("c2f_zoo" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(maps), pooling(maps))


def test_an_unsupported_implementation_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multilinear, "_warned", set())
    case = make_case((3, 4, 2))
    with pytest.warns(
        UserWarning, match=r"impl='gram' is unsupported: not every term is a pair; using 'plain' instead"
    ):
        sums = case.run("gram")
    torch.testing.assert_close(sums, case.formula())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        case.run("gram")


def test_an_empty_batch_gives_zero_gradients() -> None:
    for impl in ("tiled", "gram"):
        case = make_case((3, 4, 2), HBP, batch=0)
        sums = case.run(impl)
        assert sums.shape == (3, 0, 9)
        for x, gradient in zip(case.inputs(), torch.autograd.grad(sums.sum(), case.inputs()), strict=True):
            assert gradient.shape == x.shape
            assert gradient.eq(0).all()


@pytest.mark.parametrize("impl", MEMORY_EFFICIENT)
def test_the_backward_pass_ignores_autocast(impl: str) -> None:
    case = make_case((3, 4, 2), HBP).to(torch.float32)
    expected = case.values_and_gradients(case.run(impl))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = case.values_and_gradients(case.run(impl))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(("impl", "keep"), [("tiled", False), ("tiled", True), ("gram", False), ("gram", True)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_opcheck(impl: str, keep: bool, layout: str) -> None:
    case = make_case((3, 4, 2), HBP, layout=layout)
    operator = {"tiled": tiled.tiled_sums, "gram": cross_gram.cross_gram_sums}[impl]
    arguments = ([x.flatten(2) for x in case.maps], case.weights, case.biases, [3, 5, 6], keep, False)
    torch.library.opcheck(operator, arguments)


@pytest.mark.slow
def test_compiled_with_another_batch_and_layout() -> None:
    torch.compiler.reset()
    compiled = torch.compile(lambda case: case.run("tiled"), backend="aot_eager")
    for batch, layout in ((2, "contiguous"), (3, "channels_last"), (4, "channels_last")):
        case = make_case((3, 4, 2), batch=batch, layout=layout).to(torch.float32)
        sums = compiled(case)
        for found, wanted in zip(
            case.values_and_gradients(sums), case.values_and_gradients(case.formula()), strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 cannot export an autograd.Function with an open batch")
def test_export_with_a_dynamic_batch_size() -> None:
    pooling = create_pooling("mlp", (3, 4, 2), dim=5).eval()
    maps = [torch.randn(2, c, 4, 3) for c in (3, 4, 2)]
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(pooling, (maps,), dynamic_shapes=([{0: batch}] * 3,))
    more = [torch.randn(5, c, 4, 3) for c in (3, 4, 2)]
    torch.testing.assert_close(program.module()(more), pooling(more))


@pytest.mark.parametrize("impl", ["tiled", "gram", "saved_bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hard", HARD_INPUTS)
def test_hard_inputs_are_finite(hard: str, dtype: torch.dtype, impl: str) -> None:
    name = "hbp" if impl == "gram" else "mlp"
    pooling = create_pooling(name, (3, 4, 2), dim=5, impl=impl).to(dtype)
    generator = torch.Generator().manual_seed(2)
    maps = [
        HARD_INPUTS[hard](torch.randn(2, c, 5, 3, generator=generator)).to(dtype).requires_grad_() for c in (3, 4, 2)
    ]
    out = pooling(maps)
    (out.float() * torch.linspace(-1, 1, out.shape[1])).sum().backward()
    for x in (out, *(x.grad for x in (*maps, *pooling.parameters()))):
        assert x is not None
        assert x.isfinite().all()


def run_process(rank: int, folder: str) -> None:
    """Save the gradients under DistributedDataParallel with half of a batch, and those of all of it alone."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", world_size=2, rank=rank)
    torch.manual_seed(0)
    maps = [torch.randn(4, c, 5, 3) for c in (3, 4, 2)]
    pooling = create_pooling("mlp", (3, 4, 2), dim=9, impl="tiled")
    alone = create_pooling("mlp", (3, 4, 2), dim=9, impl="plain")
    alone.load_state_dict(pooling.state_dict())
    wrapped = torch.nn.parallel.DistributedDataParallel(pooling, find_unused_parameters=True)
    for module, own in ((wrapped, slice(2 * rank, 2 * rank + 2)), (alone, slice(0, 4))):
        out = module([x[own] for x in maps])
        (out * torch.linspace(-1, 1, out.shape[1])).sum().backward()
    gradients = [[weight.grad for weight in module.parameters()] for module in (pooling, alone)]
    torch.save(gradients, Path(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


def test_gradients_of_two_processes_equal_those_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(run_process, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in (0, 1):
        shared, alone = torch.load(tmp_path / f"{rank}.pt")
        for ours, theirs in zip(shared, alone, strict=True):
            torch.testing.assert_close(ours, theirs / 2, rtol=1e-4, atol=1e-5)  # DDP averages


BIG = SumsShape(batch=8, channels=(512,) * 3, locations=784, dim=8192, terms=MLP)


@pytest.mark.parametrize(
    ("changes", "impl"),
    [
        ({}, "tiled"),
        ({"terms": HBP}, "gram"),  # 512 / 784 + 512 / 8192 = 0.72
        ({"terms": HBP, "channels": (2048,) * 3}, "tiled"),  # 2.9
        ({"batch": 1, "dim": 512, "locations": 49}, "plain"),
        ({"exporting": True}, "plain"),
        ({"terms": ((0, 0),)}, "plain"),
        ({"dtypes": (torch.float64,)}, "tiled"),
        ({"dtypes": (torch.float64, torch.float32)}, "plain"),  # raises the error of the matrix product
        ({"dtypes": (torch.bfloat16,)}, "tiled"),  # on a CPU, in float32
        ({"device": "cuda"}, "tiled"),  # in float32, where the kernels have no matrix units
        ({"device": "cuda", "terms": HBP}, "gram"),
        ({"device": "cuda", "dtypes": (torch.bfloat16,), "channels": (512,) * 4}, "plain"),  # the kernels hold three
    ],
)
def test_the_automatic_choice_is_as_documented(changes: dict, impl: str) -> None:
    assert choose(SumsShape(**{**vars(BIG), **changes})).impl == impl


def test_small_shapes_run_the_plain_formula() -> None:
    at = SumsShape(batch=1, channels=(8, 8), locations=1, dim=SMALL // 2, terms=((0, 1),))
    assert choose(at).impl == "plain"
    assert choose(SumsShape(**{**vars(at), "dim": SMALL // 2 + 1})).impl == "tiled"


def test_explain_prints_the_choice_and_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    explain((8, 512, 28, 28), terms=HBP)
    assert capsys.readouterr().out.splitlines() == [
        "gram: pairs only, and C / L + C / d < 1",
        "the projections hold 147.00 x 2^20 numbers; C / L + C / d = 0.72",  # 8 x 8192 x 784 x 3
    ]
    explain((8, 512, 28, 28), impl="gram")
    assert "tiled" in (said := capsys.readouterr().out)
    assert "impl='gram' is unsupported: not every term is a pair" in said
    with pytest.raises(ValueError, match="unknown impl 'tile'; did you mean 'tiled'"):
        explain((8, 512, 28, 28), impl="tile")


def test_a_pooling_uses_the_implementation_of_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for impl, run in list(multilinear._RUN.items()):
        monkeypatch.setitem(multilinear._RUN, impl, lambda *a, impl=impl, run=run: ran.append(impl) or run(*a))
    maps = [torch.randn(2, c, 4, 3) for c in (3, 4, 2)]
    for impl in IMPLEMENTATIONS:
        if impl in ("gram", "triton"):
            continue
        torch.manual_seed(0)
        plain = create_pooling("mlp", (3, 4, 2), dim=5)
        torch.manual_seed(0)
        other = create_pooling("mlp", (3, 4, 2), dim=5, impl=impl)
        found, expected = other(maps), plain(maps)
        assert ran[-2:] == [impl, "plain"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="unknown impl 'fast'"):
        create_pooling("mlp", (3, 4, 2), impl="fast")
