"""Measure training on the embedded dataset: accuracy and processor time of whole runs of `recipes/train.py`.

    python recipes/benchmarks/first_run.py --old ../another-checkout   # README's first command, there and here
    python recipes/benchmarks/first_run.py --objectives true           # objectives and batch norms, as many passes each
    python recipes/benchmarks/first_run.py --objectives true --recipe recipes/configs/cub_mlph_lite0.yaml \
        --arguments '["--dataset_options.root", "data/CUB_200_2011"]'   # on another dataset

Each run is a process with one thread on one core, and `at_once` of them run side by side. Seconds are of processor
time, from the start of Python to the end of the test.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.io.files import read_csv, write_csv
from c2f_zoo.paths import expand
from c2f_zoo.training.options import TrainOptions, read_options

HERE = Path(__file__).parents[2]
CRITTERS = HERE / "recipes" / "configs" / "critters.yaml"
Run = tuple[dict[str, Any], Path, list[str]]  # columns that name the run, checkout, arguments of train.py


def main(
    old: str | None = None,
    objectives: bool = False,
    recipe: str = str(CRITTERS),
    arguments: list[str] | None = None,
    batch_norms: list[str] | None = None,
    seeds: list[int] | None = None,
    at_once: int = 2,
    output: str = "runs/first_run.csv",
) -> None:
    """Train, and write a CSV file with a row for each run.

    Args:
        old: folder of another checkout, whose first command is measured too.
        objectives: compare the objectives, each with the batch norms that it supports, instead of checkouts.
        recipe: the configuration of the objectives' runs.
        arguments: further arguments of `train.py` for them.
        batch_norms: the batch norms to compare; default: `shared` and `per_level`.
        seeds: the seeds of the runs; default: 0, 1 and 2.
        at_once: number of runs side by side.
        output: the CSV file to create or replace; it is written after each run. The runs stay in a folder beside it.
    """
    runs: list[Run] = []
    for seed in seeds or [0, 1, 2]:
        if objectives:
            runs += objective_runs(seed, recipe, arguments or [], batch_norms or ["shared", "per_level"])
        else:
            runs += checkout_runs(seed, old)
    rows: list[dict[str, Any]] = []
    folders = [expand(output).with_suffix("").absolute() / str(number) for number in range(len(runs))]
    command = {"command": " ".join(["python", "recipes/benchmarks/first_run.py", *sys.argv[1:]])}
    with ThreadPoolExecutor(at_once, initializer=pin, initargs=(iter(usable_cores()),)) as pool:
        for (names, *_), found in zip(runs, pool.map(train, runs, folders), strict=True):
            rows.append({**names, **found, **command, **describe_machine()})
            print({key: rows[-1][key] for key in [*names, *found]}, flush=True)
            write_csv(output, rows)
    print(f"written to {output}")


def usable_cores() -> list[int]:
    """Return the cores that this process may use, or an empty list on systems that don't tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def pin(cores: Iterator[int]) -> None:
    """Bind this thread, and the processes that it starts, to the next core. Old checkouts use all they may."""
    core = next(cores, None)
    if core is not None:
        os.sched_setaffinity(0, {core})


def checkout_runs(seed: int, old: str | None) -> list[Run]:
    """Return the runs of README's first command in another checkout, if there is one, and in this."""
    checkouts = {"old": expand(old).absolute()} if old else {}
    return [
        ({"config": config, "seed": seed}, checkout, ["--seed", str(seed)])
        for config, checkout in {**checkouts, "new": HERE}.items()
    ]


def objective_runs(seed: int, recipe: str, arguments: list[str], batch_norms: list[str]) -> list[Run]:
    """Return a run of each objective and batch norm; all have equally many forward passes."""
    options = read_options(TrainOptions, [expand(recipe)], arguments)
    pairs = [*itertools.product(["in_turn", "joint"], batch_norms), ("any_resolution", "shared")]
    runs: list[Run] = []
    for objective, batch_norm in pairs:
        # One pass trains all levels in `any_resolution`, and one level in the others.
        times = len(options.resolutions) if objective == "any_resolution" else 1
        stages = [
            asdict(replace(stage, epochs=times * stage.epochs, warmup_epochs=times * stage.warmup_epochs))
            for stage in options.stages
        ]
        columns = {"objective": objective, "batch_norm": batch_norm}
        chosen = [text for key, value in columns.items() for text in (f"--{key}", value)]
        chosen += ["--stages", json.dumps(stages), "--seed", str(seed)]
        command = ["--config", str(expand(recipe).absolute()), *arguments, *chosen]
        runs.append(({"config": expand(recipe).stem, **columns, "seed": seed}, HERE, command))
    return runs


def train(run: Run, folder: Path) -> dict[str, Any]:
    """Run `train.py`; return the accuracy of each level and the seconds of processor time."""
    _, checkout, arguments = run
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "recipes/train.py", "--output", str(folder / "run"), *arguments]
    folder.mkdir(parents=True)
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)  # includes the processes that it waited for
    if status != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(folder / 'log.txt').read_text(encoding='utf-8')}")
    return {**read_scores(folder / "run"), "cpu_seconds": round(usage.ru_utime + usage.ru_stime)}


def read_scores(run: Path) -> dict[str, Any]:
    """Return a run's accuracies: on validation images of the best epoch, and on test images at each resolution."""
    epochs, tested = read_csv(run / "metrics.csv"), read_csv(run / "test.csv")
    levels = [row["level"] for row in tested if row["own"] == "True"]
    best = max(epochs, key=lambda row: sum(float(row[f"val_{level}"]) for level in levels))
    return {
        "epochs": len(epochs),
        **{f"val_{level}": round(float(best[f"val_{level}"]), 4) for level in levels},
        **{f"test_{row['level']}": round(float(row["accuracy"]), 4) for row in tested if row["own"] == "True"},
        **{f"{row['level']}_at_{row['resolution'] or 'full'}": round(float(row["accuracy"]), 4) for row in tested},
    }


if __name__ == "__main__":
    auto_cli(main)
