"""What happens inside a network, found by running it on the meta device: no memory, no arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from c2f_zoo.backbones.maps import Layout, layout_of, to_map


@dataclass(frozen=True)
class Trace:
    """The maps that a network's modules put out, in the order in which they finish.

    An output that a later layer writes over (an in-place activation, say) is not among them.

    Attributes:
        maps: module name -> its output as a map (1, C, H, W) on the meta device, with its autograd graph.
        layouts: module name -> how that output was read.
        weights: parameter name -> the parameter of the traced copy.
    """

    maps: dict[str, Tensor]
    layouts: dict[str, Layout]
    weights: dict[str, nn.Parameter]

    @torch.enable_grad()  # a model may be made under torch.no_grad
    def unused_weights(self, taps: Sequence[str]) -> set[str]:
        """Names of the parameters that the taps' outputs do not depend on, as autograd sees it."""
        trained = {name: weight for name, weight in self.weights.items() if weight.requires_grad}
        total = torch.stack([self.maps[tap].sum() for tap in taps]).sum()
        grads = torch.autograd.grad(total, list(trained.values()), allow_unused=True, retain_graph=True)
        return {name for name, grad in zip(trained, grads, strict=True) if grad is None}


@torch.enable_grad()
def trace_maps(body: nn.Module, input_size: tuple[int, int, int]) -> Trace:
    """Runs a copy of the network on the meta device and records which modules give maps.

    Args:
        body: the network; neither it nor its buffers are touched.
        input_size: (channels, height, width) of the input.

    Raises:
        ValueError: the network cannot take an input of that size.
    """
    probe = copy.deepcopy(body).to("meta").eval()
    aspect = input_size[1] / input_size[2]
    trace = Trace({}, {}, dict(probe.named_parameters()))
    versions: dict[str, int] = {}

    def record(name: str, output: Any) -> None:
        layout = layout_of(output, probe, aspect)
        if layout is not None:
            trace.maps.pop(name, None)  # a module that runs twice counts by its last run
            trace.maps[name] = to_map(output, layout, probe, aspect)
            trace.layouts[name] = layout
            versions[name] = output._version

    for name, module in probe.named_modules():
        if name:
            module.register_forward_hook(lambda _module, _args, output, name=name: record(name, output))
    try:
        run_features(probe, torch.empty(1, *input_size, device="meta"))
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(body).__name__} does not run on an input of {input_size}: {error}") from error
    for name, version in versions.items():
        if trace.maps[name]._version != version:
            del trace.maps[name]
    return trace


def run_features(body: nn.Module, x: Tensor) -> Any:
    """Runs a network without its classifier, where it knows how (timm's `forward_features`)."""
    run: Any = getattr(body, "forward_features", body)
    return run(x)
