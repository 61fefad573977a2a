"""Deferred random initialization of large weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIN_NUMEL = 2**20  # smaller weights are initialized at once, in the usual order of random numbers

_aten = torch.ops.aten
_FILLS = (_aten.uniform_, _aten.normal_)
_UPDATES = (_aten.mul_, _aten.div_, _aten.add_, _aten.sub_, _aten.clamp_, _aten.erfinv_)  # as in trunc_normal_


class DeferredInit(TorchDispatchMode):
    """Defer the random initialization of large CPU tensors in this thread.

    Random fills of a tensor are recorded, and so are updates of it by numbers (`mul_(0.02)`). Any other operation on
    the tensor runs its recorded operations first. The values come from the same distributions as without this mode,
    but are drawn in another order.

    An unused tensor takes no memory: of VGG-16, 119 M weights are removed before they are initialized.

    It does not notice values that are read or written in another thread or through NumPy, nor a generator that is
    seeded meanwhile. So it is for timm's networks, which do nothing of that kind, and not for plug-ins.

    Examples:
        >>> with DeferredInit() as init:
        ...     layer = torch.nn.Linear(1024, 1024, bias=False)
        >>> init.run()
        >>> bool(layer.weight.std() > 0)
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self._pending: dict[int, list[Callable[[], Tensor]]] = {}  # address of a tensor's memory -> operations on it

    def discard(self, tensors: Iterable[Tensor]) -> None:
        """Drop the initialization of tensors that are not needed."""
        for tensor in tensors:
            self._pending.pop(_address(tensor), None)

    def run(self) -> None:
        """Run all deferred initialization in the order of recording."""
        for address in list(self._pending):
            self._run(address)

    @torch.no_grad()
    def _run(self, address: int) -> None:
        for operation in self._pending.pop(address, ()):
            operation()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if tensors and tensors[0] is args[0]:
            target, address, kind = args[0], _address(args[0]), func.overloadpacket
            memory = target.detach()  # `weight.data = ...` may give the tensor other memory
            defer = lambda: func(memory, *args[1:], **kwargs)  # noqa: E731
            if len(tensors) == 1 and kind in _FILLS and _is_large(target) and kwargs.get("generator") is None:
                self._pending[address] = [defer]  # it overwrites the recorded operations
                return target
            if len(tensors) == 1 and kind in _UPDATES and address in self._pending:
                self._pending[address].append(defer)
                return target
            if kind is _aten.detach:  # `weight.data` is the same memory
                return func(*args, **kwargs)
        for tensor in tensors:
            self._run(_address(tensor))
        return func(*args, **kwargs)


def _is_large(tensor: Tensor) -> bool:
    """Return whether a tensor is large, on the CPU, and the whole of its storage."""
    is_whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor.numel() >= MIN_NUMEL and tensor.device.type == "cpu" and is_whole


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.device.type == "cpu" else 0
