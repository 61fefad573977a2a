"""Measure the training recipe's loop against a bare loop over the same model and images.

    python recipes/benchmarks/loop.py

Both train the model of recipes/configs/critters.yaml, each level at its resolution, on as many batches. The bare loop
does no more than load, make the views, compute the loss and its gradients, and step. The recipe's loop also plans
rounds, seeds, counts targets, logs every step, watches for signals, and decides when to save. Epochs of both alternate
in one process with one thread; processor time is compared. Validation and checkpoints belong to neither.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jsonargparse import auto_cli
from torch.utils.data import DataLoader

from c2f_zoo.data import create_dataset
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.io.files import write_csv
from c2f_zoo.paths import expand
from c2f_zoo.training.objective import create_objective
from c2f_zoo.training.options import TrainOptions, read_options
from c2f_zoo.training.run_state import Run, StageState
from c2f_zoo.training.setup import build_model, set_train_mode
from c2f_zoo.training.stages import set_up_run, start_stage, train_epoch

CONFIG = Path(__file__).parents[1] / "configs" / "critters.yaml"


def main(per_class: int = 2, repeats: int = 60, output: str = "runs/benchmark-loop.csv") -> None:
    """Measure epochs of both loops, and write a CSV row for each.

    Args:
        per_class: images of each species in an epoch.
        repeats: number of epochs of each loop; the fastest and the median are reported.
        output: the CSV file to create or replace.
    """
    torch.set_num_threads(1)
    loops = {"bare": bare_epoch, "recipe": train_epoch}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    with tempfile.TemporaryDirectory() as folder:
        prepared = {name: prepare(per_class, Path(folder)) for name in loops}
        for repeat in range(repeats + 1):
            for name, epoch in sorted(loops.items(), reverse=repeat % 2 == 1):  # neither is always the first
                run, state = prepared[name]
                run.progress.epoch, run.progress.round = repeat, 0
                start = time.process_time()
                epoch(run, state)
                if repeat > 0:  # the first one warms up
                    seconds[name].append(time.process_time() - start)
    rows: list[dict[str, Any]] = []
    steps = run.rounds_and_steps[1]
    for name, times in seconds.items():
        # Other processes on the machine only ever add time: the fastest epochs say most.
        row: dict[str, Any] = {"loop": name, "steps": steps, "epochs": repeats}
        for kind, statistic in (("fastest", min), ("median", statistics.median)):
            row[f"{kind}_ms_per_step"] = 1000 * statistic(times) / steps
            row[f"{kind}_ratio"] = statistic(times) / statistic(seconds["bare"])
        command = f"python recipes/benchmarks/loop.py --per_class {per_class} --repeats {repeats}"
        rows.append({**row, "command": command, **describe_machine()})
        print(", ".join(f"{key} {value:.4g}" for key, value in row.items() if key != "loop"), name)
    expand(output).parent.mkdir(parents=True, exist_ok=True)
    write_csv(output, rows)


def prepare(per_class: int, folder: Path) -> tuple[Run, StageState]:
    """Prepare a run in its last stage, which trains all weights."""
    options = read_options(TrainOptions, [CONFIG], ["--dataset_options.per_class", str(per_class)])
    torch.manual_seed(0)
    dataset = create_dataset(options.dataset, "train", **options.dataset_options)
    model = build_model(options, dataset.hierarchy)
    objective = create_objective(options, model)
    run = set_up_run(model, dataset, range(len(dataset)), objective, options, folder, Accelerator(cpu=True))
    run.saved_at = time.monotonic(), 0
    return run, start_stage(run, options.stages[-1], len(options.stages), first_epoch=0)


def bare_epoch(run: Run, state: StageState) -> None:
    """Train for an epoch with the same number of steps and images, in the fewest lines."""
    model, tree, images = state.wrapped, run.model.hierarchy, run.loader.dataset.items  # type: ignore[attr-defined]
    set_train_mode(model, run.model, state.stage, run.options)
    for crop, labels, _, _ in DataLoader(images, run.options.batch_size, shuffle=True, drop_last=True):
        for level in run.levels:
            log_probs = run.model.log_probs(model(run.views(crop, level), levels=(level,)))[level]
            F.nll_loss(log_probs, labels[:, tree.depth(level)]).backward()
            state.optimizer.step()
            state.optimizer.zero_grad()


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
