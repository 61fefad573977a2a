"""Decodings against an example by hand and a search over all paths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from c2f_zoo import Hierarchy, decoding, load_hierarchy
from c2f_zoo.decoding import DECODINGS, decode, is_path, list_decodings, marginalize, register_decoding

# Three levels; a (p, q) and b (r): p has the species 0 and 1, q 2, r 3.
TREE = Hierarchy.from_rows(("A", "B", "C"), [("a", "p", "0"), ("a", "p", "1"), ("a", "q", "2"), ("b", "r", "3")])


def logs(**levels: list[float]) -> dict[str, Tensor]:
    return {level: torch.tensor([values], dtype=torch.float64).log() for level, values in levels.items()}


def random_tree(depth: int, seed: int) -> Hierarchy:
    """Return an irregular tree of random labels; a class has one to three children."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 4, (), generator=generator))
    counts, parents = [count], []
    for _ in range(depth - 1):
        extra = torch.randint(
            count, (int(torch.randint(0, 2 * count + 1, (), generator=generator)),), generator=generator
        )
        labels = torch.cat([torch.arange(count), extra])
        labels = labels[torch.randperm(len(labels), generator=generator)]
        parents.append(tuple(labels.tolist()))
        count = len(labels)
        counts.append(count)
    classes = tuple(tuple(f"{level}.{label}" for label in range(n)) for level, n in enumerate(counts))
    return Hierarchy(tuple(f"level {level}" for level in range(depth)), classes, tuple(parents))


def random_log_probs(tree: Hierarchy, n: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        level: (2 * torch.randn(n, count, generator=generator, dtype=torch.float64)).log_softmax(dim=1)
        for level, count in tree.num_classes.items()
    }


TREES = [random_tree(depth, seed) for depth in (1, 2, 3, 4) for seed in (0, 1, 2)]


def paths_of(tree: Hierarchy) -> list[tuple[int, ...]]:
    fine = range(tree.num_classes[tree.finest])
    return [
        tuple(tree.class_names(level).index(name) for level, name in zip(tree.levels, tree.path(label), strict=True))
        for label in fine
    ]


def test_decodings_differ_on_an_example_by_hand() -> None:
    log_probs = logs(A=[0.45, 0.55], B=[0.28, 0.47, 0.25], C=[0.45, 0.15, 0.34, 0.06])
    found = {how: decode(log_probs, TREE, how)[0].tolist() for how in list_decodings()}
    # independent: b, q, 0. top_down: b, whose only child is r, whose only child is 3. bottom_up: 0, so p, so a.
    # joint: a p 0: .45 * .28 * .45 = .0567; a p 1: .45 * .28 * .15 = .0189; a q 2: .45 * .47 * .34 = .0719;
    # b r 3: .55 * .25 * .06 = .0083.
    assert found == {"independent": [1, 1, 0], "top_down": [1, 2, 3], "bottom_up": [0, 0, 0], "joint": [0, 1, 2]}


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: str(list(tree.num_classes.values())))
def test_decodings_equal_a_search_over_all_paths(tree: Hierarchy) -> None:
    log_probs = random_log_probs(tree, n=40, seed=0)
    found = {how: decode(log_probs, tree, how).tolist() for how in list_decodings()}
    paths = paths_of(tree)
    for i in range(40):
        z = [log_probs[level][i].tolist() for level in tree.levels]
        assert found["independent"][i] == [row.index(max(row)) for row in z]
        assert found["joint"][i] == list(max(paths, key=lambda path: sum(z[d][c] for d, c in enumerate(path))))
        assert found["bottom_up"][i] == list(max(paths, key=lambda path: z[-1][path[-1]]))
        # Top-down is the greatest path in lexicographic order, coarse to fine.
        assert found["top_down"][i] == list(max(paths, key=lambda path: [z[d][c] for d, c in enumerate(path)]))


@pytest.mark.parametrize("how", list_decodings())
@pytest.mark.parametrize("tree", TREES, ids=lambda tree: str(list(tree.num_classes.values())))
def test_only_independent_may_not_be_a_path(tree: Hierarchy, how: str) -> None:
    labels = decode(random_log_probs(tree, n=200, seed=1), tree, how)
    assert labels.dtype == torch.int64
    paths = set(paths_of(tree))
    legal = [tuple(row) in paths for row in labels.tolist()]
    assert is_path(labels, tree).tolist() == legal
    assert all(legal) or how == "independent"


