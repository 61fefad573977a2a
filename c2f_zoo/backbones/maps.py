"""Conversion of a module's output to a feature map (N, C, H, W)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from torch import Tensor, nn


class Layout(NamedTuple):
    """Where a module's output has its feature map, and how it lies there.

    Attributes:
        order: the order of the dimensions; `"tokens"` is (N, tokens, C).
        prefix: number of tokens before those of the map (class and register tokens).
        position: that of the map if the output is a tuple or a list.
    """

    order: Literal["NCHW", "NHWC", "tokens"]
    prefix: int = 0
    position: int | None = None


def layout_of(output: Any, body: nn.Module, aspect: float) -> Layout | None:
    """Return the layout of the feature map in a module's output for one image.

    Of several maps it is the first of four dimensions, else the sequence with the fewest tokens: of a CrossViT, the
    branch of large patches.

    Args:
        output: the module's output for a batch of one image.
        body: the network; its `output_fmt` (timm) decides if both orders are possible, its `num_prefix_tokens` is
            tried before 0 and 1: some networks add a class token after the first blocks.
        aspect: height / width of the network's input and of its maps.

    Returns:
        The layout, or None if the output has no map.
    """
    if isinstance(output, (tuple, list)):
        maps, sequences = [], []
        for position, x in enumerate(output):
            layout = layout_of(x, body, aspect) if isinstance(x, Tensor) else None
            if layout is not None and layout.order != "tokens":
                maps.append(layout._replace(position=position))
            elif layout is not None and x.shape[1] > layout.prefix + 1:
                sequences.append((x.shape[1], layout._replace(position=position)))
        return next(iter([*maps, *(layout for _, layout in sorted(sequences))]), None)
    if not isinstance(output, Tensor) or output.ndim not in (3, 4) or output.shape[0] != 1:
        return None
    if output.ndim == 3:
        prefixes = dict.fromkeys((getattr(body, "num_prefix_tokens", None) or 0, 0, 1))
        fitting = (prefix for prefix in prefixes if _grid(output.shape[1] - prefix, aspect))
        return next((Layout("tokens", prefix) for prefix in fitting), None)
    _, first, second, third = output.shape
    readings: list[Layout] = []
    if _has_aspect(second, third, aspect):
        readings.append(Layout("NCHW"))
    if _has_aspect(first, second, aspect):
        readings.append(Layout("NHWC"))
    native = [layout for layout in readings if layout.order == getattr(body, "output_fmt", None)]
    return next(iter(native or readings), None)


def map_in(output: Any, layout: Layout) -> Tensor:
    """Return the tensor of a module's output that has the feature map."""
    return output if layout.position is None else output[layout.position]


def to_map(output: Any, layout: Layout, aspect: float) -> Tensor:
    """Convert a module's output to a map (N, C, H, W).

    Prefix tokens are dropped; the others fill a grid of that aspect row by row.

    Raises:
        ValueError: the number of tokens does not fit a grid of that aspect.
    """
    x = map_in(output, layout)
    if layout.order == "NCHW":
        return x
    if layout.order == "NHWC":
        return x.permute(0, 3, 1, 2)
    grid = _grid(x.shape[1] - layout.prefix, aspect)
    if grid is None:
        raise ValueError(
            f"{x.shape[1] - layout.prefix} tokens do not fill a grid of height / width {aspect:.3g}; "
            "use an input with sides that are multiples of the patch size"
        )
    # Not unflatten, after which ONNX's exporter by tracing takes the batch for a constant.
    return x[:, layout.prefix :].transpose(1, 2).reshape(x.shape[0], x.shape[2], *grid)


def _has_aspect(height: int, width: int, aspect: float) -> bool:
    return abs(height - width * aspect) < 1


def _grid(count: int, aspect: float) -> tuple[int, int] | None:
    """Return the height and width of a grid of that many tokens."""
    count, aspect = int(count), float(aspect)  # torch.jit.trace gives tensors
    height = round((max(count, 0) * aspect) ** 0.5)
    if height and count % height == 0 and _has_aspect(height, count // height, aspect):
        return height, count // height
    return None
