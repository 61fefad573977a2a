"""Backbones that return feature maps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

from c2f_zoo.backbones.default_taps import default_taps
from c2f_zoo.backbones.maps import to_map
from c2f_zoo.backbones.prune import removable_modules, replace_modules, unused_modules
from c2f_zoo.backbones.trace import run_features, trace_maps
from c2f_zoo.registry import unknown_name


class TapBackbone(nn.Module):
    """A network that returns the outputs of its taps as feature maps.

    A tap is a module of the network. Layers that no tap depends on are removed: of VGG-16, the 124 M parameters of the
    classifier.

    Args:
        body: the network, e.g. from `timm.create_model`; it is changed. It may be on the meta device.
        taps: names of the modules, in the order of the maps; None for the three default taps, see
            `c2f_zoo.backbones.default_taps.default_taps`; an int for that many of these, counted from the last.
        input_size: (channels, height, width) of the input.
        saved_weights: names of a saved network's weights; unused layers without saved weights are removed. Default:
            all unused layers are removed, if the network runs without them.

    Attributes:
        taps: the names of the tapped modules.
        map_shapes: (channels, height, width) of each map at that input size.

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
        saved_weights: Collection[str] | None = None,
    ) -> None:
        super().__init__()
        trace = trace_maps(body, input_size)
        if taps is None or isinstance(taps, int):
            taps = default_taps(body, trace.maps)[-(taps or 0) :]
        _check_taps(taps, body, trace.maps)
        unused = unused_modules(trace, taps)
        if saved_weights is None:
            removed = removable_modules(trace, taps, unused, input_size)
        else:
            removed = [name for name in unused if not _has_any(body.get_submodule(name), name, saved_weights)]
        replace_modules(body, removed)
        self.body = body
        self.taps = tuple(taps)
        self.map_shapes: list[tuple[int, int, int]] = [_shape(trace.maps[tap]) for tap in taps]
        self._layouts = [trace.layouts[tap] for tap in taps]
        self._outputs: dict[str, Tensor] = {}
        for tap in self.taps:
            body.get_submodule(tap).register_forward_hook(_Recorder(tap, self._outputs))

    @property
    def out_channels(self) -> list[int]:
        """The number of channels of each map."""
        return [shape[0] for shape in self.map_shapes]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute feature maps (N, C_i, H_i, W_i) of images (N, channels, H, W)."""
        run_features(self.body, x)
        outputs = dict(self._outputs)
        self._outputs.clear()
        aspect = x.shape[2] / x.shape[3]
        return [
            to_map(outputs[tap], layout, self.body, aspect)
            for tap, layout in zip(self.taps, self._layouts, strict=True)
        ]

    def __getstate__(self) -> dict[str, Any]:
        # Gradient checkpointing runs the hooks in the backward pass too; tensors of that pass cannot be copied.
        self._outputs.clear()
        return self.__dict__


class _Recorder:
    """A forward hook that stores a module's output.

    As a class, not a closure, it is copied with the backbone: a deep copy stores into its own dictionary.
    """

    def __init__(self, tap: str, outputs: dict[str, Tensor]) -> None:
        self.tap = tap
        self.outputs = outputs

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.outputs[self.tap] = output


def _check_taps(taps: Sequence[str], body: nn.Module, maps: dict[str, Tensor]) -> None:
    names = [name for name, _ in body.named_modules() if name]
    for tap in taps:
        if tap not in names:
            raise unknown_name("tap", tap, names)
        if tap not in maps:
            raise ValueError(
                f"the output of tap {tap!r} is not a feature map, or a later layer overwrites it; "
                f"the last possible taps are {list(maps)[-12:]}"
            )


def _has_any(module: nn.Module, prefix: str, names: Collection[str]) -> bool:
    return any(f"{prefix}.{name}" in names for name, _ in module.named_parameters())


def _shape(feature_map: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = feature_map.shape
    return channels, height, width
