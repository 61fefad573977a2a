"""Conversion of a module's output to a feature map (N, C, H, W)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

Layout = Literal["NCHW", "NHWC", "tokens"]


def layout_of(output: Any, body: nn.Module, aspect: float) -> Layout | None:
    """Return the layout of a module's output as a feature map.

    Args:
        output: the module's output.
        body: the network; its `output_fmt` (timm) decides if both layouts are possible.
        aspect: height / width of the network's input and of its maps.

    Returns:
        The layout, or None if the output is not a map.
    """
    if not isinstance(output, Tensor):
        return None
    if output.ndim == 3 and _token_grid(output, body, aspect):
        return "tokens"
    if output.ndim != 4:
        return None
    _, first, second, third = output.shape
    readings: list[Layout] = []
    if _has_aspect(second, third, aspect):
        readings.append("NCHW")
    if _has_aspect(first, second, aspect):
        readings.append("NHWC")
    if getattr(body, "output_fmt", None) in readings:
        return body.output_fmt  # type: ignore[return-value]
    return readings[0] if readings else None


def to_map(output: Tensor, layout: Layout, body: nn.Module, aspect: float) -> Tensor:
    """Convert a module's output to a map (N, C, H, W).

    Prefix tokens (class and register tokens) are dropped; the others fill a grid of that aspect row by row.

    Raises:
        ValueError: the number of tokens does not fit a grid of that aspect.
    """
    if layout == "NCHW":
        return output
    if layout == "NHWC":
        return output.permute(0, 3, 1, 2)
    grid = _token_grid(output, body, aspect)
    if grid is None:
        raise ValueError(
            f"{output.shape[1] - _num_prefix(body)} tokens do not fill a grid of height / width {aspect:.3g}; "
            "use an input with sides that are multiples of the patch size"
        )
    return output[:, _num_prefix(body) :].transpose(1, 2).unflatten(2, grid)


def _has_aspect(height: int, width: int, aspect: float) -> bool:
    return abs(height - width * aspect) < 1


def _num_prefix(body: nn.Module) -> int:
    return getattr(body, "num_prefix_tokens", 0)


def _token_grid(output: Tensor, body: nn.Module, aspect: float) -> tuple[int, int] | None:
    count = output.shape[1] - _num_prefix(body)
    height = round((max(count, 0) * aspect) ** 0.5)
    if height and count % height == 0 and _has_aspect(height, count // height, aspect):
        return height, count // height
    return None