def test_independent_is_rarely_a_path_for_random_scores() -> None:
    tree = load_hierarchy("cub")
    assert not is_path(decode(random_log_probs(tree, 50, 0), tree, "independent"), tree).any()


@pytest.mark.parametrize("how", list_decodings())
def test_empty_batch(how: str) -> None:
    assert decode({"C": torch.zeros(0, 4)}, TREE, how).shape == (0, 3)


@pytest.mark.parametrize("how", ["top_down", "bottom_up", "joint"])
def test_result_is_a_path_if_all_children_have_probability_zero(how: str) -> None:
    # b is certain at the first level; only classes outside its subtree are possible at the others.
    log_probs = logs(A=[0, 1], B=[0.5, 0.5, 0], C=[0.5, 0.5, 0, 0])
    assert is_path(decode(log_probs, TREE, how), TREE).all()
    assert decode(log_probs, TREE, "top_down").tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_joint_sums_half_precision_scores_in_float32(dtype: torch.dtype) -> None:
    # The sums, 8 + 1/512 and 8 + 1/1024, are the same number at half precision.
    log_probs = {"A": torch.tensor([[-8.0, -16.0]]), "C": torch.tensor([[-1 / 512, -1 / 1024, -1.0, -1.0]])}
    assert decode({level: z.to(dtype) for level, z in log_probs.items()}, TREE, "joint").tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("levels", [("level 0", "level 1", "level 2", "level 3"), ("level 1", "level 3")])
def test_joint_in_blocks_equals_joint_at_once(monkeypatch: pytest.MonkeyPatch, levels: tuple[str, ...]) -> None:
    tree = random_tree(4, seed=2)
    every = random_log_probs(tree, n=23, seed=3)
    log_probs = {level: every[level] for level in reversed(levels)}
    at_once = decode(log_probs, tree, "joint")
    paths = torch.tensor(paths_of(tree))
    naive = sum(every[level][:, paths[:, tree.depth(level)]] for level in levels)
    assert torch.equal(at_once, paths[torch.as_tensor(naive).argmax(dim=1)])
    for most in (1, 5 * tree.num_classes[tree.finest]):  # one row at once; 5, with a rest of 3
        monkeypatch.setattr(decoding, "MAX_SCORES", most)
        assert torch.equal(decode(log_probs, tree, "joint"), at_once)


