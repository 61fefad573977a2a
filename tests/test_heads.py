"""Every head against its formula written out, and against what every head promises."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from PIL import Image
from torch import Tensor, nn

from c2f_zoo import C2FModel, Hierarchy, Predictor, create_model, list_heads, load_hierarchy, register_head
from c2f_zoo.heads import HEADS, create_head

DISTRIBUTIONS = [name for name in list_heads() if HEADS[name].levels_are_marginals]  # type: ignore[attr-defined]
DEPTHS = (1, 2, 3, 4)
FEATURES = 5


def irregular_tree(depth: int) -> Hierarchy:
    """Classes with one, two and three children, labelled in no order; the levels' names hold dots."""
    rng = random.Random(depth)
    rows: list[tuple[str, ...]] = [()]
    for level in range(depth):
        counts = [3 if level == 0 else 1 if i == 0 else rng.choice((1, 2)) for i in range(len(rows))]
        rows = [(*row, f"{len(row)}.{i}.{j}") for i, row in enumerate(rows) for j in range(counts[i])]
    rng.shuffle(rows)
    return Hierarchy.from_rows([f"level.{d}" for d in range(depth)], rows)


def make(name: str, tree: Hierarchy, levels: tuple[str, ...] | None = None) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    head = create_head(name, FEATURES, tree, levels or tree.levels).double()
    return head, 3 * torch.randn(4, FEATURES, dtype=torch.float64)


def log_probs(head: nn.Module, v: Tensor, levels: tuple[str, ...]) -> dict[str, Tensor]:
    return head.log_probs(head(v, levels))  # type: ignore[operator]


def scores(head: nn.Module, v: Tensor, level: str) -> list[float]:
    """What the linear layer of a level says of one vector, by loops."""
    layer = head.get_classifier(level)  # type: ignore[operator]
    return [float((row * v).sum() + b) for row, b in zip(layer.weight.detach(), layer.bias.detach(), strict=True)]


def softmax(z: list[float]) -> list[float]:
    return [math.exp(x - max(z)) / sum(math.exp(y - max(z)) for y in z) for x in z]


def children(tree: Hierarchy, depth: int, label: int) -> list[int]:
    return [child for child, parent in enumerate(tree.parents[depth]) if parent == label]


def levels_reference(head: nn.Module, v: Tensor, tree: Hierarchy, level: str) -> list[float]:
    return softmax(scores(head, v, level))


def marginal_reference(head: nn.Module, v: Tensor, tree: Hierarchy, level: str) -> list[float]:
    fine = softmax(scores(head, v, tree.finest))
    place = tree.levels.index(level)
    names = tree.class_names(level)
    return [sum(p for i, p in enumerate(fine) if tree.path(i)[place] == name) for name in names]


def conditional_reference(head: nn.Module, v: Tensor, tree: Hierarchy, level: str) -> list[float]:
    probabilities = softmax(scores(head, v, tree.levels[0]))
    for depth in range(tree.levels.index(level)):
        z, below = scores(head, v, tree.levels[depth + 1]), {}
        for parent, p in enumerate(probabilities):
            family = children(tree, depth, parent)
            for child, share in zip(family, softmax([z[c] for c in family]), strict=True):
                below[child] = p * share
        probabilities = [below[child] for child in range(len(z))]
    return probabilities


def disentangled_reference(head: nn.Module, v: Tensor, tree: Hierarchy, level: str) -> list[float]:
    read = []
    for projection, norm, _ in head.features[head.levels.index(level) :]:  # type: ignore[union-attr,index]
        x = projection.weight @ v + projection.bias
        x = (x - x.mean()) / ((x - x.mean()).square().mean() + norm.eps).sqrt()
        read += [(y if y > 0 else math.exp(y) - 1) / math.sqrt(len(x)) for y in x.tolist()]
    return softmax(scores(head, torch.tensor(read, dtype=torch.float64), level))


def legal_states(tree: Hierarchy) -> list[set[tuple[int, int]]]:
    """All sets of (depth, label) that hold every parent and no two siblings (Deng et al. 2014, definitions 1 and 2)."""
    nodes = [(depth, label) for depth, names in enumerate(tree.classes) for label in range(len(names))]
    parent = {(d, i): (d - 1, tree.parents[d - 1][i]) if d else None for d, i in nodes}
    states: list[set[tuple[int, int]]] = [set()]
    for node in nodes:
        siblings = {other for other in nodes if parent[other] == parent[node] and other != node}
        states += [s | {node} for s in states if (parent[node] is None or parent[node] in s) and not s & siblings]
    return states


def hex_states(head: nn.Module, v: Tensor, tree: Hierarchy) -> list[tuple[set[tuple[int, int]], float]]:
    """Each legal state with its probability."""
    z = {(d, i): x for d, level in enumerate(tree.levels) for i, x in enumerate(scores(head, v, level))}
    states = legal_states(tree)
    weights = [math.exp(sum(z[node] for node in state)) for state in states]
    return [(state, weight / sum(weights)) for state, weight in zip(states, weights, strict=True)]


