"""Head transfer: a new head that keeps matching weights of the old one."""

from __future__ import annotations

from torch import Tensor

from c2f_zoo.config import ModelConfig
from c2f_zoo.heads import Head
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.model import C2FModel


def replace_head(model: C2FModel, config: ModelConfig) -> list[str]:
    """Replace a model's head for other classes or levels; keep matching weights.

    The classifier of a level is kept if the old tree has a level with the same classes in the same order. Other weights
    of a head are kept if their names and shapes are equal and the predicted levels have the same names.

    Args:
        model: the model; it is changed.
        config: the model's configuration with another hierarchy, levels and resolutions.

    Returns:
        A line for each new weight without a matching old one, and for each unused old weight.

    Examples:
        >>> from dataclasses import replace
        >>> model = create_model("mlp", backbone="resnet18", hierarchy="cub", input_size=64, pooling_options={"dim": 8})
        >>> replace_head(model, replace(model.config, levels=("genus", "species")))
        ['head.classifiers.0.weight: none saved, (113, 32) here', 'head.classifiers.0.bias: none saved, (113,) here']
    """
    old, old_config = model.head, model.config
    model.reset_classifier(config.hierarchy, config.levels, config.resolutions)
    model.set_config(config)
    had, has = old.state_dict(), model.head.state_dict()
    sources = _sources(old, old_config, model.head, config)
    kept = {key: source for key, source in sources.items() if had[source].shape == has[key].shape}
    model.head.load_state_dict({key: had[source] for key, source in kept.items()}, strict=False)
    return _differences(had, has, kept)


def _sources(old: Head, old_config: ModelConfig, new: Head, config: ModelConfig) -> dict[str, str]:
    """Return new weight name -> name of the matching weight of the old head."""
    before, after = _classifiers(old, old_config.hierarchy), _classifiers(new, config.hierarchy)
    had, has, sources = old.state_dict(), new.state_dict(), {}
    if old_config.levels == config.levels:
        of_levels = (*before.values(), *after.values())
        sources = {key: key for key in had.keys() & has.keys() if not key.startswith(of_levels)}
    for level, place in after.items():
        match = _matching_level(config.hierarchy, level, old_config.hierarchy)
        if match in before:
            moved = {key: before[match] + key.removeprefix(place) for key in has if key.startswith(place)}
            sources |= {key: source for key, source in moved.items() if source in had}
    return sources


def _classifiers(head: Head, tree: Hierarchy) -> dict[str, str]:
    """Return level -> prefix of the names of its classifier's weights."""
    names = {module: f"{name}." if name else "" for name, module in head.named_modules()}
    found = {}
    for level in tree.levels:
        try:
            classifier = head.get_classifier(level)
        except ValueError:
            continue  # the head has no classifier of this level
        if classifier in names:
            found[level] = names[classifier]
    return found


def _matching_level(tree: Hierarchy, level: str, other: Hierarchy) -> str | None:
    """Return the level of another tree with the same classes, preferring the name."""
    matching = [name for name in other.levels if other.class_names(name) == tree.class_names(level)]
    return level if level in matching else matching[0] if matching else None


def _differences(had: dict[str, Tensor], has: dict[str, Tensor], kept: dict[str, str]) -> list[str]:
    used, lines = set(kept.values()), []
    for key, tensor in has.items():
        if key not in kept:
            lies_here = key in had and key not in used
            before = f"{tuple(had[key].shape)} saved" if lies_here else "none saved"
            same = ", of other classes or levels" if lies_here and had[key].shape == tensor.shape else ""
            lines.append(f"head.{key}: {before}, {tuple(tensor.shape)} here{same}")
    left = [key for key in had if key not in used and (key in kept or key not in has)]
    return lines + [f"head.{key}: {tuple(had[key].shape)} saved, left over" for key in left]
