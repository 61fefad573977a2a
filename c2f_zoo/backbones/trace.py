"""Tracing a network on the meta device, without memory and computation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from c2f_zoo.backbones.maps import Layout, layout_of, to_map

# Errors of a network for an unsupported input, or without a layer that it needs.
RUN_ERRORS = (RuntimeError, AssertionError, ValueError, TypeError, AttributeError)


@dataclass(frozen=True)
class Trace:
    """The feature maps of a network's modules, in order of execution.

    Modules are left out if a later layer, e.g. an in-place activation, overwrites their outputs.

    Attributes:
        maps: module name -> its output as a map (1, C, H, W) on the meta device, with its autograd graph.
        layouts: module name -> the layout of that output.
        probe: the traced copy of the network, on the meta device, in evaluation mode.
    """

    maps: dict[str, Tensor]
    layouts: dict[str, Layout]
    probe: nn.Module

    def unused_weights(self, taps: Sequence[str]) -> set[str]:
        """Return the names of trainable parameters that no tap depends on."""
        nodes, seen, used = [self.maps[tap].grad_fn for tap in taps], set(), set()
        while nodes:
            node = nodes.pop()
            if node is not None and node not in seen:
                seen.add(node)
                used.add(id(getattr(node, "variable", None)))  # only a leaf's node has a variable
                nodes += [following for following, _ in node.next_functions]
        weights = self.probe.named_parameters(remove_duplicate=False)
        return {name for name, weight in weights if weight.requires_grad and id(weight) not in used}


@torch.enable_grad()  # a model may be built under torch.no_grad
def trace_maps(body: nn.Module, input_size: tuple[int, int, int]) -> Trace:
    """Trace the feature maps of a network by running a copy of it on the meta device.

    Args:
        body: the network; it is not changed.
        input_size: (channels, height, width) of the input.

    Raises:
        ValueError: the network does not support an input of that size.
    """
    trace = Trace({}, {}, copy_to_meta(body).eval())
    aspect = input_size[1] / input_size[2]
    versions: dict[str, int] = {}

    def record(name: str, output: Any) -> None:
        layout = layout_of(output, trace.probe, aspect)
        if layout is not None:
            trace.maps.pop(name, None)  # if a module runs twice, the last run counts
            trace.maps[name] = to_map(output, layout, trace.probe, aspect)
            trace.layouts[name] = layout
            versions[name] = output._version

    hooks = [
        module.register_forward_hook(lambda _module, _args, output, name=name: record(name, output))
        for name, module in trace.probe.named_modules()
        if name
    ]
    try:
        run_features(trace.probe, torch.empty(1, *input_size, device="meta"))
    except RUN_ERRORS as error:
        raise ValueError(f"{type(body).__name__} does not run on an input of {input_size}: {error}") from error
    for hook in hooks:
        hook.remove()
    for name, version in versions.items():
        if trace.maps[name]._version != version:
            del trace.maps[name]
    return trace


def copy_to_meta(module: nn.Module) -> nn.Module:
    """Copy a module to the meta device without copying the values of its tensors."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if type(tensor) in (Tensor, nn.Parameter):
            # Call no function of the tensor: its initialization may be deferred.
            meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            is_weight = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(meta, requires_grad=tensor.requires_grad) if is_weight else meta
    return copy.deepcopy(module, memo).to("meta")


def run_features(body: nn.Module, x: Tensor) -> Any:
    """Run a network, without its classifier if it has timm's `forward_features`."""
    run: Any = getattr(body, "forward_features", body)
    return run(x)
