"""The resolution of each level of a model, and what depends on it."""

from __future__ import annotations

from functools import partial

from c2f_zoo.inference.trust import RULES, Rule, list_rules
from c2f_zoo.model import C2FModel


def own_resolutions(model: C2FModel) -> dict[str, int | None]:
    """Return each level's own resolution in pixels; None is full size.

    A level that the model does not predict has the resolution of the next finer level.

    Returns:
        level -> resolution, coarse to fine, down to the finest predicted level.

    Examples:
        >>> model = create_model("mlph_tiny_critters", levels=["genus", "species"], resolutions={"genus": 32})
        >>> own_resolutions(model)
        {'family': 32, 'genus': 32, 'species': None}
    """
    levels = model.hierarchy.levels
    return {
        level: model.config.resolutions.get(next(finer for finer in levels[number:] if finer in model.levels))
        for number, level in enumerate(levels[: levels.index(model.levels[-1]) + 1])
    }


def levels_by_resolution(model: C2FModel) -> dict[int | None, tuple[str, ...]]:
    """Return the distinct resolutions, each with the levels predicted at it.

    Together they are the forward passes that predict all levels at their own resolutions.

    Examples:
        >>> model = create_model("mlph_tiny_critters", resolutions={"family": 32, "genus": 32})
        >>> levels_by_resolution(model)
        {32: ('family', 'genus'), None: ('species',)}
    """
    own = own_resolutions(model)
    return {
        resolution: tuple(level for level in model.levels if own[level] == resolution)
        for resolution in dict.fromkeys(own[level] for level in model.levels)
    }


def rules_for(model: C2FModel) -> dict[str, Rule]:
    """Return all rules by name, `nominal` with the pixels that each level of the model needs.

    Full size is that of the model's input.

    Examples:
        >>> list(rules_for(create_model("mlph_tiny_critters")))
        ['climb', 'darts', 'fixed', 'leaf_or_nothing', 'max_coverage', 'nominal']
    """
    full = min(model.config.preprocessing.input_size[1:])
    needed = {level: pixels or full for level, pixels in own_resolutions(model).items()}
    return {name: RULES[name] for name in list_rules()} | {"nominal": partial(RULES["nominal"], resolutions=needed)}
