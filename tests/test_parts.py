"""Part-based R-CNN: boxes, proposals, features of regions, detectors, geometry and the joint search."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torchvision.ops import box_iou

from c2f_zoo.config import Preprocessing
from c2f_zoo.data.annotations import Annotation
from c2f_zoo.parts.boxes import best_overlaps, overhang, region_boxes, relative_positions
from c2f_zoo.parts.cache import Regions, TensorCache, load_regions
from c2f_zoo.parts.detectors import fit_detectors, select_hard_negatives, select_positives
from c2f_zoo.parts.features import region_features
from c2f_zoo.parts.geometry import NeighbourPrior, fit_gaussian, fit_mixture, mixture_prior
from c2f_zoo.parts.localize import Localizer
from c2f_zoo.parts.proposals import selective_search
from c2f_zoo.parts.scores import overlaps_of, pcp_rows
from c2f_zoo.parts.search import find_configuration

NAN = math.nan


def random_boxes(count: int, seed: int, side: int = 40) -> Tensor:
    """Return boxes with whole numbers, inside an image of 2 x side pixels."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, side, (count, 2))
    return torch.from_numpy(np.concatenate([first, first + rng.integers(1, side, (count, 2))], axis=1)).float()


class TestBoxes:
    def test_best_overlap_is_that_of_counted_pixels(self) -> None:
        proposals, truth = random_boxes(30, 0), random_boxes(2, 1)
        found = best_overlaps([proposals], truth[None])[0]
        for box, overlap in zip(truth.int().tolist(), found.tolist(), strict=True):
            fractions = []
            for other in proposals.int().tolist():
                masks = np.zeros((2, 80, 80), dtype=bool)
                for mask, (left, top, right, bottom) in zip(masks, (box, other), strict=True):
                    mask[top:bottom, left:right] = True
                fractions.append((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())
            assert overlap == pytest.approx(max(fractions), abs=1e-6)

    def test_unknown_boxes_and_no_proposals(self) -> None:
        truth = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [NAN] * 4]])
        assert best_overlaps([torch.empty(0, 4)], truth)[0, 0] == 0
        assert best_overlaps([truth[0, :1]], truth).tolist()[0][0] == 1
        assert best_overlaps([truth[0, :1]], truth)[0, 1].isnan()

    def test_overhang(self) -> None:
        boxes, roots = random_boxes(20, 2), random_boxes(5, 3)
        found = overhang(boxes, roots).tolist()
        for row, root in zip(found, roots.tolist(), strict=True):
            for value, box in zip(row, boxes.tolist(), strict=True):
                assert value == max(root[0] - box[0], root[1] - box[1], box[2] - root[2], box[3] - root[3])

    def test_relative_positions(self) -> None:
        root = torch.tensor([10.0, 20.0, 50.0, 40.0])  # 40 x 20 around (30, 30)
        box = torch.tensor([40.0, 10.0, 60.0, 50.0])  # 20 x 40 around (50, 30)
        assert relative_positions(box, root).tolist() == pytest.approx([0.5, 0, math.log(0.5), math.log(2)])

    def test_a_part_is_around_its_visible_points(self) -> None:
        points = {"beak": (95.0, 30.0), "nape": (60.0, 20.0), "crown": (70.0, 45.0), "tail": (0.0, 0.0)}
        points |= {"belly": (50.0, 60.0), "back": (50.0, 90.0)}  # a part without width, but for its margin
        boxes = region_boxes(Annotation((20, 10, 100, 110), points), margin=0.1)  # margins of 8 and 10 pixels
        assert boxes.tolist() == [[20, 10, 100, 110], [52, 10, 100, 55], [42, 50, 58, 100]]

    def test_points_outside_the_box_stay_inside_their_part(self) -> None:
        points = {"beak": (105.0, 30.0), "crown": (105.0, 5.0)}
        head = region_boxes(Annotation((20, 10, 100, 110), points), margin=0.1)[1]
        assert head.tolist() == [97, 5, 105, 40]

    @pytest.mark.parametrize("points", [{}, {"beak": (30.0, 30.0)}, {"tail": (30.0, 30.0), "back": (40.0, 40.0)}])
    def test_fewer_than_two_points_are_no_box(self, points: dict[str, tuple[float, float]]) -> None:
        boxes = region_boxes(Annotation((20, 10, 100, 110), points))
        assert boxes.isnan().all(dim=1).tolist() == [False, True, True]


