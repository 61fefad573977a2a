"""Backbones: timm models and registered networks as lists of feature maps."""

from c2f_zoo.backbones.part_rcnn import part_rcnn
from c2f_zoo.backbones.registry import (
    BACKBONES,
    create_body,
    list_backbones,
    pretrained_cfg,
    register_backbone,
)
from c2f_zoo.backbones.tap_backbone import TapBackbone
from c2f_zoo.backbones.tiny import tiny

__all__ = [
    "BACKBONES",
    "TapBackbone",
    "create_body",
    "list_backbones",
    "part_rcnn",
    "pretrained_cfg",
    "register_backbone",
    "tiny",
]
