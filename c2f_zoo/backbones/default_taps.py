"""Default taps of a network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from torch import nn

from c2f_zoo.backbones.trace import Trace

NUM_TAPS = 3  # X, Y and Z of the paper

_ACTIVATION_MODULES = ("torch.nn.modules.activation", "timm.layers.activations")


def default_taps(body: nn.Module, trace: Trace) -> tuple[str, ...]:
    """Choose three outputs of whole blocks near the end of a network.

    A block's output is whole if everything later depends on the image only through it (in a ResNet the sum after a
    block, not a layer inside it; in a DenseNet a dense block, not one of its layers), or if it has the size and the
    channels of a stage (NASNet's cells use the last two cells).

    A network may name its own, in an attribute `default_taps`. Else they are the first of these that exist:

    1. VGG: the last three activations of one size, as in the paper (VGG-16: relu5_1, relu5_2, relu5_3).
    2. The last three whole blocks of the smallest or second smallest spatial size. timm's `group_matcher` defines the
       blocks: ResNet-50 `layer4.0/1/2`, ConvNeXt `stages.3.blocks.0/1/2`, ViT the last three of `blocks`. If it
       defines too few, any numbered module of several layers is a block.
    3. The last three stages, by timm's `feature_info`: ResNet-18 `layer2`, `layer3`, `layer4`. They differ in size.
    4. The last three activations of one size, for networks without `feature_info` or whose stages return several maps.

    Args:
        body: the network.
        trace: its trace.

    Returns:
        Three module names in order of execution.

    Raises:
        ValueError: the network has no such modules; the message lists possible taps.
    """
    if isinstance(own := getattr(body, "default_taps", None), tuple):
        return own
    names = [name for name, x in trace.maps.items() if x.shape[2] * x.shape[3] > 1]  # not squeeze-and-excite
    activations = [name for name in names if _is_activation(name, body)]
    if type(body).__name__ == "VGG":
        return _last_of_one_size(activations, trace) or tuple(activations[-NUM_TAPS:])
    stages = [stage for stage in _stages(body) if _map_shape(stage["module"], trace)[:1] == (stage["num_chs"],)]
    as_stages = {_map_shape(stage["module"], trace) for stage in stages}
    like_stages = [n for n in names if n in trace.whole or not stages or _map_shape(n, trace) in as_stages]
    patterns = _block_patterns(body)
    numbered = [name for name in names if name in trace.whole and _is_numbered(name, body)]
    numbered = [name for name in numbered if not _matches(name, [rf"{pattern}\..*" for pattern in patterns])]
    innermost = [name for name in numbered if not any(other.startswith(f"{name}.") for other in numbered)]
    taps = (
        _last_of_one_size([name for name in like_stages if _matches(name, patterns)], trace)
        or _last_of_one_size(innermost, trace)
        or _last_of_one_size([name for name in like_stages if _matches(name, [r".*(blocks|layers)\.\d+"])], trace)
        or tuple(stage["module"] for stage in stages[-NUM_TAPS:])
    )
    if len(taps) < NUM_TAPS:
        taps = _last_of_one_size(activations, trace)
    if not taps:
        raise ValueError(
            f"no default taps for {type(body).__name__}; pass taps=[...]; the last possible taps are "
            f"{list(trace.maps)[-12:]}"
        )
    return taps


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _is_activation(name: str, body: nn.Module) -> bool:
    # Inside a transformer's MLP an activation is a hidden layer, not a feature of the network.
    return "mlp" not in name.split(".") and type(body.get_submodule(name)).__module__ in _ACTIVATION_MODULES


def _is_numbered(name: str, body: nn.Module) -> bool:
    """Return whether a module is numbered and consists of several modules with weights."""
    children = body.get_submodule(name).children()
    return name.rpartition(".")[2].isdigit() and sum(any(True for _ in child.parameters()) for child in children) > 1


def _block_patterns(body: nn.Module) -> list[str]:
    group_matcher = cast(Callable[..., Any] | None, getattr(body, "group_matcher", None))
    groups = group_matcher(coarse=False) if group_matcher else None
    if not isinstance(groups, dict):
        return []
    blocks = groups.get("blocks", [])
    pairs = [(blocks, None)] if isinstance(blocks, str) else [(b, None) if isinstance(b, str) else b for b in blocks]
    # A pattern with an explicit order is a stem, a downsampling or a last norm, not a block.
    return [pattern for pattern, order in pairs if order is None]


def _stages(body: nn.Module) -> list[dict[str, Any]]:
    return list(cast(Iterable[dict[str, Any]], getattr(body, "feature_info", ())) or ())


def _map_shape(name: str, trace: Trace) -> tuple[int, ...]:
    return tuple(trace.maps[name].shape[1:]) if name in trace.maps else ()


def _last_of_one_size(names: Sequence[str], trace: Trace) -> tuple[str, ...]:
    by_area: dict[int, list[str]] = {}
    for name in {trace.nodes[name]: name for name in reversed(names)}.values():  # of equal outputs, the first
        x = trace.maps[name]
        by_area.setdefault(x.shape[2] * x.shape[3], []).insert(0, name)
    for area in sorted(by_area)[:2]:
        if len(by_area[area]) >= NUM_TAPS:
            return tuple(by_area[area][-NUM_TAPS:])
    return ()
