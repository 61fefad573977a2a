"""The model: backbone -> pooling -> head."""

from __future__ import annotations

import inspect
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2f_zoo.backbones import BACKBONES, TapBackbone, create_body
from c2f_zoo.backbones.trace import copy_to_meta
from c2f_zoo.config import WEIGHT_SOURCES, ModelConfig
from c2f_zoo.heads import HEADS, Head, create_head
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.io import card, hub
from c2f_zoo.io.deferred_init import DeferredInit
from c2f_zoo.io.meta_build import MetaBuilder, PeakMemory
from c2f_zoo.io.weights import (
    CALIBRATION_FILE,
    CONFIG_FILE,
    atomic_save,
    digest_weights,
    find_file,
    find_not_finite,
    load_weights,
    read_calibration,
    read_shapes,
    weight_files,
    write_weights,
)
from c2f_zoo.level_classifier import LevelClassifier
from c2f_zoo.paths import expand
from c2f_zoo.pooling import POOLINGS, Pooling, create_pooling
from c2f_zoo.pooling.checks import check_one_size
from c2f_zoo.registry import check_names

_logger = logging.getLogger(__name__)

README_FILE = "README.md"
_LARGE = 1024  # pixels on a side; memory for smaller images is checked for untrusted models only
MAX_MEMORY = 4 * 2**30  # bytes for the prediction of one image by an untrusted model
_BODY = "backbone.body."  # prefix of the names of the backbone's weights


