"""Memory of a training run: its peak, and what to do when it is out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from c2f_zoo.training.run_state import Run
from c2f_zoo.training.start_checks import checkpoint_size, format_bytes


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: that of a GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def explain_out_of_memory(run: Run) -> Iterator[None]:
    """Explain what to lower if the device, or this process, runs out of memory while the context is open.

    Args:
        run: the run, before its first step.

    Raises:
        MemoryError: it did.
    """
    before, kept = peak_memory(run.accelerator.device), checkpoint_size(run.model, run.options)
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        images = run.batches.batch_size // run.batches.num_processes
        peak = peak_memory(run.accelerator.device)
        # Gradients are as large as the weights, and `kept` holds the weights already in use.
        per_image = max(peak - before - kept, 0) / images
        raise MemoryError(
            f"out of memory: {str(error).splitlines()[0]} The peak so far was {format_bytes(peak)}, at least "
            f"{format_bytes(per_image)} for each of {images} images. {_advice(run)}. --dry_run tries every stage"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a GPU or the CPU is out of memory.

    Examples:
        >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")), is_out_of_memory(RuntimeError("shapes"))
        (True, False)
    """
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _advice(run: Run) -> str:
    options, processes = run.options, run.batches.num_processes
    ways = []
    if run.batches.batch_size > processes:
        half = max(run.batches.batch_size // 2 // processes, 1) * processes
        ways.append(f"set batch_size to {half} and accumulate to {2 * options.accumulate} for steps of as many images")
    if not options.gradient_checkpointing:
        ways.append("set gradient_checkpointing")
    if options.mixed_precision in (None, "no"):
        ways.append("set mixed_precision to bf16")
    if options.model_options.get("pooling_options", {}).get("impl") == "plain":
        ways.append("leave pooling_options.impl to the automatic choice, which keeps less than 'plain'")
    return ("To need less: " + "; or ".join(ways)) if ways else "To need less: choose a smaller input_size or backbone"
