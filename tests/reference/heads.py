"""Reference formulas of the heads: one level's probabilities of one vector, by loops."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from c2f_zoo import Head, Hierarchy
from c2f_zoo.testing import HeadReference


def scores(head: Head, v: Tensor, level: str) -> list[float]:
    """Return the scores of a level's linear layer for one vector, by loops."""
    layer = head.get_classifier(level)
    return [float((row * v).sum() + b) for row, b in zip(layer.weight.detach(), layer.bias.detach(), strict=True)]


def softmax(z: list[float]) -> list[float]:
    return [math.exp(x - max(z)) / sum(math.exp(y - max(z)) for y in z) for x in z]


def children(tree: Hierarchy, depth: int, label: int) -> list[int]:
    return [child for child, parent in enumerate(tree.parents[depth]) if parent == label]


def levels_reference(head: Head, v: Tensor, tree: Hierarchy, level: str) -> list[float]:
    return softmax(scores(head, v, level))


def marginal_reference(head: Head, v: Tensor, tree: Hierarchy, level: str) -> list[float]:
    fine = softmax(scores(head, v, tree.finest))
    place = tree.levels.index(level)
    names = tree.class_names(level)
    return [sum(p for i, p in enumerate(fine) if tree.path(i)[place] == name) for name in names]


def conditional_reference(head: Head, v: Tensor, tree: Hierarchy, level: str) -> list[float]:
    probabilities = softmax(scores(head, v, tree.levels[0]))
    for depth in range(tree.levels.index(level)):
        z, below = scores(head, v, tree.levels[depth + 1]), {}
        for parent, p in enumerate(probabilities):
            family = children(tree, depth, parent)
            for child, fraction in zip(family, softmax([z[c] for c in family]), strict=True):
                below[child] = p * fraction
        probabilities = [below[child] for child in range(len(z))]
    return probabilities


def disentangled_reference(head: Head, v: Tensor, tree: Hierarchy, level: str) -> list[float]:
    read: list[float] = []
    features: Any = head.features
    for projection, norm, _ in features[head.levels.index(level) :]:
        x = projection.weight @ v + projection.bias
        x = (x - x.mean()) / ((x - x.mean()).square().mean() + norm.eps).sqrt()
        read += [(y if y > 0 else math.exp(y) - 1) / math.sqrt(len(x)) for y in x.tolist()]
    return softmax(scores(head, torch.tensor(read, dtype=torch.float64), level))


def legal_states(tree: Hierarchy) -> list[set[tuple[int, int]]]:
    """Return all sets of (depth, label) with every parent and without siblings.

    See definitions 1 and 2 of Deng et al., ECCV 2014.
    """
    nodes = [(depth, label) for depth, names in enumerate(tree.classes) for label in range(len(names))]
    parent = {(d, i): (d - 1, tree.parents[d - 1][i]) if d else None for d, i in nodes}
    states: list[set[tuple[int, int]]] = [set()]
    for node in nodes:
        siblings = {other for other in nodes if parent[other] == parent[node] and other != node}
        states += [s | {node} for s in states if (parent[node] is None or parent[node] in s) and not s & siblings]
    return states


def hex_states(head: Head, v: Tensor, tree: Hierarchy) -> list[tuple[set[tuple[int, int]], float]]:
    """Return each legal state with its probability."""
    z = {(d, i): x for d, level in enumerate(tree.levels) for i, x in enumerate(scores(head, v, level))}
    states = legal_states(tree)
    weights = [math.exp(sum(z[node] for node in state)) for state in states]
    return [(state, weight / sum(weights)) for state, weight in zip(states, weights, strict=True)]


def hex_reference(head: Head, v: Tensor, tree: Hierarchy, level: str) -> list[float]:
    states, depth = hex_states(head, v, tree), tree.levels.index(level)
    return [sum(p for s, p in states if (depth, i) in s) for i in range(tree.num_classes[level])]


REFERENCES: dict[str, HeadReference] = {
    "conditional": conditional_reference,
    "disentangled": disentangled_reference,
    "hex": hex_reference,
    "levels": levels_reference,
    "marginal": marginal_reference,
}