class TestProposals:
    @pytest.fixture(autouse=True)
    def _opencv(self) -> None:
        pytest.importorskip("cv2.ximgproc")

    def test_a_drawn_object_is_found(self) -> None:
        image = Image.new("RGB", (600, 400), (90, 160, 90))
        ImageDraw.Draw(image).rectangle((150, 100, 399, 299), fill=(200, 40, 30))
        boxes = selective_search(image, limit=50)
        assert box_iou(boxes, torch.tensor([[150.0, 100.0, 400.0, 300.0]])).max() > 0.9
        assert boxes[0].tolist() == [0, 0, 600, 400]
        assert len(selective_search(Image.new("RGB", (8, 5)), limit=50)) >= 1

    def test_limit_and_repetition(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((160, 120))
        boxes = selective_search(image)
        assert torch.equal(boxes, selective_search(image))
        few = selective_search(image, limit=10)
        assert len(few) == 10 < len(boxes)
        assert {tuple(box) for box in few.tolist()} <= {tuple(box) for box in boxes.tolist()}
        areas = (few[:, 2] - few[:, 0]) * (few[:, 3] - few[:, 1])
        assert areas.tolist() == sorted(areas.tolist(), reverse=True)
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= 160
        assert boxes[:, 3].max() <= 120


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"pip install 'c2f_zoo\[parts\]'"):
        selective_search(Image.new("RGB", (8, 8)))


class Coordinates(nn.Module):
    """A backbone with a stride of 4: its map is the mean x and y of the pixels' values, in two of 400 channels."""

    def forward(self, x: Tensor) -> list[Tensor]:
        pooled = nn.functional.avg_pool2d(x[:, :2], 4)
        return [torch.cat([pooled, torch.ones(1, 398, *pooled.shape[2:])], dim=1)]


class TestFeatures:
    PLAIN = Preprocessing(input_size=(3, 64, 64), mean=(0.0,) * 3, std=(1.0,) * 3)

    def ramp(self) -> Image.Image:
        """Return an image of 128 x 64 pixels whose red is its x, and whose green is twice its y."""
        x, y = np.meshgrid(np.arange(128), np.arange(64))
        return Image.fromarray(np.stack([x, 2 * y, 0 * x], axis=2).astype(np.uint8))

    def test_a_ramp_is_averaged_over_each_cell_and_the_surroundings(self) -> None:
        boxes = torch.tensor([[48.0, 16.0, 80.0, 48.0], [NAN] * 4])
        features = region_features(Coordinates(), self.ramp(), boxes, self.PLAIN, longer_side=128)
        assert features.shape == (2, 400 * (4 + 1))
        assert features.dtype == torch.float16
        cells, around = features[0].float().split([1600, 400])
        x, y = cells.reshape(400, 4)[:2] * 255
        # The cells' centres: x at 56 and 72, y at 24 and 40; pixel i covers i to i + 1.
        assert (x + 0.5).tolist() == pytest.approx([56, 72, 56, 72], abs=0.1)
        assert (y / 2 + 0.5).tolist() == pytest.approx([24, 24, 40, 40], abs=0.1)
        assert (around[0] * 255 + 0.5).item() == pytest.approx(64, abs=0.1)
        assert (around[1] * 255 / 2 + 0.5).item() == pytest.approx(32, abs=0.1)
        assert not features[1].any()

    def test_boxes_are_in_pixels_of_the_image(self) -> None:
        box = torch.tensor([[16.0, 16.0, 80.0, 48.0]])
        whole = region_features(Coordinates(), self.ramp(), box, self.PLAIN, longer_side=128)
        large = self.ramp().resize((256, 128))
        assert region_features(Coordinates(), large, 2 * box, self.PLAIN, 128).float() == pytest.approx(
            whole.float(), abs=0.01
        )

    def test_several_maps_and_wide_maps(self) -> None:
        class Several(nn.Module):
            def forward(self, x: Tensor) -> list[Tensor]:
                return [x, x]

        class Wide(nn.Module):
            def forward(self, x: Tensor) -> list[Tensor]:
                return [x.new_zeros(1, 1025, 4, 4)]

        box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
        with pytest.raises(ValueError, match="one map, and the backbone has 2 taps"):
            region_features(Several(), self.ramp(), box, self.PLAIN, 64)
        with pytest.raises(ValueError, match=r"1025 channels.*Choose a tap with 1024"):
            region_features(Wide(), self.ramp(), box, self.PLAIN, 64)

    def test_cache(self, tmp_path: Path) -> None:
        calls = []

        def compute() -> dict[str, Tensor]:
            calls.append(len(calls))
            return {"truth": torch.zeros(3, 4), "truth_features": torch.rand(3, 5).half()} | {
                "proposals": torch.rand(4, 4),
                "features": torch.rand(4, 5).half(),
            }

        cache = TensorCache(tmp_path / "cache", {"side": 1})
        file = cache.get([b"image", b"boxes"], compute)
        assert cache.get([b"image", b"boxes"], compute) == file
        assert calls == [0]
        assert load_regions(file).features.shape == (4, 5)
        others = {TensorCache(tmp_path / "cache", {"side": 2}).get([b"image", b"boxes"], compute)}
        others |= {cache.get([b"image", b"other"], compute), cache.get([b"imagebo", b"xes"], compute)}
        assert len(others - {file}) == 3
        file.write_bytes(file.read_bytes()[:50])
        with pytest.raises(ValueError, match="is damaged"):
            load_regions(file)


