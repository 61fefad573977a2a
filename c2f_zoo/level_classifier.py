"""One level of a model as a classifier with timm's interface."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from c2f_zoo.backbones import TapBackbone, pretrained_cfg
from c2f_zoo.backbones.registry import wrapped_network
from c2f_zoo.config import ModelConfig
from c2f_zoo.heads import Head
from c2f_zoo.heads.levels import LevelsHead
from c2f_zoo.pooling import Pooling, create_pooling
from c2f_zoo.registry import check_names

_BODY = "backbone.body."  # prefix of the names of the backbone's modules


class LevelClassifier(nn.Module):
    """One level of a `C2FModel` with timm's classifier interface, from `C2FModel.at_level`.

    It returns one tensor of logits. Of the head `"levels"` it keeps only the linear layer of its level; any other head
    is kept whole. With `batch_norm="per_level"`, it has the batch norm of its level only.

    Args:
        backbone: the model's backbone; the weights of all parts are shared with the model.
        pooling: the model's pooling.
        head: the model's head.
        config: the model's configuration.
        level: a level that the model predicts.
        drop_rate: dropout rate of the pooled vector, in [0, 1].

    Attributes:
        num_classes: number of classes; 0 after `reset_classifier(0)`.
        num_features: length of the pooled vector; without a pooling, the number of channels of the last map.
        head_hidden_size: the input size of the classifier, equal to `num_features`.
        in_chans: number of channels of the images.
        pretrained_cfg: timm's description of input, classes and layers, see `level_cfg`; `default_cfg` is the same.
        feature_info: timm's description of the taps: a dict for each with `module`, `num_chs` and `reduction`.

    Raises:
        ValueError: the model does not predict that level.

    Examples:
        >>> model = create_model("mlph", backbone="resnet18", hierarchy="cub", input_size=64)
        >>> species = model.at_level("species")
        >>> species(torch.rand(2, 3, 64, 64)).shape == (2, species.num_classes)
        True
        >>> species.feature_info[-1]
        {'module': 'backbone.body.layer4', 'num_chs': 512, 'reduction': 32}
    """

    def __init__(
        self,
        backbone: TapBackbone,
        pooling: Pooling,
        head: Head,
        config: ModelConfig,
        level: str,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_names("level", [level], config.levels)
        if config.batch_norm == "per_level":
            backbone = backbone.select_copy(config.norm_copies[level])
        self.backbone = backbone
        self.pooling: Pooling | None = pooling
        self.head_drop = nn.Dropout(drop_rate)
        self.head = _classifier_of(head, level)
        self.num_features = self.head_hidden_size = pooling.out_features
        self.pretrained_cfg = level_cfg(config, level)
        self.pretrained_cfg["pool_size"] = backbone.map_shapes[-1][1:]
        if self.pretrained_cfg["first_conv"] is None:  # a registered backbone may be a network of timm
            own = getattr(backbone.body, "pretrained_cfg", None) or {}
            self.pretrained_cfg["first_conv"] = _in_body(own.get("first_conv"))
        self.pretrained_cfg["classifier"] = self._classifier_name()
        self.default_cfg = self.pretrained_cfg
        self.num_classes: int = self.pretrained_cfg["num_classes"]
        self.in_chans, height, _ = config.preprocessing.input_size
        self.feature_info: list[dict[str, Any]] = [
            {"module": _BODY + tap, "num_chs": channels, "reduction": _reduction(backbone.body, height / rows)}
            for tap, (channels, rows, _) in zip(backbone.taps, backbone.map_shapes, strict=True)
        ]

    def get_classifier(self) -> nn.Module:
        """Return the linear layer, or an `nn.Identity` after `reset_classifier(0)`."""
        return self.head.get_classifier() if isinstance(self.head, _OneLevel) else self.head

    def _classifier_name(self) -> str | None:
        try:
            classifier = self.get_classifier()
        except ValueError:  # a head without a linear layer for the level
            return None
        return next(name for name, module in self.named_modules() if module is classifier)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier with a new, untrained linear layer.

        The original model keeps its pooling and classifier. The names of the classes are dropped if their number
        changes.

        Args:
            num_classes: number of classes; 0 removes the classifier, so that the output is the pooled vector.
            global_pool: a new pooling, one of `list_poolings()` with its default options, e.g. `"avg"`. With `""` there
                is none: the output is the last map (N, C, H, W). Default: the present pooling.

        Raises:
            ValueError: `num_classes` is negative, `global_pool` is unknown, or there are classes and no pooling.
        """
        if num_classes < 0:
            raise ValueError(f"num_classes is {num_classes}; it must be 0 or more")
        pooling = self.pooling
        if global_pool is not None:
            pooling = create_pooling(global_pool, self.backbone.out_channels) if global_pool else None
        if num_classes and pooling is None:
            raise ValueError(f"a classifier of {num_classes} classes needs a pooling; pass global_pool='avg'")
        weight = next(self.parameters())
        features = pooling.out_features if pooling else self.backbone.out_channels[-1]
        head = nn.Linear(features, num_classes) if num_classes else nn.Identity()
        self.head = head.to(weight.device, weight.dtype)
        if global_pool is not None:
            self.pooling = pooling.to(weight.device, weight.dtype) if pooling else None
            self.global_pool = global_pool  # timm's name; save_for_hf saves it
        self.num_classes = num_classes
        self.pretrained_cfg["classifier"] = "head"
        self.num_features = self.head_hidden_size = features
        if num_classes != self.pretrained_cfg["num_classes"]:
            for key in ("label_names", "label_descriptions"):
                self.pretrained_cfg.pop(key, None)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether the backbone recomputes activations instead of storing them.

        Raises:
            ValueError: the backbone does not support it.
        """
        self.backbone.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Return timm's grouping of parameters for layer-wise learning rates.

        Args:
            coarse: group by the backbone's stages instead of its blocks.

        Returns:
            A function from the name of a parameter or module to a number: the backbone's layers from 0, infinity for
            the pooling and the classifier.
        """
        return self.backbone.group_matcher(coarse, prefix="backbone.")

    def no_weight_decay(self) -> set[str]:
        """Return the names of backbone parameters that timm excludes from weight decay."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Compute the taps' feature maps of images."""
        return self.backbone(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[list[Tensor], list[Tensor]]:
        """Compute feature maps, with the signature of timm's models.

        Args:
            x: images (N, channels, height, width).
            indices: the taps: an int for that many of the last, or positions; negative ones count from the end.
                Default: all.
            norm: has no effect: no norm follows the taps.
            stop_early: has no effect: nothing after the last tap is kept.
            output_fmt: must be `"NCHW"`.
            intermediates_only: leave out the first item of the result.

        Returns:
            The maps of `forward_features`, and those of `indices`.

        Raises:
            ValueError: an index is out of range, or `output_fmt` is unsupported.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r} is unsupported; these models return maps 'NCHW'")
        chosen = choose_taps(indices, len(self.backbone.taps))
        maps = self.forward_features(x)
        intermediates = [maps[index] for index in chosen]
        return intermediates if intermediates_only else (maps, intermediates)

    def forward_head(self, maps: Sequence[Tensor], pre_logits: bool = False) -> Tensor:
        """Compute logits (N, num_classes), or pooled vectors (N, num_features), of maps."""
        v = self.head_drop(self.pooling(maps) if self.pooling is not None else maps[-1])
        return v if pre_logits else self.head(v)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, num_classes) of images (N, channels, height, width)."""
        return self.forward_head(self.forward_features(x))


def level_cfg(config: ModelConfig, level: str) -> dict[str, Any]:
    """Describe one level of a model with the keys of timm's `pretrained_cfg`; build nothing.

    `label_names` are the class names, and `label_descriptions` their paths in the tree.

    Examples:
        >>> config = create_model("mlph", backbone="resnet18", hierarchy="cub", input_size=64).config
        >>> cfg = level_cfg(config, "genus")
        >>> cfg["input_size"], cfg["num_classes"], cfg["first_conv"]
        ((3, 64, 64), 113, 'backbone.body.conv1')
        >>> cfg["label_descriptions"][cfg["label_names"][0]]
        'Diomedeidae > Phoebastria'
    """
    network, _ = wrapped_network(config.backbone, config.backbone_options)
    of_backbone, prefix = pretrained_cfg(network), "" if network == config.backbone else "network.body."
    is_dynamic = config.backbone_options.get("dynamic_img_size", False)
    tree = config.hierarchy.truncate(level)
    names = tree.class_names(level)
    return config.pretrained_cfg | {
        "fixed_input_size": of_backbone.get("fixed_input_size", False) and not is_dynamic,
        "num_classes": len(names),
        "label_names": names,
        "label_descriptions": {name: " > ".join(tree.path(label)) for label, name in enumerate(names)},
        "pool_size": None,
        "first_conv": _in_body(of_backbone.get("first_conv"), prefix),
        "classifier": "head" if config.head == "levels" else None,  # of other heads, the built model knows it
    }


def choose_taps(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Return the positions of taps, counted from 0, as timm reads `indices` and `out_indices`.

    Raises:
        ValueError: there is no such tap.

    Examples:
        >>> choose_taps(None, 3), choose_taps(2, 3), choose_taps((0, -1), 3)
        ([0, 1, 2], [1, 2], [0, 2])
    """
    if isinstance(indices, int):
        indices = range(-indices, 0) if indices > 0 else [count]
    chosen = range(count) if indices is None else indices
    if not all(-count <= index < count for index in chosen):
        raise ValueError(f"no taps {list(chosen)}: the model has {count} taps, 0 to {count - 1}")
    return [index % count for index in chosen]


def _in_body(names: str | Sequence[str] | None, prefix: str = "") -> str | tuple[str, ...] | None:
    """Return the names of a backbone's layers in the classifier."""
    if isinstance(names, str):
        return _BODY + prefix + names
    return tuple(_BODY + prefix + name for name in names) if names else None


def _reduction(body: nn.Module, scale: float) -> int:
    """Return the stride of a map from the sizes of image and map: without padding the map is smaller.

    It is the nearest power of two, or reduction of timm's `feature_info` (a ViT's patch size).
    """
    stages: Any = getattr(body, "feature_info", ()) or ()
    strides = {1, 2, 4, 8, 16, 32, 64, *(stage["reduction"] for stage in stages)}
    return min(strides, key=lambda stride: abs(math.log(stride / scale)))


def _classifier_of(head: Head, level: str) -> nn.Module:
    """Return the smallest module that computes one level's logits from vectors."""
    return head.get_classifier(level) if isinstance(head, LevelsHead) else _OneLevel(head, level)


class _OneLevel(nn.Module):
    """A head that predicts one level only."""

    def __init__(self, head: Head, level: str) -> None:
        super().__init__()
        self.head = head
        self.level = level

    def get_classifier(self) -> nn.Module:
        return self.head.get_classifier(self.level)

    def forward(self, v: Tensor) -> Tensor:
        return self.head(v, (self.level,))[self.level]
