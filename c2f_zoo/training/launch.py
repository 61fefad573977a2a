"""Starting a recipe: processes, precision, threads, trackers and error messages."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs
from accelerate.tracking import filter_trackers, get_available_trackers
from accelerate.utils import GradientAccumulationPlugin, LoggerType

from c2f_zoo.hierarchy.escape import printable
from c2f_zoo.io.freed_memory import keep_freed_memory
from c2f_zoo.io.terminal import make_output_printable
from c2f_zoo.registry import check_names
from c2f_zoo.training.interrupt import EXIT_CODE, Stopped
from c2f_zoo.training.options import Options, TrainOptions

_PRECISION, _ACCUMULATE = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
_DYNAMO, _PARALLELISM = "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_USE_PARALLELISM_CONFIG"
_LAUNCHERS = {"accelerate", "accelerate-launch", "accelerate.commands.launch", "torchrun", "torch.distributed.run"}


def adopt_launcher(options: Options) -> Options:
    """Return the options with the launcher's mixed precision and gradient accumulation.

    The option overrides the launcher's mixed precision `no`, because `accelerate launch` sets that by default.

    Args:
        options: the options; `mixed_precision` and `accumulate` are used.

    Raises:
        ValueError: options and launcher disagree, or the launcher asks for a compilation or a parallelism of its own.

    Examples:
        >>> import os
        >>> from c2f_zoo.training.options import Options, TrainOptions
        >>> os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "4"
        >>> adopt_launcher(TrainOptions("critters", "mlph_tiny_critters", {}, [])).accumulate
        accumulate 4, as the launcher says (ACCELERATE_GRADIENT_ACCUMULATION_STEPS)
        4
        >>> del os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"]
    """
    if os.environ.get(_PARALLELISM, "").lower() in ("1", "true", "yes", "on"):
        raise ValueError(
            f"the launcher's tensor or context parallelism is unsupported ({_PARALLELISM}); use DDP or FSDP 2"
        )
    dynamo = os.environ.get(_DYNAMO, "NO")
    if dynamo.upper() != "NO":  # Accelerate would compile the wrapped model, a graph for each level
        raise ValueError(f"the launcher's dynamo backend is {dynamo!r} ({_DYNAMO}); use --compile true instead")
    precision, steps = os.environ.get(_PRECISION) or "no", int(os.environ.get(_ACCUMULATE) or 1)
    if options.mixed_precision is None:
        if precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"the launcher's mixed precision {precision!r} is unsupported; choose no, bf16 or fp16")
        options = replace(options, mixed_precision=precision)  # type: ignore[arg-type]
    elif precision not in ("no", options.mixed_precision):
        raise ValueError(
            f"mixed_precision is {options.mixed_precision!r}, but the launcher's is {precision!r} ({_PRECISION}); "
            "set one of them only"
        )
    elif precision == "no" != options.mixed_precision and _PRECISION in os.environ:
        print_once(f"mixed_precision {options.mixed_precision!r} overrides the launcher's 'no', its default")
    if steps not in (1, options.accumulate):
        if options.accumulate != 1:
            raise ValueError(
                f"accumulate is {options.accumulate}, but the launcher's number is {steps} ({_ACCUMULATE}); set one of "
                "them only"
            )
        print_once(f"accumulate {steps}, as the launcher says ({_ACCUMULATE})")
        options = replace(options, accumulate=steps)
    return options


def print_once(line: str) -> None:
    """Print a line in the main process; `Accelerator.print` before there is an accelerator."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def create_accelerator(options: TrainOptions | None = None) -> Accelerator:
    """Create the accelerator of a recipe.

    Batches are split between processes: the batch size does not depend on their number. On a CPU the processes have
    threads for all usable cores, unless the user set a number of threads.

    Args:
        options: the options of a training, from `adopt_launcher`; `mixed_precision` and `log_with` are used. Without
            them the launcher's precision is used.

    Raises:
        ValueError: the device does not support the precision, or a tracker is unknown.
        ImportError: a tracker's package is missing.
    """
    if options is not None:
        check_trackers(options.log_with)
    accelerator = Accelerator(
        mixed_precision=options.mixed_precision if options else None,
        cpu=not torch.accelerator.is_available(),  # otherwise torchrun's CPU processes do not find each other
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        # The loop divides the loss itself: without this plug-in the launcher's number would divide it once more.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # A step uses the classifier of a single level.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if accelerator.device.type == "cpu":
        if options is not None and accelerator.mixed_precision == "fp16":
            raise ValueError("mixed_precision 'fp16' needs a GPU; on a CPU choose 'bf16' or 'no'")
        set_threads(accelerator)
        keep_freed_memory()
    return accelerator


def set_threads(accelerator: Accelerator) -> None:
    """Set the number of a CPU process's threads: the user's number, or a part of the usable cores.

    Launchers set `OMP_NUM_THREADS=1` if the user sets nothing; that number is replaced.
    """
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE") or accelerator.num_processes)
    cores = max(1, usable_cores() // on_this_machine)
    if launcher_chose_threads(os.getppid()):
        torch.set_num_threads(cores)
    elif torch.get_num_threads() < cores and "OMP_NUM_THREADS" in os.environ:
        print_once(f"threads of a process: {torch.get_num_threads()} on {cores} cores; OMP_NUM_THREADS limits it")


def launcher_chose_threads(launcher: int) -> bool:
    """Return whether a process is a launcher whose user set no number of threads.

    `accelerate launch` always sets `OMP_NUM_THREADS` of its processes, so only its own environment and arguments tell
    who chose the number. Where they cannot be read (outside Linux), the user is assumed to have chosen it.

    Args:
        launcher: the process's number.
    """
    try:
        arguments = Path(f"/proc/{launcher}/cmdline").read_text(errors="replace").split("\0")
        environment = Path(f"/proc/{launcher}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return False
    is_launcher = any(Path(argument).name in _LAUNCHERS for argument in arguments[:4])
    by_argument = any(argument.replace("-", "_").startswith("__num_cpu_threads") for argument in arguments)
    by_environment = any(setting.startswith("OMP_NUM_THREADS=") for setting in environment)
    return is_launcher and not by_argument and not by_environment


def usable_cores() -> int:
    """Count the CPU cores that this process may use; taskset or Slurm may limit them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_trackers(names: list[str]) -> None:
    """Check that trackers are known to Accelerate and installed.

    Raises:
        ValueError: a tracker is unknown.
        ImportError: a tracker's package is missing.

    Examples:
        >>> check_trackers(["tensorbord"])
        Traceback (most recent call last):
        ValueError: unknown tracker in log_with: 'tensorbord'; did you mean 'tensorboard'?
    """
    check_names("tracker in log_with:", names, [name for name in LoggerType.list() if name != "all"])
    installed = {str(tracker) for tracker in get_available_trackers()}
    missing = [name for name in names if name not in installed]
    if missing:
        raise ImportError(f"log_with needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def start_trackers(accelerator: Accelerator, options: TrainOptions, output: Path) -> None:
    """Start the trackers of a run; `accelerator.log(values, step)` then logs to them, `end_training` stops them.

    Args:
        accelerator: the processes; all must call this function.
        options: the options; `log_with` names the trackers, and all of them are logged.
        output: the run's folder, for trackers that write files.
    """
    if not options.log_with:
        return
    accelerator.project_configuration.set_directories(str(output))
    accelerator.log_with = filter_trackers(options.log_with, accelerator.logging_dir)
    accelerator.init_trackers("c2f_zoo", config={key: _scalar(value) for key, value in asdict(options).items()})


def _scalar(value: Any) -> bool | int | float | str:
    """Return a value that every tracker stores: a number, or a text, of lists and mappings as JSON."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


@contextmanager
def recipe_errors(name: str) -> Iterator[None]:
    """End a recipe with one line if it fails, and let it print any name.

    Args:
        name: the recipe's name, which starts the line.

    Raises:
        SystemExit: it failed with an expected error, or it was stopped by a signal.

    Examples:
        >>> with recipe_errors("train.py"):
        ...     raise ValueError("there are no images")
        Traceback (most recent call last):
        SystemExit: train.py: there are no images
    """
    make_output_printable()
    try:
        yield
    except Stopped as stopped:
        print(f"{name}: {stopped}", file=sys.stderr)
        raise SystemExit(EXIT_CODE) from None
    except (ValueError, OSError, ImportError, MemoryError) as error:
        raise SystemExit(f"{name}: {error_message(error)}") from error


def error_message(error: BaseException) -> str:
    """Return an error's message.

    An error from a loader's worker has a traceback as its text; the message is the last line.

    Examples:
        >>> error_message(ValueError("no images"))
        'no images'
    """
    text = str(error).strip()
    lines = list(map(printable, text.splitlines()))
    return lines[-1] if text.startswith("Caught ") else "\n".join(lines)
