"""Plain transcriptions of the poolings' formulas; they move to tests/reference/poolings.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def root_and_norm(sums: Tensor) -> Tensor:
    """As most code writes it; its gradient is not a number where a sum is 0."""
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
    """(N, L, C) -> (N, L, dim), a matrix product with a matrix of zeros and signs, as the published code has it."""
    scatter = torch.zeros(len(hashes), dim)
    scatter[torch.arange(len(hashes)), hashes] = signs.float()
    return x @ scatter


def plain_compact_bilinear(pooling: Any, maps: Sequence[Tensor]) -> Tensor:
    dim = pooling.out_features
    locations = [x.flatten(2).transpose(1, 2) for x in (maps[0], maps[-1])]
    x = torch.fft.fft(count_sketch(locations[0], pooling.hashes_x, pooling.signs_x, dim))
    y = torch.fft.fft(count_sketch(locations[1], pooling.hashes_y, pooling.signs_y, dim))
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
    """As published in PyTorch: each map goes through projection, batch norm and ReLU once for each of its pairs."""

    def head(x: Tensor) -> Tensor:
        return F.relu(pooling.norm(pooling.projection(x)), inplace=True)

    branches = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        sums = (head(maps[i]) * head(maps[j])).flatten(2).sum(dim=2)
        branches.append(F.normalize((sums + 1e-5).sqrt(), dim=1))
    return torch.cat(branches, dim=1)


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
