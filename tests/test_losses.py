"""Losses against loops in float64, and the prior against a linear system."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from c2f_zoo import Hierarchy, load_hierarchy
from c2f_zoo.heads import create_head
from c2f_zoo.losses import LOSSES, cross_entropy, hxe, list_losses, register_loss, soft_labels, tree_prior

# With a genus of one species and a family of one genus; labels are not in tree order.
ROWS = [
    ("F1", "A", "a1"),
    ("F2", "C", "c1"),
    ("F1", "B", "b1"),
    ("F1", "A", "a2"),
    ("F2", "C", "c2"),
    ("F1", "A", "a3"),
]
TREE = Hierarchy.from_rows(("family", "genus", "species"), ROWS)
TREES = {"three levels": TREE, "two": TREE.truncate("genus"), "one": TREE.truncate("family")}


def batch(tree: Hierarchy, normalized: bool = True) -> tuple[Tensor, Tensor]:
    """Return float64 log-probabilities and labels; one label is unknown."""
    torch.manual_seed(0)
    count = len(tree.classes[-1])
    z = 2 * torch.randn(5, count, dtype=torch.float64)
    labels = torch.randint(count, (5,))
    labels[2] = -1
    return (z.log_softmax(dim=1) if normalized else z - 9), labels


def cross_entropy_reference(p: list[float], label: int, tree: Hierarchy, label_smoothing: float) -> float:
    smooth = label_smoothing / len(p)
    return -sum((smooth + (1 - label_smoothing) * (a == label)) * math.log(p[a]) for a in range(len(p)))


def shared_levels(a: int, b: int, tree: Hierarchy) -> int:
    return sum(x == y for x, y in zip(tree.path(a), tree.path(b), strict=True))


def soft_labels_reference(p: list[float], label: int, tree: Hierarchy, beta: float) -> float:
    """Bertinetto et al. 2020: y_A = exp(-beta d(A, C)) / sum_B exp(-beta d(B, C)), d = height of LCA / of tree."""
    height = len(tree.levels)
    d = [(height - shared_levels(a, label, tree)) / height for a in range(len(p))]
    total = sum(math.exp(-beta * x) for x in d)
    return -sum(math.exp(-beta * d[a]) / total * math.log(p[a]) for a in range(len(p)))


def hxe_reference(p: list[float], label: int, tree: Hierarchy, alpha: float) -> float:
    """Bertinetto et al. 2020: -sum over the path of exp(-alpha h) log p(C | parent), h from the root, p(root) = 1."""
    loss, above = 0.0, 1.0
    for depth in range(1, len(tree.levels) + 1):
        here = sum(p[a] for a in range(len(p)) if tree.path(a)[:depth] == tree.path(label)[:depth])
        loss -= math.exp(-alpha * depth) * math.log(here / above)
        above = here
    return loss


REFERENCES: dict[str, tuple[Callable[..., float], str, tuple[float, ...]]] = {
    "cross_entropy": (cross_entropy_reference, "label_smoothing", (0.0, 0.1, 1.0)),
    "soft_labels": (soft_labels_reference, "beta", (0.0, 4.0, 30.0)),
    "hxe": (hxe_reference, "alpha", (0.0, 0.1, 0.6)),
}


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
@pytest.mark.parametrize("name", list_losses())
def test_losses_equal_their_formulas(name: str, tree: Hierarchy, normalized: bool) -> None:
    reference, option, values = REFERENCES[name]
    log_probs, labels = batch(tree, normalized)
    for value in values:
        terms = [
            reference(row.exp().tolist(), int(label), tree, value)
            for row, label in zip(log_probs, labels, strict=True)
            if label >= 0
        ]
        found = LOSSES[name](log_probs, labels, tree, **{option: value})
        assert float(found) == pytest.approx(sum(terms) / 4, rel=1e-10)


@pytest.mark.parametrize("name", list_losses())
def test_gradients(name: str) -> None:
    log_probs, labels = batch(TREE)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, labels, TREE), log_probs.requires_grad_())


def test_special_cases_equal_cross_entropy() -> None:
    log_probs, labels = batch(TREE)
    expected = F.cross_entropy(log_probs, labels, ignore_index=-1)
    torch.testing.assert_close(cross_entropy(log_probs, labels, TREE), expected)
    torch.testing.assert_close(soft_labels(log_probs, labels, TREE, beta=1e4), expected)
    torch.testing.assert_close(hxe(log_probs, labels, TREE, alpha=0.0), expected)
    smoothed = F.cross_entropy(log_probs, labels, ignore_index=-1, label_smoothing=0.2)
    torch.testing.assert_close(cross_entropy(log_probs, labels, TREE, label_smoothing=0.2), smoothed)


def test_cross_entropy_is_bitwise_equal_to_pytorch() -> None:
    torch.manual_seed(0)
    z, labels = torch.randn(16, 6), torch.randint(6, (16,))
    assert torch.equal(cross_entropy(z.log_softmax(dim=1), labels, TREE), F.cross_entropy(z, labels))


def test_a_mistake_within_the_genus_costs_less() -> None:
    def predict(species: int) -> Tensor:  # the label is a1
        return torch.full((1, 6), 0.04).index_fill(1, torch.tensor([species]), 0.8).log()

    a1, a2, c1, b1 = torch.tensor([0]), 3, 1, 2
    for loss in (lambda p: soft_labels(p, a1, TREE, beta=4.0), lambda p: hxe(p, a1, TREE, alpha=0.5)):
        assert loss(predict(a2)) < loss(predict(b1)) < loss(predict(c1))


def test_losses_do_not_normalize_hex_probabilities() -> None:
    torch.manual_seed(0)
    head = create_head("hex", 3, TREE, TREE.levels).double()
    log_probs = head.log_probs(head(torch.randn(2, 3).double(), ("species",)))["species"]  # type: ignore[operator]
    assert (log_probs.exp().sum(dim=1) < 0.9).all()
    labels = torch.tensor([0, 4])
    expected = -(log_probs[0, 0] + log_probs[1, 4]) / 2
    torch.testing.assert_close(cross_entropy(log_probs, labels, TREE), expected)
    torch.testing.assert_close(hxe(log_probs, labels, TREE, alpha=0.0), expected)


@pytest.mark.parametrize("name", list_losses())
def test_loss_and_gradient_are_zero_without_known_labels(name: str) -> None:
    log_probs = batch(TREE)[0].requires_grad_()
    loss = LOSSES[name](log_probs, torch.full((5,), -1), TREE)
    loss.backward()
    assert loss == 0
    assert log_probs.grad is not None and not log_probs.grad.any()


@pytest.mark.parametrize("name", list_losses())
def test_loss_is_finite_for_large_scores(name: str) -> None:
    z = torch.tensor([[1e4, -1e4, 0, 0, 0, 0]], requires_grad=True)
    loss = LOSSES[name](z.log_softmax(dim=1), torch.tensor([1]), TREE)
    loss.backward()
    assert loss.isfinite()
    assert z.grad is not None and z.grad.isfinite().all()


@pytest.mark.parametrize("name", list_losses())
def test_labels_of_small_integer_dtypes(name: str) -> None:
    log_probs, labels = batch(TREE)[0], torch.tensor([0, 1, 2, 5, 5])
    for dtype in (torch.uint8, torch.int32):
        assert LOSSES[name](log_probs, labels.to(dtype), TREE) == LOSSES[name](log_probs, labels, TREE)


@pytest.mark.parametrize("name", list_losses())
def test_labels_outside_the_tree(name: str) -> None:
    log_probs, _ = batch(TREE)
    for bad in (6, -2):
        with pytest.raises(ValueError, match=rf"label {bad} is outside the tree: species has 6 classes \(0..5"):
            LOSSES[name](log_probs, torch.tensor([0, 1, bad, 0, 0]), TREE)
    with pytest.raises(ValueError, match="do not match 5 labels of the tree's 3 genus classes; truncate the tree"):
        LOSSES[name](log_probs, torch.zeros(5, dtype=torch.long), TREE.truncate("genus"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cross_entropy", {"label_smoothing": 1.1}, r"label_smoothing must be in \[0, 1\], not 1.1"),
        ("soft_labels", {"beta": -1.0}, "beta must be a finite number >= 0, not -1.0"),
        ("hxe", {"alpha": math.nan}, "alpha must be a finite number >= 0, not nan"),
    ],
)
def test_invalid_options(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LOSSES[name](*batch(TREE), TREE, **options)


def prior_reference(weight: Tensor, tree: Hierarchy) -> Tensor:
    """Return the prior by a linear system: 1/2 |E (w, theta)|^2, where each row of E is an edge of the tree."""
    counts = [len(names) for names in tree.classes]
    start = [sum(counts[:depth]) for depth in range(len(counts))]
    edges = torch.zeros(sum(counts), sum(counts), dtype=weight.dtype)
    for depth, count in enumerate(counts):
        for label in range(count):
            node = start[depth] + label
            edges[node, node] = 1
            if depth:
                edges[node, start[depth - 1] + tree.parents[depth - 1][label]] = -1
    fixed, free = edges[:, start[-1] :] @ weight, edges[:, : start[-1]]
    inner = torch.linalg.solve(free.T @ free, -free.T @ fixed)
    return (fixed + free @ inner).square().sum() / 2


@pytest.mark.parametrize("tree", [*TREES.values(), load_hierarchy("fashion_mnist")], ids=[*TREES, "fashion_mnist"])
def test_prior_is_the_minimum_over_inner_vectors(tree: Hierarchy) -> None:
    torch.manual_seed(0)
    weight = torch.randn(len(tree.classes[-1]), 4, dtype=torch.float64, requires_grad=True)
    expected = prior_reference(weight, tree)
    torch.testing.assert_close(tree_prior(weight, tree), expected, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(tree_prior(weight, tree), weight)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, weight)[0], rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda w: tree_prior(w, tree), weight)


def test_prior_of_one_level_is_weight_decay() -> None:
    weight = torch.randn(2, 7, dtype=torch.float64)
    torch.testing.assert_close(tree_prior(weight, TREES["one"]), weight.square().sum() / 2)
    with pytest.raises(ValueError, match="2 rows of weights for 6 species classes"):
        tree_prior(weight, TREE)


def test_prior_is_smaller_for_similar_siblings() -> None:
    apart = torch.tensor([[1.0], [-1.0], [1.0], [1.0], [-1.0], [1.0]])  # by family
    mixed = torch.tensor([[1.0], [1.0], [1.0], [-1.0], [-1.0], [1.0]])  # as many of each, within genera
    assert tree_prior(apart, TREE) < tree_prior(mixed, TREE)


def test_registered_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES._entries))

    @register_loss("halved")
    def halved(log_probs: Tensor, labels: Tensor, tree: Hierarchy, factor: float = 0.5) -> Tensor:
        return factor * cross_entropy(log_probs, labels, tree)

    assert "halved" in list_losses()
    assert LOSSES["halved"](*batch(TREE), TREE) == cross_entropy(*batch(TREE), TREE) / 2
    with pytest.raises(ValueError, match="unknown loss 'cross_entorpy'; did you mean 'cross_entropy'"):
        LOSSES["cross_entorpy"]
