"""The smallest model of every module of timm: its default taps, and whether it runs forward and backward."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2f_zoo import create_model
from c2f_zoo.backbones import TapBackbone
from c2f_zoo.backbones.batch_norm import CopiedNorm, is_batch_norm
from c2f_zoo.backbones.maps import map_in
from c2f_zoo.backbones.trace import run_features


def smallest_models() -> Iterator[str]:
    """Yield the name of the model with the fewest weights of each module of timm."""
    for module in timm.list_modules():
        names = [name for name in timm.list_models(module=module) if is_timms(name)]
        sizes = {name: count_weights(name) for name in names}
        if sizes:
            yield min(sizes, key=sizes.__getitem__)


def is_timms(name: str) -> bool:
    """Return whether a model is timm's, not one that our integration registers."""
    return timm.models.model_entrypoint(name).__module__.startswith("timm.")


def count_weights(name: str) -> int:
    try:
        with torch.device("meta"):
            body = timm.create_model(name, num_classes=0)
    except Exception:  # constructors that read values of their tensors
        body = timm.create_model(name, num_classes=0)
    return sum(weight.numel() for weight in body.parameters())


def try_family(name: str) -> dict[str, Any]:
    """Build a model on a backbone, train it for one step, and compare its taps with timm's whole network.

    Returns:
        A row of the table; `result` is "ok" or what is wrong.
    """
    row: dict[str, Any] = {"module": timm.models.model_entrypoint(name).__module__.rpartition(".")[2], "model": name}
    try:
        size = timm.get_pretrained_cfg(name).input_size[1]
        torch.manual_seed(0)
        options = {"input_size": size, "pooling_options": {"dim": 8}}
        model = create_model("mlph", backbone=name, hierarchy="critters", **options)
        whole = timm.create_model(name, num_classes=0)
        total = sum(weight.numel() for weight in whole.parameters())
        kept = sum(weight.numel() for weight in model.backbone.parameters())
        row |= {
            "input": size,
            "taps": " ".join(model.config.taps),
            "maps": " ".join(f"{c}x{h}x{w}" for c, h, w in model.backbone.map_shapes),
            "align": model.config.pooling_options.get("align", ""),
            "kept": round(kept / total, 3),
            "result": first_fault(model, whole, torch.rand(2, 3, size, size)),
        }
    except Exception as error:  # any family's own error is a row of the table
        row["result"] = f"{type(error).__name__}: {error}"
    return row


def first_fault(model: Any, whole: nn.Module, x: Tensor) -> str:
    labels = torch.tensor([0, 3])
    sum(F.cross_entropy(logits, labels) for logits in model(x).values()).backward()
    without = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    if without:
        return f"no gradient: {' '.join(without)}"
    if not all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None):
        return "gradients are not finite"
    whole.load_state_dict(model.backbone.body.state_dict(), strict=False)
    pairs = zip(tensors_of_taps(model.backbone, x[:1]), tensors_of_taps(model.backbone, x[:1], whole), strict=True)
    if not all(torch.allclose(found, wanted, atol=1e-5) for found, wanted in pairs):
        return "other maps than timm's"
    maps = model.backbone(x[:1])
    if any(map(is_batch_norm, model.backbone.modules())):
        model.backbone.copy_batch_norm([0, 0])
        for norm in model.backbone.modules():
            if isinstance(norm, CopiedNorm):
                for weight in norm.copies[0].parameters():
                    nn.init.zeros_(weight)
        if not all(
            torch.allclose(found, y, atol=1e-5) for found, y in zip(model.backbone(x[:1], 1), maps, strict=True)
        ):
            return "other maps with copies of batch norm"
    copy = model.backbone.num_copies - 1
    try:
        model.backbone.body.set_grad_checkpointing()
    except (AssertionError, AttributeError):  # this network has no gradient checkpointing
        return "ok"
    pairs = zip(model.backbone(x[:1], copy), maps, strict=True)
    same = all(torch.allclose(found, wanted, atol=1e-5) for found, wanted in pairs)
    return "ok" if same else "other maps with gradient checkpointing"


@torch.no_grad()
def tensors_of_taps(backbone: TapBackbone, x: Tensor, body: nn.Module | None = None) -> list[Tensor]:
    """Return the tensors with the taps' maps, in evaluation mode, of the backbone's or of another network."""
    body = backbone.body if body is None else body
    found: dict[str, Tensor] = {}
    hooks = [
        body.get_submodule(tap).register_forward_hook(
            lambda _module, _args, output, tap=tap, layout=layout: found.update({tap: map_in(output, layout).clone()})
        )
        for tap, layout in zip(backbone.taps, backbone._layouts, strict=True)
    ]
    run_features(body.eval(), x)
    for hook in hooks:
        hook.remove()
    return [found[tap] for tap in backbone.taps]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(try_family(name))
