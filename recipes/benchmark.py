"""Measure speed and memory, ours beside a plain transcription of the formula, side by side in one run.

    python recipes/benchmark.py pooling                                  # every pooling, at the paper's shape
    python recipes/benchmark.py pooling --names [mlp,hbp] --batch 2      # some of them, smaller

Every variant runs in two processes of its own: one that measures time, and one that measures memory, in which
freed memory goes back to the operating system at once, so that its high-water mark is that of the step.
"""

from __future__ import annotations

import csv
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import c2f_zoo
from c2f_zoo.zoo import METHODS

Variant = Literal["ours", "plain"]
MEBIBYTE = 2**20


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


def plain_gem(pooling: Any, maps: Sequence[Tensor]) -> Tensor:
    powers = [x.clamp(min=pooling.eps).pow(pooling.p) for x in maps]
    return torch.cat([x.mean(dim=(2, 3)).pow(1 / pooling.p) for x in powers], dim=1)


PLAIN: dict[str, Callable[[Any, Sequence[Tensor]], Tensor]] = {
    "avg": lambda pooling, maps: torch.cat([x.mean(dim=(2, 3)) for x in maps], dim=1),
    "bilinear": plain_bilinear,
    "compact_bilinear": plain_compact_bilinear,
    "gem": plain_gem,
    "hbp": plain_multilinear,
    "isqrt_cov": plain_isqrt_cov,
    "kernel": plain_kernel,
    "low_rank_bilinear": plain_multilinear,
    "max": lambda pooling, maps: torch.cat([F.adaptive_max_pool2d(x, 1).flatten(1) for x in maps], dim=1),
    "mlp": plain_multilinear,
    "trilinear": plain_multilinear,
}


def pooling(
    names: list[str] | None = None,
    batch: int = 8,
    channels: int = 512,
    size: int = 28,
    repeats: int = 5,
    output: str = "runs/benchmark-pooling.csv",
) -> None:
    """Time and memory of poolings on random maps, float32, on the CPU with all its cores.

    Args:
        names: which; default all.
        batch: pictures.
        channels: of each map.
        size: height and width of the maps.
        repeats: timed runs of each kind; the median counts.
        output: the CSV file; an older one is replaced.
    """
    header = {
        "date": datetime.date.today().isoformat(),
        "device": f"{os.cpu_count()} x {cpu_name()}",
        "torch": torch.__version__,
        "batch": batch,
        "channels": channels,
        "size": size,
        "gemm_gflops": round(gemm_rate() / 1e9, 1),
    }
    rows: list[dict[str, Any]] = []
    for name in names or c2f_zoo.list_poolings():
        for variant in ("plain", "ours") if name in PLAIN else ("ours",):
            measured: dict[str, Any] = {}
            for what in ("memory", "speed"):
                measured |= in_a_process(name, variant, what, batch, channels, size, repeats)
            rows.append({"pooling": name, "variant": variant, **measured, **header})
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items() if key not in header), flush=True)
            write_csv(Path(output), rows)
    Console(width=130).print(comparison(rows))
    print(f"{header}\nwritten to {output}")


def in_a_process(name: str, variant: str, what: str, *numbers: int) -> dict[str, Any]:
    environment = dict(os.environ)
    if what == "memory":
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    command = [sys.executable, __file__, "measure", name, variant, what, *map(str, numbers)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}, {variant}, {what} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    name: str,
    variant: Variant,
    what: Literal["memory", "speed"],
    batch: int,
    channels: int,
    size: int,
    repeats: int,
) -> None:
    """Measures one variant; prints JSON. `pooling` runs this, a user need not.

    Args:
        name: the pooling.
        variant: ours, or the plain transcription.
        what: time, or memory.
        batch: pictures.
        channels: of each map.
        size: height and width of the maps.
        repeats: timed runs.
    """
    torch.manual_seed(0)
    num_taps = {METHODS[key].pooling: METHODS[key].num_taps for key in METHODS.names()}.get(name, 1)
    module = c2f_zoo.create_pooling(name, [channels] * num_taps)
    maps = [torch.rand(batch, channels, size, size).requires_grad_() for _ in range(num_taps)]
    run = (lambda: module(maps)) if variant == "ours" else (lambda: PLAIN[name](module, maps))
    tensors = [*maps, *module.parameters()]
    for tensor in tensors:
        tensor.grad = torch.zeros_like(tensor)  # is there before the step, and does not count as its memory
    upstream = torch.rand(batch, module.out_features)  # type: ignore[call-overload]

    def forward() -> None:
        with torch.no_grad():
            run()

    def step() -> None:
        run().backward(upstream)

    if what == "memory":
        result = {
            "kept_mib": round(kept_bytes(run, [*tensors, *module.buffers()]) / MEBIBYTE, 1),
            "peak_forward_mib": round(peak_bytes(forward) / MEBIBYTE, 1),
            "peak_step_mib": round(peak_bytes(step) / MEBIBYTE, 1),
        }
    else:
        if name in PLAIN:
            check_alike(module, maps, name)
        result = {"forward_ms": median_ms(forward, repeats), "step_ms": median_ms(step, repeats)}
    print(json.dumps(result))


def check_alike(module: nn.Module, maps: Sequence[Tensor], name: str) -> None:
    """Ours and the plain transcription are one function, or the comparison is void."""
    with torch.no_grad():
        ours, plain = module(maps), PLAIN[name](module, maps)
    difference = ((ours - plain).norm() / plain.norm()).item()
    if not difference < 1e-2:  # the root makes 1e-3 of the rounding errors of sums near 0
        raise SystemExit(f"{name}: ours and the plain transcription differ by {difference:.1e}")


def median_ms(function: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(times[1:]), 2)  # the first one warms up


def kept_bytes(run: Callable[[], Tensor], given: Iterable[Tensor]) -> int:
    """Bytes that the forward pass keeps for the backward pass, beside inputs, weights and buffers."""
    known = {tensor.untyped_storage().data_ptr() for tensor in given}
    kept: dict[int, int] = {}
    alive = []  # or an address could be given out again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive.append(run())
    return sum(kept.values())


def peak_bytes(function: Callable[[], None]) -> int:
    """How far the process's resident memory rises in a call, as Linux counts it."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = status_bytes("VmRSS")
    function()
    return status_bytes("VmHWM") - before


def status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def gemm_rate(size: int = 2048) -> float:
    """Floating-point operations per second of this machine's own matrix product, float32."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    return 2 * size**3 / (median_ms(lambda: torch.mm(a, b), 5) / 1e3)


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def comparison(rows: Sequence[dict[str, Any]]) -> Table:
    """Ours, and in brackets how many times as much the plain transcription takes."""
    table = Table(title="ours (in brackets: plain / ours)")
    columns = {
        "forward, ms": "forward_ms",
        "forward + backward, ms": "step_ms",
        "kept, MiB": "kept_mib",
        "peak of forward, MiB": "peak_forward_mib",
        "peak of both, MiB": "peak_step_mib",
    }
    table.add_column("pooling")
    for title in columns:
        table.add_column(title, justify="right")
    cells = {(row["pooling"], row["variant"]): row for row in rows}
    for name in dict.fromkeys(row["pooling"] for row in rows):
        ours, plain = cells[name, "ours"], cells.get((name, "plain"), {})
        pairs = [(ours[key], plain.get(key)) for key in columns.values()]
        table.add_row(name, *[f"{a:,.1f} ({b / a:.2f})" if a and b else f"{a:,.1f} (-)" for a, b in pairs])
    return table


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, path)


if __name__ == "__main__":
    auto_cli([pooling, measure])
