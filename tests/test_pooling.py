"""Every pooling against its formula, written out with loops in float64, in every dtype."""

from __future__ import annotations

import copy
import itertools
import json
import math
import warnings
from collections.abc import Callable, Sequence

import pytest
import torch
from conftest import HARD
from torch import Tensor, nn

from c2f_zoo import create_pooling, list_poolings
from c2f_zoo.ops import tiled

CHANNELS = {
    "avg": (3, 2),
    "bilinear": (4,),
    "compact_bilinear": (4,),
    "gem": (3, 2),
    "hbp": (3, 4, 2),
    "hbp_shared": (3, 3, 3),
    "isqrt_cov": (4,),
    "kernel": (4,),
    "low_rank_bilinear": (4,),
    "max": (3, 2),
    "mlp": (3, 4, 2),
    "trilinear": (3, 4, 2),
}
HAS_DIM = ("compact_bilinear", "hbp", "hbp_shared", "kernel", "low_rank_bilinear", "mlp", "trilinear")
OPTIONS: dict[str, dict[str, int]] = {name: {"dim": 5} for name in HAS_DIM} | {"isqrt_cov": {"dim": 3}}
# Those that multiply features, and so have a root whose gradient is bounded.
HAS_ROOT = (*(name for name in HAS_DIM if name != "hbp_shared"), "bilinear", "isqrt_cov")


def make(name: str, dtype: torch.dtype = torch.float64, **options: object) -> nn.Module:
    torch.manual_seed(1)
    pooling = create_pooling(name, CHANNELS[name], **{**OPTIONS.get(name, {}), **options})
    for bias in (p for key, p in pooling.named_parameters() if key.endswith("bias")):
        nn.init.normal_(bias)  # a bias of zero would hide a bias that is left out
    return pooling.to(dtype)


def make_maps(
    name: str, n: int = 2, height: int = 5, width: int = 3, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(n, c, height, width, generator=generator, dtype=torch.float64).to(dtype) for c in CHANNELS[name]
    ]


def _root_and_l2(vector: Sequence[float]) -> list[float]:
    roots = [math.copysign(math.sqrt(abs(value)), value) for value in vector]
    norm = math.sqrt(sum(root * root for root in roots))
    return [root / norm if norm else 0.0 for root in roots]


def _locations(maps: Sequence[Tensor], n: int) -> list[list[list[float]]]:
    """maps -> for each location, for each map, its channels."""
    height, width = maps[0].shape[2:]
    return [[m[n, :, y, x].tolist() for m in maps] for y in range(height) for x in range(width)]


def _channel_values(maps: Sequence[Tensor], n: int) -> list[list[float]]:
    """The values at all locations, for each channel of each map."""
    places = _locations(maps, n)
    return [[p[i][c] for p in places] for i, m in enumerate(maps) for c in range(m.shape[1])]


def _avg(pooling: nn.Module, maps: Sequence[Tensor], n: int) -> list[float]:
    return [sum(values) / len(values) for values in _channel_values(maps, n)]


def _max(pooling: nn.Module, maps: Sequence[Tensor], n: int) -> list[float]:
    return [max(values) for values in _channel_values(maps, n)]


def _gem(pooling: nn.Module, maps: Sequence[Tensor], n: int) -> list[float]:
    p = pooling.state_dict()["p"].item()
    return [
        (sum(max(value, 1e-6) ** p for value in values) / len(values)) ** (1 / p) for values in _channel_values(maps, n)
    ]


def _gram(maps: Sequence[Tensor], n: int) -> dict[tuple[int, int], float]:
    places, rows, columns = _locations(maps, n), range(maps[0].shape[1]), range(maps[-1].shape[1])
    return {(i, j): sum(p[0][i] * p[-1][j] for p in places) for i in rows for j in columns}


def _bilinear(pooling: nn.Module, maps: Sequence[Tensor], n: int) -> list[float]:
    return _root_and_l2(list(_gram(maps, n).values()))


def _compact_bilinear(pooling: nn.Module, maps: Sequence[Tensor], n: int) -> list[float]:
    state = {key: buffer.tolist() for key, buffer in pooling.state_dict().items()}
    sketch = [0.0] * pooling.out_features
    for (i, j), value in _gram(maps, n).items():
        entry = (state["hashes_x"][i] + state["hashes_y"][j]) % len(sketch)
        sketch[entry] += state["signs_x"][i] * state["signs_y"][j] * value
    return _root_and_l2(sketch)


