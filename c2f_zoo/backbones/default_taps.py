"""Default taps of a network."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor, nn

NUM_TAPS = 3  # X, Y and Z of the paper

_ACTIVATION_MODULES = ("torch.nn.modules.activation", "timm.layers.activations")


def default_taps(body: nn.Module, maps: dict[str, Tensor]) -> tuple[str, ...]:
    """Choose the last three blocks of the smallest or second smallest spatial size.

    timm's `group_matcher` defines the blocks: ResNet `layer4.0/1/2`, ConvNeXt `stages.3.blocks.0/1/2`, ViT the last
    three of `blocks`. If neither size has three blocks (ResNet-18), or blocks are single layers (VGG), activations
    are chosen: VGG-16 relu5_1, relu5_2, relu5_3.

    Args:
        body: the network.
        maps: module name -> output map, in order of execution.

    Returns:
        Three module names in order of execution.

    Raises:
        ValueError: the network has no such modules; the message lists possible taps.
    """
    maps = {name: x for name, x in maps.items() if x.shape[2] * x.shape[3] > 1}  # not squeeze-and-excite
    is_vgg = type(body).__name__ == "VGG"
    timm_blocks = [] if is_vgg else [name for name in maps if _matches(name, _block_patterns(body))]
    named_blocks = [name for name in maps if _matches(name, [r"(.*\.)?(blocks|layers)\.\d+"])]
    activations = [name for name in maps if _is_activation(name, body)]
    for names in (timm_blocks, named_blocks, activations):
        taps = _last_of_one_size(names, maps)
        if taps is not None:
            return taps
    raise ValueError(
        f"no default taps for {type(body).__name__}; pass taps=[...]; the last possible taps are {list(maps)[-12:]}"
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _is_activation(name: str, body: nn.Module) -> bool:
    # Inside a transformer's MLP an activation is a hidden layer, not a feature of the network.
    return "mlp" not in name.split(".") and type(body.get_submodule(name)).__module__ in _ACTIVATION_MODULES


def _block_patterns(body: nn.Module) -> list[str]:
    group_matcher = cast(Callable[..., Any] | None, getattr(body, "group_matcher", None))
    groups = group_matcher(coarse=False) if group_matcher else None
    if not isinstance(groups, dict):
        return []
    blocks = groups.get("blocks", [])
    pairs = [(blocks, None)] if isinstance(blocks, str) else [(b, None) if isinstance(b, str) else b for b in blocks]
    # A pattern with an explicit order is a stem, a downsampling or a last norm, not a block.
    return [pattern for pattern, order in pairs if order is None]


def _last_of_one_size(names: Sequence[str], maps: dict[str, Tensor]) -> tuple[str, ...] | None:
    by_area: dict[int, list[str]] = {}
    for name in names:
        by_area.setdefault(maps[name].shape[2] * maps[name].shape[3], []).append(name)
    for area in sorted(by_area)[:2]:
        if len(by_area[area]) >= NUM_TAPS:
            return tuple(by_area[area][-NUM_TAPS:])
    return None
