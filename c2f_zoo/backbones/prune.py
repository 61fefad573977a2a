"""Removal of weights that the taps do not depend on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from c2f_zoo.backbones.maps import map_in
from c2f_zoo.backbones.trace import RUN_ERRORS, Trace, run_features


class Removed(nn.Sequential):
    """A placeholder for a removed layer; returns its input.

    It is an empty Sequential, since timm's gradient checkpointing iterates over the layers of a stage.

    Args:
        copy: return a copy, since a later in-place layer would overwrite a tapped input.
    """

    def __init__(self, copy: bool = False) -> None:
        super().__init__()
        self.copy = copy

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return x.clone() if self.copy else x


def prune(
    body: nn.Module,
    trace: Trace,
    taps: Sequence[str],
    input_size: tuple[int, int, int],
    keep: Collection[str] = (),
) -> None:
    """Remove the weights of a network that no tap depends on, by its autograd graph.

    Unused layers are replaced with placeholders. timm's `forward_features` continues after the last tap, and some
    networks do not run without a layer there, or would overwrite a tap; the weights of such a layer become constant
    zeros (buffers that are not saved), so that every remaining weight receives a gradient.

    Args:
        body: the network.
        trace: the trace of the network; its copy is changed.
        taps: the tapped modules.
        input_size: (channels, height, width) of the input.
        keep: names of weights that are kept.
    """
    unused = trace.unused_weights(taps) - set(keep)
    names = list(_whole_modules(trace.probe, unused))
    _set_modules(body, _placeholders(trace, taps, names, input_size))
    for prefix, module in body.named_modules():
        for name, weight in list(module._parameters.items()):
            if f"{prefix}.{name}".lstrip(".") in unused and weight is not None:
                del module._parameters[name]
                zeros = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
                module.register_buffer(name, zeros, persistent=False)


def _placeholders(
    trace: Trace, taps: Sequence[str], names: Sequence[str], input_size: tuple[int, int, int]
) -> dict[str, Removed]:
    """Return placeholders of the modules that the network runs without: of all together, or of each in turn."""
    modules = {name: trace.probe.get_submodule(name) for name in names}
    _set_modules(trace.probe, {name: Removed() for name in names})
    copy = _overwrites_a_tap(trace, taps, input_size) if names else False
    if copy is not None:
        return {name: Removed(copy) for name in names}
    _set_modules(trace.probe, modules)
    placeholders = {}
    for name, module in modules.items():
        trace.probe.set_submodule(name, Removed())
        copy = _overwrites_a_tap(trace, taps, input_size)
        if copy is None:
            trace.probe.set_submodule(name, module)
        else:
            placeholders[name] = Removed(copy)
            trace.probe.set_submodule(name, placeholders[name])
    return placeholders


def _set_modules(body: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        body.set_submodule(name, module)


@torch.no_grad()
def _overwrites_a_tap(trace: Trace, taps: Sequence[str], input_size: tuple[int, int, int]) -> bool | None:
    """Return whether a later layer overwrites a tap; None if the network does not run.

    The network as built does not overwrite its taps. So placeholders that return copies, new tensors like those of the
    layers that they replace, prevent it.
    """
    outputs: dict[str, tuple[Tensor, int]] = {}

    def record(tap: str, output: Any) -> None:
        tensor = map_in(output, trace.layouts[tap])
        outputs[tap] = tensor, tensor._version

    hooks = []
    try:
        for tap in set(taps):
            module = trace.probe.get_submodule(tap)
            hooks.append(module.register_forward_hook(lambda _module, _args, output, tap=tap: record(tap, output)))
        run_features(trace.probe, torch.empty(1, *input_size, device="meta"))
    except RUN_ERRORS:
        return None
    finally:
        for hook in hooks:
            hook.remove()
    if outputs.keys() != set(taps):
        return None
    return any(tensor._version != version for tensor, version in outputs.values())


def _whole_modules(module: nn.Module, unused: set[str], prefix: str = "") -> Iterator[str]:
    """Yield the names of the largest modules all of whose weights are unused."""
    for name, child in module.named_children():
        weights = {f"{prefix}{name}.{key}" for key, _ in child.named_parameters()}
        if weights and weights <= unused:
            yield prefix + name
        else:
            yield from _whole_modules(child, unused, f"{prefix}{name}.")
