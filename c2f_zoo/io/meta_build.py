"""Building networks on the meta device, to check their size first."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The whole network is built before unused layers are removed: VGG-16 has nine times the weights that remain.
FACTOR, SLACK_NUMBERS = 32, 2**28
# The same for the number of tensors; the deepest networks of timm have 2000.
TENSOR_FACTOR, SLACK_TENSORS = 10, 4000
_NEW_TENSOR = frozenset(
    (
        *(torch.empty, torch.zeros, torch.ones, torch.full, torch.tensor, torch.arange, torch.linspace, torch.eye),
        *(torch.rand, torch.randn, torch.randint, torch.randperm),
    )
)

M = TypeVar("M", bound=nn.Module)


class TooLargeError(ValueError):
    """A network is far larger than its weights file."""


class MetaBuilder:
    """A builder of untrusted networks on the meta device, with a limit on their size.

    The limit is `FACTOR` times the numbers in the weights files plus `SLACK_NUMBERS`, in `TENSOR_FACTOR` times as many
    tensors plus `SLACK_TENSORS`. Numbers of 8 bytes count twice.

    Args:
        shapes: weight name -> shape, from the headers of the weights files.

    Examples:
        >>> builder = MetaBuilder({"weight": (4, 4)})
        >>> layer = builder.build(torch.nn.Linear, 4, 4)
        >>> layer.weight.device
        device(type='meta')
        >>> builder.build(torch.nn.Linear, 2**20, 2**20)
        Traceback (most recent call last):
        TooLargeError: the network has more than 268435968 numbers, but its weights files have 16
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self.numbers, self.tensors = sum(math.prod(shape) for shape in shapes.values()), len(shapes)
        self._built: list[tuple[nn.Module, Callable[[], nn.Module]]] = []

    def build(self, function: Callable[..., M], *args: Any, **options: Any) -> M:
        """Call the constructor of a part on the meta device.

        A constructor that reads values of its tensors fails there; it runs on the CPU instead, with the same limit.

        Raises:
            TooLargeError: the part is too large.
        """
        try:
            with torch.device("meta"), _SizeLimit(self):
                module = function(*args, **options)
        except TooLargeError:
            raise
        except Exception:  # any error of a constructor; it is raised again below unless the meta device caused it
            with _SizeLimit(self):
                module = function(*args, **options)
        self.check(sum(map(_size, (*module.parameters(), *module.buffers()))))
        self._built.append((module, lambda: function(*args, **options)))
        return module

    def fill_in(self) -> None:
        """Replace tensors that are still on the meta device, e.g. index tables.

        Call it after the weights are loaded. Parts with such tensors are built a second time, on the CPU, and the
        tensors are taken from there.
        """
        for module, construct in self._built:
            unfilled = {name: child for name, child in module.named_modules() if _on_meta(vars(child))}
            complete = construct() if unfilled else module
            for name, child in unfilled.items():
                source = complete.get_submodule(name)
                for own, others in ((child._buffers, source._buffers), (vars(child), vars(source))):
                    own.update({key: _filled(key, value, others) for key, value in own.items() if _on_meta(value)})

    def check(self, numbers: int, tensors: int = 0) -> None:
        """Raise a TooLargeError if a network has more numbers or tensors than the limits."""
        for what, count, saved, most in (
            ("numbers", numbers, self.numbers, FACTOR * self.numbers + SLACK_NUMBERS),
            ("tensors", tensors, self.tensors, TENSOR_FACTOR * self.tensors + SLACK_TENSORS),
        ):
            if count > most:
                raise TooLargeError(f"the network has more than {most} {what}, but its weights files have {saved}")


class _SizeLimit(TorchFunctionMode):
    """A check of every tensor that this thread creates while a part is built."""

    def __init__(self, builder: MetaBuilder) -> None:
        super().__init__()
        self.builder, self.numbers, self.tensors = builder, 0, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _NEW_TENSOR:  # before it takes memory
            options = {key: value for key, value in kwargs.items() if key not in ("device", "generator", "out")}
            size = _size(func(*args, device="meta", **options))
            self.numbers, self.tensors = self.numbers + size, self.tensors + 1
            self.builder.check(self.numbers, self.tensors)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self.builder.check(_size(result))
        return result


class PeakMemory(TorchDispatchMode):
    """The peak memory in bytes of the tensors that this thread creates; on the meta device, without taking any.

    Memory that an operation takes while it runs is not counted.

    Examples:
        >>> with PeakMemory() as memory:
        ...     for _ in range(10):
        ...         y = torch.ones(1000, device="meta") + 1
        >>> memory.peak
        12000
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}  # address of a storage -> it, and its size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._live = {key: value for key, value in self._live.items() if not value[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


def allocate(module: nn.Module, names: Collection[str]) -> None:
    """Move named weights and buffers from the meta device to the CPU, uninitialized."""
    for prefix, owner in module.named_modules():
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None and tensor.is_meta and f"{prefix}.{name}".lstrip(".") in names:
                memory = torch.empty_like(tensor, device="cpu")
                if isinstance(tensor, nn.Parameter):
                    memory = nn.Parameter(memory, tensor.requires_grad)
                try:
                    torch.utils.swap_tensors(tensor, memory)  # other references to the tensor stay valid
                except RuntimeError:  # weak references, e.g. of an LSTM, which renews them when a weight is set
                    setattr(owner, name, memory)


def _filled(key: str, value: Any, others: Mapping[str, Any]) -> Any:
    # The weights that TapBackbone turned into constant zeros are not buffers of the network as built.
    return others[key] if key in others else torch.zeros_like(value, device="cpu")


def _on_meta(value: Any) -> bool:
    """Return whether a value is, or contains, a tensor on the meta device."""
    if isinstance(value, Mapping):
        return any(map(_on_meta, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_on_meta, value))
    return isinstance(value, Tensor) and value.is_meta


def _size(tensor: Tensor) -> int:
    """Return the size in float32 numbers."""
    return tensor.numel() * tensor.element_size() // 4