def _random_maclaurin(pooling: nn.Module, maps: Sequence[Tensor], n: int) -> list[float]:
    signs_x, signs_y = (pooling.state_dict()[f"signs_{name}"].tolist() for name in "xy")
    sums = [
        sum(row_x[i] * row_y[j] * value for (i, j), value in _gram(maps, n).items()) / math.sqrt(len(signs_x))
        for row_x, row_y in zip(signs_x, signs_y, strict=True)
    ]
    return _root_and_l2(sums)


def _kernel(pooling: nn.Module, maps: Sequence[Tensor], n: int) -> list[float]:
    state = {key: tensor.tolist() for key, tensor in pooling.state_dict().items()}
    vector: list[float] = []
    places = [[value / math.sqrt(sum(v * v for v in p[0])) for value in p[0]] for p in _locations(maps, n)]
    channels = range(len(places[0]))
    for order, coefficient in enumerate(state["coefficients"], start=1):
        sums = [0.0] * (len(channels) if order == 1 else 5)
        for x, chosen in itertools.product(places, itertools.product(channels, repeat=order)):
            entry, value = chosen[0], coefficient * math.prod(x[c] for c in chosen)
            if order > 1:
                entry = sum(state["hashes"][k][c] for k, c in enumerate(chosen)) % 5
                value *= math.prod(state["signs"][k][c] for k, c in enumerate(chosen))
            sums[entry] += value
        vector += sums
    return _root_and_l2(vector)


def _hbp_shared(pooling: nn.Module, maps: Sequence[Tensor], n: int) -> list[float]:
    state = {key: tensor.tolist() for key, tensor in pooling.state_dict().items()}
    weight = pooling.state_dict()["projection.weight"][:, :, 0, 0].tolist()
    active: list[list[list[float]]] = []  # map, unit, location
    for i in range(3):
        active.append([])
        for k, row in enumerate(weight):
            images = [
                [sum(w * x for w, x in zip(row, place[i], strict=True)) for place in _locations(maps, m)]
                for m in range(len(maps[0]))
            ]
            values = [value for image in images for value in image]
            mean = sum(values) / len(values)
            var = sum((value - mean) ** 2 for value in values) / len(values)
            gain, offset = state["norm.weight"][k] / math.sqrt(var + 1e-5), state["norm.bias"][k]
            active[i].append([max(gain * (value - mean) + offset, 0.0) for value in images[n]])
    vector: list[float] = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        pairs = zip(active[i], active[j], strict=True)
        vector += _root_and_l2([sum(a * b for a, b in zip(x, y, strict=True)) + pooling.root_eps for x, y in pairs])
    return vector


