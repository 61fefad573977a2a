"""Probabilities of a tree's nodes, as NumPy arrays: what the rules of `trust` choose from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from c2f_zoo.hierarchy import Hierarchy

LOWEST = -1e100  # in place of the logarithm of 0: its sums and means are finite


@dataclass(frozen=True)
class Nodes:
    """The nodes of a class tree, numbered: the classes of each level, coarse to fine, and last the root.

    The root stands for "any class". To choose it means to say nothing.

    Args:
        tree: the class tree.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> nodes = Nodes(tree)
        >>> nodes.coverage.round(2).tolist(), nodes.root
        ([0.37, 1.0, 1.0, 1.0, 1.0, 0.0], 5)
        >>> nodes.paths[[0, 3, 5]].tolist()  # round; round > ring; nothing
        [[0, -1], [0, 1], [-1, -1]]
    """

    tree: Hierarchy

    @cached_property
    def offsets(self) -> np.ndarray:
        """The number of each level's first node, int64 (levels,), and the root's: (levels + 1,)."""
        return np.cumsum([0, *(len(names) for names in self.tree.classes)])

    @property
    def root(self) -> int:
        """The root's number."""
        return int(self.offsets[-1])

    @cached_property
    def depths(self) -> np.ndarray:
        """The depth of each node, int64 (nodes,); -1 for the root."""
        counts = [len(names) for names in self.tree.classes]
        return np.append(np.repeat(np.arange(len(counts)), counts), -1)

    @cached_property
    def finest_first(self) -> np.ndarray:
        """The numbers of all nodes, level by level from the leaf level to the root, int64 (nodes,)."""
        return np.argsort(-self.depths, kind="stable")

    @cached_property
    def paths(self) -> np.ndarray:
        """The path to each node, int64 (nodes, levels): labels, coarse to fine, -1 below the node."""
        depths = len(self.tree.levels)
        paths = np.full((self.root + 1, depths), -1)
        for depth in range(depths):
            rows = slice(self.offsets[depth], self.offsets[depth + 1])
            if depth:
                paths[rows] = paths[self.offsets[depth - 1] + np.asarray(self.tree.parents[depth - 1])]
            paths[rows, depth] = np.arange(len(self.tree.classes[depth]))
        return paths

    @cached_property
    def leaf_paths(self) -> np.ndarray:
        """The path of each leaf class, int64 (leaves, levels)."""
        return self.paths[self.offsets[-2] : self.root]

    @cached_property
    def leaves(self) -> np.ndarray:
        """The number of leaf classes under each node, int64 (nodes,)."""
        counts = [
            np.bincount(labels, minlength=len(names))
            for labels, names in zip(self.leaf_paths.T, self.tree.classes, strict=True)
        ]
        return np.concatenate([*counts, [len(self.leaf_paths)]])

    @cached_property
    def coverage(self) -> np.ndarray:
        """How much a node says, float64 (nodes,) in [0, 1]: 1 - log2(leaves under it) / log2(leaves).

        1 is a leaf class, 0 the root. A tree of one leaf class has coverage 1 everywhere but at the root.
        """
        total = np.log2(max(len(self.leaf_paths), 2))
        coverage = 1 - np.log2(self.leaves) / total
        coverage[-1] = 0.0
        return coverage

    def are_right(self, nodes: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return whether nodes are the true leaf class or an ancestor; the root always is.

        Args:
            nodes: numbers of nodes (N, ...).
            labels: true leaf labels (N,).

        Returns:
            bool array of the shape of `nodes`.
        """
        right = np.append(self.offsets[:-1] + self.leaf_paths, np.full((len(self.leaf_paths), 1), self.root), axis=1)
        true = right[labels].reshape(len(labels), *[1] * (nodes.ndim - 1), -1)
        return np.asarray((nodes[..., None] == true).any(axis=-1))


@dataclass(frozen=True)
class NodeProbabilities:
    """Probabilities of the nodes of a tree, for N images.

    Attributes:
        nodes: the tree's nodes.
        levels: for each level, coarse to fine, probabilities float64 (N, classes) in [0, 1].
        sizes: the shorter side of each image in pixels, (N,), if it is known; the rule `nominal` uses it.
        leaf: the predicted leaf class of each image (N,), from which rules climb; default: the most probable.
    """

    nodes: Nodes
    levels: tuple[np.ndarray, ...]
    sizes: np.ndarray | None = None
    leaf: np.ndarray | None = None

    @property
    def best_leaf(self) -> np.ndarray:
        """The predicted leaf class of each image, int64 (N,)."""
        return self.levels[-1].argmax(axis=1) if self.leaf is None else self.leaf

    @cached_property
    def all(self) -> np.ndarray:
        """Probabilities of all nodes, float64 (N, nodes); the root's is 1."""
        return np.concatenate([*self.levels, np.ones((len(self.levels[0]), 1))], axis=1)

    def take(self, chosen: np.ndarray) -> NodeProbabilities:
        """Return the probabilities of some images: a mask (N,) or indices."""
        sizes, leaf = (None if one is None else one[chosen] for one in (self.sizes, self.leaf))
        return NodeProbabilities(self.nodes, tuple(level[chosen] for level in self.levels), sizes, leaf)


def sum_over_leaves(leaf_probabilities: np.ndarray, nodes: Nodes) -> tuple[np.ndarray, ...]:
    """Return the probability of every class as the sum over the leaf classes under it, level by level.

    Args:
        leaf_probabilities: float64 (N, leaves).
        nodes: the tree's nodes.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> [level.tolist() for level in sum_over_leaves(np.array([[0.5, 0.25, 0.25]]), Nodes(tree))]
        [[[0.75, 0.25]], [[0.5, 0.25, 0.25]]]
    """
    sums = []
    for depth, names in enumerate(nodes.tree.classes):
        is_under = nodes.leaf_paths[:, depth, None] == np.arange(len(names))
        sums.append(leaf_probabilities @ is_under.astype(np.float64))
    return tuple(sums)


def find_joint_leaf(levels: Sequence[np.ndarray], nodes: Nodes, leaves: Sequence[int] | None = None) -> np.ndarray:
    """Return the leaf class (N,) of the path with the greatest product of probabilities, as the decoding `joint`.

    Args:
        levels: for each level probabilities (N, classes), which need not agree with each other.
        nodes: the tree's nodes.
        leaves: labels of the leaf classes to choose from; default: all.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> find_joint_leaf((np.array([[0.1, 0.9]]), np.array([[0.6, 0.1, 0.3]])), Nodes(tree)).tolist()  # box
        [2]
    """
    least = np.finfo(np.float64).tiny
    possible = np.arange(len(nodes.leaf_paths)) if leaves is None else np.asarray(leaves)
    paths = nodes.leaf_paths[possible]
    logs = [np.log(np.maximum(level, least))[:, labels] for level, labels in zip(levels, paths.T, strict=True)]
    return np.asarray(possible[np.sum(logs, axis=0).argmax(axis=1)])


def find_joint_path(log_probs: Mapping[str, np.ndarray], nodes: Nodes) -> np.ndarray:
    """Return the path with the greatest sum of log-probabilities, the decoding `joint`.

    Args:
        log_probs: level -> log-probabilities (N, classes), normalized or not, of the leaf level and any others.
        nodes: the tree's nodes.

    Returns:
        int64 labels (N, levels), coarse to fine. Of equals the lowest label is chosen.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> find_joint_path({"kind": np.log([[0.4, 0.6]]), "shape": np.log([[0.6, 0.3, 0.1]])}, Nodes(tree)).tolist()
        [[0, 0]]
    """
    levels = [(depth, level) for depth, level in enumerate(nodes.tree.levels) if level in log_probs]
    total = sum(log_probs[level][:, nodes.leaf_paths[:, depth]] for depth, level in levels)
    return np.asarray(nodes.leaf_paths[np.argmax(total, axis=1)])


def add_missing_levels(log_probs: Mapping[str, np.ndarray], tree: Hierarchy) -> dict[str, np.ndarray]:
    """Add the missing levels of a tree, as `c2f_zoo.decoding.marginalize` does for tensors.

    Args:
        log_probs: level -> log-probabilities float64 (N, classes), of the leaf level and any others.
        tree: the class tree.

    Returns:
        Log-probabilities of every level, coarse to fine: those given, or the log of the sum over a class's children.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> np.exp(add_missing_levels({"shape": np.log([[0.5, 0.25, 0.25]])}, tree)["kind"]).tolist()
        [[0.75, 0.25]]
    """
    found = {tree.finest: log_probs[tree.finest]}
    for depth in reversed(range(len(tree.levels) - 1)):
        level, children = tree.levels[depth], np.maximum(next(reversed(found.values())), LOWEST)
        if level in log_probs:
            found[level] = log_probs[level]
            continue
        is_child = np.asarray(tree.parents[depth])[:, None] == np.arange(len(tree.classes[depth]))
        largest = np.stack([children[:, row].max(axis=1) for row in is_child.T], axis=1)
        ratios = np.exp(children - largest[:, tree.parents[depth]])
        found[level] = np.log(ratios @ is_child.astype(np.float64)) + largest
    return dict(reversed(found.items()))


def mask_impossible(log_probs: Mapping[str, np.ndarray], leaves: Sequence[int], nodes: Nodes) -> dict[str, np.ndarray]:
    """Return log-probabilities (N, classes) with -inf for impossible classes, and more than -inf for all others.

    They are not normalized, which a choice of the best path does not need.

    Args:
        log_probs: level -> log-probabilities of every level.
        leaves: labels of the leaf classes that are possible.
        nodes: the tree's nodes.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> levels = add_missing_levels({"shape": np.log([[0.5, 0.25, 0.25]])}, tree)
        >>> np.exp(mask_impossible(levels, [1], Nodes(tree))["shape"]).tolist()
        [[0.0, 0.25, 0.0]]
    """
    masked = {}
    for depth, (level, z) in enumerate(log_probs.items()):
        is_possible = np.isin(np.arange(z.shape[1]), nodes.leaf_paths[list(leaves), depth])
        masked[level] = np.where(is_possible, np.maximum(z, LOWEST), -np.inf)
    return masked


def restrict(
    levels: Sequence[np.ndarray], leaves: Sequence[int], nodes: Nodes, own: Collection[int] | None = None
) -> tuple[np.ndarray, ...]:
    """Restrict probabilities to some leaf classes and their ancestors, and normalize each level again.

    Args:
        levels: for each level probabilities (N, classes).
        leaves: labels of the leaf classes that are possible.
        nodes: the tree's nodes.
        own: the depths of the levels with probabilities of their own, the leaf level among them; those of the other
            levels are sums over the next finer level, which lose the impossible classes too. Default: all.

    Raises:
        ValueError: there are no leaf classes.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> levels = sum_over_leaves(np.array([[0.5, 0.25, 0.25]]), Nodes(tree))
        >>> [level.tolist() for level in restrict(levels, [1, 2], Nodes(tree), own=[1])]
        [[[0.5, 0.5]], [[0.0, 0.5, 0.5]]]
    """
    if not len(leaves):
        raise ValueError("no leaf class is left; name one or more")
    kept: list[np.ndarray] = []
    for depth in reversed(range(len(levels))):
        if own is not None and depth not in own:
            is_child = np.asarray(nodes.tree.parents[depth])[:, None] == np.arange(levels[depth].shape[1])
            kept.append(kept[-1] @ is_child.astype(np.float64))
            continue
        is_possible = np.isin(np.arange(levels[depth].shape[1]), nodes.leaf_paths[list(leaves), depth])
        part = np.where(is_possible, levels[depth], 0.0)
        total = part.sum(axis=1, keepdims=True)
        # Where all of them have probability 0, nothing is known about them.
        kept.append(np.where(total > 0, part / np.where(total > 0, total, 1), is_possible / is_possible.sum()))
    return tuple(reversed(kept))
