"""Reference formulas of the poolings.

`REFERENCES` has every pooling as loops over numbers in float64, also under options that change its formula.
`PLAIN` has every pooling as a plain transcription of the publication in PyTorch operations, as most code writes it;
benchmarks compare against it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Formula = Callable[[Any, Sequence[Tensor], int], list[float]]
PAIRS = ((0, 1), (0, 2), (1, 2))


@dataclass(frozen=True)
class Reference:
    """A pooling's formula and a small case to compare it in.

    Attributes:
        formula: (pooling, maps, n) to the vector of image n, in loops.
        channels: number of channels of each map of the case.
        options: the pooling's options in the case.
        pooling: the pooling's name; empty for the entry's own name.
        zero_at_zero: whether maps of zeros give a vector of zeros.
        atol: absolute tolerance against the loops.
    """

    formula: Formula
    channels: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    pooling: str = ""
    zero_at_zero: bool = True
    atol: float = 1e-11

    def __call__(self, pooling: Any, maps: Sequence[Tensor]) -> Tensor:
        """Return the vectors of all images, (N, out_features), float64."""
        return torch.tensor([self.formula(pooling, maps, n) for n in range(len(maps[0]))], dtype=torch.float64)


def root_and_l2(vector: Sequence[float]) -> list[float]:
    roots = [math.copysign(math.sqrt(abs(value)), value) for value in vector]
    norm = math.sqrt(sum(root * root for root in roots))
    return [root / norm if norm else 0.0 for root in roots]


def locations(maps: Sequence[Tensor], n: int) -> list[list[list[float]]]:
    """Return for each location, for each map, its channels."""
    height, width = maps[0].shape[2:]
    return [[m[n, :, y, x].tolist() for m in maps] for y in range(height) for x in range(width)]


def channel_values(maps: Sequence[Tensor], n: int) -> list[list[float]]:
    """Return for each channel of each map its values at all locations."""
    places = locations(maps, n)
    return [[p[i][c] for p in places] for i, m in enumerate(maps) for c in range(m.shape[1])]


def gram(maps: Sequence[Tensor], n: int) -> dict[tuple[int, int], float]:
    places, rows, columns = locations(maps, n), range(maps[0].shape[1]), range(maps[-1].shape[1])
    return {(i, j): sum(p[0][i] * p[-1][j] for p in places) for i in rows for j in columns}


def avg(pooling: Any, maps: Sequence[Tensor], n: int) -> list[float]:
    return [sum(values) / len(values) for values in channel_values(maps, n)]


def maximum(pooling: Any, maps: Sequence[Tensor], n: int) -> list[float]:
    return [max(values) for values in channel_values(maps, n)]


def gem(pooling: Any, maps: Sequence[Tensor], n: int) -> list[float]:
    p = pooling.state_dict()["p"].item()
    return [
        (sum(max(value, 1e-6) ** p for value in values) / len(values)) ** (1 / p) for values in channel_values(maps, n)
    ]


def bilinear(pooling: Any, maps: Sequence[Tensor], n: int) -> list[float]:
    return root_and_l2(list(gram(maps, n).values()))


def compact_bilinear(pooling: Any, maps: Sequence[Tensor], n: int) -> list[float]:
    state = {key: buffer.tolist() for key, buffer in pooling.state_dict().items()}
    sketch = [0.0] * pooling.out_features
    for (i, j), value in gram(maps, n).items():
        entry = (state["hashes_x"][i] + state["hashes_y"][j]) % len(sketch)
        sketch[entry] += state["signs_x"][i] * state["signs_y"][j] * value
    return root_and_l2(sketch)


def random_maclaurin(pooling: Any, maps: Sequence[Tensor], n: int) -> list[float]:
    signs_x, signs_y = (pooling.state_dict()[f"signs_{name}"].tolist() for name in "xy")
    sums = [
        sum(row_x[i] * row_y[j] * value for (i, j), value in gram(maps, n).items()) / math.sqrt(len(signs_x))
        for row_x, row_y in zip(signs_x, signs_y, strict=True)
    ]
    return root_and_l2(sums)


def kernel(pooling: Any, maps: Sequence[Tensor], n: int) -> list[float]:
    state = {key: tensor.tolist() for key, tensor in pooling.state_dict().items()}
    vector: list[float] = []
    places = [[value / math.sqrt(sum(v * v for v in p[0])) for value in p[0]] for p in locations(maps, n)]
    channels = range(len(places[0]))
    for order, coefficient in enumerate(state["coefficients"], start=1):
        sums = [0.0] * (len(channels) if order == 1 else pooling.dim)
        for x, chosen in itertools.product(places, itertools.product(channels, repeat=order)):
            entry, value = chosen[0], coefficient * math.prod(x[c] for c in chosen)
            if order > 1:
                entry = sum(state["hashes"][k][c] for k, c in enumerate(chosen)) % pooling.dim
                value *= math.prod(state["signs"][k][c] for k, c in enumerate(chosen))
            sums[entry] += value
        vector += sums
    return root_and_l2(vector)


def hbp_shared(pooling: Any, maps: Sequence[Tensor], n: int) -> list[float]:
    state = {key: tensor.tolist() for key, tensor in pooling.state_dict().items()}
    weight = pooling.state_dict()["projection.weight"][:, :, 0, 0].tolist()
    active: list[list[list[float]]] = []  # map, unit, location
    for i in range(3):
        active.append([])
        for k, row in enumerate(weight):
            images = [
                [sum(w * x for w, x in zip(row, place[i], strict=True)) for place in locations(maps, m)]
                for m in range(len(maps[0]))
            ]
            values = [value for image in images for value in image]
            mean = sum(values) / len(values)
            var = sum((value - mean) ** 2 for value in values) / len(values)
            gain, offset = state["norm.weight"][k] / math.sqrt(var + 1e-5), state["norm.bias"][k]
            active[i].append([max(gain * (value - mean) + offset, 0.0) for value in images[n]])
    vector: list[float] = []
    for i, j in PAIRS:
        pairs = zip(active[i], active[j], strict=True)
        vector += root_and_l2([sum(a * b for a, b in zip(x, y, strict=True)) + pooling.root_eps for x, y in pairs])
    return vector


def isqrt_cov(pooling: Any, maps: Sequence[Tensor], n: int) -> list[float]:
    weight = pooling.state_dict()["reduction.weight"][:, :, 0, 0]
    vectors = torch.tensor([place[0] for place in locations(maps, n)], dtype=torch.float64) @ weight.T
    count, dim = vectors.shape
    # I-bar = 1/L (I - 1/L 11^T), then the coupled iteration as the paper writes it.
    centring = (torch.eye(count).double() - torch.ones(count, count).double() / count) / count
    sigma = vectors.T @ centring @ vectors
    if count == 1:
        return [0.0] * (dim * (dim + 1) // 2)
    eye = torch.eye(dim, dtype=torch.float64)
    y, z = sigma / sigma.trace(), eye
    for _ in range(5):
        y, z = y @ (3 * eye - z @ y) / 2, (3 * eye - z @ y) @ z / 2
    root = sigma.trace().sqrt() * y
    return [root[i, j].item() for i in range(dim) for j in range(i, dim)]


def multilinear(terms: Sequence[Sequence[int]], sources: Sequence[int] = (0, 1, 2)) -> Formula:
    def formula(pooling: Any, maps: Sequence[Tensor], n: int) -> list[float]:
        state = pooling.state_dict()
        weights = [state[f"projections.{i}.weight"][:, :, 0, 0].tolist() for i in range(len(sources))]
        biases = [state[f"projections.{i}.bias"].tolist() for i in range(len(sources))]
        vector: list[float] = []
        for term in terms:
            sums = [0.0] * len(biases[0])
            for place, k in itertools.product(locations(maps, n), range(len(sums))):
                rows = [(weights[i][k], place[sources[i]], biases[i][k]) for i in term]
                sums[k] += math.prod(sum(w * x for w, x in zip(row, xs, strict=True)) + b for row, xs, b in rows)
            vector += root_and_l2(sums)
        return vector

    return formula


FOUR_PAIRS = tuple(itertools.combinations(range(4), 2))
FOUR_TRIPLES = tuple(itertools.combinations(range(4), 3))
# The FFT leaves 1e-17 where a sketch is zero, and the root makes 1e-8 of it.
_kernel = partial(Reference, kernel, pooling="kernel", atol=1e-7)
_maclaurin = partial(Reference, random_maclaurin, pooling="compact_bilinear")

# One entry per pooling, by its name; then options that change the formula.
REFERENCES: dict[str, Reference] = {
    "avg": Reference(avg, (3, 2)),
    "bilinear": Reference(bilinear, (4,)),
    "compact_bilinear": Reference(compact_bilinear, (4,), {"dim": 5}),
    "gem": Reference(gem, (3, 2), zero_at_zero=False),
    "hbp": Reference(multilinear(PAIRS), (3, 4, 2), {"dim": 5}),
    "hbp_shared": Reference(hbp_shared, (3, 3, 3), {"dim": 5}, zero_at_zero=False),
    "isqrt_cov": Reference(isqrt_cov, (4,), {"dim": 3}),
    "kernel": _kernel((4,), {"dim": 5}),
    "low_rank_bilinear": Reference(multilinear([(0, 1)], sources=(0, 0)), (4,), {"dim": 5}),
    "max": Reference(maximum, (3, 2)),
    "mlp": Reference(multilinear([*PAIRS, (0, 1, 2)]), (3, 4, 2), {"dim": 5}),
    "trilinear": Reference(multilinear([(0, 1, 2)]), (3, 4, 2), {"dim": 5}),
    "bilinear of two": Reference(bilinear, (2, 3), pooling="bilinear"),
    "compact bilinear of two": Reference(compact_bilinear, (2, 3), {"dim": 4}, pooling="compact_bilinear"),
    "random maclaurin": _maclaurin((3,), {"dim": 4, "sketch": "random_maclaurin"}),
    "random maclaurin of two": _maclaurin((2, 3), {"dim": 4, "sketch": "random_maclaurin"}),
    "kernel of order 1": _kernel((3,), {"max_order": 1}),
    "kernel of two orders": _kernel((4,), {"coefficients": [0.5, 2.0], "max_order": 2, "dim": 5}),
    "kernel that is not learned": _kernel((4,), {"learn_coefficients": False, "dim": 5}),
    "mlp of two": Reference(multilinear([(0, 1)], (0, 1)), (2, 3), {"dim": 4}, pooling="mlp"),
    "mlp of four, pairs only": Reference(
        multilinear(FOUR_PAIRS, range(4)), (2, 3, 2, 1), {"dim": 4, "max_order": 2}, pooling="mlp"
    ),
    "mlp of four, to the end": Reference(
        multilinear([*FOUR_PAIRS, *FOUR_TRIPLES, (0, 1, 2, 3)], range(4)),
        (2, 3, 2, 1),
        {"dim": 4, "max_order": 4},
        pooling="mlp",
    ),
}


def root_and_norm(sums: Tensor) -> Tensor:
    """Return the signed root and l2 norm; the gradient of a sum of 0 is NaN."""
    return F.normalize(sums.sign() * sums.abs().sqrt(), dim=1)


def plain_multilinear(pooling: Any, maps: Sequence[Tensor]) -> Tensor:
    projected = [layer(maps[i]) for layer, i in zip(pooling.projections, pooling.sources, strict=True)]
    branches = []
    for term in pooling.terms:
        product = projected[term[0]]
        for index in term[1:]:
            product = product * projected[index]
        branches.append(root_and_norm(product.sum(dim=(2, 3))))
    return torch.cat(branches, dim=1)


def plain_bilinear(pooling: Any, maps: Sequence[Tensor]) -> Tensor:
    x, y = maps[0].flatten(2), maps[-1].flatten(2)
    return root_and_norm(torch.bmm(x, y.transpose(1, 2)).flatten(1))


def count_sketch(x: Tensor, hashes: Tensor, signs: Tensor, dim: int) -> Tensor:
    """Map (N, L, C) to (N, L, dim) by a matrix of zeros and signs, as published."""
    scatter = torch.zeros(len(hashes), dim)
    scatter[torch.arange(len(hashes)), hashes] = signs.float()
    return x @ scatter


def plain_compact_bilinear(pooling: Any, maps: Sequence[Tensor]) -> Tensor:
    dim = pooling.out_features
    vectors = [x.flatten(2).transpose(1, 2) for x in (maps[0], maps[-1])]
    x = torch.fft.fft(count_sketch(vectors[0], pooling.hashes_x, pooling.signs_x, dim))
    y = torch.fft.fft(count_sketch(vectors[1], pooling.hashes_y, pooling.signs_y, dim))
    return root_and_norm(torch.fft.ifft(x * y).real.sum(dim=1))


def plain_kernel(pooling: Any, maps: Sequence[Tensor]) -> Tensor:
    x = F.normalize(maps[0].flatten(2).transpose(1, 2), dim=2)
    features = [pooling.coefficients[0] * x]
    for order in range(2, len(pooling.coefficients) + 1):
        spectrum: Any = 1.0
        for hashes, signs in zip(pooling.hashes[:order], pooling.signs[:order], strict=True):
            spectrum = spectrum * torch.fft.fft(count_sketch(x, hashes, signs, pooling.dim))
        features.append(pooling.coefficients[order - 1] * torch.fft.ifft(spectrum).real)
    return root_and_norm(torch.cat(features, dim=2).sum(dim=1))


def plain_isqrt_cov(pooling: Any, maps: Sequence[Tensor]) -> Tensor:
    x = pooling.reduction(maps[0]).flatten(2)
    count, dim = x.shape[2], x.shape[1]
    centring = (torch.eye(count) - torch.ones(count, count) / count) / count
    sigma = x @ centring @ x.transpose(1, 2)
    identity = torch.eye(dim).expand_as(sigma)
    trace = sigma.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
    y, z = sigma / trace, identity
    for _ in range(pooling.iterations):
        step = 0.5 * (3.0 * identity - z.bmm(y))
        y, z = y.bmm(step), step.bmm(z)
    rows, columns = torch.triu_indices(dim, dim)
    return (y * trace.sqrt())[:, rows, columns]


def plain_hbp_shared(pooling: Any, maps: Sequence[Tensor]) -> Tensor:
    """As published: each map passes projection, batch norm and ReLU for each pair."""

    def activate(x: Tensor) -> Tensor:
        return F.relu(pooling.norm(pooling.projection(x)), inplace=True)

    branches = {}
    for i, j in ((0, 1), (1, 2), (0, 2)):
        sums = (activate(maps[i]) * activate(maps[j])).flatten(2).sum(dim=2)
        branches[i, j] = F.normalize((sums + 1e-5).sqrt(), dim=1)
    return torch.cat([branches[pair] for pair in PAIRS], dim=1)


def plain_gem(pooling: Any, maps: Sequence[Tensor]) -> Tensor:
    powers = [x.clamp(min=pooling.eps).pow(pooling.p) for x in maps]
    return torch.cat([x.mean(dim=(2, 3)).pow(1 / pooling.p) for x in powers], dim=1)


PLAIN: dict[str, Callable[[Any, Sequence[Tensor]], Tensor]] = {
    "avg": lambda pooling, maps: torch.cat([x.mean(dim=(2, 3)) for x in maps], dim=1),
    "bilinear": plain_bilinear,
    "compact_bilinear": plain_compact_bilinear,
    "gem": plain_gem,
    "hbp": plain_multilinear,
    "hbp_shared": plain_hbp_shared,
    "isqrt_cov": plain_isqrt_cov,
    "kernel": plain_kernel,
    "low_rank_bilinear": plain_multilinear,
    "max": lambda pooling, maps: torch.cat([F.adaptive_max_pool2d(x, 1).flatten(1) for x in maps], dim=1),
    "mlp": plain_multilinear,
    "trilinear": plain_multilinear,
}
