"""Measure speed and memory, ours beside plain transcriptions of the formulas, side by side in one run.

    python recipes/benchmark.py pooling                                # every pooling, at the paper's shape
    python recipes/benchmark.py pooling --names [hbp] --channels 256   # one of them, other maps
    python recipes/benchmark.py sweep                                  # mlp against d, batch, channels and map size
    python recipes/benchmark.py step                                   # a whole training step of mlph_vgg16_cub
    python recipes/benchmark.py data                                   # loading images, ours beside timm's

Every variant runs in two processes of its own: one that measures memory, in which freed memory goes back to the
operating system at once, so that its high-water mark is that of the step; and one that measures time. The latter take
turns, run by run, each with a product of matrices that tells the machine's own rate, by torch.mm (mm_gflops) and as the
lean implementations make it (matmul_gflops): where the machine is slower for a while, all variants are.
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
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import c2f_zoo
from c2f_zoo.ops.products import matmul
from c2f_zoo.zoo import num_taps_of

plt.switch_backend("agg")
MEBIBYTE = 2**20
# Beside "plain" and "ours": the plain transcription through torch.compile, and implementations that are asked for.
VARIANTS = {"mlp": ("plain", "compiled", "ours", "saved_bf16"), "hbp": ("plain", "ours", "tiled")}
COLUMNS = {
    "forward, ms": "forward_ms",
    "forward + backward, ms": "step_ms",
    "kept, MiB": "kept_mib",
    "peak of forward, MiB": "peak_forward_mib",
    "peak of both, MiB": "peak_step_mib",
}


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


def pooling(
    names: list[str] | None = None,
    batch: int = 8,
    channels: int = 512,
    size: int = 28,
    dim: int | None = None,
    repeats: int = 5,
    output: str = "runs/benchmark-pooling.csv",
) -> None:
    """Time and memory of poolings on random maps, float32, on the CPU with all its cores.

    Args:
        names: which; default all.
        batch: images.
        channels: of each map.
        size: height and width of the maps.
        dim: the pooling's option; default its own.
        repeats: timed runs of each kind; the median counts.
        output: the CSV file; an older one is replaced.
    """
    rows: list[dict[str, Any]] = []
    for name in names or c2f_zoo.list_poolings():
        variants = VARIANTS.get(name, ("plain", "ours") if name in PLAIN else ("ours",))
        for row in measured_rows(name, variants, batch, channels, size, dim, repeats):
            rows.append(row)
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        write_csv(Path(output), rows)
    Console(width=150).print(comparison(rows))
    print(f"written to {output}")


def sweep(repeats: int = 3, output: str = "runs/benchmark-sweep.csv") -> None:
    """Cost of `mlp` against d, batch, channels and map size, one at a time, from d 4096, batch 2, 256 channels, 28.

    Args:
        repeats: timed runs of each kind; the median counts.
        output: the CSV file; the plot gets the same name with .png.
    """
    base = {"dim": 4096, "batch": 2, "channels": 256, "size": 28}
    steps = {
        "dim": (1024, 4096, 8192, 16384),
        "batch": (1, 2, 4, 8),
        "channels": (64, 256, 512, 1024),
        "size": (7, 14, 28, 56),
    }
    rows: list[dict[str, Any]] = []
    for what, values in steps.items():
        for value in values:
            at: dict[str, Any] = {**base, what: value}
            shape = (at["batch"], at["channels"], at["size"], at["dim"])
            for row in measured_rows("mlp", ("plain", "ours"), *shape, repeats):
                rows.append({"against": what, **row})
                print(what, value, row["variant"], row["step_ms"], "ms", row["peak_step_mib"], "MiB", flush=True)
            write_csv(Path(output), rows)
    plot_sweep(rows, Path(output).with_suffix(".png"))
    print(f"written to {output}")


def step(repeats: int = 3, memory_gib: float = 24.0, output: str = "runs/benchmark-step.csv") -> None:
    """A training step of mlph_vgg16_cub at 448 pixels (all weights trained, one level), with the head plain and ours.

    The largest batch is reckoned from the memory of two batches, which grows linearly.

    Args:
        repeats: timed runs; the median counts.
        memory_gib: the memory that the largest batch is to fit.
        output: the CSV file.
    """
    rows: list[dict[str, Any]] = []
    for batch in (1, 3):
        times = taking_turns([("measure_step", impl, "speed", batch) for impl in ("plain", "tiled")], repeats)
        for impl, time_of in zip(("plain", "tiled"), times, strict=True):
            peak = in_a_process("measure_step", impl, "memory", batch)
            rows.append({"impl": impl, "batch": batch, **machine(), **peak, **time_of})
            print(rows[-1], flush=True)
    for small, large in zip(rows[:2], rows[2:], strict=True):
        slope = (large["total_mib"] - small["total_mib"]) / 2
        largest = int((memory_gib * 1024 - (small["total_mib"] - slope)) / slope)
        small["largest_batch"] = large["largest_batch"] = largest
        print(f"{small['impl']}: {slope:.0f} MiB an image; the largest batch in {memory_gib:g} GiB is about {largest}")
    write_csv(Path(output), rows)


def data(
    dataset: str | None = None,
    dataset_options: dict[str, Any] | None = None,
    image_size: tuple[int, int] = (500, 375),
    images: int = 128,
    input_size: int = 448,
    resolutions: list[int | None] = [None, 96, 48],  # noqa: B006  # jsonargparse shows it
    batch: int = 8,
    num_workers: list[int] = [0, 1],  # noqa: B006
    loaders: list[str] | None = None,
    model: str = "mlph_tf_efficientnet_lite0_cub",
    model_batch: int = 4,
    repeats: int = 5,
    output: str = "runs/benchmark-data.csv",
) -> None:
    """Images a second that a loader's process prepares, and how many of them feed a training on the device at hand.

    timm's loader with its standard training transform, once as it is (the workers hand over bytes, which are normalised
    where they arrive), once with all of the work in the workers; decoding alone; and ours with one view, and with
    a view for each resolution, which come from one decode, or from a cache. Each process has one thread.

    Args:
        dataset: a dataset of files; default: JPEGs drawn on the fly.
        dataset_options: what it takes further, e.g. `{root: /data/CUB_200_2011}`.
        image_size: width and height of the JPEGs that are drawn.
        images: how many; whole batches of them.
        input_size: height and width of a view.
        resolutions: of the views, null for the image's own; the first is that of the single view.
        batch: images in a batch.
        num_workers: processes that load; 0: the one that asks for the images.
        loaders: which of `benchmark_data.LOADERS`; default all. timm's is always there, to compare with.
        model: the model that trains, a step at each of its finest levels, one for each view.
        model_batch: images in a batch of the training.
        repeats: timed rounds through all images; the median counts.
        output: the CSV file.
    """
    import benchmark_data  # it takes seconds, which the processes of the other commands need not spend

    if images % batch:
        raise SystemExit(f"--images {images} are no whole batches of {batch}")
    names = dict.fromkeys(["timm", *(loaders or benchmark_data.LOADERS)])
    kinds = [(name, workers) for workers in num_workers for name in names]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "classes", "image")
        folder.mkdir(parents=True)
        if dataset is None:
            benchmark_data.draw_photos(folder, image_size, images)
        else:
            opened: Any = c2f_zoo.create_dataset(dataset, "train", **dataset_options or {})
            benchmark_data.link_images(folder, opened.paths, images)
        about = benchmark_data.cache_columns(folder, input_size)
        commands: list[Sequence[object]] = [
            ("measure_data", name, folder, workers, batch, input_size, json.dumps(resolutions))
            for name, workers in kinds
        ]
        commands.append(("measure_training", model, model_batch, input_size, len(resolutions)))
        *times, training = taking_turns(commands, repeats)
    about |= {"images": images, "input_size": input_size, "resolutions": json.dumps(resolutions), "batch": batch}
    about |= {"model": model, "model_images_s": round(1e3 * model_batch / training["round_ms"], 2), **machine()}
    about |= benchmark_data.versions()
    rows = benchmark_data.loader_rows(kinds, times, about)
    write_csv(Path(output), rows)
    Console(width=150).print(benchmark_data.loader_table(rows))
    print(f"written to {output}")


def measured_rows(
    name: str, variants: Sequence[str], batch: int, channels: int, size: int, dim: int | None, repeats: int
) -> list[dict[str, Any]]:
    shape = {"batch": batch, "channels": channels, "size": size}
    options = () if dim is None else ("--dim", dim)
    commands = [("measure", name, variant, "speed", *shape.values(), *options) for variant in variants]
    times = taking_turns(commands, repeats)
    return [
        {"pooling": name, "variant": variant, **shape, "dim": dim}
        | in_a_process("measure", name, variant, "memory", *shape.values(), *options)
        | time_of
        | machine()
        for variant, time_of in zip(variants, times, strict=True)
    ]


def machine() -> dict[str, Any]:
    device = f"{os.cpu_count()} x {cpu_name()}"
    return {"date": datetime.date.today().isoformat(), "device": device, "torch": torch.__version__}


def in_a_process(*arguments: object) -> dict[str, Any]:
    """What a command of this file prints: memory, where freed memory goes back at once."""
    command = [sys.executable, __file__, *map(str, arguments)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[2:])} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def taking_turns(commands: Sequence[Sequence[object]], repeats: int) -> list[dict[str, Any]]:
    """Starts commands of this file that `serve`, has them run in turn, and gives the medians of each."""
    calls = [[sys.executable, __file__, *map(str, command)] for command in commands]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(call, **pipes) for call in calls]
    kinds = [ask(process) for process in processes]
    runs: list[list[dict[str, float]]] = [[] for _ in commands]
    for _ in range(repeats):
        for process, names, found in zip(processes, kinds, runs, strict=True):
            found.append({name: ask(process, name) for name in names})
    for process in processes:
        process.communicate()
    medians = [{name: statistics.median(run[name] for run in found) for name in found[0]} for found in runs]
    return [{name: round(value, 2) for name, value in row.items()} for row in medians]


def ask(process: subprocess.Popen, question: str = "") -> Any:
    assert process.stdin is not None and process.stdout is not None
    if question:
        process.stdin.write(question + "\n")
        process.stdin.flush()
    for line in process.stdout:
        return json.loads(line)
    raise SystemExit("a variant's process failed; its last words are above")


def serve(runs: dict[str, Callable[[], Any]]) -> None:
    """Runs each function once; then, for each name that comes in, that function, and prints its milliseconds."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    rates = {"mm_gflops": lambda: torch.mm(a, b), "matmul_gflops": lambda: matmul(a, b)}
    runs = {**runs, **rates}
    for run in runs.values():
        run()
    print(json.dumps(list(runs)), flush=True)
    for line in sys.stdin:
        name = line.strip()
        seconds = seconds_of(runs[name])
        print(2 * 2048**3 / seconds / 1e9 if name in rates else 1e3 * seconds, flush=True)


