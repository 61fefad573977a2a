"""Measure the time of create_model, and count its expensive calls.

    python recipes/benchmarks/creation.py --baseline ../another-checkout

The counts are of building a backbone, running it on the meta device and parsing a tree. Each call runs in a new
process; processes of the two checkouts alternate. Only the call is timed, not the imports.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.io.files import write_csv

HERE = Path(__file__).parents[2]
CALLS: dict[str, dict[str, Any]] = {
    "create": {"name": "mlph_vgg16_cub"},
    "load": {"name": "mlph_tiny_critters", "pretrained": True},
}
COUNTED = ("create_body", "trace_maps", "run_features", "from_csv")

# Prints the seconds of two calls, or the numbers of calls of functions of c2f_zoo in the first one.
PROGRAM = """
import collections, json, sys, time
import timm, torch, c2f_zoo
torch.set_num_threads(1)
create_model, arguments, counts = c2f_zoo.create_model, json.loads(sys.argv[1]), collections.Counter()
def count(frame, event, arg):
    if event == "call" and "c2f_zoo" in frame.f_code.co_filename:
        counts[frame.f_code.co_name] += 1
if sys.argv[2] == "count":
    sys.setprofile(count)
    create_model(**arguments)
    sys.setprofile(None)
    print(json.dumps(counts))
else:
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        create_model(**arguments)
        seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds))
"""


def main(baseline: str | None = None, rounds: int = 7, output: str = "runs/creation.csv") -> None:
    """Measure this checkout and a baseline, and write a CSV file.

    Args:
        baseline: the folder of another checkout to compare with.
        rounds: number of new processes for each call and checkout; the median is reported.
        output: the CSV file to create or replace.
    """
    checkouts = {"this": HERE, **({"baseline": Path(baseline)} if baseline else {})}
    rows: list[dict[str, Any]] = []
    for call, arguments in CALLS.items():
        seconds: dict[str, list[list[float]]] = {checkout: [] for checkout in checkouts}
        for _ in range(rounds):
            for checkout, folder in checkouts.items():
                seconds[checkout].append(run(folder, arguments, "time"))
        medians: dict[str, list[float]] = {
            key: [statistics.median(column) for column in zip(*times, strict=True)] for key, times in seconds.items()
        }
        for checkout, folder in checkouts.items():
            counts = run(folder, arguments, "count")
            first, second = medians[checkout]
            rows.append({
                "call": call, "model": arguments["name"], "checkout": checkout,
                "first_s": round(first, 4), "second_s": round(second, 4),
                "first_ratio": round(first / medians["baseline"][0], 3) if baseline else "",
                "second_ratio": round(second / medians["baseline"][1], 3) if baseline else "",
                "rounds": rounds, **{name: counts.get(name, 0) for name in COUNTED},
                "command": " ".join(["python", "recipes/benchmarks/creation.py", *sys.argv[1:]]), **describe_machine(),
            })  # fmt: skip
            print({key: rows[-1][key] for key in list(rows[-1])[:12]}, flush=True)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    write_csv(output, rows)
    print(f"written to {output}")


def run(checkout: Path, arguments: dict[str, Any], what: str) -> Any:
    """Run the program in a new process with the c2f_zoo of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(arguments), what]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    auto_cli(main)
