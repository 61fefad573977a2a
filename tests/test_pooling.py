"""Every pooling satisfies the contract and its formula; properties of single poolings."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from reference.poolings import PLAIN, REFERENCES
from torch import Tensor, nn
from torch.utils import flop_counter

from c2f_zoo import Pooling, create_pooling, list_poolings
from c2f_zoo.ops import tiled
from c2f_zoo.pooling import POOLINGS, describe_pooling
from c2f_zoo.pooling.avg import AveragePooling
from c2f_zoo.testing import DTYPES, HARD_INPUTS, check_pooling
from c2f_zoo.zoo import num_taps_of

VARIANTS = [name for name in REFERENCES if name not in list_poolings()]

all_poolings = pytest.mark.parametrize("name", list_poolings())


def make(name: str, dtype: torch.dtype = torch.float64, **options: object) -> Pooling:
    torch.manual_seed(1)
    reference = REFERENCES[name]
    pooling = create_pooling(reference.pooling or name, reference.channels, **{**reference.options, **options})
    for bias in (p for key, p in pooling.named_parameters() if key.endswith("bias")):
        nn.init.normal_(bias)  # a bias of zero would hide a bias that is left out
    return pooling.to(dtype)


def make_maps(
    name: str, n: int = 2, height: int = 5, width: int = 3, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = [(n, c, height, width) for c in REFERENCES[name].channels]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def has_option(name: str, option: str) -> bool:
    return option in inspect.signature(POOLINGS[REFERENCES[name].pooling or name]).parameters


def test_every_pooling_has_reference_formulas() -> None:
    assert set(list_poolings()) <= set(REFERENCES)
    assert set(list_poolings()) == set(PLAIN)
    assert {REFERENCES[name].pooling for name in VARIANTS} <= set(list_poolings())


@pytest.mark.slow
@all_poolings
def test_every_pooling_passes_check_pooling(name: str) -> None:
    reference = REFERENCES[name]
    check_pooling(name, reference.channels, reference, atol=reference.atol, **reference.options)


def test_a_pooling_is_described() -> None:
    row = describe_pooling("bilinear", [512], (7, 7))
    assert row.description == "The Gram matrix of one map or two: `X Y^T`"
    assert row.source == "Lin et al., ICCV 2015; Huo et al., eq. 1"
    assert (row.parameters, row.out_features) == (0, 512 * 512)


# For maps of C channels and L locations, large enough for oneDNN's operators, and the default options.
C, L, D = 256, 64, 8192
TRANSFORM = 1.25 * 4096 * math.log2(4096)  # of kernel's sketches
MULTIPLY_ADDS = {
    "avg": C * L,
    "max": C * L,
    "gem": 3 * C * L + 2 * C + 1,  # maximum, power and mean; root, scale, and 1 / p
    "bilinear": 0.75 * C * C * L,  # the fourth block is copied
    "compact_bilinear": 0.75 * C * C * L + 2 * C * C,  # and signs
    # signs and transforms of four sketches, three complex products, unit vectors; transforms and factors of the sums
    "kernel": 4 * L * (C + TRANSFORM) + 3 * L * 4 * 2049 + C * L + 4 * TRANSFORM + C + 3 * 4096,
    # reduction, mean, covariance, twelve products of Newton-Schulz, and the products with scalars
    "isqrt_cov": C * 256 * L + 256 * L + 256 * 256 * L + 12 * 256**3 + 7 * 256**2 + 1,
    "low_rank_bilinear": 2 * C * D * L + D * L,
    "hbp": 3 * C * D * L + 3 * D * L,
    "hbp_shared": 3 * C * D * L + 3 * D * L + 3 * C * D + 3 * D + 3 * D,  # batch norm's scales, in weights and biases
    "mlp": 3 * C * D * L + 5 * D * L,
    "trilinear": 3 * C * D * L + 2 * D * L,
}


@all_poolings
def test_costs_agree_with_formulas(name: str) -> None:
    row = describe_pooling(name, [C] * num_taps_of(name), (8, 8))
    assert row.uncounted == ()
    assert row.multiply_adds == pytest.approx(MULTIPLY_ADDS[name], rel=1e-9)


def test_custom_operators_are_named_unless_they_have_a_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    @torch.library.custom_op("c2f_zoo_test::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return 2 * x

    class TwicePooling(AveragePooling):
        def forward(self, maps: Sequence[Tensor]) -> Tensor:
            return super().forward([twice(x) for x in maps])

    monkeypatch.setitem(POOLINGS._entries, "twice", TwicePooling)
    row = describe_pooling("twice", [4], (2, 2))
    assert (row.uncounted, row.multiply_adds) == (("c2f_zoo_test.twice",), 4 * 2 * 2)
    monkeypatch.setattr(flop_counter, "flop_registry", dict(flop_counter.flop_registry))
    flop_counter.register_flop_formula(torch.ops.c2f_zoo_test.twice)(lambda shape, *_, **__: 2 * math.prod(shape))
    row = describe_pooling("twice", [4], (2, 2))
    assert (row.uncounted, row.multiply_adds) == ((), 2 * 4 * 2 * 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_options_change_the_formula(name: str) -> None:
    pooling, maps, reference = make(name), make_maps(name, 2, 3, 2), REFERENCES[name]
    found = pooling(maps)
    assert found.shape == (2, pooling.out_features)
    torch.testing.assert_close(found, reference(pooling, maps), rtol=1e-9, atol=reference.atol)
    check_gradients(make(name, grad_eps=0.0), maps)  # the bound changes the gradient, on purpose


def check_gradients(pooling: nn.Module, maps: Sequence[Tensor]) -> None:
    keys = [key for key, _ in pooling.named_parameters()]

    def run(*inputs: Tensor) -> Tensor:
        state = dict(zip(keys, inputs[len(maps) :], strict=True))
        return torch.func.functional_call(pooling, state, (list(inputs[: len(maps)]),))

    assert torch.autograd.gradcheck(run, (*(x.requires_grad_() for x in maps), *pooling.parameters()))


@all_poolings
def test_the_order_of_locations_does_not_matter(name: str) -> None:
    pooling, maps = make(name), make_maps(name)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    shuffled = [x.flatten(2)[:, :, order].unflatten(2, (3, 5)) for x in maps]
    torch.testing.assert_close(pooling(shuffled), pooling(maps))


@all_poolings
def test_repeated_locations_do_not_matter(name: str) -> None:
    pooling, maps = make(name), make_maps(name)
    if hasattr(pooling, "root_eps"):
        pooling.root_eps = 0.0  # it is added to the sums, few or many
    torch.testing.assert_close(pooling([torch.cat([x, x], dim=2) for x in maps]), pooling(maps))


@pytest.mark.parametrize("name", [name for name in list_poolings() if REFERENCES[name].zero_at_zero])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=["", "amp-bf16", "amp-fp16"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_maps_of_zeros_give_zeros(dtype: torch.dtype, autocast: torch.dtype | None, name: str) -> None:
    reference = REFERENCES[name]
    pooling = create_pooling(name, reference.channels, **reference.options).to(dtype)  # its biases are zero
    for training in (True, False):
        with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            out = pooling.train(training)([HARD_INPUTS["zeros"](x) for x in make_maps(name, dtype=dtype)])
        assert out.eq(0).all()


@all_poolings
def test_one_channel_is_finite(name: str) -> None:
    options = {**REFERENCES[name].options, **({"dim": 1} if has_option(name, "dim") else {})}
    for dtype in DTYPES:
        pooling = create_pooling(name, [1] * len(REFERENCES[name].channels), **options).to(dtype)
        maps = [x[:, :1].detach().clone().requires_grad_() for x in make_maps(name, dtype=dtype)]
        pooling(maps).sum().backward()
        for tensor in [*maps, *pooling.parameters()]:
            assert tensor.grad is not None
            assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("name", ["hbp", "mlp", "trilinear"])
def test_a_map_of_zeros_has_bounded_gradients(name: str) -> None:
    # A branch with that map is zero, while the other maps of its product are not.
    pooling = create_pooling(name, (3, 4, 2), dim=5)
    maps = make_maps(name, dtype=torch.float32)
    maps = [x.requires_grad_() for x in (torch.zeros_like(maps[0]), *maps[1:])]
    out = pooling(maps)
    (out * torch.linspace(-1, 1, out.shape[1])).sum().backward()
    for tensor in [*maps, *pooling.parameters()]:
        assert tensor.grad is not None
        assert tensor.grad.abs().max() < 1e4


@all_poolings
def test_another_seed_gives_another_vector(name: str) -> None:
    reference, options = REFERENCES[name], {"seed": 7} if has_option(name, "seed") else {}
    pooling, maps = make(name), make_maps(name)
    other = create_pooling(name, reference.channels, **reference.options, **options).double()
    if pooling.state_dict() and name != "gem":  # p of gem is not random
        assert not torch.equal(other(maps), pooling(maps))


# The compiler's own backend takes seconds for each pooling: the paper's, and all of them with `-m soak`.
COMPILED: list[Any] = [(name, "inductor" if name == "mlp" else "aot_eager") for name in list_poolings()]
COMPILED += [pytest.param(name, "inductor", marks=pytest.mark.soak) for name in list_poolings() if name != "mlp"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backend"), COMPILED)
def test_compiled_poolings_give_the_same(name: str, backend: str) -> None:
    torch.compiler.reset()
    pooling = make(name, torch.float32)
    maps, copies = ([x.requires_grad_() for x in make_maps(name, dtype=torch.float32)] for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about complex numbers, which run in eager PyTorch
        found = torch.compile(pooling, fullgraph=True, backend=backend)(copies)
        (found * torch.linspace(-1, 1, found.shape[1])).sum().backward()
    expected = pooling(maps)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    (expected * torch.linspace(-1, 1, expected.shape[1])).sum().backward()
    for x, other in zip(maps, copies, strict=True):
        torch.testing.assert_close(other.grad, x.grad, rtol=1e-3, atol=1e-5)


@all_poolings
def test_exported_poolings_give_the_same(name: str) -> None:
    pooling, maps = make(name, torch.float32).eval(), make_maps(name, dtype=torch.float32)
    exported = torch.export.export(pooling, (maps,)).module()
    torch.testing.assert_close(exported(maps), pooling(maps))


MULTIPLIES_MAPS = [("bilinear", (3, 2)), ("compact_bilinear", (3, 2)), *((n, (3, 4, 2)) for n in ("hbp", "mlp"))]
MULTIPLIES_MAPS.append(("trilinear", (3, 4, 2)))


def uneven_maps(channels: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = [(4, 6), (2, 6), (4, 3)]
    return [torch.randn(2, c, *size, generator=generator).double() for c, size in zip(channels, sizes, strict=False)]


@pytest.mark.parametrize(("name", "channels"), MULTIPLIES_MAPS)
def test_maps_of_different_sizes_raise(name: str, channels: Sequence[int]) -> None:
    pooling = create_pooling(name, channels, **REFERENCES[name].options).double()
    with pytest.raises(
        ValueError, match=r"differ in spatial size \(4 x 6, 2 x 6.*choose taps of one size.*align='pool'"
    ):
        pooling(uneven_maps(channels))


@pytest.mark.parametrize(("name", "channels"), MULTIPLIES_MAPS)
def test_align_pool_pools_maps_to_the_smallest_size(name: str, channels: Sequence[int]) -> None:
    pooling = create_pooling(name, channels, align="pool", **REFERENCES[name].options).double()
    maps = uneven_maps(channels)
    height, width = min(x.shape[2] for x in maps), min(x.shape[3] for x in maps)
    shrunk = [torch.zeros(*x.shape[:2], height, width).double() for x in maps]
    for small, x in zip(shrunk, maps, strict=True):
        rows, columns = x.shape[2] // height, x.shape[3] // width
        for i, j in itertools.product(range(height), range(width)):
            patch = x[:, :, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            small[:, :, i, j] = patch.sum(dim=(2, 3)) / (rows * columns)
    torch.testing.assert_close(pooling(maps), pooling(shrunk))


@pytest.mark.parametrize("name", ["avg", "gem", "max"])
def test_maps_that_are_not_multiplied_may_differ_in_size(name: str) -> None:
    maps = [x.abs() for x in uneven_maps((3, 4, 2))]
    together = create_pooling(name, (3, 4, 2)).double()(maps)
    apart = [create_pooling(name, [x.shape[1]]).double()([x]) for x in maps]
    torch.testing.assert_close(together, torch.cat(apart, dim=1))


@all_poolings
def test_maps_with_other_numbers_of_channels_raise(name: str) -> None:
    maps = make_maps(name)
    with pytest.raises(ValueError, match=r"expects maps of \[.*\] channels, not \[1"):
        make(name)([maps[0][:, :1], *maps[1:]])


@pytest.mark.parametrize("name", ["hbp", "mlp"])
def test_l2_over_the_whole_vector(name: str) -> None:
    pooling, whole, maps = make(name), make(name, l2="vector"), make_maps(name)
    branches = pooling(maps).unflatten(1, (-1, 5))
    found = whole(maps)
    torch.testing.assert_close(branches.norm(dim=2), torch.ones_like(branches[:, :, 0]))
    torch.testing.assert_close(found.norm(dim=1), torch.ones_like(found[:, 0]))
    # Each branch keeps its direction.
    directions = torch.nn.functional.normalize(found.unflatten(1, (-1, 5)), dim=2)
    torch.testing.assert_close(directions, branches)
    assert found.unflatten(1, (-1, 5)).norm(dim=2).std(dim=1).gt(0.01).all()


def test_gradients_are_those_of_the_caffe_release() -> None:
    # One location, one channel, weights 1: the sum is x y, its root r = sqrt(x y); HBP's layer gives 0.5 / (r + 0.03).
    pooling = create_pooling("bilinear", [1, 2], grad_eps=0.03).double()
    x, y = torch.tensor([[[[2.0]]]]).double(), torch.tensor([[[[0.5]], [[0.02]]]]).double()
    y.requires_grad_()
    (grad,) = torch.autograd.grad(pooling([x, y])[0, 0], y)
    r = [1.0, 0.2]
    norm = math.hypot(*r)
    through_norm = [(1 - r[0] * r[0] / norm**2) / norm, -r[0] * r[1] / norm**3]
    expected = [g * 0.5 / (root + 0.03) * 2.0 for g, root in zip(through_norm, r, strict=True)]
    torch.testing.assert_close(grad.flatten(), torch.tensor(expected, dtype=torch.float64))


def _unit(generator: torch.Generator, channels: int = 16) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(1, channels, 1, 1, generator=generator).double(), dim=1)


def _mean_squared_errors(
    name: str, options: dict[str, object], kernel: Callable[[float], float], dims: Sequence[int]
) -> list[float]:
    """Return the errors of two sketches' inner product, over 300 sketches per length.

    The exact value is the kernel of two unit vectors.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = _unit(generator), _unit(generator)
    x = torch.nn.functional.normalize(x + y, dim=1)  # not nearly orthogonal
    exact = kernel(float((x * y).sum()))
    errors = []
    for dim in dims:
        poolings = [create_pooling(name, [16], dim=dim, seed=seed, **options).double() for seed in range(300)]
        estimates = torch.stack([(p.sums([x]) * p.sums([y])).sum() for p in poolings])
        assert abs(estimates.mean().item() - exact) < 4 * estimates.std().item() / 300**0.5, "no bias"
        errors.append((estimates - exact).square().mean().item())
    return errors