class TestGeometry:
    def test_gaussian_is_the_weighted_mean_and_covariance(self) -> None:
        rng = np.random.default_rng(0)
        x, weights = rng.normal(size=(30, 3)), rng.integers(0, 5, 30)
        gaussian = fit_gaussian(torch.from_numpy(x), torch.from_numpy(weights))
        repeated = np.repeat(x, weights, axis=0)
        assert gaussian.mean.numpy() == pytest.approx(repeated.mean(axis=0))
        expected = np.cov(repeated.T, bias=True) + 1e-3 * np.eye(3)
        assert gaussian.covariance_matrix.numpy() == pytest.approx(expected)
        inverse, centred = np.linalg.inv(expected), x[0] - repeated.mean(axis=0)
        density = np.exp(-centred @ inverse @ centred / 2) / np.sqrt(np.linalg.det(2 * np.pi * expected))
        assert gaussian.log_prob(torch.from_numpy(x[0])).item() == pytest.approx(np.log(density))

    def test_mixture_of_two_clusters(self) -> None:
        rng = np.random.default_rng(1)
        x = torch.from_numpy(np.concatenate([rng.normal(-5, 0.5, (300, 2)), rng.normal(5, 1.0, (100, 2))]))
        mixture = fit_mixture(x, components=2)
        order = mixture.component_distribution.mean[:, 0].argsort()
        assert mixture.mixture_distribution.probs[order].numpy() == pytest.approx([0.75, 0.25], abs=1e-6)
        for component, own in zip(order.tolist(), (x[:300], x[300:]), strict=True):
            gaussian = fit_gaussian(own)
            assert mixture.component_distribution.mean[component].numpy() == pytest.approx(gaussian.mean.numpy())

    def test_every_iteration_increases_the_likelihood(self) -> None:
        x = torch.from_numpy(np.random.default_rng(2).normal(size=(60, 2)) ** 3)
        means = [fit_mixture(x, components=2, iterations=n).log_prob(x).mean().item() for n in range(1, 12)]
        assert all(later >= earlier - 1e-3 for earlier, later in itertools.pairwise(means))  # the ridge is no EM step
        assert means[-1] > means[0] + 0.05

    def test_more_components_than_points(self) -> None:
        assert fit_mixture(torch.zeros(2, 4), components=4).log_prob(torch.zeros(4)).isfinite()

    def test_neighbours_are_the_most_similar_visible_ones(self) -> None:
        rng = np.random.default_rng(3)
        features, feature = rng.normal(size=(12, 6)), rng.normal(size=6)
        positions = rng.normal(size=(12, 2, 4))
        positions[::3, 1] = NAN
        tensors = (torch.from_numpy(features), torch.from_numpy(positions))
        gaussians = NeighbourPrior(*tensors, neighbours=3)(torch.from_numpy(feature))
        cosine = [row @ feature / np.linalg.norm(row) / np.linalg.norm(feature) for row in features]
        for part, gaussian in enumerate(gaussians):
            order = [i for i in sorted(range(12), key=lambda i: -cosine[i]) if part == 0 or i % 3]
            assert gaussian.mean.numpy() == pytest.approx(positions[order[:3], part].mean(axis=0))

    def test_a_part_that_is_never_visible(self) -> None:
        positions = torch.full((3, 1, 4), NAN)
        with pytest.raises(ValueError, match="visible in no training image"):
            mixture_prior(positions)
        with pytest.raises(ValueError, match="visible in no training image"):
            NeighbourPrior(torch.rand(3, 2), positions)(torch.rand(2))