def hex_reference(head: nn.Module, v: Tensor, tree: Hierarchy, level: str) -> list[float]:
    states, depth = hex_states(head, v, tree), tree.levels.index(level)
    return [sum(p for s, p in states if (depth, i) in s) for i in range(tree.num_classes[level])]


REFERENCES = {
    "conditional": conditional_reference,
    "disentangled": disentangled_reference,
    "hex": hex_reference,
    "levels": levels_reference,
    "marginal": marginal_reference,
}


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", list_heads())
def test_probabilities_are_those_of_the_formula(name: str, depth: int) -> None:
    tree = irregular_tree(depth)
    # Made for all levels, for the finest, and for those between, if there are any.
    for levels in {tree.levels, tree.levels[-1:], tree.levels[:1], tree.levels[1:-1] or tree.levels}:
        head, v = make(name, tree, levels)
        found = log_probs(head, v, levels)
        for level in levels:
            expected = [REFERENCES[name](head, row, tree, level) for row in v[:2]]
            torch.testing.assert_close(
                found[level][:2].exp(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12
            )


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_class_has_what_its_children_have(name: str, depth: int) -> None:
    tree = irregular_tree(depth)
    head, v = make(name, tree)
    p = {level: z.exp() for level, z in log_probs(head, v, tree.levels).items()}
    stops = {level: z.exp() for level, z in head.stop_log_probs(v).items()} if hasattr(head, "stop_log_probs") else {}
    for above, (level, below) in enumerate(itertools.pairwise(tree.levels)):
        for label in range(tree.num_classes[level]):
            total = p[below][:, children(tree, above, label)].sum(dim=1)
            stopped = stops[level][:, label] if stops else 0
            torch.testing.assert_close(total + stopped, p[level][:, label], rtol=1e-12, atol=1e-15)
    if not stops:
        for level in tree.levels:
            torch.testing.assert_close(p[level].sum(dim=1), torch.ones(4).double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_path_may_stop_anywhere(depth: int) -> None:
    tree = irregular_tree(depth)
    head, v = make("hex", tree)
    stops = {level: z.detach() for level, z in head.stop_log_probs(v).items()}  # type: ignore[operator]
    assert list(stops) == list(tree.levels)
    for row in range(2):
        states = hex_states(head, v[row], tree)
        assert sum(p for _, p in states) == pytest.approx(1)
        for state, p in states:
            if state:
                stop_depth, label = max(state)
                found = float(stops[tree.levels[stop_depth]][row, label])
                assert found == pytest.approx(math.log(p), abs=1e-9)
        nothing = next(p for state, p in states if not state)
        total = torch.cat(list(stops.values()), dim=1)[row].exp().sum()
        assert float(total) == pytest.approx(1 - nothing, abs=1e-12)


@pytest.mark.parametrize("name", list_heads())
def test_only_the_levels_asked_for_are_answered(name: str) -> None:
    tree = irregular_tree(3)
    head, v = make(name, tree)
    everything = head(v, tree.levels)
    assert list(everything) == list(tree.levels)
    for levels in ((), tree.levels[1:2], tree.levels[:1], (tree.levels[2], tree.levels[0])):
        some = head(v, levels)
        assert tuple(some) == levels
        for level in levels:
            torch.testing.assert_close(some[level], everything[level], rtol=1e-12, atol=1e-12)
    head, v = make(name, tree, tree.levels[1:2])
    with pytest.raises(ValueError, match=r"unknown level 'level.0'"):
        head(v, ("level.0",))


@pytest.mark.parametrize("name", list_heads())
def test_a_level_has_a_linear_layer_or_says_that_it_has_none(name: str) -> None:
    tree = irregular_tree(3)
    head, _ = make(name, tree)
    for level in tree.levels:
        try:
            layer = head.get_classifier(level)  # type: ignore[operator]
        except ValueError as error:
            assert (
                str(error) == f"{level!r} has no classifier in a marginal head: it sums over 'level.2', which has one"
            )
        else:
            assert isinstance(layer, nn.Linear)
            assert layer.out_features == tree.num_classes[level]
    with pytest.raises(ValueError, match=r"unknown level 'level.9'"):
        head.get_classifier("level.9")  # type: ignore[operator]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_gradients(name: str) -> None:
    tree = irregular_tree(3)
    head, v = make(name, tree)
    assert torch.autograd.gradcheck(lambda x: tuple(log_probs(head, x, tree.levels).values()), v.requires_grad_())


@pytest.mark.parametrize("name", list_heads())
def test_large_scores_stay_finite(name: str) -> None:
    tree = irregular_tree(4)
    head, v = make(name, tree)
    head.float()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(1e4 * parameter.sign())
    found = log_probs(head, v.float().sign(), tree.levels)
    for level in tree.levels:
        assert found[level].isfinite().all(), level
        assert (found[level] <= 1e-3).all(), level
    sum(z.sum() for z in found.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("name", list_heads())
def test_sums_are_made_in_float32_under_autocast(name: str) -> None:
    tree = irregular_tree(3)
    head, v = make(name, tree)
    head.float()
    expected = log_probs(head, v.float(), tree.levels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = log_probs(head, v.float(), tree.levels)
    for level in tree.levels:
        assert found[level].dtype == torch.float32
        torch.testing.assert_close(found[level], expected[level], rtol=0.05, atol=0.1)
    if name in DISTRIBUTIONS:
        for above, (level, below) in enumerate(itertools.pairwise(tree.levels)):
            totals = torch.zeros_like(found[level]).index_add(1, torch.tensor(tree.parents[above]), found[below].exp())
            assert (totals <= found[level].exp() + 1e-5).all()


@pytest.mark.parametrize("name", list_heads())
def test_a_head_is_compiled_as_one_graph(name: str) -> None:
    tree = irregular_tree(3)
    head, v = make(name, tree)
    compiled = torch.compile(lambda x: log_probs(head, x, tree.levels), backend="eager", fullgraph=True)
    for level, z in log_probs(head, v, tree.levels).items():
        assert torch.equal(compiled(v)[level], z)


def test_a_coarse_loss_does_not_reach_finer_features() -> None:
    tree = irregular_tree(3)
    head, v = make("disentangled", tree)
    head(v, tree.levels)["level.1"].square().sum().backward()
    reached = [feature[0].weight.grad is not None for feature in head.features]  # type: ignore[union-attr]
    assert reached == [False, True, False]
    before = head(v, ("level.1",))["level.1"]
    with torch.no_grad():
        head.features[2][0].bias.add_(torch.arange(256))  # type: ignore[union-attr,index]
    assert not torch.allclose(head(v, ("level.1",))["level.1"], before), "although it reads them"
    assert create_head("disentangled", FEATURES, tree, tree.levels, dim=7).get_classifier("level.0").in_features == 21  # type: ignore[operator]


@pytest.mark.parametrize("name", list_heads())
class TestInAModel:
    @pytest.fixture
    def model(self, name: str) -> C2FModel:
        torch.manual_seed(0)
        return create_model("mlph", hierarchy="critters", head=name, **SMALL).eval()  # type: ignore[arg-type]

    def test_at_a_level(self, model: C2FModel) -> None:
        x = torch.randn(2, 3, 64, 64)
        for level in model.levels:
            torch.testing.assert_close(model.at_level(level)(x), model(x)[level])

    def test_for_another_tree(self, model: C2FModel) -> None:
        model.reset_classifier(load_hierarchy("fashion_mnist"))
        v = torch.randn(1, model.pooling.out_features)  # type: ignore[arg-type]
        found = model.log_probs(model.forward_head(v))
        assert {level: z.shape[1] for level, z in found.items()} == {"division": 2, "group": 6, "article": 10}

    def test_saved(self, model: C2FModel, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        again = create_model(f"local-dir:{tmp_path}").eval()
        x = torch.randn(2, 3, 64, 64)
        for level, z in model(x).items():
            assert torch.equal(again(x)[level], z)

    def test_predicts_a_path(self, model: C2FModel) -> None:
        path = Predictor(model)(Image.new("RGB", (96, 96), (200, 40, 90))).path
        names = tuple(name for _, name, _ in path)
        assert names in {model.hierarchy.path(label) for label in range(36)}
        assert all(0 <= p <= 1 for _, _, p in path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "marginals"}, "unknown head 'marginals'; did you mean 'marginal'"),
        ({"levels": ["specie"]}, "unknown level 'specie'; did you mean 'species'"),
        ({"name": "disentangled", "dims": 3}, "unknown option of head 'disentangled': 'dims'; did you mean 'dim'"),
        ({"name": "disentangled", "dim": 0}, "dim=1 or more numbers, not 0"),
    ],
)
def test_mistakes_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_head(
            **{"name": "hex", "in_features": 3, "hierarchy": load_hierarchy("cub"), "levels": ["genus"]} | arguments
        )


def test_a_head_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HEADS, "_entries", dict(HEADS._entries))

    @register_head("doubled")
    def doubled(in_features: int, hierarchy: Hierarchy, levels: tuple[str, ...], scale: float = 2.0) -> nn.Module:
        head = create_head("levels", in_features, hierarchy, levels)
        head.scale = scale  # type: ignore[assignment]
        return head

    model = create_model("mlph", hierarchy="cub", head="doubled", head_options={"scale": 3.0}, **SMALL)  # type: ignore[arg-type]
    assert model.head.scale == 3.0
