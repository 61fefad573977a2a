"""Backbones that return feature maps."""

from __future__ import annotations

import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from c2f_zoo.backbones.batch_norm import CopiedNorm, copy_batch_norm, remember_copy, select_copy, set_copy
from c2f_zoo.backbones.default_taps import default_taps
from c2f_zoo.backbones.maps import to_map
from c2f_zoo.backbones.prune import prune
from c2f_zoo.backbones.trace import run_features, trace_maps
from c2f_zoo.registry import check_names

# The outputs of the forward pass that runs in this thread: a model may be called from several threads at once.
_running = threading.local()


class TapBackbone(nn.Module):
    """A network that returns the outputs of its taps as feature maps.

    A tap is a module of the network. Trainable weights that no tap depends on are removed: of VGG-16, the 124 M
    parameters of the classifier. Autograd decides: a weight that acts only through detached tensors counts as unused,
    unless its module runs under `torch.no_grad`. The forward pass keeps no state, so it may run in several threads at
    once.

    Args:
        body: the network, e.g. from `timm.create_model`; it is changed. It may be on the meta device.
        taps: names of the modules, in the order of the maps; None for the three default taps, see
            `c2f_zoo.backbones.default_taps.default_taps`; an int for that many of these, counted from the last.
        input_size: (channels, height, width) of the input.
        saved_weights: names of a saved network's weights; these are kept even if no tap depends on them.

    Attributes:
        taps: the names of the tapped modules.
        map_shapes: (channels, height, width) of each map at that input size.
        num_copies: number of copies of each batch norm; 1 without `copy_batch_norm`.

    Raises:
        ValueError: a tap does not exist, its output is not a feature map, or a later layer overwrites it.

    Examples:
        >>> backbone = TapBackbone(timm.create_model("resnet18"), ("layer4.0", "layer4.1"))
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 64, 64))]
        [(1, 512, 2, 2), (1, 512, 2, 2)]
    """

    def __init__(
        self,
        body: nn.Module,
        taps: Sequence[str] | int | None = None,
        input_size: tuple[int, int, int] = (3, 224, 224),
        saved_weights: Collection[str] = (),
    ) -> None:
        super().__init__()
        trace = trace_maps(body, input_size)
        if taps is None or isinstance(taps, int):
            taps = default_taps(body, trace)[-(taps or 0) :]
        _check_taps(taps, body, trace.maps)
        prune(body, trace, taps, input_size, keep=saved_weights)
        self.body = body
        self.taps = tuple(taps)
        shapes = [trace.maps[tap].shape for tap in taps]
        self.map_shapes: list[tuple[int, int, int]] = [(c, h, w) for _, c, h, w in shapes]
        self._layouts = [trace.layouts[tap] for tap in taps]
        self._layers = [_last_layer(body, tap) for tap in taps]
        self.num_copies = 1
        self._hook_taps()

    @property
    def out_channels(self) -> list[int]:
        """The number of channels of each map."""
        return [shape[0] for shape in self.map_shapes]

    def copy_batch_norm(self, sources: Sequence[int]) -> None:
        """Give each batch norm a copy for each resolution, or choose among the present copies.

        Args:
            sources: for each new copy, the number of the present copy that it starts from; 0 for a plain batch norm.

        Raises:
            ValueError: the network has no batch norm, or a tap is a part of one.

        Examples:
            >>> backbone = TapBackbone(timm.create_model("resnet18"), ("layer4.0", "layer4.1"))
            >>> backbone.copy_batch_norm([0, 0])
            >>> maps = backbone(torch.rand(1, 3, 64, 64), copy=1)
        """
        copy_batch_norm(self.body, sources)
        norms = [name for name, module in self.body.named_modules() if isinstance(module, CopiedNorm)]
        for tap, norm in itertools.product(self.taps, norms):
            if tap.startswith(f"{norm}."):
                raise ValueError(f"tap {tap!r} is a part of a batch norm, which gets copies; tap {norm!r} instead")
        self.num_copies = len(sources)
        self._hook_taps()

    def select_copy(self, copy: int) -> TapBackbone:
        """Return this backbone with one copy of each batch norm; all weights are shared."""
        selected = select_copy(self, copy)
        selected.num_copies = 1
        selected._hook_taps()
        return selected

    def forward(self, x: Tensor, copy: int = 0) -> list[Tensor]:
        """Compute feature maps (N, C_i, H_i, W_i) of images (N, channels, H, W).

        Args:
            x: the images.
            copy: number of the copies of batch norm, see `copy_batch_norm`.
        """
        if not torch.compiler.is_compiling():  # a compiled graph cannot register hooks
            self._hook_taps()
        outputs: dict[str, Any] = {}
        outer = getattr(_running, "outputs", None)
        _running.outputs, outer_copy = outputs, set_copy(copy)
        try:
            run_features(self.body, x)
        finally:
            _running.outputs = outer
            set_copy(outer_copy)
        missing = [tap for tap in self.taps if tap not in outputs]
        if missing:
            raise RuntimeError(
                f"the taps {missing} were replaced; run the model once before it is compiled or exported"
            )
        aspect = x.shape[2] / x.shape[3]
        maps = [to_map(outputs[tap], layout, aspect) for tap, layout in zip(self.taps, self._layouts, strict=True)]
        if self.num_copies > 1 and not torch.compiler.is_compiling():
            remember_copy(maps, copy)
        return maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether activations are computed again in the backward pass instead of stored.

        Raises:
            ValueError: the network does not support it.
        """
        try:
            if enable or hasattr(self.body, "set_grad_checkpointing"):
                self.body.set_grad_checkpointing(enable)  # type: ignore[operator]
        except (AssertionError, AttributeError) as error:  # timm's networks assert; others have no such method
            name = type(self.body).__name__
            raise ValueError(f"the backbone {name} does not support gradient checkpointing") from error
        for module in self.body.modules() if enable else ():
            hooked = _pause_statistics in module._forward_pre_hooks.values()
            if isinstance(module, _BatchNorm) and module.track_running_stats and not hooked:
                module.register_forward_pre_hook(_pause_statistics)
                # always_call: checkpointing stops in the middle of a layer, when it has all tensors
                module.register_forward_hook(_resume_statistics, always_call=True)

    def group_matcher(self, coarse: bool = False, prefix: str = "") -> Callable[[str], float]:
        """Return timm's grouping of parameters for layer-wise learning rates.

        Args:
            coarse: group by the network's stages instead of its blocks.
            prefix: what precedes the names of the backbone's parameters in a model, e.g. `"backbone."`.

        Returns:
            A function from the name of a parameter or module to a number: the network's layers from 0, infinity for
            names outside the backbone. A network without a grouping is one layer.
        """
        from timm.models import group_modules, group_parameters

        prefix += "body."
        if not hasattr(self.body, "group_matcher"):
            return lambda name: 0.0 if name.startswith(prefix) else math.inf
        matcher = self.body.group_matcher(coarse=coarse)  # type: ignore[operator]
        layers = {
            **group_modules(self.body, matcher, reverse=True),
            **group_parameters(self.body, matcher, reverse=True),
        }
        return lambda name: layers[name.removeprefix(prefix)] if name.startswith(prefix) else math.inf

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that timm excludes from weight decay."""
        names: Callable[[], set[str]] = getattr(self.body, "no_weight_decay", set)
        return {f"body.{name}" for name in names()}

    def _hook_taps(self) -> None:
        """Hook the taps that have no hook: new ones, and those replaced since, e.g. by `SyncBatchNorm`."""
        for tap, name in zip(self.taps, self._layers, strict=True):
            layer = self.body.get_submodule(name)
            if not any(isinstance(hook, _Recorder) and hook.tap == tap for hook in layer._forward_hooks.values()):
                layer.register_forward_hook(_Recorder(tap))


