"""Measure time and memory of poolings and of plain transcriptions, on the CPU.

    python recipes/benchmarks/pooling.py                                # every pooling, at the paper's shape
    python recipes/benchmarks/pooling.py --names [hbp] --channels 256   # one pooling, on other maps

Each variant runs in two new processes: one measures memory, the other one time. The calls of the timing processes are
interleaved, so that a slow phase of the machine affects all variants. Memory is read from the operating system (Linux).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import c2f_zoo
from c2f_zoo.evaluation.measuring import MEBIBYTE, kept_bytes, peak_bytes, run_in_new_process, run_interleaved
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.io.files import write_csv
from c2f_zoo.paths import expand
from c2f_zoo.training.launch import recipe_errors
from c2f_zoo.zoo import num_taps_of

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from reference.poolings import PLAIN

Pool = Callable[[nn.Module, Sequence[Tensor]], Tensor]
# Poolings that are also measured compiled, or with another implementation than the default.
VARIANTS = {"mlp": ("plain", "compiled", "ours", "saved_bf16"), "hbp": ("plain", "ours", "tiled")}
COLUMNS = {
    "forward, ms": "forward_ms",
    "forward + backward, ms": "step_ms",
    "kept, MiB": "kept_mib",
    "peak of forward, MiB": "peak_forward_mib",
    "peak of both, MiB": "peak_step_mib",
}


@dataclass(frozen=True)
class Case:
    """A variant of a pooling at one shape."""

    pooling: str
    variant: str  # "ours", "plain", "compiled" (plain, by torch.compile), or an implementation
    batch: int
    channels: int
    size: int
    dim: int | None


def main(
    names: list[str] | None = None,
    variants: list[str] | None = None,
    batch: int = 8,
    channels: int = 512,
    size: int = 28,
    dim: int | None = None,
    repeats: int = 5,
    output: str = "runs/benchmark-pooling.csv",
) -> None:
    """Measure poolings on random float32 maps; write a CSV row for each variant.

    Args:
        names: the poolings to measure; default: all.
        variants: "plain", "compiled" (plain, by torch.compile), "ours", or our implementations. Default: those in
            `VARIANTS`.
        batch: number of images.
        channels: number of channels of each map.
        size: height and width of the maps.
        dim: output dimension. Default: the pooling's own.
        repeats: number of timed calls; the median is reported.
        output: the CSV file to create or replace.
    """
    expand(output).parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in names or c2f_zoo.list_poolings():
        chosen = variants or VARIANTS.get(name, ("plain", "ours") if name in PLAIN else ("ours",))
        cases = [Case(name, variant, batch, channels, size, dim) for variant in chosen]
        for row in measure(cases, repeats):
            rows.append(row)
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        write_csv(output, rows)
    Console(width=150).print(comparison_table(rows))
    print(f"written to {output}")


def measure(cases: Sequence[Case], repeats: int) -> list[dict[str, Any]]:
    """Measure the variants of one pooling: interleaved times, then memory."""
    times = run_interleaved([partial(timed_calls, case) for case in cases], repeats)
    return [
        {**asdict(case), **run_in_new_process(partial(memory, case)), **time_of, **describe_machine()}
        for case, time_of in zip(cases, times, strict=True)
    ]


def timed_calls(case: Case) -> dict[str, Callable[[], None]]:
    """Return the forward pass and the step of a variant; check its values first."""
    pool, module, maps = build(case)
    if case.pooling in PLAIN:
        check_equal(module, maps, PLAIN[case.pooling])
    return {
        "forward_ms": lambda: run_forward(pool, module, maps),
        "step_ms": lambda: run_step(pool, module, maps),
    }


def memory(case: Case) -> dict[str, float]:
    """Measure the memory of a variant in MiB.

    "kept" is memory for the backward pass; peaks are beyond inputs, weights and their gradients.
    """
    pool, module, maps = build(case)
    # Libraries allocate some memory once. A compiled function would compile again for another batch size.
    others = maps_of(case, case.batch if case.variant == "compiled" else 1)
    run_forward(pool, module, others)
    run_step(pool, module, others)
    del others
    tensors = [*maps, *module.parameters()]
    for tensor in tensors:
        tensor.grad = None
    forward = peak_bytes(lambda: run_forward(pool, module, maps))
    step = peak_bytes(lambda: run_step(pool, module, maps))
    gradients = sum(tensor.grad.nbytes for tensor in tensors if tensor.grad is not None)
    kept = kept_bytes(lambda: pool(module, maps), [*tensors, *module.buffers()])
    found = {"kept_mib": kept, "peak_forward_mib": forward, "peak_step_mib": step - gradients}
    return {name: round(count / MEBIBYTE, 1) for name, count in found.items()}


def build(case: Case) -> tuple[Pool, nn.Module, list[Tensor]]:
    """Return the pooling function, the module with its weights, and maps."""
    torch.manual_seed(0)
    options: dict[str, Any] = {} if case.dim is None else {"dim": case.dim}
    if case.variant not in ("ours", "plain", "compiled"):
        options["impl"] = case.variant
    module = c2f_zoo.create_pooling(case.pooling, [case.channels] * num_taps_of(case.pooling), **options)
    pool: Pool = lambda module, maps: module(maps)  # noqa: E731
    if case.variant in ("plain", "compiled"):
        plain = PLAIN[case.pooling]
        pool = torch.compile(plain) if case.variant == "compiled" else plain
    return pool, module, maps_of(case, case.batch)


def maps_of(case: Case, batch: int) -> list[Tensor]:
    shape = (batch, case.channels, case.size, case.size)
    return [torch.rand(shape).requires_grad_() for _ in range(num_taps_of(case.pooling))]


def run_forward(pool: Pool, module: nn.Module, maps: Sequence[Tensor]) -> None:
    with torch.no_grad():
        pool(module, maps)


def run_step(pool: Pool, module: nn.Module, maps: Sequence[Tensor]) -> None:
    for tensor in (*maps, *module.parameters()):
        tensor.grad = None
    out = pool(module, maps)
    out.backward(torch.ones_like(out))


def check_equal(module: nn.Module, maps: Sequence[Tensor], plain: Pool) -> None:
    """Check that ours and the plain transcription have the same values and gradients.

    Raises:
        ValueError: they differ, so that their costs are not comparable.
    """
    found = []
    for call in (lambda: module(maps), lambda: plain(module, maps)):
        out = call()
        gradient = torch.autograd.grad((out * torch.linspace(-1, 1, out.shape[1])).sum(), maps[0])[0]
        found.append((out.detach(), gradient))
    for name, ours, theirs in zip(("values", "gradients"), *found, strict=True):
        # Medians, because the root's slope near 0, which ours bounds, amplifies a few rounding errors.
        nonzero = (ours != 0) | (theirs != 0)
        difference = ((ours - theirs)[nonzero].abs().median() / theirs[nonzero].abs().median()).item()
        if not difference < 1e-2:
            raise ValueError(f"ours and the plain transcription differ in {name} by {difference:.1e}")


def comparison_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Build the table of all variants, with ratios of the plain transcription's costs."""
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


if __name__ == "__main__":
    with recipe_errors("pooling.py"):
        auto_cli(main)