def test_joint_has_bounded_memory() -> None:
    counts = {"A": 8, "B": 64, "C": 512}
    parents = (tuple(i // 8 for i in range(64)), tuple(i // 8 for i in range(512)))
    names = tuple(tuple(f"{level}{i}" for i in range(count)) for level, count in counts.items())
    tree = Hierarchy(tuple(counts), names, parents)
    log_probs = {level: torch.randn(40_000, count) for level, count in counts.items()}
    scores = 4 * 40_000 * 512  # bytes of one tensor of the scores of all paths
    with profile(profile_memory=True) as profiled:
        decode(log_probs, tree, "joint")
    allocated = [event.cpu_memory_usage for event in profiled.events()]
    assert 0 < max(allocated) < scores / 2


class TestMissingLevels:
    def test_coarse_levels_are_sums_over_children(self) -> None:
        # Leaf classes only: p = .30 + .15, q = .35, r = .20; a = .80, b = .20.
        log_probs = logs(C=[0.30, 0.15, 0.35, 0.20])
        every = marginalize(log_probs, TREE)
        assert list(every) == ["A", "B", "C"]
        assert every["A"].exp()[0].tolist() == pytest.approx([0.80, 0.20])
        assert every["B"].exp()[0].tolist() == pytest.approx([0.45, 0.35, 0.20])
        assert every["C"] is log_probs["C"]
        assert decode(log_probs, TREE, "independent").tolist() == [[0, 0, 2]]
        assert decode(log_probs, TREE, "top_down").tolist() == [[0, 0, 0]]
        assert decode(log_probs, TREE, "bottom_up").tolist() == [[0, 1, 2]]
        assert decode(log_probs, TREE, "joint").tolist() == [[0, 1, 2]]

    def test_sums_are_over_the_next_finer_level(self) -> None:
        # a is the sum over the middle level (.1 + .2), not over the finest (.9 + 0 + 0).
        every = marginalize(logs(B=[0.1, 0.2, 0.7], C=[0.9, 0, 0, 0.1]), TREE)
        assert every["A"].exp()[0].tolist() == pytest.approx([0.3, 0.7])

    def test_joint_uses_predicted_levels_only(self) -> None:
        # Only A and C: a p 0: .4 * .40 = .16; b r 3: .6 * .30 = .18. If B, which is a sum over C, counted as well,
        # a p 0 would win: .4 * .60 * .40 = .096 > .6 * .30 * .30 = .054.
        log_probs = logs(A=[0.4, 0.6], C=[0.40, 0.20, 0.10, 0.30])
        assert decode(log_probs, TREE, "joint").tolist() == [[1, 2, 3]]

    @pytest.mark.parametrize("how", list_decodings())
    def test_finer_levels_are_minus_one(self, how: str) -> None:
        labels = decode(logs(B=[0.1, 0.2, 0.7]), TREE, how)
        assert labels.tolist() == [[1, 2, -1]]
        assert is_path(labels, TREE).all()

    def test_sum_of_impossible_classes_is_zero(self) -> None:
        assert marginalize(logs(C=[0, 0, 0, 1]), TREE)["B"].exp().tolist() == [[0, 0, 1]]

    def test_sums_below_one_are_not_normalized(self) -> None:
        every = marginalize(logs(B=[0.2, 0.1, 0.3], C=[0.1, 0.0, 0.1, 0.1]), TREE)
        assert every["A"].exp()[0].tolist() == pytest.approx([0.3, 0.3])
        assert every["B"].exp()[0].tolist() == pytest.approx([0.2, 0.1, 0.3])


def test_is_path_for_mixed_depth() -> None:
    labels = torch.tensor([[0, 0, 1], [0, 0, 2], [1, 0, 0], [0, 1, -1], [1, 1, -1], [1, -1, -1], [-1, 0, 0], [-1] * 3])
    assert is_path(labels, TREE).tolist() == [True, False, False, True, False, True, False, True]


def test_invalid_arguments() -> None:
    with pytest.raises(ValueError, match="unknown decoding 'topdown'; did you mean 'top_down'"):
        decode(logs(A=[0.5, 0.5]), TREE, "topdown")
    with pytest.raises(ValueError, match="unknown level 'D'"):
        decode(logs(D=[0.5, 0.5]), TREE, "joint")
    with pytest.raises(ValueError, match=r"A has 2 classes: its log-probabilities are \(N, 2\), not \(1, 3\)"):
        decode(logs(A=[0.5, 0.3, 0.2]), TREE, "joint")
    with pytest.raises(ValueError, match="no log-probabilities; pass those of one or more of"):
        marginalize({}, TREE)


def test_registered_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DECODINGS, "_entries", dict(DECODINGS._entries))

    @register_decoding("coarsest_only")
    def coarsest_only(log_probs: dict[str, Tensor], hierarchy: Hierarchy) -> Tensor:
        return log_probs[hierarchy.levels[0]].argmax(dim=1, keepdim=True)

    assert "coarsest_only" in list_decodings()
    assert list(DECODINGS.load_all()) == ["independent", "top_down", "bottom_up", "joint", "coarsest_only"]
    assert decode(logs(A=[0.25, 0.75]), TREE, "coarsest_only").tolist() == [[1, -1, -1]]


@pytest.mark.parametrize("how", list_decodings())
def test_log_probabilities_that_are_not_a_number_are_an_error(how: str) -> None:
    log_probs = logs(A=[0.5, 0.5], B=[0.2, 0.3, 0.5], C=[0.2, 0.3, float("nan"), 0.5])
    with pytest.raises(ValueError, match=r"log-probabilities of C are not a number \(nan\)"):
        decode(log_probs, TREE, how)