def seconds_of(function: Callable[[], Any], at_least: float = 0.2) -> float:
    """The time of a run; if it is short, the median of several, for the first finds the caches used by others."""
    times: list[float] = []
    while sum(times) < at_least:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(
    name: str,
    variant: str,
    what: Literal["memory", "speed"],
    batch: int,
    channels: int,
    size: int,
    dim: int | None = None,
) -> None:
    """Measures one variant: prints its memory, or serves its runs. `pooling` and `sweep` run this, a user need not.

    Args:
        name: the pooling.
        variant: "ours", "plain", "compiled" (plain, by torch.compile), or the name of an implementation.
        what: time, or memory.
        batch: images.
        channels: of each map.
        size: height and width of the maps.
        dim: the pooling's option; default its own.
    """
    torch.manual_seed(0)
    options: dict[str, Any] = {} if dim is None else {"dim": dim}
    if variant not in ("ours", "plain", "compiled"):
        options["impl"] = variant
    module = c2f_zoo.create_pooling(name, [channels] * num_taps_of(name), **options)
    plain = PLAIN.get(name)
    call: Callable[[Any, Sequence[Tensor]], Tensor] = lambda module, maps: module(maps)  # noqa: E731
    if variant in ("plain", "compiled"):
        assert plain is not None
        call = torch.compile(plain) if variant == "compiled" else plain

    def make_maps(count: int) -> list[Tensor]:
        return [torch.rand(count, channels, size, size).requires_grad_() for _ in range(num_taps_of(name))]

    maps = make_maps(batch)
    if what == "memory":
        # What libraries allocate once does not count; a compiler, which would compile anew for another batch, no less.
        others = make_maps(batch if variant == "compiled" else 1)
        run_forward(call, module, others)
        run_step(call, module, others)
        del others
        print(json.dumps(memory(call, module, maps)))
        return
    if plain is not None:
        check_alike(module, maps, plain)
    forward, both = (lambda: run_forward(call, module, maps)), (lambda: run_step(call, module, maps))
    serve({"forward_ms": forward, "step_ms": both})