class TestSearch:
    @pytest.mark.parametrize("slack", [-5.0, 0.0, 10.0, math.inf])
    @pytest.mark.parametrize("alpha", [None, 0.1, 2.0])
    def test_it_is_the_best_of_all_configurations(self, slack: float, alpha: float | None) -> None:
        roots = torch.tensor([[0.0, 0.0, 80.0, 80.0], [10, 5, 70, 75], [20, 20, 80, 80], [0, 0, 50, 60]])
        boxes, generator = random_boxes(9, 6), torch.Generator().manual_seed(7)
        root_scores, part_scores = (-3 * torch.rand(*size, generator=generator) for size in ((4,), (9, 2)))
        densities = None
        if alpha is not None:
            densities = mixture_prior(torch.rand(20, 2, 4, generator=generator), components=2)(torch.zeros(1))
        found = find_configuration(root_scores, roots, part_scores, boxes, densities, alpha or 0.1, slack)
        scores = {}
        for root, *parts in itertools.product(range(4), range(9), range(9)):
            reach = max(overhang(boxes[[part]], roots[[root]]).item() for part in parts)
            if reach > slack:
                continue
            total = root_scores[root].item()
            for number, part in enumerate(parts):
                total += part_scores[part, number].item()
                if densities is not None and alpha is not None:
                    position = relative_positions(boxes[part].double(), roots[root].double())
                    total += alpha * densities[number].log_prob(position).item()
            scores[(root, *parts)] = total
        assert scores, "no configuration satisfies the constraint"
        assert (found.root, *found.parts) == max(scores, key=lambda key: scores[key])

    def test_roots_whose_parts_have_boxes_win(self) -> None:
        roots = torch.tensor([[0.0, 0.0, 9.0, 9.0], [50.0, 50.0, 99.0, 99.0]])
        boxes = torch.tensor([[60.0, 60.0, 70.0, 70.0]])
        assert find_configuration(torch.tensor([0.0, -50.0]), roots, torch.tensor([[-9.0]]), boxes) == (1, [0])

    def test_no_box_satisfies_the_constraint(self) -> None:
        roots, boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.tensor([[60.0, 60.0, 70.0, 70.0]])
        assert find_configuration(torch.zeros(1), roots, torch.zeros(1, 2), boxes) == (0, [-1, -1])
        assert find_configuration(torch.zeros(1), roots, torch.zeros(0, 2), boxes[:0]) == (0, [-1, -1])


def make_regions(folder: Path, number: int, features: Tensor, proposals: Tensor, truth: Tensor) -> Path:
    """Write regions; the annotated boxes have the features of the first proposal."""
    regions = Regions(truth, features[:1].repeat(3, 1), proposals, features)
    return TensorCache(folder, {}).get([str(number).encode()], regions._asdict)


def test_scores_of_unknown_and_missing_regions() -> None:
    truth = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 2.0, 2.0], [NAN] * 4])
    found = torch.tensor([[0.0, 0.0, 4.0, 2.0], [NAN] * 4, [0.0, 0.0, 1.0, 1.0]])
    overlaps = overlaps_of(found, truth)
    rows = pcp_rows({"mode": "no_box"}, torch.stack([overlaps, overlaps * 0.9]), bootstrap=50, seed=0)
    assert [row["value"] for row in rows[:2]] == [0.5, 0]
    assert [row["counted"] for row in rows] == [2, 2, 0]
    assert math.isnan(rows[2]["value"])


