"""The model: backbone -> pooling -> head, and nothing else."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from c2f_zoo.backbones import TapBackbone, create_body
from c2f_zoo.config import WEIGHT_SOURCES, ModelConfig
from c2f_zoo.heads import HEADS, Head, create_head
from c2f_zoo.heads.levels import LevelsHead
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.io import card, hub
from c2f_zoo.io.deferred_init import DeferredInit
from c2f_zoo.io.meta_build import MetaBuilder
from c2f_zoo.io.weights import (
    CONFIG_FILE,
    atomic_save,
    find_file,
    load_weights,
    read_shapes,
    weight_files,
    write_weights,
)
from c2f_zoo.pooling import POOLINGS, Pooling, create_pooling
from c2f_zoo.pooling.checks import check_one_size
from c2f_zoo.registry import unknown_name

README_FILE = "README.md"
_BODY = "backbone.body."  # prefix of the names of the backbone's weights


class C2FModel(nn.Module):
    """A coarse-to-fine classifier: logits for every level of a class tree.

    Made by `c2f_zoo.create_model`; its three parts may be used by themselves.

    Args:
        backbone: images (N, channels, height, width) -> list of maps (N, C_i, H, W).
        pooling: list of maps -> (N, D).
        head: (N, D) -> {level: (N, classes)}.
        config: what the parts were made from.

    Examples:
        >>> model = create_model("mlph", backbone="resnet18", hierarchy="cub", input_size=64)
        >>> {level: tuple(logits.shape) for level, logits in model(torch.rand(2, 3, 64, 64)).items()}
        {'family': (2, 36), 'genus': (2, 113), 'species': (2, 200)}
    """

    def __init__(self, backbone: TapBackbone, pooling: Pooling, head: Head, config: ModelConfig) -> None:
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
        return self.config.pretrained_cfg

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Images (N, channels, height, width) to feature maps (N, C_i, H, W), one a tap."""
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
        """Normalised images (N, channels, height, width) to logits (N, classes) for each level.

        Args:
            x: the images, as `preprocessing` in the configuration says.
            levels: the levels to answer; None for all.

        Raises:
            ValueError: the model does not answer one of the levels.
        """
        return self.forward_head(self.forward_pool(self.forward_features(x)), levels)

    def log_probs(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits (N, classes) of `forward` to log-probabilities of each level, as the head defines them.

        A subset of the levels will do. What a level's log-probabilities are given at is up to the caller: levels may
        come from images of different resolutions.
        """
        return self.head.log_probs(logits)

    def at_level(self, level: str, drop_rate: float = 0.0) -> LevelClassifier:
        """The model as a plain classifier of one level, as timm's are; it shares this model's weights."""
        return LevelClassifier(self, level, drop_rate)

    def reset_classifier(self, hierarchy: Hierarchy, levels: Sequence[str] | None = None) -> None:
        """Replaces the head by a new, untrained one of the same kind and options for another tree.

        Args:
            hierarchy: the new class tree.
            levels: the levels to answer; None for all of the tree's.
        """
        levels = tuple(levels or hierarchy.levels)
        config = replace(self.config, hierarchy=hierarchy, levels=levels, resolutions={})
        weight = next(self.head.parameters())
        head = create_head(config.head, self.pooling.out_features, hierarchy, levels, **config.head_options)
        self.head = head.to(weight.device, weight.dtype)
        self.config = config

    def save_pretrained(self, directory: str | Path, max_shard_size: int | str = "5GB") -> None:
        """Writes `config.json` and `model.safetensors`, from which `create_model("local-dir:...")` rebuilds it.

        A kill at any time leaves a folder that loads as the old model or the new one. Weights of an earlier save are
        replaced, shards too; other files of the folder stay.

        Args:
            directory: the folder; made where it is missing.
            max_shard_size: size of a file of weights at most, in bytes or as `"5GB"`. A larger model is written in
                shards, with an index `model.safetensors.index.json`.

        Raises:
            ValueError: the configuration is one that would be refused when it is read; nothing is written.
        """
        text = self.config.to_json()
        with atomic_save(Path(directory)) as folder:
            write_weights(folder, self.state_dict(), max_shard_size)
            (folder / CONFIG_FILE).write_text(text, encoding="utf-8")

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a model of c2f_zoo",
        max_shard_size: int | str = "5GB",
    ) -> str:
        """Puts the model into a repository on the Hugging Face Hub, in one commit; it is made where it is missing.

        Where the repository has no model card, one is added that says that nothing was measured and no licence was
        named; `recipes/push_to_hub.py` writes one from a finished run.

        Args:
            repo_id: `"owner/model"`, or `"model"` of the token's owner.
            private: whether a new repository is private; None for the owner's default.
            token: an access token; None for the one that is logged in.
            revision: a branch, made where it is missing; None for `main`.
            commit_message: the commit's first line.
            max_shard_size: as in `save_pretrained`.

        Returns:
            The commit's address.

        Raises:
            PermissionError: the token is missing or not enough.
            ConnectionError: the Hub does not answer, or in vain.
            ValueError: the name is none of a repository, or it is public already and was to be private.
        """
        repo_id = hub.full_name(repo_id, token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size)
            text = card.model_card(self.config, f"{repo_id}@{revision}" if revision else repo_id)
            (Path(folder) / README_FILE).write_text(text, encoding="utf-8")
            return hub.push(folder, repo_id, private, token, revision, commit_message, keep=[README_FILE])

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> C2FModel:
        """Rebuilds a saved model, bit for bit, from a folder or from the Hugging Face Hub.

        Nothing of it is run: weights are safetensors, and the configuration is checked before it is used.

        Args:
            name: a folder that `save_pretrained` wrote, or else `"owner/model"` on the Hub.
            revision: a branch, tag or commit on the Hub; None for `main`.
            token: an access token; None for the one that is logged in, False for none.
            cache_dir: where downloads are kept; None for huggingface_hub's cache.
            local_files_only: ask no server.

        Returns:
            The model, in training mode, on the CPU.

        Raises:
            FileNotFoundError: there is no such folder, repository or revision, a file is missing, or the model is not
                in the cache and may not be asked for.
            PermissionError: the token is missing or not enough.
            ConnectionError: the Hub does not answer, or in vain.
            ValueError: the configuration is no model's, or the weights do not fit it.

        Examples:
            >>> model = create_model("mlph", backbone="resnet18", hierarchy="cub", input_size=64)
            >>> model.save_pretrained("my-model")
            >>> C2FModel.from_pretrained("my-model").config == model.config
            True
        """
        if not Path(name).is_dir():
            if str(name).startswith(("/", ".", "~")) or str(name).count("/") > 1:
                raise FileNotFoundError(f"there is no folder {name}; a model on the Hub is named 'owner/model'")
            name = hub.download(str(name), revision, token, cache_dir, local_files_only)
        elif revision is not None:
            raise ValueError(f"{name} is a folder here, which has no revision {revision!r}")
        return load_model(name)


def build(config: ModelConfig, pretrained_backbone: bool = False) -> C2FModel:
    """Build an untrained model from its configuration.

    Args:
        config: the configuration. `taps` may be a number. Backbone options that say where weights come from
            (`c2f_zoo.config.WEIGHT_SOURCES`) are used and are not part of the model's own configuration.
        pretrained_backbone: let timm download the backbone's weights.

    Raises:
        ValueError: the configuration could not be saved, a name is unknown, or the parts do not fit each other.

    Examples:
        >>> config = create_model("mlph", backbone="resnet18", hierarchy="cub", input_size=64).config
        >>> build(config).levels
        ('family', 'genus', 'species')
    """
    options = {key: value for key, value in config.backbone_options.items() if key not in WEIGHT_SOURCES}
    kept = replace(config, backbone_options=options)
    kept.check()
    POOLINGS[config.pooling], HEADS[config.head]  # an unknown name fails before the backbone is built
    with DeferredInit() as init:
        body = create_body(config.backbone, pretrained=pretrained_backbone, **config.backbone_options)
    weights = list(body.parameters())
    backbone = TapBackbone(body, config.taps, config.preprocessing.input_size)
    still_used = {id(weight) for weight in body.parameters()}
    init.discard(weight for weight in weights if id(weight) not in still_used)
    init.run()
    return _assemble(kept, backbone, lambda create, *args, **options: create(*args, **options))


def load_model(directory: str | Path) -> C2FModel:
    """Load a model that `C2FModel.save_pretrained` wrote, bit for bit.

    The model is built on the meta device, where it takes no memory, and compared with the headers of the weights files
    before its weights are allocated.

    Args:
        directory: the folder with `config.json` and `model.safetensors`, or its shards.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the configuration is invalid, asks for a network that is far larger than its weights, or does not
            fit the weights.
    """
    directory = Path(directory)
    path = find_file(directory, CONFIG_FILE)
    if not path.is_file():
        raise FileNotFoundError(f"{directory} has no {CONFIG_FILE}; name a folder that save_pretrained wrote")
    config, files = ModelConfig.from_json(path), weight_files(directory)
    shapes = read_shapes(files)
    builder = MetaBuilder(shapes)
    try:
        body = builder.build(create_body, config.backbone, **config.backbone_options)
        saved = {name.removeprefix(_BODY) for name in shapes if name.startswith(_BODY)}
        backbone = TapBackbone(body, config.taps, config.preprocessing.input_size, saved)
        model = _assemble(config, backbone, builder.build)
    except Exception as error:  # a backbone's constructor may raise anything at an odd option
        raise ValueError(f"{path} asks for a model that cannot be built: {error}") from error
    load_weights(model, files)
    builder.fill_in()
    return model


def _assemble(config: ModelConfig, backbone: TapBackbone, make: Callable[..., Any]) -> C2FModel:
    """Add a pooling and a head to a backbone; `make` calls their constructors."""
    pooling: Pooling = make(create_pooling, config.pooling, backbone.out_channels, **config.pooling_options)
    if pooling.one_size:
        check_one_size([(height, width) for _, height, width in backbone.map_shapes])
    features, levels = pooling.out_features, config.levels
    head: Head = make(create_head, config.head, features, config.hierarchy, levels, **config.head_options)
    return C2FModel(backbone, pooling, head, replace(config, taps=backbone.taps))


class LevelClassifier(nn.Module):
    """One level of a `C2FModel` under timm's contract for classifiers: images in, one tensor of logits out.

    With the head `"levels"` its own head is that level's linear layer, and it has no weights of other levels. Any other
    head it keeps whole.

    Args:
        model: the model, whose weights are shared.
        level: a level that it answers.
        drop_rate: the share of the pooled vector's entries that are dropped in training, in [0, 1].

    Attributes:
        num_classes: how many classes it tells apart; 0 after `reset_classifier(0)`.
        num_features: length of the pooled vector.
        head_hidden_size: the same: what the classifier takes.
        pretrained_cfg: what timm wants to know of the input and the classifier; `default_cfg` is the same.

    Raises:
        ValueError: the model does not answer that level.

    Examples:
        >>> model = create_model("mlph", backbone="resnet18", hierarchy="cub", input_size=64)
        >>> species = model.at_level("species")
        >>> species(torch.rand(2, 3, 64, 64)).shape == (2, species.num_classes)
        True
    """

    def __init__(self, model: C2FModel, level: str, drop_rate: float = 0.0) -> None:
        super().__init__()
        if level not in model.levels:
            raise unknown_name("level", level, model.levels)
        self.backbone = model.backbone
        self.pooling = model.pooling
        self.head_drop = nn.Dropout(drop_rate)
        self.head = _classifier_of(model.head, level)
        self.num_classes = model.hierarchy.num_classes[level]
        self.num_features = model.pooling.out_features
        self.head_hidden_size = self.num_features
        self.pretrained_cfg = {
            **model.pretrained_cfg,
            "num_classes": self.num_classes,
            "pool_size": None,
            "first_conv": None,
            "classifier": "head",
        }
        self.default_cfg = self.pretrained_cfg

    def get_classifier(self) -> nn.Module:
        """The linear layer that gives the logits; an `nn.Identity` after `reset_classifier(0)`."""
        return self.head.get_classifier() if isinstance(self.head, _OneLevel) else self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a new, untrained one over classes of which no tree is known.

        The model that this one was made from keeps its own.

        Args:
            num_classes: how many classes; 0 for no classifier: logits are then the pooled vector.
            global_pool: None. The pooling is chosen when the model is made.

        Raises:
            ValueError: `num_classes` is negative, or another `global_pool` is asked for.
        """
        if global_pool is not None:
            raise ValueError(f"global_pool={global_pool!r} is not to be had; make the model with another pooling=...")
        if num_classes < 0:
            raise ValueError(f"num_classes is {num_classes}; name 0 or more")
        weight = next(self.parameters())
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head = head.to(weight.device, weight.dtype)
        self.num_classes = num_classes

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Lets the backbone keep fewer activations and compute them again in the backward pass.

        Raises:
            ValueError: the backbone cannot.
        """
        body = self.backbone.body
        try:
            if enable or hasattr(body, "set_grad_checkpointing"):
                body.set_grad_checkpointing(enable)  # type: ignore[operator]
        except (AssertionError, AttributeError) as error:  # timm's networks assert, others lack the method
            raise ValueError(f"the backbone {type(body).__name__} has no gradient checkpointing") from error

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Says which layer a parameter, or a module, belongs to, for timm's layer-wise learning rates.

        Args:
            coarse: the backbone's stages for its blocks.

        Returns:
            A function from a name to a number: the backbone's own layers from 0; the pooling and the classifier, which
            are new, infinity.
        """
        from timm.models import group_modules, group_parameters

        body = self.backbone.body
        if not hasattr(body, "group_matcher"):
            return lambda name: 0.0 if name.startswith(_BODY) else math.inf
        matcher = body.group_matcher(coarse=coarse)  # type: ignore[operator]
        layers = {**group_modules(body, matcher, reverse=True), **group_parameters(body, matcher, reverse=True)}
        return lambda name: layers[name.removeprefix(_BODY)] if name.startswith(_BODY) else math.inf

    def no_weight_decay(self) -> set[str]:
        """Names of the backbone's parameters that timm says are not to decay, such as position embeddings."""
        names: Callable[[], set[str]] = getattr(self.backbone.body, "no_weight_decay", set)
        return {_BODY + name for name in names()}

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Images to feature maps, one a tap."""
        return self.backbone(x)

    def forward_head(self, maps: Sequence[Tensor], pre_logits: bool = False) -> Tensor:
        """Feature maps to logits (N, num_classes), or to the pooled vector (N, num_features)."""
        v = self.head_drop(self.pooling(maps))
        return v if pre_logits else self.head(v)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, height, width) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _classifier_of(head: Head, level: str) -> nn.Module:
    """What gives one level's logits (N, classes) from vectors (N, D), with no more weights than it needs."""
    return head.get_classifier(level) if isinstance(head, LevelsHead) else _OneLevel(head, level)


class _OneLevel(nn.Module):
    """A head that is asked for one level only."""

    def __init__(self, head: Head, level: str) -> None:
        super().__init__()
        self.head = head
        self.level = level

    def get_classifier(self) -> nn.Module:
        return self.head.get_classifier(self.level)

    def forward(self, v: Tensor) -> Tensor:
        return self.head(v, (self.level,))[self.level]
