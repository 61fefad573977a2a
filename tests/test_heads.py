"""Every head satisfies the contract and its formula; properties of single heads."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from PIL import Image
from reference.heads import REFERENCES, children, hex_states
from torch import Tensor, nn

from c2f_zoo import C2FModel, Head, Hierarchy, Predictor, create_model, list_heads, load_hierarchy, register_head
from c2f_zoo.heads import HEADS, create_head
from c2f_zoo.testing import check_head, irregular_hierarchy

DISTRIBUTIONS = [name for name in list_heads() if HEADS[name].levels_are_marginals]
DEPTHS = (1, 2, 3, 4)
FEATURES = 5


def make(name: str, tree: Hierarchy, levels: tuple[str, ...] | None = None) -> tuple[Head, Tensor]:
    torch.manual_seed(0)
    head = create_head(name, FEATURES, tree, levels or tree.levels).double()
    return head, 3 * torch.randn(4, FEATURES, dtype=torch.float64)


def log_probs(head: Head, v: Tensor, levels: tuple[str, ...]) -> dict[str, Tensor]:
    return head.log_probs(head(v, levels))


def test_every_head_has_a_formula() -> None:
    assert set(REFERENCES) == set(list_heads())


@pytest.mark.parametrize("name", list_heads())
def test_every_head_passes_check_head(name: str) -> None:
    check_head(name, REFERENCES[name])


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_probability_of_a_class_is_the_sum_over_its_children(name: str, depth: int) -> None:
    tree = irregular_hierarchy(depth)
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
    tree = irregular_hierarchy(depth)
    head, v = make("hex", tree)
    stops = {level: z.detach() for level, z in head.stop_log_probs(v).items()}
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
def test_an_unknown_level_raises(name: str) -> None:
    tree = irregular_hierarchy(3)
    head, v = make(name, tree, tree.levels[1:2])
    with pytest.raises(ValueError, match=r"unknown level 'level.0'"):
        head(v, ("level.0",))
    with pytest.raises(ValueError, match=r"unknown level 'level.9'"):
        head.get_classifier("level.9")


def test_a_marginal_head_has_one_classifier() -> None:
    tree = irregular_hierarchy(3)
    head, _ = make("marginal", tree)
    assert isinstance(head.get_classifier("level.2"), nn.Linear)
    for level in ("level.0", "level.1"):
        message = f"a marginal head has a classifier of level 'level.2' only, not of {level!r}"
        with pytest.raises(ValueError, match=re.escape(message)):
            head.get_classifier(level)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_gradients(name: str) -> None:
    tree = irregular_hierarchy(3)
    head, v = make(name, tree)
    assert torch.autograd.gradcheck(lambda x: tuple(log_probs(head, x, tree.levels).values()), v.requires_grad_())


@pytest.mark.slow
@pytest.mark.parametrize("name", list_heads())
def test_a_head_is_compiled_as_one_graph(name: str) -> None:
    tree = irregular_hierarchy(3)
    head, v = make(name, tree)
    compiled = torch.compile(lambda x: log_probs(head, x, tree.levels), backend="eager", fullgraph=True)
    for level, z in log_probs(head, v, tree.levels).items():
        assert torch.equal(compiled(v)[level], z)


def test_a_coarse_loss_has_no_gradient_for_finer_features() -> None:
    tree = irregular_hierarchy(3)
    head, v = make("disentangled", tree)
    head(v, tree.levels)["level.1"].square().sum().backward()
    reached = [feature[0].weight.grad is not None for feature in head.features]
    assert reached == [False, True, False]
    before = head(v, ("level.1",))["level.1"]
    with torch.no_grad():
        head.features[2][0].bias.add_(torch.arange(256))
    assert not torch.allclose(head(v, ("level.1",))["level.1"], before), "although it reads them"
    assert create_head("disentangled", FEATURES, tree, tree.levels, dim=7).get_classifier("level.0").in_features == 21


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

    @pytest.mark.slow
    def test_saved(self, model: C2FModel, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        again = create_model(f"local-dir:{tmp_path}").eval()
        x = torch.randn(2, 3, 64, 64)
        for level, z in model(x).items():
            assert torch.equal(again(x)[level], z)

    @pytest.mark.slow
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
        ({"name": "disentangled", "dim": 0}, "disentangled requires dim >= 1, not 0"),
    ],
)
def test_invalid_arguments_raise(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_head(
            **{"name": "hex", "in_features": 3, "hierarchy": load_hierarchy("cub"), "levels": ["genus"]} | arguments
        )


def test_a_registered_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HEADS, "_entries", dict(HEADS._entries))

    @register_head("doubled")
    def doubled(in_features: int, hierarchy: Hierarchy, levels: tuple[str, ...], scale: float = 2.0) -> Head:
        head = create_head("levels", in_features, hierarchy, levels)
        head.scale = scale
        return head

    model = create_model("mlph", hierarchy="cub", head="doubled", head_options={"scale": 3.0}, **SMALL)  # type: ignore[arg-type]
    assert model.head.scale == 3.0
