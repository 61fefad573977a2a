"""Checks before the first step: the folder, the disk's free space, and batch norm's values."""

from __future__ import annotations

import copy
import shutil
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from c2f_zoo.backbones.batch_norm import is_batch_norm
from c2f_zoo.model import C2FModel
from c2f_zoo.paths import expand
from c2f_zoo.training.checkpoint import list_checkpoints
from c2f_zoo.training.optimizers import create_from_groups
from c2f_zoo.training.options import TrainOptions
from c2f_zoo.training.run_state import Run
from c2f_zoo.training.setup import set_train_mode


def check_output(output: str | None) -> None:
    """Check that the run's folder can be created and written.

    Args:
        output: the folder; None for a new one in `runs`.

    Raises:
        OSError: it cannot.
    """
    folder = expand(output or "runs").absolute()
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            pass
    except OSError as error:
        raise OSError(f"cannot write to the folder {folder}: {error.strerror}; choose another --output") from error


def check_disk(model: C2FModel, options: TrainOptions, output: Path) -> None:
    """Check that the disk has room for a run's checkpoints.

    There are at most `keep` of them, that of the best epoch, and one that is being written.

    Args:
        model: the model, before training.
        options: the options; those of the optimizer, `stages`, `ema` and `keep` are used.
        output: the run's folder; its checkpoints need no more room.

    Raises:
        OSError: there is not enough room.
    """
    size, most = checkpoint_size(model, options), options.keep + 2
    present = len(list_checkpoints(output)) if output.is_dir() else 0
    needed, free = size * max(most - present, 1), shutil.disk_usage(_existing(output.absolute())).free
    if needed > free:
        raise OSError(
            f"the disk of {output} has {format_bytes(free)} left, but the run's checkpoints need about "
            f"{format_bytes(needed)}: {most} of {format_bytes(size)} each (keep + 2), {present} of which are there; "
            "make room, lower keep, or choose another --output"
        )


def checkpoint_size(model: C2FModel, options: TrainOptions) -> int:
    """Estimate the largest size of a run's checkpoints in bytes: weights, their average and the optimizer's state.

    Args:
        model: the model.
        options: the options; those of the optimizer, `stages` and `ema` are used.
    """
    weights = _bytes_of([*model.parameters(), *model.buffers()])
    trains_backbone = any(stage.backbone_lr > 0 for stage in options.stages)
    trained = _bytes_of(list((model if trains_backbone else nn.ModuleList([model.pooling, model.head])).parameters()))
    per_weight = _state_per_weight(options, next(model.parameters()).device)
    return int(weights * (1 + (options.ema is not None)) + trained * per_weight)


def _state_per_weight(options: TrainOptions, device: torch.device) -> float:
    """Return the bytes that the optimizer keeps for each byte of a weight, from a step of a single matrix."""
    weight = nn.Parameter(torch.zeros(64, 64, device=device))
    weight.grad = torch.zeros_like(weight)
    optimizer = create_from_groups([{"params": [weight]}], 1e-3, options)
    optimizer.step()
    tensors = [value for value in optimizer.state[weight].values() if isinstance(value, Tensor)]
    return _bytes_of(tensors) / _bytes_of([weight])


def check_batch_statistics(run: Run) -> None:
    """Check for every stage that batch norm has more than one value per channel to take statistics of.

    A batch of one image in each process and maps of 1 x 1 leave one value: its variance is 0. The check is a forward
    pass of a copy of the model; models and random numbers do not change.

    Args:
        run: a run that has not started.

    Raises:
        ValueError: a module has one value per channel.
    """
    if run.batches.batch_size > run.batches.num_processes:
        return
    at_once = run.options.objective == "any_resolution"
    levels: list[tuple[str, ...]] = [run.levels] if at_once else [(level,) for level in run.levels]
    for number, stage in enumerate(run.options.stages, start=1):
        model = copy.deepcopy(run.model)
        set_train_mode(model, model, stage, run.options)
        names = find_single_values(model, levels)
        if not names:
            continue
        frozen = ", set batch_norm to 'frozen'" if names[0].startswith("backbone.") else ""
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise ValueError(
            f"batch norm has one value per channel in stage {number}, at {names[0]}{more}: a batch of "
            f"{run.batches.batch_size} over {run.batches.num_processes} processes is one image for each, and the maps "
            f"are 1 x 1; raise batch_size to {2 * run.batches.num_processes}{frozen}, or choose a larger input_size"
        )


@torch.no_grad()
def find_single_values(model: C2FModel, levels: list[tuple[str, ...]]) -> list[str]:
    """Find the batch norms in training mode that have one value per channel for a batch of one image.

    Args:
        model: the model, in training mode where it is trained; running statistics change.
        levels: for each forward pass, its levels.

    Returns:
        The names of the modules.
    """
    found: dict[str, None] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training and inputs[0].numel() == inputs[0].shape[1]:
            found[name] = None
            module.eval()  # or it would raise an error; those after it are found, too

    for name, module in model.named_modules():
        if is_batch_norm(module):
            module.register_forward_pre_hook(partial(note, name))
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for chosen in levels:
            model(torch.zeros(1, *model.config.preprocessing.input_size, device=device), levels=chosen)
    return list(found)


def format_bytes(number: float) -> str:
    """Format a number of bytes.

    Examples:
        >>> format_bytes(3 * 2**30), format_bytes(1.5e6)
        ('3 GiB', '1.43 MiB')
    """
    return f"{number / 2**30:.3g} GiB" if number >= 2**30 else f"{number / 2**20:.3g} MiB"


def _bytes_of(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