def measure_step(impl: str, what: Literal["memory", "speed"], batch: int) -> None:
    """Measures a training step of the whole model, as `measure` a pooling. `step` runs this, a user need not.

    Args:
        impl: implementation of the multilinear sums.
        what: time, or memory.
        batch: images.
    """
    torch.manual_seed(0)
    model = c2f_zoo.create_model("mlph_vgg16_cub", pooling_options={"impl": impl})
    images, labels = torch.rand(batch, 3, 448, 448), torch.zeros(batch, dtype=torch.long)
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def train() -> None:
        sgd.zero_grad()
        F.cross_entropy(model(images, levels=("species",))["species"], labels).backward()
        sgd.step()

    if what == "memory":
        train()  # gradients and momentum are there from now on
        peak_bytes(train)
        print(json.dumps({"total_mib": round(status_bytes("VmHWM") / MEBIBYTE, 1)}))
    else:
        serve({"step_ms": train})


def measure_data(
    loader: str,
    folder: Path,
    workers: int,
    batch: int,
    input_size: int,
    resolutions: Sequence[int | None],
) -> None:
    """Serves rounds through the images of a folder. `data` runs this, a user need not.

    Args:
        loader: one of `benchmark_data.LOADERS`.
        folder: the images.
        workers: processes that load them; 0: this one.
        batch: images in a batch.
        input_size: height and width of a view.
        resolutions: of the views.
    """
    torch.set_num_threads(1)
    import benchmark_data

    batches = benchmark_data.open_loader(loader, folder, workers, batch, input_size, resolutions)
    serve({"round_ms": lambda: [None for _ in batches]})


