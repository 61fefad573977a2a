"""Mixup and CutMix against torchvision and hand-computed cases."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from c2f_zoo import load_hierarchy
from c2f_zoo.losses import LOSSES, list_losses
from c2f_zoo.training.mixing import Mixture, cutmix, mix, mixup

OURS = {"mixup": (mixup, v2.MixUp), "cutmix": (cutmix, v2.CutMix)}


def random_batch(count: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 12, 20, generator=generator), torch.randint(5, (count,), generator=generator)


@pytest.mark.parametrize("name", OURS)
def test_images_and_cross_entropy_equal_torchvisions(name: str) -> None:
    ours, theirs = OURS[name]
    images, labels = random_batch()
    log_probs = torch.randn(2, 5, generator=torch.Generator().manual_seed(2)).log_softmax(dim=1)
    compared = 0
    for seed in range(20):
        torch.manual_seed(seed)
        mixture = ours(images, 0.7)
        if mixture.partners.tolist() != [1, 0]:  # torchvision always takes the neighbour
            assert torch.equal(mixture.partners, torch.arange(2))
            continue
        torch.manual_seed(seed)
        expected, targets = theirs(alpha=0.7, num_classes=5)(images, labels)
        torch.testing.assert_close(mixture.images, expected)
        loss = mixture.mix_losses(lambda labels: F.nll_loss(log_probs, labels), labels)
        torch.testing.assert_close(loss, -(targets * log_probs).sum(dim=1).mean())
        compared += 1
    assert compared >= 5


def test_a_rectangle_cut_off_by_the_edge_has_its_exact_area() -> None:
    images = torch.stack([torch.full((3, 12, 20), float(number)) for number in range(4)])
    areas = set()
    for seed in range(30):
        torch.manual_seed(seed)
        mixture = cutmix(images, 1.0)
        for number, (image, partner) in enumerate(zip(mixture.images, mixture.partners.tolist(), strict=True)):
            inside = image[0] == partner
            if partner != number:
                assert inside.sum().item() == round((1 - mixture.weight) * 240)
                rows, columns = inside.any(dim=1).sum(), inside.any(dim=0).sum()
                assert inside.sum() == rows * columns  # one rectangle
            assert ((image[0] == number) | inside).all()
        areas.add(mixture.weight)
    assert len(areas) > 20 and min(areas) >= 0 and max(areas) <= 1


@pytest.mark.parametrize("name", list_losses())
def test_every_loss_with_labels_of_mixed_depth_is_the_weighted_mean(name: str) -> None:
    tree = load_hierarchy("fashion_mnist")
    coarse, fine = tree.truncate(tree.levels[0]), tree
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(3))
    log_probs = {
        tree.levels[0]: torch.randn(4, len(coarse.classes[-1])).log_softmax(dim=1),
        tree.levels[-1]: logits.log_softmax(dim=1),
    }

    def loss(labels: Tensor) -> Tensor:
        """Return the sum of two means, of images with and without a leaf label."""
        deepest = labels[:, -1]
        above = labels[:, 0].where(deepest < 0, -1)
        return LOSSES[name](log_probs[tree.levels[-1]], deepest, fine) + LOSSES[name](
            log_probs[tree.levels[0]], above, coarse
        )

    def one(image: int, labels: list[int]) -> float:
        depth = 0 if labels[1] < 0 else -1
        x, label = log_probs[tree.levels[depth]][[image]], torch.tensor([labels[depth]])
        return LOSSES[name](x, label, (coarse, fine)[depth]).item()

    rows = [[0, 1], [1, -1], [0, 0], [0, -1]]  # class of the coarsest level, leaf class
    mixture = Mixture(torch.zeros(4, 3, 2, 2), torch.tensor([2, 0, 3, 1]), 0.3)
    own = (one(0, rows[0]) + one(2, rows[2])) / 2 + (one(1, rows[1]) + one(3, rows[3])) / 2
    partners = (one(0, rows[2]) + one(1, rows[0])) / 2 + (one(2, rows[3]) + one(3, rows[1])) / 2
    found = mixture.mix_losses(loss, torch.tensor(rows)).item()
    assert found == pytest.approx(0.3 * own + 0.7 * partners, rel=1e-5)


def test_weights_have_the_beta_distribution_and_a_seed_repeats_them() -> None:
    images = random_batch(3)[0]
    torch.manual_seed(0)
    weights = torch.tensor([mixup(images, 0.4).weight for _ in range(400)]).double()
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)); four standard errors of the mean, and of the variance roughly
    variance = 1 / (4 * (2 * 0.4 + 1))
    assert abs(weights.mean() - 0.5) < 4 * (variance / 400) ** 0.5
    assert abs(weights.var() - variance) < 0.03
    torch.manual_seed(0)
    assert [mixup(images, 0.4).weight for _ in range(5)] == weights[:5].tolist()


def test_one_of_both_is_drawn_for_each_batch() -> None:
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    torch.manual_seed(0)
    mixtures = [mix(images, 1.0, 1.0) for _ in range(40)]
    mixtures = [mixture for mixture in mixtures if mixture.partners.tolist() == [1, 0]]
    averaged = [bool(((mixture.images > 0) & (mixture.images < 1)).any()) for mixture in mixtures]
    assert 3 < sum(averaged) < len(averaged) - 3
    assert all(((m.images == 0) | (m.images == 1)).all() for m in (mix(images, 0.0, 1.0) for _ in range(5)))


@pytest.mark.parametrize(
    ("alphas", "message"),
    [
        ((0.0, 0.0), "nothing to mix"),
        ((-1.0, 0.0), "mixup is -1.0; it must be"),
        ((0.0, float("nan")), "cutmix is nan"),
    ],
)
def test_errors(alphas: tuple[float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mix(random_batch()[0], *alphas)
