"""Whole weights and optimizer states of a model that `fully_shard` splits between processes (FSDP 2).

`torch.distributed.checkpoint.state_dict` would initialize the state of an optimizer that has not stepped yet by a step,
which leaves momentum behind if there is weight decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from c2f_zoo.training.options import TrainOptions


def gather(state: Any, keep: bool = True) -> Any:
    """Return a state with its sharded tensors made whole, on the CPU; other tensors are returned as they are.

    Args:
        state: a tensor, or nested dictionaries, lists and tuples of tensors and other values, e.g. a state dict. All
            processes must call this function with the same keys.
        keep: whether this process needs the whole tensors; None takes their place otherwise.
    """
    if isinstance(state, DTensor):
        whole = state.full_tensor().detach()
        return whole.cpu() if keep else None
    if isinstance(state, Mapping):
        return {key: gather(value, keep) for key, value in state.items()}
    return type(state)(gather(value, keep) for value in state) if isinstance(state, list | tuple) else state


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load whole weights into a model, which may be sharded; all processes must call this function.

    Args:
        model: the model.
        weights: its state dict, the same in all processes.
    """
    shards = model.state_dict()
    model.load_state_dict({name: _shard_as(weight, shards[name]) for name, weight in weights.items()})


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a whole state into an optimizer, whose weights may be sharded; all processes must call this function.

    Args:
        optimizer: the optimizer.
        state: its state dict, the same in all processes.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    sharded = {
        number: {
            name: _shard_as(value, weights[number]) if _has_shape(value, weights[number]) else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": sharded})


def check_distribution(accelerator: Accelerator, options: TrainOptions) -> None:
    """Check that a run can be distributed as its launcher says.

    Raises:
        ValueError: it cannot.
    """
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(f"{kind.value} is unsupported; launch with DDP (--multi_gpu) or FSDP 2 (--use_fsdp)")
    if kind != DistributedType.FSDP:
        return
    if not getattr(accelerator, "is_fsdp2", False):
        raise ValueError("FSDP 1 is unsupported; launch with --fsdp_version 2 (accelerate 1.6 or later)")
    if options.channels_last:
        raise ValueError("FSDP needs contiguous weights; set channels_last to false")
    if options.ema is not None:
        raise ValueError("ema needs whole weights, which FSDP splits between processes; set ema to null")


def _shard_as(value: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device, like.dtype), like.device_mesh, like.placements)


def _has_shape(value: Any, weight: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == weight.shape
