"""Run training again and again in forked processes that kill themselves with SIGKILL at chosen moments.

Each sequence of moments is a run that starts anew: moments joined by `+`. A moment is `anywhere:FRACTION` or
`save:FRACTION`: after this fraction of all Python calls and calls into C, system calls included, of a run that is not
killed, or of those in its checkpoints. With two processes each is killed in turn, and the other one with it. The run is
killed there and resumed until the next moment; at last it ends by itself. The run that is not killed comes first. The
result is for each run the number of kills and the SHA-256 of every result file.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

import matplotlib.figure  # noqa: F401  once for all processes
import torch
from accelerate.state import AcceleratorState

from c2f_zoo.data.augment import Augmentation
from c2f_zoo.training.options import Stage, TrainOptions

RECIPE = Path(__file__).parents[1] / "recipes" / "train.py"
COUNT = ("anywhere", sys.maxsize)  # a moment that never comes
RESULTS = ("model.safetensors", "config.json", "metrics.csv", "steps.csv", "test.csv", "test_predictions.csv")


class Moments:
    """Count calls as a profiler, and kill the process at a chosen one.

    Attributes:
        counts: number of calls so far: `anywhere`, and in `save`s.
    """

    def __init__(self, kill: tuple[str, int] | None) -> None:
        self.kill = kill
        self.process = os.getpid()
        self.depth = 0
        self.counts = {"anywhere": 0, "save": 0}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if os.getpid() != self.process:  # a worker of the loader
            sys.setprofile(None)
            return
        if frame.f_code.co_name == "save_run" and event in ("call", "return"):
            self.depth += 1 if event == "call" else -1
        self.counts["anywhere"] += 1
        self.counts["save"] += self.depth > 0
        if self.kill is not None and self.counts[self.kill[0]] >= self.kill[1]:
            os.kill(self.process, signal.SIGKILL)


def child(folder: Path, options: TrainOptions, rank: int, processes: int, port: int, kill: Any) -> None:
    """Train in this process, with a moment to be killed at; then write the numbers of calls to a file at the end.

    Without a moment no calls are counted, which takes most of the time.
    """
    log = os.open(folder / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)  # of the process that forked
    main = runpy.run_path(str(RECIPE))["main"]
    if kill is None:
        main(options, "run")
        return
    moments = Moments(kill)
    sys.setprofile(moments)
    main(options, "run")
    sys.setprofile(None)
    (folder / f"calls-{rank}.json").write_text(json.dumps(moments.counts))


def start(folder: Path, options: TrainOptions, processes: int, kill: Any, victims: Sequence[int]) -> bool:
    """Start a run whose `victims` count calls or are killed, and wait for it; return whether it was killed.

    Raises:
        RuntimeError: a process failed otherwise.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")  # with everything imported
    running = []
    for rank in range(processes):
        arguments = (folder, options, rank, processes, port, kill if rank in victims else None)
        running.append(context.Process(target=child, args=arguments))
        running[-1].start()
    killed = False
    while running:
        wait([process.sentinel for process in running], timeout=0.1)  # a loader's worker may hold the sentinel longer
        ended = [process for process in running if process.exitcode is not None]
        running = [process for process in running if process not in ended]
        if any(process.exitcode == -signal.SIGKILL for process in ended):
            killed = True
            for other in running:  # as torchrun does
                other.kill()
        elif not killed and any(process.exitcode for process in ended):
            logs = "\n".join(path.read_text()[-3000:] for path in folder.glob("log-*.txt"))
            raise RuntimeError(f"a process failed:\n{logs}")
    return killed


def results(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every result file of the run in a folder."""
    return {name: hashlib.sha256((folder / "run" / name).read_bytes()).hexdigest() for name in RESULTS}


def run_and_kill(folder: Path, values: dict[str, Any], processes: int, sequences: list[str]) -> list[dict[str, Any]]:
    """Run without and with kills; see the module's docstring."""
    values = dict(values)
    values["stages"] = [Stage(**stage) for stage in values["stages"]]
    values["augmentation"] = Augmentation(**values.get("augmentation", {}))
    whole = folder / "whole"
    whole.mkdir(parents=True)
    counting = range(processes if sequences else 0)
    start(whole, TrainOptions(**values, output=str(whole / "run")), processes, COUNT, counting)
    calls = [json.loads((whole / f"calls-{rank}.json").read_text()) for rank in counting]
    found: list[dict[str, Any]] = [{"moments": "", "kills": 0, "results": results(whole)}]
    for run, moments in enumerate(sequences):
        here, kills = folder / f"killed-{run}", 0
        here.mkdir()
        options = TrainOptions(**values, output=str(here / "run"), resume="auto")
        for number, moment in enumerate(moments.split("+")):
            (kind, fraction), victim = moment.split(":"), (run + number) % processes
            kill = kind, max(1, int(float(fraction) * calls[victim][kind]))
            kills += start(here, options, processes, kill, [victim])
        start(here, options, processes, None, [])
        found.append({"moments": moments, "kills": kills, "results": results(here)})
        shutil.rmtree(here)
    return found