def measure_training(model: str, batch: int, input_size: int, views: int) -> None:
    """Serves training steps. `data` runs this, a user need not.

    Args:
        model: its name.
        batch: images in a batch.
        input_size: their height and width.
        views: how many levels are trained, each by a step.
    """
    import benchmark_data

    serve({"round_ms": benchmark_data.training_step(model, batch, input_size, views)})


def run_forward(call: Callable[..., Tensor], module: nn.Module, maps: Sequence[Tensor]) -> None:
    with torch.no_grad():
        call(module, maps)


def run_step(call: Callable[..., Tensor], module: nn.Module, maps: Sequence[Tensor]) -> None:
    for tensor in (*maps, *module.parameters()):
        tensor.grad = None
    out = call(module, maps)
    out.backward(torch.ones_like(out))


def memory(call: Callable[..., Tensor], module: nn.Module, maps: Sequence[Tensor]) -> dict[str, Any]:
    """What is kept for the backward pass; peaks beyond inputs, weights and their gradients."""
    tensors = [*maps, *module.parameters()]
    for tensor in tensors:
        tensor.grad = None
    forward = peak_bytes(lambda: run_forward(call, module, maps))
    both = peak_bytes(lambda: run_step(call, module, maps))
    gradients = sum(tensor.grad.nbytes for tensor in tensors if tensor.grad is not None)
    kept = kept_bytes(lambda: call(module, maps), [*tensors, *module.buffers()])
    return {
        "kept_mib": round(kept / MEBIBYTE, 1),
        "peak_forward_mib": round(forward / MEBIBYTE, 1),
        "peak_step_mib": round((both - gradients) / MEBIBYTE, 1),
    }


def check_alike(module: nn.Module, maps: Sequence[Tensor], plain: Callable[..., Tensor]) -> None:
    """Ours and the plain transcription are one function, values and gradients, or the comparison is void."""
    found = []
    for call in (lambda: module(maps), lambda: plain(module, maps)):
        out = call()
        gradient = torch.autograd.grad((out * torch.linspace(-1, 1, out.shape[1])).sum(), maps[0])[0]
        found.append((out.detach(), gradient))
    for name, ours, theirs in zip(("values", "gradients"), *found, strict=True):
        # Medians: near 0 the root's slope, which ours bounds, makes a few large numbers of rounding errors.
        there = (ours != 0) | (theirs != 0)
        difference = ((ours - theirs)[there].abs().median() / theirs[there].abs().median()).item()
        if not difference < 1e-2:
            raise SystemExit(f"ours and the plain transcription differ in {name} by {difference:.1e}")


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


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def comparison(rows: Sequence[dict[str, Any]]) -> Table:
    """Each variant, and in brackets how many times as much the plain transcription takes."""
    table = Table(title="in brackets: plain / this")
    table.add_column("pooling")
    table.add_column("variant")
    for title in COLUMNS:
        table.add_column(title, justify="right")
    plain = {row["pooling"]: row for row in rows if row["variant"] == "plain"}
    for row in rows:
        pairs = [(row[key], plain.get(row["pooling"], {}).get(key)) for key in COLUMNS.values()]
        cells = [f"{a:,.1f} ({b / a:.2f})" if a and b and row["variant"] != "plain" else f"{a:,.1f}" for a, b in pairs]
        table.add_row(row["pooling"], row["variant"], *cells)
    return table


def plot_sweep(rows: Sequence[dict[str, Any]], path: Path) -> None:
    names = {"dim": "d", "batch": "batch", "channels": "channels", "size": "height and width"}
    figure, axes = plt.subplots(2, 4, figsize=(13, 6), layout="constrained", sharey="row")
    for column, (what, name) in enumerate(names.items()):
        for variant, style in (("plain", "o--"), ("ours", "o-")):
            chosen = [row for row in rows if row["against"] == what and row["variant"] == variant]
            for line, key in enumerate(("step_ms", "peak_step_mib")):
                axes[line][column].plot(
                    [row[what] for row in chosen], [row[key] for row in chosen], style, label=variant
                )
        for axis in axes[:, column]:
            axis.set(xscale="log", yscale="log", xlabel=name)
            axis.set_xticks([row[what] for row in chosen], [str(row[what]) for row in chosen], minor=False)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("forward + backward, ms")
    axes[1][0].set_ylabel("peak beyond inputs and gradients, MiB")
    axes[0][0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, path)


if __name__ == "__main__":
    auto_cli([pooling, sweep, step, data, measure, measure_step, measure_data, measure_training])