def _isqrt_cov(pooling: nn.Module, maps: Sequence[Tensor], n: int) -> list[float]:
    weight = pooling.state_dict()["reduction.weight"][:, :, 0, 0]
    vectors = torch.tensor([place[0] for place in _locations(maps, n)], dtype=torch.float64) @ weight.T
    locations, dim = vectors.shape
    # I-bar = 1/L (I - 1/L 11^T), then the coupled iteration as the paper writes it.
    centring = (torch.eye(locations).double() - torch.ones(locations, locations).double() / locations) / locations
    sigma = vectors.T @ centring @ vectors
    if locations == 1:
        return [0.0] * (dim * (dim + 1) // 2)
    eye = torch.eye(dim, dtype=torch.float64)
    y, z = sigma / sigma.trace(), eye
    for _ in range(5):
        y, z = y @ (3 * eye - z @ y) / 2, (3 * eye - z @ y) @ z / 2
    root = sigma.trace().sqrt() * y
    return [root[i, j].item() for i in range(dim) for j in range(i, dim)]


def _multilinear(terms: Sequence[Sequence[int]], sources: Sequence[int] = (0, 1, 2)) -> Callable[..., list[float]]:
    def reference(pooling: nn.Module, maps: Sequence[Tensor], n: int) -> list[float]:
        state = pooling.state_dict()
        weights = [state[f"projections.{i}.weight"][:, :, 0, 0].tolist() for i in range(len(sources))]
        biases = [state[f"projections.{i}.bias"].tolist() for i in range(len(sources))]
        vector: list[float] = []
        for term in terms:
            sums = [0.0] * len(biases[0])
            for place, k in itertools.product(_locations(maps, n), range(len(sums))):
                rows = [(weights[i][k], place[sources[i]], biases[i][k]) for i in term]
                sums[k] += math.prod(sum(w * x for w, x in zip(row, xs, strict=True)) + b for row, xs, b in rows)
            vector += _root_and_l2(sums)
        return vector

    return reference


REFERENCES: dict[str, Callable[..., list[float]]] = {
    "avg": _avg,
    "bilinear": _bilinear,
    "compact_bilinear": _compact_bilinear,
    "gem": _gem,
    "hbp": _multilinear([(0, 1), (0, 2), (1, 2)]),
    "hbp_shared": _hbp_shared,
    "isqrt_cov": _isqrt_cov,
    "kernel": _kernel,
    "low_rank_bilinear": _multilinear([(0, 1)], sources=(0, 0)),
    "max": _max,
    "mlp": _multilinear([(0, 1), (0, 2), (1, 2), (0, 1, 2)]),
    "trilinear": _multilinear([(0, 1, 2)]),
}

all_poolings = pytest.mark.parametrize("name", list_poolings())


def reference(formula: Callable[..., list[float]], pooling: nn.Module, maps: Sequence[Tensor]) -> Tensor:
    return torch.tensor([formula(pooling, maps, n) for n in range(len(maps[0]))], dtype=torch.float64)


def assert_close_to(
    formula: Callable[..., list[float]], pooling: nn.Module, maps: Sequence[Tensor], found: Tensor
) -> None:
    # The FFT leaves 1e-17 where a sketch is zero, and the root makes 1e-8 of it.
    atol = 1e-7 if formula is _kernel else 1e-11
    torch.testing.assert_close(found, reference(formula, pooling, maps), rtol=1e-9, atol=atol)


def test_every_pooling_has_a_reference() -> None:
    assert set(REFERENCES) == set(list_poolings())


@all_poolings
@pytest.mark.parametrize("size", [(5, 3), (1, 1), (1, 7)])
def test_values_are_the_formulas(name: str, size: tuple[int, int]) -> None:
    pooling, maps = make(name), make_maps(name, 2, *size)
    found = pooling(maps)
    assert found.shape == (2, pooling.out_features)
    assert_close_to(REFERENCES[name], pooling, maps, found)


@all_poolings
def test_gradients_are_the_formulas(name: str) -> None:
    options = {"grad_eps": 0.0} if name in HAS_ROOT else {}  # the bound changes the gradient, on purpose
    check_gradients(make(name, **options), make_maps(name, 2, 3, 2))


def check_gradients(pooling: nn.Module, maps: Sequence[Tensor]) -> None:
    keys = [key for key, _ in pooling.named_parameters()]

    def run(*inputs: Tensor) -> Tensor:
        state = dict(zip(keys, inputs[len(maps) :], strict=True))
        return torch.func.functional_call(pooling, state, (list(inputs[: len(maps)]),))

    assert torch.autograd.gradcheck(run, (*(x.requires_grad_() for x in maps), *pooling.parameters()))


@all_poolings
def test_memory_layout_does_not_matter(name: str) -> None:
    pooling, maps = make(name), make_maps(name)
    expected = pooling(maps)
    channels_last = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    strided = [torch.stack([x, -x], dim=-1)[..., 0] for x in maps]
    assert not any(x.is_contiguous() for x in strided)
    torch.testing.assert_close(pooling(channels_last), expected)
    torch.testing.assert_close(pooling(strided), expected)


@all_poolings
def test_the_order_of_locations_does_not_matter(name: str) -> None:
    pooling, maps = make(name), make_maps(name)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    shuffled = [x.flatten(2)[:, :, order].unflatten(2, (3, 5)) for x in maps]
    torch.testing.assert_close(pooling(shuffled), pooling(maps))


@all_poolings
def test_seeing_everything_twice_does_not_matter(name: str) -> None:
    options = {"root_eps": 0.0} if name == "hbp_shared" else {}  # that is added to the sums, few or many
    pooling, maps = make(name, **options), make_maps(name)
    torch.testing.assert_close(pooling([torch.cat([x, x], dim=2) for x in maps]), pooling(maps))


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@all_poolings
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=["", "amp-bf16", "amp-fp16"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hard", HARD)
def test_hard_inputs_are_finite_forward_and_backward(
    hard: str, dtype: torch.dtype, autocast: torch.dtype | None, training: bool, name: str
) -> None:
    # Biases are zero as at the start of training.
    pooling = create_pooling(name, CHANNELS[name], **OPTIONS.get(name, {})).to(dtype).train(training)
    maps = [HARD[hard](x).to(dtype).requires_grad_() for x in make_maps(name)]
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        out = pooling(maps)
    (out.float() * torch.linspace(-1, 1, out.shape[1])).sum().backward()
    assert out.dtype == dtype
    assert out.isfinite().all()
    if hard == "zeros" and name not in ("gem", "hbp_shared"):  # they have a least value
        assert out.eq(0).all()
    for tensor in [*maps, *pooling.parameters()]:
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    with torch.no_grad():
        assert pooling.eval()(maps).isfinite().all(), "after a step of training, too"


@all_poolings
def test_an_empty_batch_gives_no_rows(name: str) -> None:
    pooling = make(name, torch.float32).eval()
    maps = [x[:0].requires_grad_() for x in make_maps(name, dtype=torch.float32)]
    out = pooling(maps)
    assert out.shape == (0, pooling.out_features)
    out.sum().backward()
    for weight in pooling.parameters():
        assert weight.grad is None or weight.grad.eq(0).all()


@all_poolings
def test_one_channel_is_finite(name: str) -> None:
    options = {key: value for key, value in OPTIONS.get(name, {}).items() if key != "dim"} | (
        {"dim": 1} if name in OPTIONS else {}
    )
    for dtype in DTYPES:
        pooling = create_pooling(name, [1] * len(CHANNELS[name]), **options).to(dtype)
        maps = [x[:, :1].detach().clone().requires_grad_() for x in make_maps(name, dtype=dtype)]
        pooling(maps).sum().backward()
        for tensor in [*maps, *pooling.parameters()]:
            assert tensor.grad is not None
            assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("name", ["hbp", "mlp", "trilinear"])
def test_a_map_of_zeros_does_not_blow_up_gradients(name: str) -> None:
    # A branch with that map is zero, while the other maps of its product are not.
    pooling = create_pooling(name, CHANNELS[name], **OPTIONS[name])
    maps = make_maps(name, dtype=torch.float32)
    maps = [x.requires_grad_() for x in (torch.zeros_like(maps[0]), *maps[1:])]
    out = pooling(maps)
    (out * torch.linspace(-1, 1, out.shape[1])).sum().backward()
    for tensor in [*maps, *pooling.parameters()]:
        assert tensor.grad is not None
        assert tensor.grad.abs().max() < 1e4


@all_poolings
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e4])
@pytest.mark.parametrize(("autocast", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_autocast_stays_close(name: str, scale: float, autocast: torch.dtype, tolerance: float) -> None:
    # Without biases, which are not to be compared with 1e-8 or 1e4.
    pooling = create_pooling(name, CHANNELS[name], **OPTIONS.get(name, {}))
    maps = [x * scale for x in make_maps(name, dtype=torch.float32)]
    with torch.autocast("cpu", dtype=autocast):
        found = pooling(maps).double()
    assert found.norm() > 0, "1e-8 does not vanish in fp16"
    expected = pooling.double()([x.double() for x in maps])
    # The root doubles the relative error where sums cancel, so compare whole vectors.
    assert (found - expected).norm() < tolerance * expected.norm()


@all_poolings
def test_a_state_dict_carries_everything(name: str) -> None:
    # Another sketch and other weights, until the state is loaded.
    options = {"seed": 7} if name in ("compact_bilinear", "kernel") else {}
    pooling, maps = make(name), make_maps(name)
    other = create_pooling(name, CHANNELS[name], **OPTIONS.get(name, {}), **options).double()
    if pooling.state_dict():
        assert not torch.equal(other(maps), pooling(maps)) or name == "gem"
    other.load_state_dict(pooling.state_dict())
    assert torch.equal(other(maps), pooling(maps))


@all_poolings
def test_options_are_jsonable_and_enough_to_build_it_again(name: str) -> None:
    options = json.loads(json.dumps(OPTIONS.get(name, {})))
    state = make(name).state_dict()
    assert create_pooling(name, CHANNELS[name], **options).double().load_state_dict(state)


@all_poolings
def test_nobodys_generator_is_seeded(name: str) -> None:
    draws = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        pooling = create_pooling(name, CHANNELS[name], **OPTIONS.get(name, {}))
        draws.append(torch.rand(3))
        if not any(key.endswith("weight") for key, _ in pooling.named_parameters()):
            torch.manual_seed(seed)
            assert torch.equal(torch.rand(3), draws[-1]), "a sketch draws from a generator of its own"
    assert not torch.equal(*draws)


@all_poolings
def test_compiled_it_gives_the_same(name: str) -> None:
    torch.compiler.reset()
    pooling = make(name, torch.float32)
    maps, copies = ([x.requires_grad_() for x in make_maps(name, dtype=torch.float32)] for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of complex numbers, which the compiler leaves to eager PyTorch
        found = torch.compile(pooling, fullgraph=True)(copies)
        (found * torch.linspace(-1, 1, found.shape[1])).sum().backward()
    expected = pooling(maps)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    (expected * torch.linspace(-1, 1, expected.shape[1])).sum().backward()
    for x, other in zip(maps, copies, strict=True):
        torch.testing.assert_close(other.grad, x.grad, rtol=1e-3, atol=1e-5)


@all_poolings
def test_exported_it_gives_the_same(name: str) -> None:
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
def test_maps_of_different_sizes_are_refused(name: str, channels: Sequence[int]) -> None:
    pooling = create_pooling(name, channels, **OPTIONS.get(name, {})).double()
    with pytest.raises(
        ValueError, match=r"differ in spatial size \(4 x 6, 2 x 6.*choose taps of one size.*align='pool'"
    ):
        pooling(uneven_maps(channels))


@pytest.mark.parametrize(("name", "channels"), MULTIPLIES_MAPS)
def test_maps_of_different_sizes_are_pooled_to_the_least_if_asked(name: str, channels: Sequence[int]) -> None:
    pooling = create_pooling(name, channels, align="pool", **OPTIONS.get(name, {})).double()
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
def test_maps_of_other_channels_are_refused(name: str) -> None:
    maps = make_maps(name)
    with pytest.raises(ValueError, match=r"made for maps of \[.*\] channels, not \[1"):
        make(name)([maps[0][:, :1], *maps[1:]])


# Options that change the formula: name, channels, options, the formula.
MACLAURIN: dict[str, object] = {"dim": 4, "sketch": "random_maclaurin"}
VARIANTS: dict[str, tuple[str, Sequence[int], dict[str, object], Callable[..., list[float]]]] = {
    "bilinear of two": ("bilinear", (2, 3), {}, _bilinear),
    "compact bilinear of two": ("compact_bilinear", (2, 3), {"dim": 4}, _compact_bilinear),
    "random maclaurin": ("compact_bilinear", (3,), {"dim": 4, "sketch": "random_maclaurin"}, _random_maclaurin),
    "random maclaurin of two": (
        "compact_bilinear",
        (2, 3),
        {"dim": 4, "sketch": "random_maclaurin"},
        _random_maclaurin,
    ),
    "kernel of order 1": ("kernel", (3,), {"max_order": 1}, _kernel),
    "kernel of two orders": ("kernel", (4,), {"coefficients": [0.5, 2.0], "max_order": 2, "dim": 5}, _kernel),
    "kernel that is not learned": ("kernel", (4,), {"learn_coefficients": False, "dim": 5}, _kernel),
    "mlp of two": ("mlp", (2, 3), {"dim": 4}, _multilinear([(0, 1)], (0, 1))),
    "mlp of four, pairs only": (
        "mlp",
        (2, 3, 2, 1),
        {"dim": 4, "max_order": 2},
        _multilinear([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], (0, 1, 2, 3)),
    ),
    "mlp of four, to the end": (
        "mlp",
        (2, 3, 2, 1),
        {"dim": 4, "max_order": 4},
        _multilinear(
            [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3), (0, 1, 2, 3)],
            (0, 1, 2, 3),
        ),
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_their_formulas(variant: str) -> None:
    name, channels, options, formula = VARIANTS[variant]
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, c, 3, 2, generator=generator, dtype=torch.float64) for c in channels]
    pooling = create_pooling(name, channels, **options).double()
    found = pooling(maps)
    assert found.shape == (2, pooling.out_features)
    assert_close_to(formula, pooling, maps, found)
    check_gradients(create_pooling(name, channels, grad_eps=0.0, **options).double(), maps)


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


def test_a_poolings_backward_is_the_caffe_releases() -> None:
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
    """Of the inner product of two sketches against the kernel of two unit vectors, over 300 sketches a length."""
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
def test_compact_bilinears_error_falls_as_one_over_d(sketch: str) -> None:
    errors = _mean_squared_errors("compact_bilinear", {"sketch": sketch}, lambda dot: dot**2, [32, 128, 512])
    # The variance of both sketches is proportional to 1 / d (Gao et al. 2016, after Kar & Karnick and Pham & Pagh).
    for coarse, fine in itertools.pairwise(errors):
        assert 2.5 < coarse / fine < 6.5


def test_kernel_poolings_error_falls_as_one_over_d() -> None:
    # The Gaussian kernel less its constant and the orders beyond 4, which the series leaves out.
    gamma = 0.8

    def series(dot: float) -> float:
        return math.exp(-2 * gamma) * sum((2 * gamma * dot) ** i / math.factorial(i) for i in range(1, 5))

    errors = _mean_squared_errors("kernel", {"gamma": gamma}, series, [32, 128, 512])
    for coarse, fine in itertools.pairwise(errors):
        assert 2.5 < coarse / fine < 6.5


def test_kernel_pooling_does_not_see_the_size_of_a_location() -> None:
    pooling, maps = make("kernel"), make_maps("kernel")
    sizes = 10.0 ** torch.linspace(-6, 3, 15, dtype=torch.float64).reshape(5, 3)
    torch.testing.assert_close(pooling([maps[0] * sizes]), pooling(maps))


def test_kernel_poolings_default_is_the_gaussian_kernel() -> None:
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
        ("mlp", 3, {"max_order": 1}, "max_order=1 leaves no term"),
        ("mlp", 3, {"l2": "branches"}, "unknown l2 'branches'; did you mean 'branch'"),
        ("hbp", 3, {"align": "resize"}, "unknown align 'resize'; known: error, pool"),
        ("compact_bilinear", 1, {"sketch": "tensor"}, "unknown sketch 'tensor'; did you mean 'tensor_sketch'"),
        ("kernel", 1, {"max_order": 0}, "max_order=0 leaves none"),
        ("kernel", 1, {"coefficients": [1.0]}, r"coefficients for orders 1..4, all >= 0, not \[1.0\]"),
        ("kernel", 1, {"coefficients": [1.0, 1.0, -1.0, 1.0]}, "all >= 0"),
        ("isqrt_cov", 1, {"iterations": 0}, "isqrt_cov wants 1 iteration or more, not 0"),
        ("gem", 1, {"p": 0.0}, "gem wants p and eps above 0, not p=0.0"),
        ("kernal", 1, {}, "unknown pooling 'kernal'; did you mean 'kernel'"),
        ("gem", 1, {"power": 2.0}, "unknown option of pooling 'gem': 'power'"),
    ],
)
def test_mistakes_are_named(name: str, channels: int, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_pooling(name, [8] * channels, **options)


@pytest.mark.parametrize("name", ["hbp", "mlp", "trilinear"])
def test_projections_start_as_in_hbps_caffe_release(name: str) -> None:
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
    # Its modules as they are called there: for each pair both maps, batch norm in training mode each time.
    monkeypatch.setattr(tiled, "_TILE_ROWS", 2)  # so that five units are several tiles
    pooling, maps = make("hbp_shared"), [x.requires_grad_() for x in make_maps("hbp_shared")]
    head = nn.Sequential(copy.deepcopy(pooling.projection), copy.deepcopy(pooling.norm), nn.ReLU())

    def published(x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.normalize((head(x) * head(y)).flatten(2).sum(dim=2).add(1e-5).sqrt(), dim=1)

    for training in (True, False):
        pooling.train(training)
        head.train(training)
        expected = torch.cat([published(maps[i], maps[j]) for i, j in ((0, 1), (0, 2), (1, 2))], dim=1)
        found = pooling(maps)
        torch.testing.assert_close(found, expected)
        upstream = torch.linspace(-1, 1, found.shape[1], dtype=torch.float64)
        ours = torch.autograd.grad((found * upstream).sum(), [*maps, *pooling.parameters()])
        theirs = torch.autograd.grad((expected * upstream).sum(), [*maps, *head.parameters()])
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
        for (key, a), b in zip(pooling.norm.state_dict().items(), head[1].state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, msg=key)


def test_shared_hbp_has_a_second_derivative() -> None:
    pooling, maps = make("hbp_shared", dim=2), [x.requires_grad_() for x in make_maps("hbp_shared", 2, 1, 2)]
    assert torch.autograd.gradgradcheck(lambda *maps: pooling(maps), maps)


def test_shared_hbp_runs_another_norm_as_it_is() -> None:
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
    pooling.norm.momentum = 0.0
    before = pooling.norm.running_var.clone()
    pooling(maps)
    assert torch.equal(pooling.norm.running_var, before)


def test_shared_hbp_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"they have \[3, 4, 3\] channels; choose taps with as many"):
        create_pooling("hbp_shared", [3, 4, 3])
    with pytest.raises(ValueError, match="one image with one location has no variance"):
        make("hbp_shared")(make_maps("hbp_shared", 1, 1, 1))
