"""Compare this checkout with another: time to create, load, run and train models, memory, and expensive calls.

    python recipes/benchmarks/checkouts.py ../another-checkout

The counts are of building a backbone, running it on the meta device and parsing a tree. Each measurement runs in a new
process with one thread; processes of the two checkouts alternate. Seconds are of processor time, without imports.
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
from c2f_zoo.paths import expand

HERE = Path(__file__).parents[2]
BACKBONES = ("resnet50", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "coatnet_nano_rw_224")
# Explicit taps: checkouts may differ in their default taps.
TAPS = (
    ["layer4.0", "layer4.1", "layer4.2"],
    ["blocks.9", "blocks.10", "blocks.11"],
    ["layers.2.blocks.3", "layers.2.blocks.4", "layers.2.blocks.5"],
    ["stages.2.blocks.3", "stages.2.blocks.4", "stages.2.blocks.5"],
)
# What is timed -> the arguments of create_model; "forward" and "step" run the model on four images.
MEASURED: list[tuple[str, dict[str, Any]]] = [
    ("create", {"name": "mlph_vgg16_cub"}),
    ("create", {"name": "mlph_tiny_critters", "pretrained": True}),
    *(
        (what, {"name": "mlph", "backbone": backbone, "taps": taps, "hierarchy": "critters", "input_size": 224})
        for backbone, taps in zip(BACKBONES, TAPS, strict=True)
        for what in ("forward", "step")
    ),
]
COUNTED = ("create_body", "trace_maps", "run_features", "from_csv")

# Prints seconds of a few calls, the process's peak memory, and the numbers of calls of functions of c2f_zoo.
PROGRAM = """
import collections, json, resource, sys, time
import timm, torch, c2f_zoo
torch.set_num_threads(1)
what, arguments, counts = sys.argv[1], json.loads(sys.argv[2]), collections.Counter()
def count(frame, event, arg):
    if event == "call" and "c2f_zoo" in frame.f_code.co_filename:
        counts[frame.f_code.co_name] += 1
def run():
    if what == "create":
        c2f_zoo.create_model(**arguments)
    elif what == "forward":
        with torch.no_grad():
            model(x)
    else:
        sum(logits.sum() for logits in model(x).values()).backward()
if what == "create":
    sys.setprofile(count)
    run()
    sys.setprofile(None)
else:
    model, x = c2f_zoo.create_model(**arguments), torch.rand(4, 3, 224, 224)
    run()
seconds = []
for _ in range(3):
    start = time.process_time()
    run()
    seconds.append(time.process_time() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": min(seconds), "peak_mb": peak, "counts": counts}))
"""


def main(baseline: str, rounds: int = 5, output: str = "runs/checkouts.csv") -> None:
    """Measure this checkout and a baseline, and write a CSV file.

    Args:
        baseline: the folder of another checkout to compare with.
        rounds: number of new processes for each measurement and checkout; medians are reported.
        output: the CSV file to create or replace.
    """
    rows: list[dict[str, Any]] = []
    for what, arguments in MEASURED:
        results: dict[str, list[dict[str, Any]]] = {"baseline": [], "this": []}
        for _ in range(rounds):
            results["baseline"].append(measure(expand(baseline), what, arguments))
            results["this"].append(measure(HERE, what, arguments))
        seconds, memory = (
            {key: statistics.median(result[unit] for result in found) for key, found in results.items()}
            for unit in ("seconds", "peak_mb")
        )
        for checkout, found in results.items():
            rows.append({
                "what": what, "model": arguments["name"], "backbone": arguments.get("backbone", ""),
                "checkout": checkout, "seconds": round(seconds[checkout], 4), "peak_mb": round(memory[checkout]),
                "time_ratio": round(seconds[checkout] / seconds["baseline"], 3),
                "memory_ratio": round(memory[checkout] / memory["baseline"], 3), "rounds": rounds,
                **{name: found[0]["counts"].get(name, 0) if what == "create" else "" for name in COUNTED},
                "command": " ".join(["python", "recipes/benchmarks/checkouts.py", *sys.argv[1:]]), **describe_machine(),
            })  # fmt: skip
            print({key: rows[-1][key] for key in list(rows[-1])[:9]}, flush=True)
    expand(output).parent.mkdir(parents=True, exist_ok=True)
    write_csv(output, rows)
    print(f"written to {output}")


def measure(checkout: Path, what: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run the program in a new process with the c2f_zoo of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, what, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    auto_cli(main)
