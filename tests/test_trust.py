"""Nodes of a tree and the rules that choose one, against plain loops over nodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_decoding import TREES as RANDOM_TREES
from test_decoding import paths_of

from c2f_zoo import Hierarchy, load_hierarchy
from c2f_zoo.decoding import decode
from c2f_zoo.inference.calibration import calibrated
from c2f_zoo.inference.nodes import NodeProbabilities, Nodes, find_joint_leaf, restrict, sum_over_leaves
from c2f_zoo.inference.trust import RULES, Chain, climb, darts, fixed, list_rules, max_coverage, nominal

# x has p (1, 2) and q (3), y has r (4, 5, 6), z has s (7): two chains of only children.
UNBALANCED = Hierarchy.from_rows(
    ("A", "B", "C"),
    [("x", "p", "1"), ("x", "p", "2"), ("x", "q", "3"), *(("y", "r", name) for name in "456"), ("z", "s", "7")],
)
TREES = {
    **{f"random {number}": tree for number, tree in enumerate(RANDOM_TREES[1::2])},
    "unbalanced": UNBALANCED,
    "one leaf": Hierarchy.from_rows(("A", "B"), [("a", "b")]),
    "one root class": Hierarchy.from_rows(("A", "B"), [("a", "b"), ("a", "c"), ("a", "d")]),
}
KINDS = ("sums", "levels", "ties", "certain")
THRESHOLDS = {"B": 0.6, "C": 0.35, "level 0": 0.8, "level 1": 0.5, "level 3": 0.4, "A": 1.0}


def some_probabilities(tree: Hierarchy, kind: str, n: int = 6) -> NodeProbabilities:
    """Return probabilities: consistent, inconsistent between levels, with ties, or of one class only."""
    rng, nodes = np.random.default_rng(5), Nodes(tree)
    count = len(tree.classes[-1])
    if kind == "levels":
        levels = tuple(rng.dirichlet(np.full(len(names), 0.5), n) for names in tree.classes)
    elif kind == "sums":
        levels = sum_over_leaves(rng.dirichlet(np.full(count, 0.5), n), nodes)
    else:
        levels = sum_over_leaves(rng.multinomial(4 if kind == "ties" else 1, np.full(count, 1 / count), n) / 4, nodes)
        levels = levels if kind == "ties" else tuple(level * 4 for level in levels)
    return NodeProbabilities(nodes, levels, sizes=rng.integers(1, 40, n))


def own_thresholds(tree: Hierarchy) -> dict[str, float]:
    return {level: THRESHOLDS[level] for level in tree.levels if level in THRESHOLDS}


def own_sizes(tree: Hierarchy) -> dict[str, int]:
    return {level: 10 * (depth + 1) for depth, level in enumerate(tree.levels)}


class Image:
    """The classes of one image as (coverage, probability, depth, label), by a search over the paths of the tree."""

    def __init__(self, p: NodeProbabilities, row: int) -> None:
        self.tree, self.row = p.nodes.tree, row
        self.size = None if p.sizes is None else int(p.sizes[row])
        self.p = [level[row].tolist() for level in p.levels]
        self.paths = paths_of(self.tree)
        self.classes = [
            (self.coverage(depth, label), probability, depth, -label)
            for depth, level in enumerate(self.p)
            for label, probability in enumerate(level)
        ]

    def coverage(self, depth: int, label: int) -> float:
        under = sum(path[depth] == label for path in self.paths)
        return 1.0 if len(self.paths) == 1 else 1 - math.log2(under) / math.log2(len(self.paths))

    def best(self, depth: int) -> int:
        return max(range(len(self.p[depth])), key=lambda label: (self.p[depth][label], -label))


Choice = tuple[int, int] | None  # depth and label; None is the root


def naive_leaf(image: Image, t: float) -> Choice:
    last = len(image.p) - 1
    return (last, image.best(last)) if image.p[last][image.best(last)] >= t else None


def naive_climb(image: Image, t: float) -> Choice:
    path = image.paths[image.best(len(image.p) - 1)]
    for depth in reversed(range(len(path))):
        if image.p[depth][path[depth]] >= t:
            return depth, path[depth]
    return None


def naive_max_coverage(image: Image, t: float) -> Choice:
    found = [node for node in image.classes if node[1] >= t]
    if not found:
        return None
    _, _, depth, label = max(found)
    return depth, -label


def naive_fixed(image: Image, t: float) -> Choice:
    thresholds = own_thresholds(image.tree)
    for depth, level in reversed(list(enumerate(image.tree.levels))):
        if level in thresholds and image.p[depth][image.best(depth)] / thresholds[level] >= t:
            return depth, image.best(depth)
    return None


def naive_nominal(image: Image, t: float) -> Choice:
    assert image.size is not None
    needed = own_sizes(image.tree)
    depth = max([0, *(d for d, level in enumerate(image.tree.levels) if image.size >= needed[level])])
    return depth, image.best(depth)


NAIVE: dict[str, Callable[[Image, float], Choice]] = {
    "leaf_or_nothing": naive_leaf,
    "climb": naive_climb,
    "max_coverage": naive_max_coverage,
    "fixed": naive_fixed,
    "nominal": naive_nominal,
}


def apply(rule: str, p: NodeProbabilities) -> Chain:
    options: dict[str, Any] = {}
    if rule == "fixed":
        options = {"thresholds": own_thresholds(p.nodes.tree)}
    if rule == "nominal":
        options = {"resolutions": own_sizes(p.nodes.tree)}
    return RULES[rule](p, **options)


def as_choice(node: int, nodes: Nodes) -> Choice:
    depth = int(nodes.depths[node])
    return None if depth < 0 else (depth, int(node - nodes.offsets[depth]))


def thresholds_of(p: NodeProbabilities, chain: Chain) -> list[float]:
    """Return values at which choices may change, and values beside and between them."""
    values = np.unique(np.concatenate([p.all.ravel(), chain.until[np.isfinite(chain.until)], [0, 1]]))
    beside = np.concatenate(
        [np.nextafter(values, -np.inf), np.nextafter(values, np.inf), values[1:] - np.diff(values) / 2]
    )
    inside = np.random.default_rng(1).permutation(np.concatenate([values, beside]))[:80]
    return [-np.inf, -0.5, 0, 1, 1.5, np.inf, *inside.tolist()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@pytest.mark.parametrize("rule", NAIVE)
@pytest.mark.slow
def test_rules_equal_a_loop_over_nodes(rule: str, tree: Hierarchy, kind: str) -> None:
    if rule == "fixed" and not own_thresholds(tree):
        pytest.skip("no level of this tree has a threshold")
    p = some_probabilities(tree, kind)
    chain, images = apply(rule, p), [Image(p, row) for row in range(6)]
    for t in thresholds_of(p, chain):
        found = [as_choice(node, p.nodes) for node in chain.choose(t)]
        assert found == [NAIVE[rule](image, t) for image in images], t


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@pytest.mark.slow
def test_darts_has_the_greatest_reward(tree: Hierarchy, kind: str) -> None:
    p = some_probabilities(tree, kind)
    chain, images = darts(p), [Image(p, row) for row in range(6)]
    for t in [t for t in thresholds_of(p, chain) if 0 <= t < np.inf]:
        for image, node in zip(images, chain.choose(t), strict=True):
            choice = as_choice(node, p.nodes)
            reward = t if choice is None else (image.coverage(*choice) + t) * image.p[choice[0]][choice[1]]
            greatest = max([t, *((coverage + t) * probability for coverage, probability, _, _ in image.classes)])
            assert reward == pytest.approx(greatest, rel=1e-12, abs=1e-12)
    assert (chain.choose(-3) == chain.choose(0)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", list_rules())
def test_chains_rise_and_take_a_threshold_of_each_image(rule: str, kind: str) -> None:
    p = some_probabilities(UNBALANCED, kind, n=40)
    chain = apply(rule, p)
    assert chain.nodes.shape == chain.until.shape
    assert (np.diff(np.where(np.isinf(chain.until), 1e9, chain.until), axis=1) >= 0).all()
    assert np.isinf(chain.until[:, -1]).all() and (chain.until[:, -1] > 0).all()
    thresholds = np.random.default_rng(0).uniform(0, 1.2, 40)
    expected = [chain.choose(t)[row] for row, t in enumerate(thresholds)]
    assert chain.choose(thresholds).tolist() == expected
    # An image's chain does not depend on the other images.
    alone = [apply(rule, p.take(np.array([row]))).choose(thresholds[row])[0] for row in range(40)]
    assert alone == expected


def test_every_rule_has_a_reference() -> None:
    assert sorted([*NAIVE, "darts"]) == list_rules()


class TestByHand:
    # a has b (0, 1) and c (2), d has e (3). Coverage: leaf classes, c, d and e 1, b 1/2, a 1 - log2(3)/2 = 0.21.
    TREE = Hierarchy.from_rows(("A", "B", "C"), [("a", "b", "0"), ("a", "b", "1"), ("a", "c", "2"), ("d", "e", "3")])

    def probabilities(self, *leaves: float) -> NodeProbabilities:
        nodes = Nodes(self.TREE)
        return NodeProbabilities(nodes, sum_over_leaves(np.array([leaves]), nodes))

    def test_an_only_child_is_chosen_before_its_parents(self) -> None:
        p = self.probabilities(0.125, 0.125, 0.125, 0.625)  # d, e and 3 say the same
        for rule in (climb, max_coverage, darts):
            assert p.nodes.paths[rule(p).choose(0.5)].tolist() == [[1, 2, 3]], rule

    def test_among_equal_leaves_the_first_is_chosen(self) -> None:
        p = self.probabilities(0.25, 0.375, 0.375, 0)
        for rule in (climb, max_coverage):
            assert p.nodes.paths[rule(p).choose(0.1)].tolist() == [[0, 0, 1]], rule
        p = self.probabilities(0, 0, 0.5, 0.5)
        assert p.nodes.paths[darts(p).choose(0)].tolist() == [[0, 1, 2]]

    def test_darts_changes_where_rewards_are_equal(self) -> None:
        # Rewards at t: 0 (1 + t) 3/8; b (1/2 + t) 3/4; a (0.21 + t) 7/8; the root t. At 0 those of 0 and b are equal,
        # and b is more probable. b equals the root at t = 3/2, before a equals b, at 1.55.
        p = self.probabilities(0.375, 0.375, 0.125, 0.125)
        assert darts(p).until.tolist() == [[1.5, math.inf]]
        assert p.nodes.paths[darts(p).nodes[0]].tolist() == [[0, 0, -1], [-1, -1, -1]]
        # 0: (1 + t) 5/8; b: (1/2 + t) 3/4; equal at t = 2. The root equals 0 at t = 5/3, before that.
        p = self.probabilities(0.625, 0.125, 0.125, 0.125)
        assert darts(p).until.tolist() == [pytest.approx([5 / 3, math.inf])]
        # With 15/16 for b, 0 and b are equal at t = (5/8 - 15/32) / (5/16) = 1/2; b and the root at 15/2; a has less.
        p = self.probabilities(0.625, 0.3125, 0, 0.0625)
        assert darts(p).until.tolist() == [[0.5, 7.5, math.inf]]
        assert p.nodes.paths[darts(p).nodes[0]].tolist() == [[0, 0, 0], [0, 0, -1], [-1, -1, -1]]

    def test_fixed_takes_one_threshold_for_all_levels(self) -> None:
        p = self.probabilities(0.375, 0.375, 0.125, 0.125)  # b has 0.75, a 0.875
        assert p.nodes.paths[fixed(p).choose(1)].tolist() == [[0, 0, -1]]
        assert p.nodes.paths[fixed(p, 0.8).choose(1)].tolist() == [[0, -1, -1]]
        assert fixed(p, 0.9).choose(1) == p.nodes.root
        assert p.nodes.paths[fixed(p, 0.9).choose(0.9)].tolist() == [[0, -1, -1]]


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_nodes_equal_a_loop_over_paths(tree: Hierarchy) -> None:
    nodes, paths = Nodes(tree), paths_of(tree)
    classes = [(depth, label) for depth, names in enumerate(tree.classes) for label in range(len(names))]
    image = Image(some_probabilities(tree, "sums"), 0)
    assert [as_choice(node, nodes) for node in range(nodes.root + 1)] == [*classes, None]
    assert nodes.leaf_paths.tolist() == [list(path) for path in paths]
    for node, (depth, label) in enumerate(classes):
        under = [path for path in paths if path[depth] == label]
        assert nodes.leaves[node] == len(under)
        assert nodes.coverage[node] == image.coverage(depth, label)
        assert nodes.paths[node].tolist() == [*under[0][: depth + 1], *[-1] * (len(tree.levels) - depth - 1)]
    assert (nodes.leaves[-1], nodes.coverage[-1]) == (len(paths), 0)
    assert nodes.paths[-1].tolist() == [-1] * len(tree.levels)
    depths = [depth for depth, _ in classes]
    assert nodes.finest_first.tolist() == [*sorted(range(len(depths)), key=lambda node: -depths[node]), nodes.root]
    labels = np.arange(len(paths))
    every = np.tile(np.arange(nodes.root + 1), (len(paths), 1))
    right = [[*(paths[label][depth] == own for depth, own in classes), True] for label in labels]
    assert nodes.are_right(every, labels).tolist() == right
    assert nodes.are_right(every[:, 0], labels).tolist() == [row[0] for row in right]


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_sums_and_restrictions_equal_loops(tree: Hierarchy) -> None:
    p, paths = some_probabilities(tree, "sums"), paths_of(tree)
    leaf = p.levels[-1]
    for depth, level in enumerate(p.levels):
        for label in range(level.shape[1]):
            expected = sum(leaf[:, i] for i, path in enumerate(paths) if path[depth] == label)
            assert level[:, label] == pytest.approx(expected)
    assert p.all.shape == (6, p.nodes.root + 1) and (p.all[:, -1] == 1).all()
    possible = sorted({0, len(paths) // 2})
    levels = restrict(some_probabilities(tree, "levels").levels, possible, p.nodes)
    for depth, (level, whole) in enumerate(zip(levels, some_probabilities(tree, "levels").levels, strict=True)):
        labels = sorted({paths[leaf_label][depth] for leaf_label in possible})
        for row in range(6):
            total = sum(whole[row, label] for label in labels)
            expected = [whole[row, label] / total if label in labels else 0 for label in range(level.shape[1])]
            assert level[row] == pytest.approx(np.array(expected))


def test_restriction_where_nothing_is_known() -> None:
    nodes = Nodes(UNBALANCED)
    levels = sum_over_leaves(np.array([[0, 0, 0, 0, 0, 0, 1.0]]), nodes)  # certainly 7
    found = restrict(levels, [0, 3, 4], nodes)  # 1, 4 and 5
    assert [level.tolist() for level in found] == [
        [[0.5, 0.5, 0]],
        [[0.5, 0, 0.5, 0]],
        [[1 / 3, 0, 0, 1 / 3, 1 / 3, 0, 0]],
    ]
    with pytest.raises(ValueError, match="no leaf class is left; name one or more"):
        restrict(levels, [], nodes)


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_restricted_sums_are_sums_over_the_possible_leaves(tree: Hierarchy) -> None:
    p, paths = some_probabilities(tree, "sums"), paths_of(tree)
    possible, last = sorted({0, len(paths) // 2}), len(tree.levels) - 1
    total = sum(p.levels[-1][:, leaf] for leaf in possible)
    for depth, level in enumerate(restrict(p.levels, possible, p.nodes, own=[last])):
        for label in range(level.shape[1]):
            expected = sum(p.levels[-1][:, leaf] for leaf in possible if paths[leaf][depth] == label)
            assert level[:, label] == pytest.approx(expected / total)


def test_a_mask_or_indices_take_images() -> None:
    p = some_probabilities(UNBALANCED, "levels")
    mask = np.arange(6) % 3 == 0
    assert p.sizes is not None
    for chosen in (mask, np.flatnonzero(mask)):
        taken = p.take(chosen)
        assert (taken.all == p.all[::3]).all() and taken.sizes is not None and (taken.sizes == p.sizes[::3]).all()
    assert NodeProbabilities(p.nodes, p.levels).take(mask).sizes is None


@pytest.mark.parametrize("rule", list_rules())
def test_no_images(rule: str) -> None:
    p = some_probabilities(UNBALANCED, "sums").take(np.arange(0))
    assert apply(rule, p).choose(0.5).shape == (0,)


def test_a_large_tree() -> None:
    tree = load_hierarchy("cub")
    p = some_probabilities(tree, "sums", n=50)
    for rule in ("climb", "max_coverage", "darts", "leaf_or_nothing"):
        chosen = [apply(rule, p).choose(t) for t in (0, 0.3, 0.9)]
        coverage = [float(p.nodes.coverage[nodes].mean()) for nodes in chosen]
        assert coverage == sorted(coverage, reverse=True) and coverage[0] > coverage[2], rule


def test_invalid_arguments() -> None:
    p = some_probabilities(UNBALANCED, "sums")
    with pytest.raises(ValueError, match="unknown level in thresholds: 'D'"):
        fixed(p, {"D": 0.5})
    with pytest.raises(ValueError, match="the threshold of B is 0; it must be above 0 and at most 1"):
        fixed(p, {"B": 0})
    with pytest.raises(ValueError, match=r"the threshold of A is 1\.5"):
        fixed(p, 1.5)
    with pytest.raises(ValueError, match="no level has a threshold; give one for some of the levels A, B, C"):
        fixed(p, {})
    with pytest.raises(ValueError, match="'nominal' needs the sizes of the images and the resolutions"):
        nominal(p)
    with pytest.raises(ValueError, match="'nominal' needs the sizes of the images and the resolutions"):
        nominal(NodeProbabilities(p.nodes, p.levels), own_sizes(UNBALANCED))
    with pytest.raises(ValueError, match="needs the resolution of C; at full size, the model's input size"):
        nominal(p, {"A": 8, "B": 16})
    with pytest.raises(ValueError, match="unknown rule 'clim'; did you mean 'climb'"):
        RULES["clim"]


def test_levels_that_disagree_are_climbed_from_the_joint_path() -> None:
    """By hand: the best leaf, disc, is round; the product prefers the edged box, 0.9 * 0.3 to 0.1 * 0.6."""
    tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
    levels = (np.array([[0.1, 0.9]]), np.array([[0.6, 0.1, 0.3]]))
    log_probs = {level: np.log(p) for level, p in zip(tree.levels, levels, strict=True)}
    p = calibrated(log_probs, tree, "levels", {})
    assert p.best_leaf.tolist() == [2]
    assert p.nodes.paths[RULES["climb"](p).choose(0.8)].tolist() == [[1, -1]]
    assert p.nodes.paths[RULES["leaf_or_nothing"](p).choose(0.2)].tolist() == [[1, 2]]
    assert calibrated(log_probs, tree, "sum", {}).best_leaf.tolist() == [0]


def test_the_joint_leaf_is_that_of_the_decoding() -> None:
    tree = load_hierarchy("critters")
    rng = np.random.default_rng(0)
    levels = tuple(rng.dirichlet(np.ones(count), 50) for count in tree.num_classes.values())
    log_probs = {level: torch.tensor(p).log() for level, p in zip(tree.levels, levels, strict=True)}
    assert find_joint_leaf(levels, Nodes(tree)).tolist() == decode(log_probs, tree, "joint")[:, -1].tolist()
