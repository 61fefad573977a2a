"""Optimizers, learning rate schedules and the moving average of the weights."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import timm.optim
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch.optim import Optimizer

from c2f_zoo.model import C2FModel
from c2f_zoo.registry import check_names
from c2f_zoo.training.options import Stage, TrainOptions

_OF_STAGE_OR_RUN = ("params", "lr", "momentum", "weight_decay")  # not among the optimizer's additional options


def create_optimizer(model: C2FModel, stage: Stage, options: TrainOptions) -> Optimizer:
    """Create the optimizer of a stage.

    The backbone is frozen if the stage does not train it. `sgd` has plain momentum; timm's default is Nesterov's.

    Args:
        model: the model.
        stage: the stage; its learning rates are used.
        options: the options; `optimizer`, `optimizer_options`, `momentum`, `weight_decay`, `filter_bias_and_bn` and
            `layer_decay` are used.

    Returns:
        The optimizer; the first group holds weights of pooling and head, at the stage's `lr`.

    Raises:
        ValueError: the optimizer or one of its options is unknown or out of range, or the backbone has no layers for
            `layer_decay`.

    Examples:
        >>> from c2f_zoo.training.options import Stage, TrainOptions
        >>> options = TrainOptions("critters", "mlph_tiny_critters", {}, [], optimizer="adamw")
        >>> stage = Stage(epochs=1, lr=0.1, backbone_lr=0.01)
        >>> optimizer = create_optimizer(create_model("mlph_tiny_critters"), stage, options)
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.1, 0.01]
    """
    check_optimizer(options)
    check_layer_decay(options, model)
    model.backbone.requires_grad_(stage.backbone_lr > 0)
    return create_from_groups(list(parameter_groups(model, stage, options)), stage.lr, options)


def create_from_groups(groups: list[dict[str, Any]], lr: float, options: TrainOptions) -> Optimizer:
    """Create the optimizer of parameter groups; see `create_optimizer`.

    Args:
        groups: the groups.
        lr: learning rate of groups without one.
        options: the options; `optimizer`, `optimizer_options`, `momentum` and `weight_decay` are used.

    Raises:
        ValueError: the values of the optimizer's options are invalid.
    """
    name = options.optimizer.lower()
    defaults = {"nesterov": False} if name == "sgd" else {}
    try:
        return timm.optim.create_optimizer_v2(
            groups,
            opt=name,
            lr=lr,
            weight_decay=options.weight_decay,
            momentum=options.momentum,
            **{**defaults, **options.optimizer_options},
        )
    except (TypeError, AssertionError) as error:
        raise ValueError(f"optimizer_options {options.optimizer_options} do not fit {name!r}: {error}") from error


def check_optimizer(options: TrainOptions) -> None:
    """Check the options of the optimizer.

    Raises:
        ValueError: the optimizer or one of its options is unknown.
    """
    name = options.optimizer.lower()
    check_names("optimizer", [name], [str(known) for known in timm.optim.list_optimizers()])
    if timm.optim.get_optimizer_info(name).second_order:
        raise ValueError(f"optimizer {name!r} needs second derivatives, which the recipe does not compute")
    elsewhere = [key for key in _OF_STAGE_OR_RUN if key in options.optimizer_options]
    if elsewhere:
        raise ValueError(
            f"optimizer_options must not have {', '.join(elsewhere)}: lr belongs to the stages, momentum and "
            "weight_decay are options of the run"
        )
    parameters = inspect.signature(timm.optim.get_optimizer_class(name, bind_defaults=False)).parameters
    check_names(f"option of optimizer {name!r}:", options.optimizer_options, set(parameters) - {*_OF_STAGE_OR_RUN})


def check_layer_decay(options: TrainOptions, model: C2FModel) -> None:
    """Check that `layer_decay` is null or in (0, 1], and that the backbone has layers for it.

    Raises:
        ValueError: it is out of range, or the backbone has no layers.
    """
    if options.layer_decay is None:
        return
    if not 0 < options.layer_decay <= 1:
        raise ValueError(f"layer_decay is {options.layer_decay}; it must be above 0 and at most 1")
    if not hasattr(model.backbone.body, "group_matcher"):
        raise ValueError(
            f"layer_decay needs the layers of the backbone, but {type(model.backbone.body).__name__} has no timm "
            "group_matcher; set layer_decay to null"
        )


def parameter_groups(model: C2FModel, stage: Stage, options: TrainOptions) -> Iterator[dict[str, Any]]:
    """Yield timm's parameter groups with the learning rates of a stage, those of pooling and head first.

    With `filter_bias_and_bn`, biases, norms and the weights that the backbone's `no_weight_decay` names have no weight
    decay. With `layer_decay`, each layer of the backbone is `layer_decay` times slower than the next one; pooling and
    head come after the last layer.

    Args:
        model: the model; only weights that require gradients are in groups.
        stage: the stage; its learning rates are used.
        options: the options; `weight_decay`, `filter_bias_and_bn` and `layer_decay` are used.
    """
    exempt = model.no_weight_decay() if options.filter_bias_and_bn else ()
    if options.layer_decay is not None:
        groups = param_groups_layer_decay(
            model,
            options.weight_decay,
            no_weight_decay_list=exempt,
            weight_decay_exclude_1d=options.filter_bias_and_bn,
            layer_decay=options.layer_decay,
        )
    elif options.filter_bias_and_bn:
        groups = param_groups_weight_decay(model, options.weight_decay, no_weight_decay_list=exempt)
    else:
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        groups = [{"params": weights, "weight_decay": options.weight_decay}]
    in_backbone = {id(weight) for weight in model.backbone.parameters()}
    for lr, is_backbone in ((stage.lr, False), (stage.backbone_lr, True)):
        for group in groups:
            weights = [weight for weight in group["params"] if (id(weight) in in_backbone) == is_backbone]
            if weights:
                scaled = lr * group.get("lr_scale", 1.0)
                yield {"params": weights, "lr": scaled, "weight_decay": group["weight_decay"]}


def create_schedule(optimizer: Optimizer, stage: Stage, steps_per_epoch: int) -> Scheduler:
    """Create the learning rate schedule of a stage and set the learning rates of its first step.

    The schedule has no state: `schedule.step_update(n)` sets the learning rates of step n, counted from 0, so that a
    resumed run only needs the number.

    Args:
        optimizer: the optimizer, with the stage's learning rates.
        stage: the stage; `epochs`, `schedule`, `halve_every` and `warmup_epochs` are used.
        steps_per_epoch: number of optimizer steps in an epoch.

    Examples:
        >>> from torch import nn, optim
        >>> from c2f_zoo.training.options import Stage
        >>> optimizer = optim.SGD(nn.Linear(2, 2).parameters(), lr=0.4)
        >>> schedule = create_schedule(optimizer, Stage(epochs=4, lr=0.4, schedule="linear"), steps_per_epoch=2)
        >>> schedule.step_update(6)
        >>> round(optimizer.param_groups[0]["lr"], 6)
        0.1
    """
    total = stage.epochs * steps_per_epoch
    warmup = min(round(stage.warmup_epochs * steps_per_epoch), total - 1)
    common: dict[str, Any] = {"warmup_t": warmup, "t_in_epochs": False}
    if stage.schedule == "step":
        # warmup_prefix=False: epochs count from the start of the stage.
        halve_every = stage.halve_every * steps_per_epoch
        return StepLRScheduler(optimizer, halve_every, decay_rate=0.5, warmup_prefix=False, **common)
    if stage.schedule == "cosine":
        return CosineLRScheduler(optimizer, total - warmup, warmup_prefix=True, **common)
    return PolyLRScheduler(optimizer, total - warmup, power=1.0, warmup_prefix=True, **common)


def create_ema(model: C2FModel, options: TrainOptions) -> ModelEmaV3 | None:
    """Create the moving average of a model's weights; None if `ema` is null.

    After optimizer step n, counted from 1 over all stages, call `ema.update(model, step=n)`. The decay rises to
    `options.ema` as 1 - n^(-2/3), so that the average soon forgets the untrained weights. Running statistics of batch
    norm are averaged too; integer buffers are copied. `ema.module` is the averaged model, `ema.state_dict()` its state.

    Args:
        model: the model, on its device, not wrapped.
        options: the options; `ema` is used.

    Raises:
        ValueError: `ema` is out of range, or modules of the model share weights, which timm would average twice.
    """
    if options.ema is None:
        return None
    if not 0 <= options.ema < 1:
        raise ValueError(f"ema is {options.ema}; the decay must be 0 or more and below 1")
    tensors = model.state_dict(keep_vars=True)
    shared = len(tensors) - len({id(tensor) for tensor in tensors.values()})
    if shared:
        raise ValueError(
            f"ema is {options.ema}, but {shared} weights of the model are shared by modules; set ema to null"
        )
    return ModelEmaV3(model, decay=options.ema, use_warmup=True)
