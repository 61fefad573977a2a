"""The resolution at which a model sees the images for each level."""

from __future__ import annotations

from c2f_zoo.model import C2FModel


def own_resolutions(model: C2FModel) -> dict[str, int | None]:
    """Return each level's own resolution in pixels; None is full size.

    A level that the model does not predict follows from the next finer one, and has its resolution.

    Returns:
        The levels of the tree, coarse to fine, down to the finest that the model predicts.

    Examples:
        >>> model = create_model("mlph_tiny_critters", levels=["genus", "species"], resolutions={"genus": 32})
        >>> own_resolutions(model)
        {'family': 32, 'genus': 32, 'species': None}
    """
    own: dict[str, int | None] = {}
    levels, predicted = model.hierarchy.levels, model.levels[-1]
    for level in reversed(levels[: levels.index(predicted) + 1]):
        predicted = level if level in model.levels else predicted
        own[level] = model.config.resolutions.get(predicted)
    return dict(reversed(own.items()))


def levels_by_resolution(model: C2FModel) -> dict[int | None, tuple[str, ...]]:
    """Return the distinct resolutions, each with the levels predicted at it.

    A forward pass for each predicts all levels.

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
