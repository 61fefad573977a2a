"""Run a script in two forked processes that train together, as `torchrun --nproc_per_node 2` does.

Forked processes have everything imported already, which `torchrun` does three times.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.state import AcceleratorState


def run_in_two_processes(script: str | Path, arguments: Sequence[str], folder: Path) -> tuple[int, str]:
    """Run a script in two processes of a `gloo` group.

    Args:
        script: the script.
        arguments: its command-line arguments.
        folder: the working folder of the processes.

    Returns:
        The larger exit code, and what both wrote to standard output and error, one after the other.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outputs = [folder / f"output-{rank}.txt" for rank in (0, 1)]
    pids = []
    for rank in (0, 1):
        pid = os.fork()
        if pid == 0:
            os._exit(_run(script, arguments, folder, rank, port, outputs[rank]))
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    text = "".join(output.read_text(encoding="utf-8") for output in outputs)
    for output in outputs:
        output.unlink()
    return max(map(abs, codes)), text


def _run(script: str | Path, arguments: Sequence[str], folder: Path, rank: int, port: int, output: Path) -> int:
    """Run the script in this process; return the exit code."""
    with open(output, "w", encoding="utf-8") as stream:
        sys.stdout = sys.stderr = stream
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.chdir(folder)
        torch.set_num_threads(1)
        AcceleratorState._reset_state(reset_partial_state=True)  # of this pytest process
        sys.argv = [str(script), *arguments]
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=stream)
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            return 1
    return 0