class TestDetectors:
    def test_selection_of_examples(self) -> None:
        rng = np.random.default_rng(0)
        overlaps, scores = torch.from_numpy(rng.random(200)), torch.from_numpy(rng.normal(size=200))
        by_overlap = sorted((i for i in range(200) if overlaps[i] >= 0.7), key=lambda i: -overlaps[i])
        assert select_positives(overlaps, limit=7).tolist() == by_overlap[:7]
        hard = sorted((i for i in range(200) if overlaps[i] <= 0.3 and scores[i] > -1), key=lambda i: -scores[i])
        assert select_hard_negatives(scores, overlaps, 9).tolist() == hard[:9]
        unknown = torch.full((5,), NAN)
        assert len(select_positives(unknown)) == len(select_hard_negatives(torch.rand(5), unknown, 5)) == 0

    def test_hard_negatives_correct_the_detector(self, tmp_path: Path) -> None:
        """Among 60 boxes of an image one looks almost like the object: random negatives hardly include it."""
        generator = torch.Generator().manual_seed(0)
        truth = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(3, 1)
        proposals = torch.cat([truth[:1], torch.tensor([[50.0, 50.0, 60.0, 60.0]]).repeat(60, 1)])
        files = []
        for number in range(20):
            features = torch.randn(61, 4, generator=generator) * 0.3
            features[0] += torch.tensor([5.0, 1.0, 0.0, 0.0])
            features[1] += torch.tensor([5.0, -1.0, 0.0, 0.0])  # the hard negative
            files.append(make_regions(tmp_path, number, features.half(), proposals, truth))
        positive, hard, easy = torch.tensor([[5.0, 1.0, 0.0, 0.0], [5.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
        detectors = fit_detectors(files, rounds=2, count=1)
        assert (detectors(positive) > 0).all()
        assert (detectors(hard) < 0).all()
        assert (detectors(easy) < 0).all()
        assert (fit_detectors(files, rounds=0, count=1)(hard) > detectors(hard)).all()

    def test_a_region_without_examples_is_named(self, tmp_path: Path) -> None:
        truth = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 5.0, 5.0], [NAN] * 4])
        far = torch.tensor([[50.0, 50.0, 60.0, 60.0]])
        file = make_regions(tmp_path, 0, torch.rand(1, 3).half(), far, truth)
        with pytest.raises(ValueError, match="the detector of the body has no positives: it is visible in no image"):
            fit_detectors([file])
        file = make_regions(tmp_path, 1, torch.rand(1, 3).half(), truth[:1], truth)
        with pytest.raises(ValueError, match="the detector of the object has no negatives"):
            fit_detectors([file])


class TestLocalizer:
    def regions(self) -> Regions:
        """Return six boxes whose first three features are the logits of the object, the head and the body."""
        boxes = [[0.0, 0, 90, 90], [5.0, 5, 60, 60], [10.0, 10, 30, 30], [30.0, 30, 55, 55], [70.0, 70, 85, 85]]
        boxes.append([100.0, 100, 120, 120])
        scores = [[2.0, -9, -9], [3, -9, -9], [-9, 1, -9], [-9, -9, 1], [-9, 2, 2.5], [-9, 5, 5]]
        truth = torch.tensor([[0.0, 0, 88, 88], [10, 10, 30, 30], [30, 30, 55, 55]])
        return Regions(truth, torch.full((3, 3), 7.0).half(), torch.tensor(boxes), torch.tensor(scores).half())

    def detectors(self) -> nn.Linear:
        linear = nn.Linear(3, 3, bias=False).requires_grad_(False)
        linear.weight.copy_(torch.eye(3))
        return linear

    def test_geometry_decides(self) -> None:
        regions, detectors = self.regions(), self.detectors()
        free = Localizer(detectors, slack=math.inf)(regions)
        assert torch.equal(free.boxes, regions.proposals[[1, 5, 5]])  # the best of each
        # log-probabilities: with the first box as the object -0.13 - 0.13 - 0.08; with the second -0.05 - 0.31 - 0.31
        boxed = Localizer(detectors)(regions)
        assert torch.equal(boxed.boxes, regions.proposals[[0, 4, 4]])
        assert torch.equal(boxed.features, regions.features[[0, 4, 4]])

    def test_given_box(self) -> None:
        regions = self.regions()
        found = Localizer(self.detectors(), box_given=True)(regions)
        assert torch.equal(found.boxes[0], regions.truth[0])
        assert torch.equal(found.features[0], regions.truth_features[0])
        assert torch.equal(found.boxes[1:], regions.proposals[[4, 4]])

    def test_a_part_without_a_box(self) -> None:
        regions = self.regions()
        found = Localizer(self.detectors(), slack=-40.0)(regions)
        assert found.boxes[1:].isnan().all()
        assert not found.features[1:].any()

    def test_prior(self) -> None:
        """With a strong prior on the annotated positions the boxes with lower scores win."""
        regions = self.regions()
        position = relative_positions(regions.truth[1:], regions.truth[:1])
        prior = mixture_prior(position.repeat(5, 1, 1), components=1)
        found = Localizer(self.detectors(), prior, alpha=1.0)(regions)
        assert torch.equal(found.boxes[1:], regions.proposals[[2, 3]])
