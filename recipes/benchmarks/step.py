"""Measure training steps of mlph_vgg16_cub on the CPU: time and memory.

    python recipes/benchmarks/step.py

All weights are trained, at one level, on images of 448 x 448, with the implementations `plain` and `tiled` of the
pooling. Each runs in two new processes: one measures memory, the other one time. Memory grows linearly with the batch:
two batch sizes predict the largest batch that fits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli

import c2f_zoo
from c2f_zoo.evaluation.measuring import MEBIBYTE, peak_bytes, process_bytes, run_in_new_process, run_interleaved
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.io.files import write_csv
from c2f_zoo.paths import expand

IMPLEMENTATIONS = ("plain", "tiled")
BATCHES = (1, 3)


def main(repeats: int = 3, memory_gib: float = 24.0, output: str = "runs/benchmark-step.csv") -> None:
    """Measure steps of two batch sizes, and write a CSV row for each.

    Args:
        repeats: number of timed steps; the median is reported.
        memory_gib: available memory for the largest batch.
        output: the CSV file to create or replace.
    """
    expand(output).parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for batch in BATCHES:
        times = run_interleaved([partial(timed_calls, impl, batch) for impl in IMPLEMENTATIONS], repeats)
        for impl, time_of in zip(IMPLEMENTATIONS, times, strict=True):
            memory = run_in_new_process(partial(memory_mib, impl, batch))
            rows.append({"impl": impl, "batch": batch, "total_mib": memory, **time_of, **describe_machine()})
            print(rows[-1], flush=True)
    for small, large in zip(rows[: len(IMPLEMENTATIONS)], rows[len(IMPLEMENTATIONS) :], strict=True):
        mib_per_image, largest = largest_batch(small, large, memory_gib)
        small["largest_batch"] = large["largest_batch"] = largest
        print(
            f"{small['impl']}: {mib_per_image:.0f} MiB per image; largest batch in {memory_gib:g} GiB: about {largest}"
        )
    write_csv(output, rows)
    print(f"written to {output}")


def timed_calls(impl: str, batch: int) -> dict[str, Callable[[], None]]:
    return {"step_ms": training_step(impl, batch)}


def memory_mib(impl: str, batch: int) -> float:
    """Return the peak resident memory of the process during a step."""
    step = training_step(impl, batch)
    step()  # allocates gradients and momentum
    peak_bytes(step)
    return round(process_bytes("VmHWM") / MEBIBYTE, 1)


def training_step(impl: str, batch: int) -> Callable[[], None]:
    torch.manual_seed(0)
    model = c2f_zoo.create_model("mlph_vgg16_cub", pooling_options={"impl": impl})
    images, labels = torch.rand(batch, 3, 448, 448), torch.zeros(batch, dtype=torch.long)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images, levels=("species",))["species"], labels).backward()
        optimizer.step()

    return step


def largest_batch(small: dict[str, Any], large: dict[str, Any], memory_gib: float) -> tuple[float, int]:
    """Return the MiB of an additional image, and the largest batch that fits."""
    mib_per_image = (large["total_mib"] - small["total_mib"]) / (large["batch"] - small["batch"])
    constant = small["total_mib"] - small["batch"] * mib_per_image
    return mib_per_image, int((memory_gib * 1024 - constant) / mib_per_image)


if __name__ == "__main__":
    auto_cli(main)
