"""Taking out of a network what its taps do not need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from c2f_zoo.backbones.trace import Trace, trace_maps


class Removed(nn.Module):
    """Stands where a layer was that no tap depends on; lets its input through."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return x


def remove_unused(body: nn.Module, taps: Sequence[str], trace: Trace, input_size: tuple[int, int, int]) -> None:
    """Removes the modules with weights of which no tap depends on any.

    What the rest of the network cannot run without is put back: timm's `forward_features` runs on after
    the last tap, and a few networks look into a later layer instead of calling it.

    Args:
        body: the network; it is changed.
        taps: names of the modules whose outputs count.
        trace: the network's trace.
        input_size: (channels, height, width) of the input.
    """
    names = list(_unused_modules(body, trace.unused_weights(taps)))
    removed = {name: body.get_submodule(name) for name in names}
    for name in names:
        body.set_submodule(name, Removed())
    if _runs(body, taps, input_size):
        return
    for name in names:
        body.set_submodule(name, removed[name])
    for name in names:
        body.set_submodule(name, Removed())
        if not _runs(body, taps, input_size):
            body.set_submodule(name, removed[name])


def _runs(body: nn.Module, taps: Sequence[str], input_size: tuple[int, int, int]) -> bool:
    try:
        maps = trace_maps(body, input_size).maps
    except ValueError:
        return False
    return all(tap in maps for tap in taps)


def _unused_modules(module: nn.Module, unused: set[str], prefix: str = "") -> Iterator[str]:
    """Names of the largest modules that have weights, all of them unused."""
    for name, child in module.named_children():
        weights = {f"{prefix}{name}.{key}" for key, _ in child.named_parameters()}
        if weights and weights <= unused:
            yield prefix + name
        else:
            yield from _unused_modules(child, unused, f"{prefix}{name}.")