class C2FModel(nn.Module):
    """A coarse-to-fine classifier: logits for every level of a class tree.

    Create it with `c2f_zoo.create_model`. Its three parts can also be used alone.

    Args:
        backbone: images (N, channels, height, width) -> list of maps (N, C_i, H, W).
        pooling: list of maps -> (N, D).
        head: (N, D) -> {level: (N, classes)}.
        config: the configuration that the parts were built from.

    Attributes:
        calibration: the content of `calibration.json`, see `c2f_zoo.inference.calibration.Calibration`; or None.

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
        self.calibration: dict[str, Any] | None = None

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels the model predicts, coarse to fine."""
        return self.config.levels

    @property
    def hierarchy(self) -> Hierarchy:
        """The whole class tree; it may have more levels than the model predicts."""
        return self.config.hierarchy

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The input's size, mean, std, interpolation and crop, as timm names them."""
        return self.config.pretrained_cfg

    def forward_features(self, x: Tensor, view: str | None = None) -> list[Tensor]:
        """Compute feature maps (N, C_i, H, W) of images (N, channels, height, width).

        Args:
            x: the images.
            view: the level at whose resolution the images are, which chooses the batch norm with
                `batch_norm="per_level"`. Default: the finest predicted level.

        Raises:
            ValueError: the model does not predict that level.
        """
        if self.config.batch_norm == "shared":
            return self.backbone(x)
        check_names("view", () if view is None else (view,), self.levels)
        return self.backbone(x, self.config.norm_copies[view or self.levels[-1]])

    def forward_pool(self, maps: Sequence[Tensor]) -> Tensor:
        """Pool feature maps to vectors (N, D)."""
        return self.pooling(maps)

    def forward_head(self, v: Tensor, levels: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Compute logits (N, classes) of levels, by default all, from vectors (N, D).

        Raises:
            ValueError: the model does not predict one of the levels.
        """
        check_names("level", levels or (), self.levels)
        return self.head(v, self.levels if levels is None else tuple(levels))

    def forward(self, x: Tensor, levels: Sequence[str] | None = None, view: str | None = None) -> dict[str, Tensor]:
        """Compute logits (N, classes) of each level.

        Args:
            x: images (N, channels, height, width), preprocessed as in the configuration's `preprocessing`.
            levels: the levels to predict. Default: all.
            view: the level at whose resolution the images are, which chooses the batch norm with
                `batch_norm="per_level"`. Default: the finest of `levels`.

        Raises:
            ValueError: the model does not predict one of the levels.
        """
        asked = [level for level in self.levels if levels is None or level in levels]
        view = view or (asked[-1] if asked else None)
        return self.forward_head(self.forward_pool(self.forward_features(x, view)), levels)

    def embed(self, x: Tensor, view: str | None = None) -> Tensor:
        """Compute embeddings: pooled vectors of Euclidean length 1, whose products are cosine similarities.

        Args:
            x: images (N, channels, height, width), preprocessed as in the configuration's `preprocessing`.
            view: as in `forward_features`.

        Returns:
            float32 (N, D), with D = `pooling.out_features`, also under autocast. A pooled vector of zeros stays zero.

        Raises:
            ValueError: the model does not predict that level.

        Examples:
            >>> model = create_model("mlph", backbone="resnet18", hierarchy="cub", input_size=64).eval()
            >>> v = model.embed(torch.rand(2, 3, 64, 64))
            >>> v.shape[1] == model.pooling.out_features, torch.allclose(v.norm(dim=1), torch.ones(2))
            (True, True)
        """
        return F.normalize(self.forward_pool(self.forward_features(x, view)).float(), dim=1)

    def log_probs(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert logits (N, classes) to log-probabilities, as the head defines them.

        The logits may be those of some levels only, each from images of another resolution.
        """
        return self.head.log_probs(logits)

    def at_level(self, level: str, drop_rate: float = 0.0) -> LevelClassifier:
        """Return one level as a classifier with timm's interface and shared weights."""
        return LevelClassifier(self.backbone, self.pooling, self.head, self.config, level, drop_rate)

    def set_config(self, config: ModelConfig) -> None:
        """Set the configuration; with `batch_norm="per_level"`, batch norm gets its copies.

        Each resolution gets a copy of the batch norm of the nearest resolution before, or of the shared one. The
        calibration of another configuration is left out, with a note.

        Args:
            config: the configuration, with other resolutions or batch norm; head and pooling stay as they are.

        Raises:
            ValueError: the model has several copies of batch norm and `config` one, or the backbone has no batch norm.
        """
        old = self.config
        if (old.batch_norm, config.batch_norm) == ("per_level", "shared"):
            raise ValueError(
                "the model's batch norm differs between levels (batch_norm='per_level') and cannot be shared; "
                "at_level(...) has that of one level"
            )
        if config.batch_norm == "per_level":
            is_shared, present = old.batch_norm == "shared", old.norm_copies
            seen_at = {copy: config.resolutions.get(level) for level, copy in config.norm_copies.items()}
            sources = [0 if is_shared else present[old.nearest_level(resolution)] for resolution in seen_at.values()]
            if is_shared or sources != list(range(self.backbone.num_copies)):
                self.backbone.copy_batch_norm(sources)
        if self.calibration is not None and config != old:
            _logger.warning(
                "the calibration is of another configuration and is left out; run `c2f-zoo calibrate` again"
            )
            self.calibration = None
        self.config = config

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Return timm's grouping of parameters, for `timm.optim.create_optimizer_v2(model, layer_decay=...)`.

        Args:
            coarse: group by the backbone's stages instead of its blocks.

        Returns:
            A function from the name of a parameter or module to a number: the backbone's layers from 0, infinity for
            the pooling and the head.
        """
        return self.backbone.group_matcher(coarse, prefix="backbone.")

    def no_weight_decay(self) -> set[str]:
        """Return the names of backbone parameters that timm excludes from weight decay."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def reset_classifier(
        self,
        hierarchy: Hierarchy,
        levels: Sequence[str] | None = None,
        resolutions: Mapping[str, int | None] | None = None,
    ) -> None:
        """Replace the head with a new, untrained one of the same kind for another tree.

        Args:
            hierarchy: the new class tree.
            levels: the levels to predict. Default: all of the tree's.
            resolutions: level -> resolution in pixels at which the level sees an image. Missing: full size.
        """
        levels = tuple(levels or hierarchy.levels)
        config = replace(self.config, hierarchy=hierarchy, levels=levels, resolutions=dict(resolutions or {}))
        weight = next(self.head.parameters())
        head = create_head(config.head, self.pooling.out_features, hierarchy, levels, **config.head_options)
        self.head = head.to(weight.device, weight.dtype)
        self.set_config(config)

    def save_pretrained(
        self,
        directory: str | Path,
        max_shard_size: int | str = "5GB",
        state_dict: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Save `config.json`, `model.safetensors` and the calibration for `create_model("local-dir:...")`.

        The save is atomic: a kill at any time leaves the old model or the new one. Weights of an earlier save are
        replaced, shards too; other files of the folder are kept.

        Args:
            directory: the folder; it is created if it does not exist.
            max_shard_size: largest size of a weights file, in bytes or as `"5GB"`. A larger model is saved in shards
                with an index `model.safetensors.index.json`.
            state_dict: the weights to save, e.g. gathered from processes that share the model. Default: the model's.

        Raises:
            ValueError: the configuration is invalid; nothing is saved.
        """
        text, weights = self.config.to_json(), self.state_dict() if state_dict is None else state_dict
        calibration = calibration_of(weights, self.calibration, str(directory))
        with atomic_save(expand(directory)) as folder:
            write_weights(folder, weights, max_shard_size)
            (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
            if calibration is not None:
                (folder / CALIBRATION_FILE).write_text(json.dumps(calibration, indent=2) + "\n", encoding="utf-8")

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a model of c2f_zoo",
        max_shard_size: int | str = "5GB",
    ) -> str:
        """Push the model to a repository on the Hugging Face Hub in one commit.

        The repository is created if it does not exist. If it has no model card, a card without results and licence is
        added; `recipes/push_to_hub.py` writes one with the results of a run.

        Args:
            repo_id: `"owner/model"`, or `"model"` for the owner of the token.
            private: whether a new repository is private. Default: the owner's default.
            token: an access token. Default: that of the logged-in user.
            revision: a branch; it is created if it does not exist. Default: `main`.
            commit_message: the commit's first line.
            max_shard_size: as in `save_pretrained`.

        Returns:
            The commit's URL.

        Raises:
            PermissionError: the token is missing or has no access.
            ConnectionError: the Hub cannot be reached, or fails.
            ValueError: the name is invalid, or the repository is public and `private` is true.
        """
        repo_id = hub.full_name(repo_id, token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size)
            full_name = f"{repo_id}@{revision}" if revision else repo_id
            text = card.model_card(self.config, full_name, calibration=read_calibration(Path(folder)))
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
        """Load a saved model, bit for bit, from a folder or from the Hugging Face Hub.

        No code of the model is run: weights are safetensors, and the configuration is validated.

        Args:
            name: a folder that `save_pretrained` wrote, or `"owner/model"` on the Hub.
            revision: a branch, tag or commit on the Hub. Default: `main`.
            token: an access token, or False for none. Default: that of the logged-in user.
            cache_dir: folder for downloads. Default: huggingface_hub's cache.
            local_files_only: use the cache only, no network.

        Returns:
            The model, in training mode, on the CPU.

        Raises:
            FileNotFoundError: the folder, the repository, the revision or a file does not exist, or the model is not in
                the cache and `local_files_only` is true.
            PermissionError: the token is missing or has no access.
            ConnectionError: the Hub cannot be reached, or fails.
            ValueError: the configuration is invalid, or the weights do not fit it.

        Examples:
            >>> model = create_model("mlph", backbone="resnet18", hierarchy="cub", input_size=64)
            >>> model.save_pretrained("my-model")
            >>> C2FModel.from_pretrained("my-model").config == model.config
            True
        """
        name = os.path.expanduser(name)
        if not os.path.isdir(name):
            if name.startswith(("/", ".", "~")) or name.count("/") > 1:
                raise FileNotFoundError(f"there is no folder {name}; a model on the Hub is named 'owner/model'")
            name = hub.download(name, revision, token, cache_dir, local_files_only)
        elif revision is not None:
            raise ValueError(f"{name} is a local folder and has no revision {revision!r}")
        return load_model(name)


def build(config: ModelConfig, pretrained_backbone: bool = False) -> C2FModel:
    """Build an untrained model from its configuration.

    Args:
        config: the configuration. `taps` may be a number. Backbone options that say where weights come from
            (`c2f_zoo.config.WEIGHT_SOURCES`) are used and are not part of the model's own configuration.
        pretrained_backbone: let timm download the backbone's weights.

    Raises:
        ValueError: the configuration is invalid, a name is unknown, or the parts are incompatible.

    Examples:
        >>> config = create_model("mlph", backbone="resnet18", hierarchy="cub", input_size=64).config
        >>> build(config).levels
        ('family', 'genus', 'species')
    """
    options = {key: value for key, value in config.backbone_options.items() if key not in WEIGHT_SOURCES}
    kept = replace(config, backbone_options=options)
    kept.check()
    POOLINGS[config.pooling], HEADS[config.head]  # an unknown name fails before the backbone is built
    body, init = _create_body(config.backbone, pretrained=pretrained_backbone, **config.backbone_options)
    weights = list(body.parameters())
    backbone = TapBackbone(body, config.taps, config.preprocessing.input_size)
    still_used = {id(weight) for weight in body.parameters()}
    init.discard(weight for weight in weights if id(weight) not in still_used)
    init.run()
    if pretrained_backbone and (bad := find_not_finite(body.state_dict())):
        raise ValueError(f"pretrained weights of {config.backbone!r} are not finite, e.g. {bad[0]}; choose others")
    if isinstance(config.taps, int):
        kept = _with_aligned_maps(kept, backbone)
    model = _assemble(kept, backbone, lambda create, *args, **options: create(*args, **options))
    if max(config.preprocessing.input_size) > _LARGE:
        check_memory(model)  # or it could be trained, but not loaded
    return model


def _with_aligned_maps(config: ModelConfig, backbone: TapBackbone) -> ModelConfig:
    """Choose `align="pool"` for default taps of several sizes if the pooling has that option and it is not given."""
    sizes = {(height, width) for _, height, width in backbone.map_shapes}
    has_option = "align" in inspect.signature(POOLINGS[config.pooling]).parameters
    if len(sizes) == 1 or not has_option or "align" in config.pooling_options:
        return config
    message = "%s has too few blocks of one size: the maps of its stages %s are pooled to one size (align='pool')"
    _logger.warning(message, config.backbone, ", ".join(backbone.taps))
    return replace(config, pooling_options={**config.pooling_options, "align": "pool"})


def load_model(directory: str | Path) -> C2FModel:
    """Load a model that `C2FModel.save_pretrained` wrote, bit for bit.

    The model is built on the meta device, where it takes no memory, and compared with the headers of the weights files
    before its weights are allocated.

    Args:
        directory: the folder with `config.json` and `model.safetensors`, or its shards.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the configuration is invalid, the network is far larger than its weights, the weights do not fit it,
            or the prediction of one image takes more than 4 GiB.
    """
    directory = expand(directory)
    path = find_file(directory, CONFIG_FILE)
    if not path.is_file():
        raise FileNotFoundError(f"{directory} has no {CONFIG_FILE}; name a folder that save_pretrained wrote")
    config, files = ModelConfig.from_json(path), weight_files(directory)
    shapes = read_shapes(files)
    builder = MetaBuilder(shapes)
    try:
        body = builder.build(_create_unfilled, config.backbone, **config.backbone_options)
        saved = {name.removeprefix(_BODY) for name in shapes if name.startswith(_BODY)}
        backbone = TapBackbone(body, config.taps, config.preprocessing.input_size, saved)
        model = _assemble(config, backbone, builder.build)
        check_memory(model)
    except Exception as error:  # a backbone's constructor may raise any error for an invalid option
        raise ValueError(f"{path}: cannot build this model: {error}") from error
    load_weights(model, files)
    builder.fill_in()
    model.calibration = calibration_of(model.state_dict(), read_calibration(directory), str(directory))
    return model


def calibration_of(
    weights: Mapping[str, Tensor], calibration: dict[str, Any] | None, name: str
) -> dict[str, Any] | None:
    """Return a calibration if it was made for these weights; otherwise say so and return None."""
    if calibration is None or calibration.get("weights") == digest_weights(weights):
        return calibration
    _logger.warning("%s: the calibration is of other weights and is left out; run `c2f-zoo calibrate` again", name)
    return None


def check_memory(model: C2FModel) -> None:
    """Check how much memory the prediction of one image takes, on the meta device.

    It is the memory of feature maps and pooled vectors in float32, without the weights. Of a pooling or head that
    cannot be copied, or does not run on the meta device, the memory is not known, and only the backbone's is checked.

    Raises:
        ValueError: it is more than `MAX_MEMORY`.
    """
    size = model.config.preprocessing.input_size
    backbone = copy_to_meta(model.backbone).eval()
    with torch.no_grad(), PeakMemory() as memory:
        maps = backbone(torch.empty(1, *size, device="meta"))
        with suppress(NotImplementedError, RuntimeError):  # values of tensors are not known there; or it has no copies
            pooling, head = (copy_to_meta(part).eval() for part in (model.pooling, model.head))
            head(pooling(maps), model.levels)
    if memory.peak > MAX_MEMORY:
        raise ValueError(
            f"the prediction of an image of {size[1]} x {size[2]} pixels takes about {memory.peak / 2**30:.1f} GiB "
            f"beyond the weights; the limit is {MAX_MEMORY / 2**30:.0f} GiB. Choose a smaller input_size"
        )


def _create_body(name: str, **options: Any) -> tuple[nn.Module, DeferredInit]:
    """Build a network; defer the initialization of timm's large weights."""
    init = DeferredInit()
    with nullcontext() if name in BACKBONES else init:
        return create_body(name, **options), init


def _create_unfilled(name: str, **options: Any) -> nn.Module:
    """Build a network without values of large weights, which are loaded later."""
    body, init = _create_body(name, **options)
    init.discard(body.parameters())
    init.run()
    return body


def _assemble(config: ModelConfig, backbone: TapBackbone, make: Callable[..., Any]) -> C2FModel:
    """Add a pooling and a head to a backbone; `make` calls their constructors."""
    if config.batch_norm == "per_level":
        backbone.copy_batch_norm([0] * len({*config.norm_copies.values()}))
    pooling: Pooling = make(create_pooling, config.pooling, backbone.out_channels, **config.pooling_options)
    if pooling.one_size:
        check_one_size([(height, width) for _, height, width in backbone.map_shapes])
    features, levels = pooling.out_features, config.levels
    head: Head = make(create_head, config.head, features, config.hierarchy, levels, **config.head_options)
    return C2FModel(backbone, pooling, head, replace(config, taps=backbone.taps))
