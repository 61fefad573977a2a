"""The class tree of a prediction as HTML: the path that lights up down to the trusted class."""

from __future__ import annotations

from html import escape

from c2f_zoo.evaluation.photo_plot import shown_name
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.inference.prediction import Prediction

_OTHERS = 2  # classes shown beside the path, at each level
_Marks = dict[tuple[str, str], tuple[str, float]]  # (level, class name) -> CSS class, probability


def tree_html(prediction: Prediction) -> str:
    """Return the path of a prediction in the class tree, with the most probable classes beside it.

    Trusted classes have the CSS class `trusted`, those below `guess`, and of a model without calibration `path`; each
    has its probability and a bar. The classes beside them have no number: theirs would not be calibrated.

    Args:
        prediction: a prediction with its tree.

    Raises:
        ValueError: the prediction has no tree.

    Examples:
        >>> predictor = Predictor.from_pretrained("mlph_tiny_critters")
        >>> text = tree_html(predictor(create_dataset("critters", "test", per_class=1)[7][0]))
        >>> 'title="family">Rotundidae' in text, text.count("and 1 other")
        (True, 1)
    """
    if prediction.tree is None:
        raise ValueError("the prediction has no tree; make it with a Predictor")
    is_calibrated = prediction.provenance.rule is not None
    steps = {"trusted": prediction.trusted_path, "guess": prediction.guess}
    if not is_calibrated:
        steps = {"path": prediction.path}
    marks = {(level, name): (kind, p) for kind, path in steps.items() for level, name, p in path}
    return f'<div class="c2f-tree">{_summary(prediction)}{_children(prediction, prediction.tree, marks, -1, 0)}</div>'


def _summary(prediction: Prediction) -> str:
    """Return what can be trusted, in a line."""
    if prediction.provenance.rule is None:
        return '<p class="c2f-summary">The model is not calibrated: nothing says how far to trust its path.</p>'
    risk = f"at a risk of {100 * (prediction.provenance.risk or 0):g} %"
    if prediction.trusted is None:
        return f'<p class="c2f-summary nothing">Nothing can be trusted {risk}.</p>'
    level, name, p = prediction.trusted
    shown = f"<b>{escape(level)}</b> {escape(shown_name(name))} ({100 * p:.0f} %)"
    return f'<p class="c2f-summary trusted" data-level="{escape(level)}">Trusted {risk}: {shown}</p>'


def _children(prediction: Prediction, tree: Hierarchy, marks: _Marks, depth: int, label: int) -> str:
    """Return the list of a class's children: the marked ones, then the most probable others."""
    levels = tree.levels[: len(prediction.probabilities)]
    if depth + 1 >= len(levels):
        return ""
    level = levels[depth + 1]
    names, p = tree.class_names(level), prediction.probabilities[level]
    own = [
        child
        for child in range(len(names))
        if (depth < 0 or tree.parents[depth][child] == label) and child not in tree.left_out[depth + 1]
    ]
    own.sort(key=lambda child: ((level, names[child]) not in marks, -p[child]))
    count = sum((level, names[child]) in marks for child in own)
    items = []
    for child in own[: count + _OTHERS]:
        kind, value = marks.get((level, names[child]), ("other", None))
        below = "" if value is None else _children(prediction, tree, marks, depth + 1, child)
        items.append(f'<li class="{kind}">{_node(level, names[child], value)}{below}</li>')
    left = len(own) - len(items)
    if left > 0:
        items.append(f'<li class="more">and {left} other{"s" if left > 1 else ""}</li>')
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _node(level: str, name: str, p: float | None) -> str:
    shown = f'<span class="name" title="{escape(level)}">{escape(shown_name(name))}</span>'
    if p is None:
        return f'<span class="node">{shown}</span>'
    bar = f'<span class="bar"><span style="width: {100 * p:.0f}%"></span></span>'
    return f'<span class="node">{shown}{bar}<span class="value">{100 * p:.0f} %</span></span>'
