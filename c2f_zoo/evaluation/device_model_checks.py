"""Checks of a whole model on a device, against float64 on the CPU: autocast, compilation, DDP and FSDP."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from c2f_zoo.evaluation.device_checks import Row, compare
from c2f_zoo.evaluation.device_measuring import autocast, tf32
from c2f_zoo.model import C2FModel
from c2f_zoo.zoo.create import create_model

MODEL = "mlph_tiny_critters"
# As for poolings, through all layers.
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (0.03, 0.2), torch.float16: (0.005, 0.05)}
# A function of the model on its device that returns the module to call.
Wrap = Callable[[C2FModel], Callable[..., dict[str, Tensor]]]


def model_modes(device: torch.device) -> dict[str, tuple[torch.dtype, Wrap]]:
    """Return the modes in which a model is checked: float32 or the dtype of autocast, and the wrapper."""
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    return {
        "float32": (torch.float32, lambda model: model),
        "bfloat16": (torch.bfloat16, lambda model: model),
        "float16": (torch.float16, lambda model: model),
        "DDP of one": (torch.float32, DistributedDataParallel),
        "FSDP of one": (torch.float32, partial(shard, device)),
        "compiled": (torch.bfloat16, partial(torch.compile, backend=backend)),
    }


def check_model_in(mode: str, device: torch.device) -> Row:
    """Check a model in one of `model_modes`, see `check_model`."""
    return check_model(f"model {mode}", device, *model_modes(device)[mode])


def check_model(name: str, device: torch.device, dtype: torch.dtype, wrap: Wrap) -> Row:
    """Compare a model's logits and gradients on a device with those in float64 on the CPU.

    Returns a row as `check_pooling_case`.

    Args:
        name: name of the row.
        device: the device.
        dtype: float32, or that of autocast.
        wrap: see `Wrap`.
    """
    torch.manual_seed(0)
    model = create_model(MODEL).eval()  # batch norm amplifies the errors of a small batch
    exact = run_model(copy.deepcopy(model).double(), torch.device("cpu"), torch.float64)
    with one_process(device), tf32(False):
        moved = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        found = run_model(moved, device, dtype, wrap(moved))
    return compare(name, found, exact, TOLERANCE[dtype])


def run_model(
    model: nn.Module, device: torch.device, dtype: torch.dtype, call: Callable[..., dict[str, Tensor]] | None = None
) -> list[Tensor]:
    """Return the logits of all levels, then all weights' gradients for the sum of the cross-entropies."""
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    images = torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with autocast(device, dtype):
        logits = (model if call is None else call)(images.to(device, kept))
        losses = [F.cross_entropy(z.to(kept), torch.arange(4, device=device) % z.shape[1]) for z in logits.values()]
    torch.stack(losses).sum().backward()
    gradients = [whole(weight.grad).flatten() for weight in model.parameters() if weight.grad is not None]
    return [torch.cat([z.detach().flatten() for z in logits.values()]), torch.cat(gradients)]


def shard(device: torch.device, model: C2FModel) -> C2FModel:
    """Split the model's weights between the processes."""
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP supports no other
    fully_shard(model, mesh=init_device_mesh(device.type, (dist.get_world_size(),)))
    return model


def whole(gradient: Any) -> Tensor:
    """Return a gradient, put together from all processes if it is split."""
    gathered: Tensor = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return gathered


@contextmanager
def one_process(device: torch.device) -> Iterator[None]:
    """Be a group of one process; it needs no network."""
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
