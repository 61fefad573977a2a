"""Optimizers and learning rate schedules."""

from __future__ import annotations

from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from c2f_zoo.model import C2FModel
from c2f_zoo.training.options import Stage, TrainOptions


def create_optimizer(model: C2FModel, stage: Stage, options: TrainOptions) -> tuple[SGD, StepLR]:
    """Create the optimizer and the schedule of a stage.

    The backbone is frozen if the stage does not train it.

    Args:
        model: the model.
        stage: the stage; its learning rates are used.
        options: the options; `momentum` and `weight_decay` are used.
    """
    model.backbone.requires_grad_(stage.backbone_lr > 0)
    groups = [{"params": [*model.pooling.parameters(), *model.head.parameters()], "lr": stage.lr}]
    if stage.backbone_lr > 0:
        groups.append({"params": list(model.backbone.parameters()), "lr": stage.backbone_lr})
    optimizer = SGD(groups, momentum=options.momentum, weight_decay=options.weight_decay)
    return optimizer, StepLR(optimizer, stage.halve_every, gamma=0.5)
