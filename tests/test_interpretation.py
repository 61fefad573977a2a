"""Log-probabilities as arrays: missing levels and paths, against those of tensors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from c2f_zoo import Hierarchy
from c2f_zoo.decoding import decode, marginalize
from c2f_zoo.inference.nodes import Nodes, add_missing_levels, find_joint_path, mask_impossible
from c2f_zoo.testing import irregular_hierarchy

TREE = irregular_hierarchy(3)
SUBSETS = [
    [*levels, TREE.finest]
    for count in range(len(TREE.levels))
    for levels in itertools.combinations(TREE.levels[:-1], count)
]


def log_probs(tree: Hierarchy, levels: list[str], zeros: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {level: rng.dirichlet(np.ones(tree.num_classes[level]), size=5) for level in levels}
    if zeros:
        found = {level: np.where(p < np.median(p), 0, p) for level, p in found.items()}
    with np.errstate(divide="ignore"):
        return {level: np.log(p) for level, p in found.items()}


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {level: torch.from_numpy(z) for level, z in arrays.items()}


@pytest.mark.parametrize("levels", SUBSETS)
def test_missing_levels_and_paths_are_those_of_tensors(levels: list[str]) -> None:
    given = log_probs(TREE, levels)
    found, expected = add_missing_levels(given, TREE), marginalize(tensors(given), TREE)
    assert list(found) == list(expected) == list(TREE.levels)
    for level in TREE.levels:
        np.testing.assert_allclose(found[level], expected[level].numpy(), rtol=1e-12)
    paths = find_joint_path(given, Nodes(TREE))
    assert paths.tolist() == decode(tensors(given), TREE, "joint").tolist()


def test_missing_levels_are_sums_of_probabilities_also_of_zeros() -> None:
    given = log_probs(TREE, [TREE.finest], zeros=True)
    found = {level: np.exp(z) for level, z in add_missing_levels(given, TREE).items()}
    for depth, level in enumerate(TREE.levels):
        sums = np.zeros_like(found[level])
        for leaf, label in enumerate(TREE.ancestor_labels[depth]):
            sums[:, label] += found[TREE.finest][:, leaf]
        np.testing.assert_allclose(found[level], sums, atol=1e-15)


def test_an_impossible_class_never_wins() -> None:
    nodes, given = Nodes(TREE), add_missing_levels(log_probs(TREE, [TREE.finest], zeros=True), TREE)
    for leaf in range(TREE.num_classes[TREE.finest]):
        masked = mask_impossible(given, [leaf], nodes)
        assert (find_joint_path(masked, nodes) == nodes.leaf_paths[leaf]).all()
        assert [np.isfinite(z).sum(axis=1).tolist() for z in masked.values()] == [[1] * 5] * len(TREE.levels)
