"""Removal of modules that the taps do not depend on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from c2f_zoo.backbones.trace import RUN_ERRORS, Trace, run_features


class Removed(nn.Module):
    """A placeholder for a removed layer; returns its input."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return x


def unused_modules(trace: Trace, taps: Sequence[str]) -> list[str]:
    """Return the names of the largest modules without a weight that a tap depends on."""
    return list(_unused_modules(trace.probe, trace.unused_weights(taps)))


def removable_modules(
    trace: Trace, taps: Sequence[str], names: Sequence[str], input_size: tuple[int, int, int]
) -> list[str]:
    """Return the unused modules that can be removed: the network runs without them.

    timm's `forward_features` continues after the last tap, and a few networks read attributes of a later layer. The
    traced copy therefore runs once without all unused modules; if that fails, once without each of them.

    Args:
        trace: the trace of the network; the modules are removed from its copy.
        taps: the tapped modules.
        names: the unused modules.
        input_size: (channels, height, width) of the input.
    """
    if not names:
        return []
    modules = {name: trace.probe.get_submodule(name) for name in names}
    replace_modules(trace.probe, names)
    if runs(trace.probe, taps, input_size):
        return list(names)
    for name, module in modules.items():
        trace.probe.set_submodule(name, module)
    removable = []
    for name, module in modules.items():
        replace_modules(trace.probe, [name])
        if runs(trace.probe, taps, input_size):
            removable.append(name)
        else:
            trace.probe.set_submodule(name, module)
    return removable


def replace_modules(body: nn.Module, names: Iterable[str]) -> None:
    """Replace modules of a network with placeholders without weights."""
    for name in names:
        body.set_submodule(name, Removed())


@torch.no_grad()
def runs(body: nn.Module, taps: Sequence[str], input_size: tuple[int, int, int]) -> bool:
    """Return whether a network runs on the meta device without overwriting a tap."""
    outputs: dict[str, tuple[Tensor, int]] = {}

    def record(name: str, output: Tensor) -> None:
        outputs[name] = output, output._version

    hooks = []
    try:
        for tap in set(taps):
            module = body.get_submodule(tap)
            hooks.append(module.register_forward_hook(lambda _module, _args, output, tap=tap: record(tap, output)))
        run_features(body, torch.empty(1, *input_size, device="meta"))
    except RUN_ERRORS:
        return False
    finally:
        for hook in hooks:
            hook.remove()
    return outputs.keys() == set(taps) and all(output._version == version for output, version in outputs.values())


def _unused_modules(module: nn.Module, unused: set[str], prefix: str = "") -> Iterator[str]:
    for name, child in module.named_children():
        weights = {f"{prefix}{name}.{key}" for key, _ in child.named_parameters()}
        if weights and weights <= unused:
            yield prefix + name
        else:
            yield from _unused_modules(child, unused, f"{prefix}{name}.")
