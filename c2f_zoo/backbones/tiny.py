"""A backbone small enough to be trained on a CPU and to be shipped with its weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from c2f_zoo.backbones.registry import register_backbone

_OPTIONS = {"channels": (16, 32, 64, 128), "stem_width": 16, "output_stride": 16, "zero_init_last": False}


@register_backbone("tiny")
def tiny(pretrained: bool = False, **options: Any) -> nn.Module:
    """timm's `resnet10t` with 16 to 128 channels and its last maps at a sixteenth of the input's side: 0.3 M weights.

    Args:
        pretrained: there are no weights for it alone, so this is an error.
        **options: further keyword arguments of timm's constructor, in place of those.

    Raises:
        ValueError: `pretrained` is true.
    """
    import timm

    if pretrained:
        raise ValueError("the backbone 'tiny' has no pretrained weights of its own; whole models of it have")
    return timm.create_model("resnet10t", num_classes=0, **{**_OPTIONS, **options})