@pytest.mark.parametrize("sketch", ["tensor_sketch", "random_maclaurin"])
@pytest.mark.slow
def test_the_error_of_compact_bilinear_falls_as_one_over_d(sketch: str) -> None:
    errors = _mean_squared_errors("compact_bilinear", {"sketch": sketch}, lambda dot: dot**2, [32, 128, 512])
    # The variance of both sketches is proportional to 1 / d (Gao et al. 2016, after Kar & Karnick and Pham & Pagh).
    for coarse, fine in itertools.pairwise(errors):
        assert 2.5 < coarse / fine < 6.5


@pytest.mark.slow
def test_the_error_of_kernel_falls_as_one_over_d() -> None:
    # The Gaussian kernel less its constant and the orders beyond 4, which the series leaves out.
    gamma = 0.8

    def series(dot: float) -> float:
        return math.exp(-2 * gamma) * sum((2 * gamma * dot) ** i / math.factorial(i) for i in range(1, 5))

    errors = _mean_squared_errors("kernel", {"gamma": gamma}, series, [32, 128, 512])
    for coarse, fine in itertools.pairwise(errors):
        assert 2.5 < coarse / fine < 6.5


def test_kernel_does_not_depend_on_the_norm_of_a_location() -> None:
    pooling, maps = make("kernel"), make_maps("kernel")
    sizes = 10.0 ** torch.linspace(-6, 3, 15, dtype=torch.float64).reshape(5, 3)
    torch.testing.assert_close(pooling([maps[0] * sizes]), pooling(maps))


