"""Starting a recipe: processes, threads and error messages."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs


def create_accelerator() -> Accelerator:
    """Create the accelerator of a recipe, with threads for all usable cores.

    Batches are split between processes: the batch size does not depend on their number.
    """
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # otherwise torchrun's CPU processes do not find each other
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        # A step uses the classifier of a single level.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if accelerator.device.type == "cpu" and torch.get_num_threads() == 1:  # accelerate launch sets OMP_NUM_THREADS=1
        torch.set_num_threads(max(1, usable_cores() // accelerator.num_processes))
    return accelerator


def usable_cores() -> int:
    """Count the CPU cores that this process may use; taskset or Slurm may limit them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def error_message(error: BaseException) -> str:
    """Return an error's message.

    An error from a loader's worker has a traceback as its text; the message is the last line.

    Examples:
        >>> error_message(ValueError("no images"))
        'no images'
    """
    text = str(error).strip()
    return text.splitlines()[-1] if text.startswith("Caught ") else text
