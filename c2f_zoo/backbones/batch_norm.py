"""Batch norm with statistics and weights of its own for each resolution.

As in resolution-switchable networks (Wang et al., Resolution Switchable Networks for Runtime Efficient Image
Recognition, ECCV 2020), all other weights are shared.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# `copy`: the copies in use by the forward pass that runs in this thread; `recomputed`: those of the forward pass whose
# gradients are computed in this thread.
_running = threading.local()

M = TypeVar("M", bound=nn.Module)


class CopiedNorm(nn.Module):
    """Copies of a batch norm, one for each resolution; the running forward pass chooses one.

    Gradient checkpointing runs it again in the backward pass, with the copy of the forward pass, see `remember_copy`.

    Args:
        copies: the copies; the first serves where no forward pass of a `TapBackbone` runs.
    """

    def __init__(self, copies: Sequence[nn.Module]) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copies)

    def forward(self, x: Tensor) -> Tensor:
        return self.copies[current_copy()](x)


def current_copy() -> int:
    """Return the number of the copies that serve in this thread."""
    number: int | None = getattr(_running, "copy", None)
    if number is None and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        number = getattr(_running, "recomputed", None)
    return number or 0


def set_copy(number: int | None) -> int | None:
    """Choose the copies for the following forward pass in this thread; return the number before."""
    before = getattr(_running, "copy", None)
    _running.copy = number
    return before


def remember_copy(maps: Sequence[Tensor], number: int) -> None:
    """Choose the copies again when the backward pass reaches these maps.

    Autograd computes the gradients of later forward passes first, so that a loss may add several passes.
    """
    for y in maps:
        if y.requires_grad:
            y.register_hook(partial(_remember, number))


def _remember(number: int, gradient: Tensor) -> None:
    _running.recomputed = number


def is_batch_norm(module: nn.Module) -> bool:
    """Return whether a module is a batch norm, or another norm with running statistics.

    Examples:
        >>> is_batch_norm(nn.BatchNorm2d(4)), is_batch_norm(nn.GroupNorm(2, 4))
        (True, False)
    """
    return isinstance(module, _BatchNorm) or module._buffers.get("running_var") is not None


def copy_batch_norm(network: nn.Module, sources: Sequence[int]) -> None:
    """Replace each batch norm of a network with copies of it, or choose among the present copies.

    Args:
        network: the network; it is changed.
        sources: for each new copy, the number of the present copy that it starts from; 0 for a plain batch norm.

    Raises:
        ValueError: the network has no batch norm.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        >>> copy_batch_norm(network, [0, 0])
        >>> [name for name, _ in network.named_buffers()][:2]
        ['1.copies.0.running_mean', '1.copies.0.running_var']
    """
    copied: dict[nn.Module, CopiedNorm] = {}  # a network may use a batch norm in two places

    def replace(parent: nn.Module) -> None:
        for name, child in parent._modules.items():
            if isinstance(child, CopiedNorm) or (child is not None and is_batch_norm(child)):
                if child not in copied:
                    present: Any = child.copies if isinstance(child, CopiedNorm) else [child]
                    copied[child] = CopiedNorm([copy.deepcopy(present[source]) for source in sources])
                parent._modules[name] = copied[child]
            elif child is not None:
                replace(child)

    replace(network)
    if not copied:
        raise ValueError(
            f"the backbone {type(network).__name__} has no batch norm: its norm does not depend on the batch, so "
            "batch_norm 'shared' is right for it"
        )


def select_copy(network: M, number: int) -> M:
    """Return a network with one copy of each batch norm, as plain modules.

    Only modules that contain copies are new; all others are shared with the network, and so are all weights.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        >>> copy_batch_norm(network, [0, 0])
        >>> plain = select_copy(network, 1)
        >>> plain[0] is network[0], plain[1] is network[1].copies[1]
        (True, True)
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    for module in network.modules():
        if isinstance(module, CopiedNorm):
            memo[id(module)] = module.copies[number]
        elif not any(isinstance(inner, CopiedNorm) for inner in module.modules()):
            memo[id(module)] = module
    return copy.deepcopy(network, memo)
