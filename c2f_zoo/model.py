"""The model: backbone -> pooling -> head, and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from c2f_zoo.backbones import TapBackbone
from c2f_zoo.config import ModelConfig
from c2f_zoo.heads import create_head
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.registry import unknown_name

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class C2FModel(nn.Module):
    """A coarse-to-fine classifier: logits for every level of a class tree.

    Made by `c2f_zoo.create_model`; its three parts may be used by themselves.

    Args:
        backbone: pictures (N, channels, height, width) -> list of maps (N, C_i, H, W).
        pooling: list of maps -> (N, D).
        head: (N, D) -> {level: (N, classes)}.
        config: what the parts were made from.

    Examples:
        >>> model = create_model("mlph", backbone="resnet18", hierarchy="cub", input_size=64)
        >>> {level: tuple(logits.shape) for level, logits in model(torch.rand(2, 3, 64, 64)).items()}
        {'family': (2, 36), 'genus': (2, 113), 'species': (2, 200)}
    """

    def __init__(self, backbone: TapBackbone, pooling: nn.Module, head: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.head = head
        self.config = config

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels that the model answers, coarse to fine."""
        return self.config.levels

    @property
    def hierarchy(self) -> Hierarchy:
        """The whole class tree, which may have more levels than the model answers."""
        return self.config.hierarchy

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What `timm.data.resolve_data_config` reads: input size, mean, std, interpolation, crop."""
        p = self.config.preprocessing
        return {
            "architecture": self.config.backbone,
            "input_size": p.input_size,
            "mean": p.mean,
            "std": p.std,
            "interpolation": p.interpolation,
            "crop_pct": p.crop_pct,
        }

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Pictures (N, channels, height, width) to feature maps (N, C_i, H, W), one a tap."""
        return self.backbone(x)

    def forward_pool(self, maps: Sequence[Tensor]) -> Tensor:
        """Feature maps to one vector (N, D)."""
        return self.pooling(maps)

    def forward_head(self, v: Tensor, levels: Sequence[str] | None = None) -> dict[str, Tensor]:
        """A vector (N, D) to logits (N, classes) for each of `levels`, or for all that the model answers.

        Raises:
            ValueError: the model does not answer one of the levels.
        """
        for level in levels or ():
            if level not in self.levels:
                raise unknown_name("level", level, self.levels)
        return self.head(v, self.levels if levels is None else tuple(levels))

    def forward(self, x: Tensor, levels: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Normalised pictures (N, channels, height, width) to logits (N, classes) for each level.

        Args:
            x: the pictures, as `preprocessing` in the configuration says.
            levels: the levels to answer; None for all.

        Raises:
            ValueError: the model does not answer one of the levels.
        """
        return self.forward_head(self.forward_pool(self.forward_features(x)), levels)

    def log_probs(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits (N, classes) of `forward` to log-probabilities of each level, as the head defines them.

        A subset of the levels will do. What a level's log-probabilities are given at is up to the caller: levels may
        come from pictures of different resolutions.
        """
        return self.head.log_probs(logits)  # type: ignore[operator]

    def at_level(self, level: str) -> LevelClassifier:
        """The model as a plain classifier of one level; it shares this model's weights."""
        return LevelClassifier(self, level)

    def reset_classifier(self, hierarchy: Hierarchy, levels: Sequence[str] | None = None) -> None:
        """Replaces the head by a new, untrained one of the same kind and options for another tree.

        Args:
            hierarchy: the new class tree.
            levels: the levels to answer; None for all of the tree's.
        """
        levels = tuple(levels or hierarchy.levels)
        config = replace(self.config, hierarchy=hierarchy, levels=levels, resolutions={})
        weight = next(self.head.parameters())
        features: int = self.pooling.out_features  # type: ignore[assignment]
        head = create_head(config.head, features, hierarchy, levels, **config.head_options)
        self.head = head.to(weight.device, weight.dtype)
        self.config = config

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes `config.json` and `model.safetensors`, from which `create_model("local-dir:...")` rebuilds it.

        Each file is written under another name first, so that a kill leaves the old one or the new one.

        Args:
            directory: the folder; made where it is missing.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.contiguous().cpu() for name, tensor in self.state_dict().items()}
        # Not save_file: it makes a file that only its owner can read.
        (directory / (WEIGHTS_FILE + ".part")).write_bytes(save(weights, metadata={"format": "pt"}))
        text = json.dumps(self.config.to_dict(), indent=2, ensure_ascii=False)
        (directory / (CONFIG_FILE + ".part")).write_text(text + "\n", encoding="utf-8")
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            os.replace(directory / (name + ".part"), directory / name)


class LevelClassifier(nn.Module):
    """One level of a `C2FModel` under timm's contract for classifiers: a tensor out, `num_classes`.

    Args:
        model: the model, whose weights are shared.
        level: a level that it answers.

    Raises:
        ValueError: the model does not answer that level.

    Examples:
        >>> model = create_model("mlph", backbone="resnet18", hierarchy="cub", input_size=64)
        >>> species = model.at_level("species")
        >>> species(torch.rand(2, 3, 64, 64)).shape == (2, species.num_classes)
        True
    """

    def __init__(self, model: C2FModel, level: str) -> None:
        super().__init__()
        if level not in model.levels:
            raise unknown_name("level", level, model.levels)
        self.model = model
        self.level = level
        self.num_classes = model.hierarchy.num_classes[level]
        self.num_features = model.pooling.out_features
        self.pretrained_cfg = {**model.pretrained_cfg, "num_classes": self.num_classes}

    def get_classifier(self) -> nn.Module:
        """The linear layer of this level."""
        return self.model.head.get_classifier(self.level)  # type: ignore[operator]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Pictures to feature maps, one a tap."""
        return self.model.forward_features(x)

    def forward_head(self, maps: Sequence[Tensor], pre_logits: bool = False) -> Tensor:
        """Feature maps to logits (N, num_classes), or to the pooled vector (N, num_features)."""
        v = self.model.forward_pool(maps)
        return v if pre_logits else self.model.forward_head(v, (self.level,))[self.level]

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (N, channels, height, width) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))