def test_the_default_of_kernel_is_the_gaussian_kernel() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = _unit(generator), _unit(generator)
    pooling = create_pooling("kernel", [16], max_order=12, gamma=0.8, dim=2)
    dot = float((x * y).sum())
    series = sum(a**2 * dot**i for i, a in enumerate(pooling.coefficients.tolist(), start=1))
    distance = float((x - y).square().sum())
    assert series + math.exp(-1.6) == pytest.approx(math.exp(-0.8 * distance), rel=1e-6)


def test_isqrt_converges_to_the_root_of_the_eigenvalues() -> None:
    maps = make_maps("isqrt_cov")
    vectors = maps[0].flatten(2)
    covariances = torch.stack([torch.cov(x, correction=0) for x in vectors])
    values, basis = torch.linalg.eigh(covariances)
    exact = basis @ values.sqrt().diag_embed() @ basis.mT
    rows, columns = torch.triu_indices(4, 4)
    errors = []
    for iterations in (3, 5, 7, 25):
        pooling = create_pooling("isqrt_cov", [4], dim=None, iterations=iterations)
        errors.append((pooling(maps) - exact[:, rows, columns]).norm().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12


@pytest.mark.parametrize(
    ("name", "channels", "options", "message"),
    [
        ("bilinear", 4, {}, "bilinear pools 1 or 2 maps, not 4; name that many taps"),
        ("compact_bilinear", 3, {}, "compact_bilinear pools 1 or 2 maps, not 3"),
        ("hbp", 4, {}, "hbp pools 3 maps, not 4"),
        ("isqrt_cov", 2, {}, "isqrt_cov pools 1 map, not 2"),
        ("kernel", 2, {}, "kernel pools 1 map, not 2"),
        ("low_rank_bilinear", 2, {}, "low_rank_bilinear pools 1 map, not 2"),
        ("mlp", 1, {}, "mlp pools 2 or more maps, not 1"),
        ("hbp_shared", 2, {}, "hbp_shared pools 3 maps, not 2"),
        ("trilinear", 2, {}, "trilinear pools 3 maps, not 2"),
        ("mlp", 3, {"max_order": 1}, "mlp requires max_order >= 2, not 1"),
        ("mlp", 3, {"l2": "branches"}, "unknown l2 'branches'; did you mean 'branch'"),
        ("hbp", 3, {"align": "resize"}, "unknown align 'resize'; known: error, pool"),
        ("compact_bilinear", 1, {"sketch": "tensor"}, "unknown sketch 'tensor'; did you mean 'tensor_sketch'"),
        ("mlp", 24, {"max_order": 4}, "24 maps have over 1000 products of up to 4; lower max_order"),
        ("kernel", 1, {"max_order": 0}, "kernel requires max_order in 1..64, not 0"),
        ("kernel", 1, {"max_order": 2**32}, "kernel requires max_order in 1..64, not 4294967296"),
        ("kernel", 1, {"coefficients": [1.0]}, r"coefficients for orders 1..4, all >= 0, not \[1.0\]"),
        ("kernel", 1, {"coefficients": [1.0, 1.0, -1.0, 1.0]}, "all >= 0"),
        ("isqrt_cov", 1, {"iterations": 0}, "isqrt_cov requires iterations in 1..100, not 0"),
        ("isqrt_cov", 1, {"iterations": 2**32}, "isqrt_cov requires iterations in 1..100, not 4294967296"),
        ("gem", 1, {"p": 0.0}, "gem requires p > 0 and eps > 0, not p=0.0"),
        ("kernal", 1, {}, "unknown pooling 'kernal'; did you mean 'kernel'"),
        ("gem", 1, {"power": 2.0}, "unknown option of pooling 'gem': 'power'"),
    ],
)
def test_invalid_options_raise(name: str, channels: int, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_pooling(name, [8] * channels, **options)


@pytest.mark.parametrize("name", ["hbp", "mlp", "trilinear"])
def test_projections_are_initialized_as_in_the_caffe_release(name: str) -> None:
    torch.manual_seed(0)
    pooling = create_pooling(name, [12, 48, 300], dim=2048)
    for index, channels in enumerate((12, 48, 300)):
        weight = pooling.state_dict()[f"projections.{index}.weight"]
        bound = math.sqrt(3 / channels)
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.99 * bound
        # A uniform distribution on (-b, b) has variance b^2 / 3, here 1 / channels.
        assert weight.var().item() == pytest.approx(1 / channels, rel=0.05)
        assert pooling.state_dict()[f"projections.{index}.bias"].eq(0).all()


def test_shared_hbp_is_the_published_head(monkeypatch: pytest.MonkeyPatch) -> None:
    # For each pair both maps, with batch norm in training mode each time; the published classifier reads 12, 23, 13.
    monkeypatch.setattr(tiled, "_TILE_ROWS", 2)  # so that five units are several tiles
    pooling, maps = make("hbp_shared"), [x.requires_grad_() for x in make_maps("hbp_shared")]
    head = nn.Sequential(copy.deepcopy(pooling.projection), copy.deepcopy(pooling.norm), nn.ReLU())

    def published(x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.normalize((head(x) * head(y)).flatten(2).sum(dim=2).add(1e-5).sqrt(), dim=1)

    for training in (True, False):
        pooling.train(training)
        head.train(training)
        of_12, of_23, of_13 = (published(maps[i], maps[j]) for i, j in ((0, 1), (1, 2), (0, 2)))
        expected = torch.cat([of_12, of_13, of_23], dim=1)
        found = pooling(maps)
        torch.testing.assert_close(found, expected)
        upstream = torch.linspace(-1, 1, found.shape[1], dtype=torch.float64)
        ours = torch.autograd.grad((found * upstream).sum(), [*maps, *pooling.parameters()])
        theirs = torch.autograd.grad((expected * upstream).sum(), [*maps, *head.parameters()])
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
        for (key, a), b in zip(pooling.norm.state_dict().items(), head[1].state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, msg=key)


@pytest.mark.slow
def test_shared_hbp_has_a_second_derivative() -> None:
    pooling, maps = make("hbp_shared", dim=2), [x.requires_grad_() for x in make_maps("hbp_shared", 2, 1, 2)]
    assert torch.autograd.gradgradcheck(lambda *maps: pooling(maps), maps)


def test_shared_hbp_runs_other_norms() -> None:
    pooling, maps = make("hbp_shared"), make_maps("hbp_shared")
    expected = pooling(maps)
    frozen = copy.deepcopy(pooling)

    class Other(nn.BatchNorm2d):
        pass

    other = Other(5).double()
    other.load_state_dict(make("hbp_shared").norm.state_dict())
    frozen.norm = other
    torch.testing.assert_close(frozen(maps), expected)
    assert other.num_batches_tracked == 6
    for key, value in pooling.norm.state_dict().items():  # the published order of updates, as in the fast path
        torch.testing.assert_close(other.state_dict()[key], value, msg=key)
    pooling.norm.momentum = 0.0
    before = pooling.norm.running_var.clone()
    pooling(maps)
    assert torch.equal(pooling.norm.running_var, before)


def test_shared_hbp_raises_for_unsupported_maps() -> None:
    with pytest.raises(ValueError, match=r"they have \[3, 4, 3\] channels; choose taps with equal numbers"):
        create_pooling("hbp_shared", [3, 4, 3])
    with pytest.raises(ValueError, match="one image with one location has no variance"):
        make("hbp_shared")(make_maps("hbp_shared", 1, 1, 1))
