"""Loading a backbone's weights from a safetensors file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from c2f_zoo.backbones.part_rcnn import PartNetwork
from c2f_zoo.backbones.registry import create_whole, wrapped_network
from c2f_zoo.config import ModelConfig
from c2f_zoo.io.hub import download_weights, split_revision
from c2f_zoo.io.weights import WEIGHTS_FILE, AnyShape, load_weights, read_shapes
from c2f_zoo.model import C2FModel


def load_backbone(model: C2FModel, files: Sequence[Path]) -> None:
    """Load a backbone's weights, under timm's names.

    Of the whole network, with its classifier, the model may have parts only. The files are compared with the whole: it
    must know each weight, and have the same shape; only the classifier may be of another number of classes. For a
    backbone that wraps a network (`part_rcnn`), the files have the weights of that network, or of the whole backbone
    as `recipes/fit_parts.py` writes them.

    Args:
        model: the model; its backbone is changed.
        files: one safetensors file, or the shards of one.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the weights are those of another network, see `c2f_zoo.io.weights.load_weights`.

    Examples:
        >>> import timm, safetensors.torch
        >>> body = timm.create_model("resnet18", num_classes=5)
        >>> safetensors.torch.save_file(body.state_dict(), "resnet18.safetensors")
        >>> model = create_model("mlph_resnet18_cub", input_size=64)
        >>> load_backbone(model, [Path("resnet18.safetensors")])
        >>> torch.equal(model.backbone.body.conv1.weight, body.conv1.weight)
        True
    """
    body, own = checkpoint_network(model), model.backbone.body
    if body is not own and not read_shapes(files).keys().isdisjoint(own.state_dict()):
        load_weights(own, files)
        return
    whole = _create_whole(model.config)
    classifiers = _classifiers(whole)
    tensors = (*whole.named_buffers(), *whole.state_dict().items())  # some files have buffers that are not saved now
    known: AnyShape = {name: None if name.startswith(classifiers) else tuple(x.shape) for name, x in tensors}
    load_weights(body, files, others=known)
    if isinstance(own, PartNetwork):
        own.load_stages({name: weight for file in files for name, weight in load_file(file).items()})


def checkpoint_network(model: C2FModel) -> nn.Module:
    """Return the network that a backbone's checkpoint is for: the backbone, or the network that it wraps.

    Examples:
        >>> model = create_model("part_rcnn_vgg16_cub", backbone_options={"network": "test_resnet"}, input_size=64)
        >>> type(checkpoint_network(model)).__name__
        'ResNet'
    """
    name, _ = wrapped_network(model.config.backbone, model.config.backbone_options)
    body = model.backbone.body
    return body if name == model.config.backbone else body.get_submodule("network.body")


def check_source(config: ModelConfig) -> None:
    """Check that the weights of a `"local-dir:"` or `"hf-hub:"` backbone have the names of its network.

    timm ignores other names, and leaves weights random that the file lacks. Families whose names it converts are not
    checked. It may resize weights, so their shapes are not compared.

    Raises:
        FileNotFoundError: there is no file of weights.
        ValueError: the file is not a complete safetensors file, or has other names.
    """
    import timm

    cfg = config.backbone_options.get("pretrained_cfg")
    if not isinstance(cfg, dict) or not (Path(cfg.get("file") or "").name == WEIGHTS_FILE or "hf_hub_id" in cfg):
        return
    file = Path(cfg["file"]) if "file" in cfg else download_weights(*split_revision(cfg["hf_hub_id"]))
    if file is None:
        return
    saved = read_shapes([file])
    if any("filter" in name for name in vars(sys.modules[timm.model_entrypoint(config.backbone).__module__])):
        return  # so timm calls its functions that convert names
    whole = _create_whole(config)
    own, classifiers = whole.state_dict().keys(), _classifiers(whole)
    unexpected = saved.keys() - own - dict(whole.named_buffers()).keys()
    missing = {name for name in own - saved.keys() if not name.startswith(classifiers)}
    for fault, found in (("unexpected", unexpected), ("missing", missing)):
        if found:
            names = ", ".join(sorted(found))
            raise ValueError(f"{file} does not fit the {type(whole).__name__}: {fault} keys: {names}")


def _create_whole(config: ModelConfig) -> nn.Module:
    """Build a backbone's whole network, on the meta device if it can be built there."""
    name, options = wrapped_network(config.backbone, config.backbone_options)
    try:
        with torch.device("meta"):
            return create_whole(name, **options)
    except Exception:  # of a constructor that reads values of its tensors
        return create_whole(name, **options)


def _classifiers(network: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the names of a network's classifiers, as timm's configuration has them."""
    names = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
