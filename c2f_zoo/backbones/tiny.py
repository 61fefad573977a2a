"""A backbone small enough to train on a CPU and to ship with its weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from c2f_zoo.backbones.registry import register_backbone

_OPTIONS = {"channels": (16, 32, 64, 128), "stem_width": 16, "output_stride": 16, "zero_init_last": False}


@register_backbone("tiny")
def tiny(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build timm's `resnet10t` with 16 to 128 channels and output stride 16.

    Args:
        pretrained: unsupported, since there are no weights of this backbone alone.
        **options: additional keyword arguments of timm's constructor; they override the defaults.

    Raises:
        ValueError: `pretrained` is true.
    """
    import timm

    if pretrained:
        raise ValueError(
            "the backbone 'tiny' has no pretrained weights; load a whole model: list_models('*tiny*', pretrained=True)"
        )
    return timm.create_model("resnet10t", num_classes=0, **{**_OPTIONS, **options})