class _Recorder:
    """A forward hook that adds a module's output to the outputs of the running forward pass.

    It is a class, not a closure, so that it can be pickled. Without a running forward pass it does nothing: gradient
    checkpointing calls hooks in the backward pass too.
    """

    def __init__(self, tap: str) -> None:
        self.tap = tap

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        outputs = getattr(_running, "outputs", None)
        if outputs is not None:
            outputs[self.tap] = output


def _pause_statistics(norm: _BatchNorm, args: Any) -> None:
    """Pause running statistics outside the forward pass, where gradient checkpointing runs layers a second time."""
    if norm.training and getattr(_running, "outputs", None) is None:
        norm._momentum, norm.momentum = norm.momentum, 0.0  # type: ignore[assignment]


def _resume_statistics(norm: _BatchNorm, args: Any, output: Any) -> None:
    if "_momentum" in vars(norm):
        norm.momentum = vars(norm).pop("_momentum")
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked -= 1


def _last_layer(body: nn.Module, tap: str) -> str:
    """Return the name of the module that computes a tap's output: of a plain Sequential the last one.

    timm's gradient checkpointing calls the layers of a Sequential one by one. A layer with several names, which may run
    again later, does not stand for its Sequential.
    """
    uses = Counter(id(module) for _, module in body.named_modules(remove_duplicate=False))
    module = body.get_submodule(tap)
    while type(module) is nn.Sequential and len(module) and uses[id(module[-1])] == 1:
        tap, module = f"{tap}.{list(module._modules)[-1]}", module[-1]
    return tap


def _check_taps(taps: Sequence[str], body: nn.Module, maps: dict[str, Tensor]) -> None:
    check_names("tap", taps, [name for name, _ in body.named_modules() if name])
    for tap in taps:
        if tap not in maps:
            raise ValueError(
                f"the output of tap {tap!r} is not a feature map, or a later layer overwrites it; "
                f"the last possible taps are {list(maps)[-12:]}"
            )
