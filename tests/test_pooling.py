"""Every pooling against its formula, written out with loops in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from c2f_zoo import create_pooling, list_poolings

CHANNELS = {"avg": (3, 2), "bilinear": (4,), "hbp": (3, 4, 2), "mlp": (3, 4, 2), "trilinear": (3, 4, 2)}
OPTIONS: dict[str, dict[str, int]] = {name: {"dim": 5} for name in ("hbp", "mlp", "trilinear")}


def make(name: str, dtype: torch.dtype = torch.float64, **options: object) -> nn.Module:
    torch.manual_seed(1)
    pooling = create_pooling(name, CHANNELS[name], **OPTIONS.get(name, {}), **options)
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


def _avg(pooling: nn.Module, maps: Sequence[Tensor], n: int) -> list[float]:
    places = _locations(maps, n)
    return [sum(p[i][c] for p in places) / len(places) for i, m in enumerate(maps) for c in range(m.shape[1])]


def _bilinear(pooling: nn.Module, maps: Sequence[Tensor], n: int) -> list[float]:
    places, channels = _locations(maps, n), range(maps[0].shape[1])
    return _root_and_l2([sum(p[0][i] * p[-1][j] for p in places) for i in channels for j in channels])


def _multilinear(terms: Sequence[Sequence[int]]) -> Callable[..., list[float]]:
    def reference(pooling: nn.Module, maps: Sequence[Tensor], n: int) -> list[float]:
        weights = [pooling.state_dict()[f"projections.{i}.weight"][:, :, 0, 0].tolist() for i in range(len(maps))]
        biases = [pooling.state_dict()[f"projections.{i}.bias"].tolist() for i in range(len(maps))]
        vector: list[float] = []
        for term in terms:
            sums = [0.0] * len(biases[0])
            for place, k in itertools.product(_locations(maps, n), range(len(sums))):
                rows = [(weights[i][k], place[i], biases[i][k]) for i in term]
                sums[k] += math.prod(sum(w * x for w, x in zip(row, xs, strict=True)) + b for row, xs, b in rows)
            vector += _root_and_l2(sums)
        return vector

    return reference


REFERENCES: dict[str, Callable[..., list[float]]] = {
    "avg": _avg,
    "bilinear": _bilinear,
    "hbp": _multilinear([(0, 1), (0, 2), (1, 2)]),
    "mlp": _multilinear([(0, 1), (0, 2), (1, 2), (0, 1, 2)]),
    "trilinear": _multilinear([(0, 1, 2)]),
}

all_poolings = pytest.mark.parametrize("name", list_poolings())


def reference(name: str, pooling: nn.Module, maps: Sequence[Tensor]) -> Tensor:
    rows = [REFERENCES[name](pooling, maps, n) for n in range(len(maps[0]))]
    return torch.tensor(rows, dtype=torch.float64)


def test_every_pooling_has_a_reference() -> None:
    assert set(REFERENCES) == set(list_poolings())


@all_poolings
@pytest.mark.parametrize("size", [(5, 3), (1, 1), (1, 7)])
def test_values_are_the_formulas(name: str, size: tuple[int, int]) -> None:
    pooling, maps = make(name), make_maps(name, 2, *size)
    found = pooling(maps)
    assert found.shape == (2, pooling.out_features)
    torch.testing.assert_close(found, reference(name, pooling, maps), rtol=1e-9, atol=1e-11)


@all_poolings
def test_gradients_are_the_formulas(name: str) -> None:
    options = {} if name == "avg" else {"grad_eps": 0.0}  # the bound changes the gradient, on purpose
    pooling = make(name, **options)
    maps = [x.requires_grad_() for x in make_maps(name, 2, 3, 2)]
    weights = list(pooling.parameters())
    keys = [key for key, _ in pooling.named_parameters()]

    def run(*inputs: Tensor) -> Tensor:
        state = dict(zip(keys, inputs[len(maps) :], strict=True))
        return torch.func.functional_call(pooling, state, (list(inputs[: len(maps)]),))

    assert torch.autograd.gradcheck(run, (*maps, *weights))


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
    pooling, maps = make(name), make_maps(name)
    torch.testing.assert_close(pooling([torch.cat([x, x], dim=2) for x in maps]), pooling(maps))


@all_poolings
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_are_finite_forward_and_backward(name: str, dtype: torch.dtype) -> None:
    pooling = create_pooling(name, CHANNELS[name], **OPTIONS.get(name, {})).to(dtype)  # biases are zero
    maps = [torch.zeros_like(x, dtype=dtype).requires_grad_() for x in make_maps(name)]
    out = pooling(maps)
    out.sum().backward()
    assert out.dtype == dtype
    assert out.eq(0).all()
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
def test_bf16_autocast_stays_close(name: str) -> None:
    pooling, maps = make(name, torch.float32), make_maps(name, dtype=torch.float32)
    expected = reference(name, pooling, [x.double() for x in maps])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pooling(maps)
    assert found.dtype == torch.float32
    # bf16 has 8 bits; the root doubles the relative error where sums cancel, so compare whole vectors.
    assert (found.double() - expected).norm() < 0.05 * expected.norm()


@all_poolings
def test_a_state_dict_carries_everything(name: str) -> None:
    pooling, maps = make(name), make_maps(name)
    other = create_pooling(name, CHANNELS[name], **OPTIONS.get(name, {})).double()
    other.load_state_dict(pooling.state_dict())
    assert torch.equal(other(maps), pooling(maps))


@pytest.mark.parametrize("name", [name for name in list_poolings() if len(CHANNELS[name]) > 1])
def test_maps_of_different_sizes_are_refused(name: str) -> None:
    maps = make_maps(name)
    with pytest.raises(ValueError, match=r"differ in spatial size \(4 x 3, 5 x 3.*choose taps of one size"):
        make(name)([maps[0][:, :, :4], *maps[1:]])


@all_poolings
def test_maps_of_other_channels_are_refused(name: str) -> None:
    maps = make_maps(name)
    with pytest.raises(ValueError, match=r"made for maps of \[.*\] channels, not \[1"):
        make(name)([maps[0][:, :1], *maps[1:]])


def test_bilinear_takes_two_maps() -> None:
    pooling = create_pooling("bilinear", [2, 3]).double()
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, c, 2, 2, generator=generator, dtype=torch.float64) for c in (2, 3))
    sums = [sum(x[0, i, a, b] * y[0, j, a, b] for a in (0, 1) for b in (0, 1)).item() for i in (0, 1) for j in range(3)]
    torch.testing.assert_close(pooling([x, y])[0], torch.tensor(_root_and_l2(sums), dtype=torch.float64))


@pytest.mark.parametrize("name", ["hbp", "mlp", "trilinear", "bilinear"])
def test_a_wrong_number_of_maps_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} pools .* maps, not 4; name that many taps"):
        create_pooling(name, [8] * 4)


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
