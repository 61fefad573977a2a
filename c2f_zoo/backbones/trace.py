"""Tracing a network on the meta device, without memory and computation."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from c2f_zoo.backbones.maps import Layout, layout_of, map_in, to_map

# Errors of a network for an unsupported input, or without a layer that it needs.
RUN_ERRORS = (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, LookupError)


@dataclass
class Trace:
    """The feature maps of a network's modules, in order of execution.

    Modules are left out if a later layer, e.g. an in-place activation, overwrites their outputs.

    Attributes:
        probe: the traced copy of the network, on the meta device, in evaluation mode.
        maps: module name -> its output as a map (1, C, H, W) on the meta device, with its autograd graph.
        layouts: module name -> the layout of that output.
        nodes: module name -> the autograd node of that output; the same for modules with the same output.
        without_grad: names of the modules that the network runs under `torch.no_grad`.
        whole: names of the modules whose output is the only way from the image to the network's output.
    """

    probe: nn.Module
    maps: dict[str, Tensor] = field(default_factory=dict)
    layouts: dict[str, Layout] = field(default_factory=dict)
    nodes: dict[str, Any] = field(default_factory=dict)
    without_grad: set[str] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)

    def unused_weights(self, taps: Sequence[str]) -> set[str]:
        """Return the names of trainable parameters that no tap depends on.

        Weights of modules that run under `torch.no_grad` count as used: they are in no graph.
        """
        nodes = _nodes_behind(self.maps[tap].grad_fn for tap in taps)
        used = {id(getattr(node, "variable", None)) for node in nodes}  # only a leaf's node has a variable
        weights = self.probe.named_parameters(remove_duplicate=False)
        unused = {name for name, weight in weights if weight.requires_grad and id(weight) not in used}
        return {name for name in unused if not any(name.startswith(f"{module}.") for module in self.without_grad)}


@torch.enable_grad()  # a model may be built under torch.no_grad
def trace_maps(body: nn.Module, input_size: tuple[int, int, int]) -> Trace:
    """Trace the feature maps of a network by running a copy of it on the meta device.

    Args:
        body: the network; it is not changed.
        input_size: (channels, height, width) of the input.

    Raises:
        ValueError: the network does not support an input of that size.
    """
    trace = Trace(copy_to_meta(body).eval())
    aspect = input_size[1] / input_size[2]
    tensors: dict[str, tuple[Tensor, int]] = {}  # the tensor of each map, and its version

    def record(name: str, output: Any) -> None:
        if not torch.is_grad_enabled():
            trace.without_grad.add(name)
        layout = layout_of(output, trace.probe, aspect)
        if layout is not None:
            trace.maps.pop(name, None)  # if a module runs twice, the last run counts
            trace.maps[name] = to_map(output, layout, aspect)
            trace.layouts[name] = layout
            tensor = map_in(output, layout)
            tensors[name] = tensor, tensor._version
            trace.nodes[name] = tensor.grad_fn

    hooks = [
        module.register_forward_hook(lambda _module, _args, output, name=name: record(name, output))
        for name, module in trace.probe.named_modules()
        if name
    ]
    x = torch.empty(1, *input_size, device="meta", requires_grad=True).clone()
    try:
        outputs = run_features(trace.probe, x)
    except RUN_ERRORS as error:
        reason = f"{type(body).__name__} does not run on an input of {input_size}: {str(error) or type(error).__name__}"
        own = (getattr(body, "pretrained_cfg", None) or {}).get("input_size", input_size)
        advice = "" if tuple(own) == tuple(input_size) else f"; its own input size is {tuple(own)}"
        raise ValueError(reason + advice) from error
    for hook in hooks:
        hook.remove()
    ends = [y.grad_fn for y in tree_leaves(outputs) if isinstance(y, Tensor) and y.grad_fn is not None]
    bottlenecks = _bottlenecks(ends, x.grad_fn)
    for name, (tensor, version) in tensors.items():
        if tensor._version != version:
            del trace.maps[name]
        elif trace.nodes[name] in bottlenecks:
            trace.whole.add(name)
    return trace


def _nodes_behind(ends: Iterable[Any]) -> list[Any]:
    """Return the autograd nodes that nodes depend on, with these: each before those that it depends on."""
    found: list[Any] = []
    seen: set[Any] = {None}
    stack = [(node, False) for node in ends]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            found.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(following, False) for following, _ in node.next_functions]
    return found[::-1]


def _bottlenecks(ends: Sequence[Any], start: Any) -> set[Any]:
    """Return the nodes that lie on every path from the ends to the start of an autograd graph."""
    nodes = _nodes_behind(ends)
    down, up = dict.fromkeys(nodes, 0), dict.fromkeys(nodes, 0)  # numbers of paths from the ends, to the start
    for node in ends:
        down[node] += 1
    for node in nodes:
        for following, _ in node.next_functions:
            if following is not None:
                down[following] += down[node]
    for node in reversed(nodes):
        up[node] = 1 if node is start else sum(up[n] for n, _ in node.next_functions if n is not None)
    total = down.get(start, 0)
    return {node for node in nodes if down[node] * up[node] == total}


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
