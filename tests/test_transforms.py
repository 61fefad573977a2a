"""Degrade, Normalize, create_transform, create_views and Preprocessing."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from c2f_zoo import C2FModel
from c2f_zoo.config import SHRINK_FILTERS, ModelConfig, Preprocessing
from c2f_zoo.data import Degrade, Normalize, create_transform, create_views

# The bounds in the docstring of Degrade, in 1/255.
MOST, MEAN = {"bilinear": 2, "bicubic": 3}, 0.5


def random_pixels(height: int, width: int, low: int = 0, high: int = 255) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high + 1, (height, width, 3), dtype=np.uint8)


def triangle(x: float) -> float:
    return max(1 - abs(x), 0)


def cubic(x: float) -> float:
    """Return Keys' kernel with a = -1/2, as in Pillow and in torch with antialiasing."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0


def resampling(before: int, after: int, kernel: Callable[[float], float]) -> np.ndarray:
    """Return the matrix (after, before) that resizes a line with a kernel."""
    scale = before / after
    stretch = max(scale, 1)
    rows = [[kernel((j + 0.5 - (i + 0.5) * scale) / stretch) for j in range(before)] for i in range(after)]
    return np.array(rows) / np.sum(rows, axis=1, keepdims=True)


def resized(pixels: np.ndarray, height: int, width: int, kernel: Callable[[float], float]) -> np.ndarray:
    down, across = resampling(pixels.shape[0], height, kernel), resampling(pixels.shape[1], width, kernel)
    return np.einsum("ih,hwc,jw->ijc", down, pixels.astype(np.float64), across)


def pixels_of(image: Image.Image | Tensor) -> Tensor:
    """Return any type of image as float64 (..., C, H, W) in [0, 255]."""
    x = image if isinstance(image, Tensor) else pil_to_tensor(image)
    return x.double() if x.dtype == torch.uint8 else 255 * x.double()


def assert_same(a: Image.Image | Tensor, b: Image.Image | Tensor, filter: str = "bilinear") -> None:
    difference = (pixels_of(a) - pixels_of(b)).abs()
    assert difference.max() <= MOST[filter] + 0.01
    assert difference.mean() <= MEAN


class TestDegrade:
    @pytest.mark.parametrize("as_tensor", [True, False])
    def test_a_line_of_pixels_is_an_error(self, as_tensor: bool) -> None:
        image = Image.new("RGB", (20000, 1))
        with pytest.raises(
            ValueError, match="20000 x 1 pixels, resized to 10240000 x 512, exhausts the memory; crop it"
        ):
            Degrade(None, size=512)(pil_to_tensor(image) if as_tensor else image)
        assert Degrade(None)(image).size == (20000, 1)

    @pytest.mark.parametrize(("filter", "kernel"), [("bilinear", triangle), ("bicubic", cubic)])
    @pytest.mark.parametrize(("height", "width", "small"), [(40, 61, (16, 24)), (61, 40, (24, 16))])
    def test_equals_the_filter_in_float64(
        self, filter: str, kernel: Callable[[float], float], height: int, width: int, small: tuple[int, int]
    ) -> None:
        pixels = random_pixels(height, width, 80, 175)  # so that bicubic does not overshoot 8 bits
        expected = resized(resized(pixels, *small, kernel), height, width, kernel)
        x = torch.from_numpy(pixels).permute(2, 0, 1)
        degrade = Degrade(16, filter, up_filter=filter)
        exact = degrade(x.double() / 255).permute(1, 2, 0).numpy()
        assert abs(255 * exact - expected).max() < 1e-3  # torch computes the weights in float32
        reference = torch.from_numpy(expected).permute(2, 0, 1) / 255
        for image in (Image.fromarray(pixels), x):
            assert_same(degrade(image), reference, filter)

    def test_box_of_four_by_four_is_a_mean(self) -> None:
        pixels = random_pixels(32, 48)
        means = pixels.reshape(8, 4, 12, 4, 3).mean(axis=(1, 3))
        result = Degrade(8, "box", size=8)(Image.fromarray(pixels))
        assert abs(np.asarray(result) - means).max() <= 1

    @pytest.mark.parametrize("filter", MOST)
    @pytest.mark.parametrize("size", [None, 90])
    @pytest.mark.parametrize("measure", ["side", "area"])
    def test_all_types_of_image_agree(self, filter: str, size: int | None, measure: str) -> None:
        pixels = [random_pixels(75, 100, 80, 175), random_pixels(100, 75, 80, 175).transpose(1, 0, 2)]
        pil = [Image.fromarray(one) for one in pixels]
        batch = torch.stack([pil_to_tensor(one) for one in pil])
        degrade = Degrade(24, filter, size, filter, measure)
        together = degrade(batch)
        assert together.dtype == torch.uint8
        for one, result in zip(pil, together, strict=True):
            assert_same(degrade(one), result, filter)
            assert_same(degrade(pil_to_tensor(one)), result, filter)
        for dtype in (torch.float32, torch.float64):
            result = degrade(batch.to(dtype) / 255)
            assert result.dtype == dtype
            assert_same(result, together, filter)
        assert_same(degrade(batch[:, None])[:, 0], together, filter)

    def test_noise_with_all_8_bit_values(self) -> None:
        pixels = random_pixels(75, 100)
        results = [Degrade(24)(image) for image in (Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1))]
        assert_same(*results)
        assert_same(Degrade(24)(torch.from_numpy(pixels).permute(2, 0, 1) / 255), results[0])

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("filter", MOST)
    def test_gpu_agrees(self, filter: str) -> None:
        batch = torch.from_numpy(random_pixels(75, 100, 80, 175)).permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
        for x in (batch, batch / 255):
            result = Degrade(24, filter, 90, filter)(x.cuda())
            assert result.is_cuda and result.dtype == x.dtype
            assert_same(result.cpu(), Degrade(24, filter, 90, filter)(x), filter)

    @pytest.mark.parametrize("tensor", [False, True])
    @pytest.mark.parametrize("filter", SHRINK_FILTERS)
    def test_checkerboard_finer_than_the_resolution_becomes_grey(self, filter: str, tensor: bool) -> None:
        if tensor and filter not in MOST:
            pytest.skip("PIL images only")
        board = np.uint8(255) * (np.indices((64, 96)).sum(axis=0) % 2).astype(np.uint8)
        image = Image.fromarray(np.stack([board] * 3, axis=-1))
        result = pixels_of(Degrade(16, filter)(pil_to_tensor(image) if tensor else image))
        assert result.shape == (3, 64, 96)
        assert (result[:, 8:-8, 8:-8] - 127.5).abs().max() < 3  # at the edge the filter is cut off
        assert abs(result.mean() - 127.5) < 2

    def test_detail_above_the_resolution_is_removed(self) -> None:
        pixels = random_pixels(64, 64)
        spectrum = {
            resolution: torch.fft.fft2(pixels_of(Degrade(resolution)(Image.fromarray(pixels)))).abs().square()
            for resolution in (None, 8)
        }
        fine = (slice(None), slice(16, 48), slice(16, 48))
        assert spectrum[8][fine].sum() < 0.01 * spectrum[None][fine].sum()
        wave = np.cos(2 * np.pi * np.arange(64) / 64)
        slow = Image.fromarray(np.stack([np.tile(127.5 + 100 * wave, (64, 1))] * 3, axis=-1).round().astype(np.uint8))
        assert (
            pixels_of(Degrade(8)(slow)) - pixels_of(slow)
        ).abs().max() < 20  # of 200: the triangle blurs it a little

    @pytest.mark.parametrize(
        ("size", "expected"), [(None, (101, 150)), (64, (64, 95)), (300, (300, 445)), (101, (101, 150))]
    )
    @pytest.mark.parametrize("resolution", [1, 7, 64, 4000, None])
    def test_aspect_ratio_is_kept(self, resolution: int | None, size: int | None, expected: tuple[int, int]) -> None:
        image = Image.new("RGB", (150, 101))
        for measure in ("side", "area"):
            degrade = Degrade(resolution, size=size, measure=measure)
            assert degrade(image).size == expected[::-1]
            assert degrade(pil_to_tensor(image)).shape == (3, *expected)

    @pytest.mark.parametrize(("measure", "small"), [("side", (20, 80)), ("area", (10, 40))])
    @pytest.mark.slow
    def test_resolution_is_a_side_or_an_area(self, measure: str, small: tuple[int, int]) -> None:
        pixels = random_pixels(60, 240)
        expected = resized(resized(pixels, *small, triangle), 60, 240, triangle)
        result = Degrade(20, measure=measure)(Image.fromarray(pixels))
        assert abs(np.asarray(result) - expected).max() <= 2

    def test_small_image_is_not_shrunk(self) -> None:
        image = Image.fromarray(random_pixels(20, 30))
        assert Degrade(20)(image) is image
        assert Degrade(None)(image) is image
        assert Degrade(25, measure="area")(image) is image
        assert Degrade(24, measure="area")(image) is not image
        enlarged = image.resize((60, 40), Image.Resampling.BILINEAR)
        assert Degrade(20, size=40)(image).tobytes() == enlarged.tobytes()

    def test_nearest_repeats_pixels(self) -> None:
        pixels = random_pixels(6, 8)
        expected = pixels.repeat(3, axis=0).repeat(3, axis=1)
        degrade = Degrade(None, size=18, up_filter="nearest")
        assert np.array_equal(np.asarray(degrade(Image.fromarray(pixels))), expected)
        assert np.array_equal(degrade(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy(), expected)

    def test_compiles(self) -> None:
        x = torch.from_numpy(random_pixels(40, 60)).permute(2, 0, 1)[None] / 255
        degrade = Degrade(16, size=32)
        compiled = torch.compile(degrade, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), degrade(x))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"resolution": 0}, "resolution must be 1 pixel or more, not 0"),
            ({"resolution": 8, "size": -1}, "size must be 1 pixel or more, not -1"),
            (
                {"resolution": 8, "filter": "bilinaer"},
                "unknown filter to shrink with 'bilinaer'; did you mean 'bilinear'",
            ),
            ({"resolution": 8, "filter": "nearest"}, "unknown filter to shrink with 'nearest'"),
            ({"resolution": 8, "up_filter": "cubic"}, "unknown filter to resize with 'cubic'; did you mean 'bicubic'"),
            ({"resolution": 8, "measure": "aera"}, "unknown measure of a resolution 'aera'; did you mean 'area'"),
        ],
    )
    def test_errors(self, arguments: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Degrade(**arguments)

    @pytest.mark.parametrize("filter", sorted(set(SHRINK_FILTERS) - set(MOST)))
    def test_filter_that_does_not_support_tensors(self, filter: str) -> None:
        with pytest.raises(
            ValueError, match=f"the filter '{filter}' supports PIL images only; tensors support 'bicubic'"
        ):
            Degrade(8, filter)(torch.zeros(3, 16, 16))


class TestCreateTransform:
    @pytest.mark.parametrize("train", [True, False])
    @pytest.mark.parametrize("size", [(50, 40), (40, 50), (3, 300), (1000, 700)])
    def test_any_image_becomes_an_input_of_the_model(self, size: tuple[int, int], train: bool) -> None:
        x = create_transform(Preprocessing(input_size=(3, 64, 64)), 16, train)(Image.new("RGB", size))
        assert x.shape == (3, 64, 64)
        assert x.dtype == torch.float32

    @pytest.mark.parametrize("filter", ["bilinear", "lanczos"])
    def test_centre_is_cropped_and_normalized(self, filter: str) -> None:
        # 100 x 100, resized to 100 = 50 / 0.5: the crop is the middle 50 pixels, which are red.
        pixels = np.zeros((100, 100, 3), np.uint8)
        pixels[25:75, 25:75, 0] = 255
        options = {"crop_pct": 0.5, "interpolation": filter, "shrink_filter": filter}
        preprocessing = Preprocessing((3, 50, 50), mean=(0.5, 0.5, 0.0), std=(0.25, 0.5, 1.0), **options)  # type: ignore[arg-type]
        x = create_transform(preprocessing, None, train=False)(Image.fromarray(pixels))
        assert [channel.unique().tolist() for channel in x] == [[2.0], [-1.0], [0.0]]

    @pytest.mark.parametrize("resolution", [None, 24])
    @pytest.mark.parametrize(
        ("shrink_filter", "interpolation", "most"),
        [("bilinear", "bilinear", 2), ("bicubic", "bicubic", 3), ("box", "bilinear", 0), ("bilinear", "lanczos", 0)],
    )
    def test_equals_pillow(self, shrink_filter: str, interpolation: str, most: int, resolution: int | None) -> None:
        image = Image.fromarray(random_pixels(75, 100, 80, 175))
        down, up = Image.Resampling[shrink_filter.upper()], Image.Resampling[interpolation.upper()]
        small = image if resolution is None else image.resize((32, 24), down)
        large = small.resize((97, 73), up).crop((16, 4, 80, 68))  # 73 = round(64 / 0.875)
        p = Preprocessing((3, 64, 64), shrink_filter=shrink_filter, interpolation=interpolation)
        expected = v2.functional.normalize(pil_to_tensor(large) / 255, p.mean, p.std)
        x = create_transform(p, resolution, train=False)(image)
        difference = (x - expected).abs() * torch.tensor(p.std).view(3, 1, 1) * 255
        assert difference.max() <= most + 0.01

    def test_training_crops_and_flips_at_random(self) -> None:
        image = Image.fromarray(random_pixels(80, 80))
        transform = create_transform(Preprocessing((3, 64, 64), crop_pct=0.8), None, train=True, normalize=False)
        crops = image.resize((80, 80)), image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        windows = torch.stack([pil_to_tensor(one).unfold(1, 64, 1).unfold(2, 64, 1) for one in crops])
        flipped = set()
        for _ in range(8):
            found = (windows == transform(image).permute(2, 0, 1)[:, None, None]).all(dim=(1, 4, 5)).nonzero().tolist()
            assert len(found) == 1
            flipped.add(found[0][0])
        assert flipped == {0, 1}

    @pytest.mark.parametrize("measure", ["side", "area"])
    def test_resolution_follows_the_preprocessing(self, measure: str) -> None:
        p = Preprocessing((3, 64, 64), (0, 0, 0), (1, 1, 1), crop_pct=1.0, resolution_of=measure)
        image = Image.fromarray(random_pixels(64, 128))
        x = create_transform(p, 16, train=False)(image)
        assert_same(x, Degrade(16, measure=measure)(pil_to_tensor(image))[:, :, 32:96])

    @pytest.mark.parametrize("train", [True, False])
    def test_batch_can_be_normalized_later(self, train: bool) -> None:
        p = Preprocessing((3, 64, 64))
        image = Image.fromarray(random_pixels(75, 100))
        torch.manual_seed(0)
        one = create_transform(p, 24, train)(image)
        torch.manual_seed(0)
        other = create_transform(p, 24, train, normalize=False)(image)
        assert (other.dtype, other.shape) == (torch.uint8, (64, 64, 3))
        assert torch.equal(Normalize(p.mean, p.std)(torch.stack([other] * 2)), torch.stack([one] * 2))

    def test_normalize_equals_its_formula(self) -> None:
        x = torch.from_numpy(random_pixels(5, 7))
        normalize = Normalize(mean=[0.1, 0.2, 0.3], std=[0.5, 1.0, 2.0])
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in ([0.1, 0.2, 0.3], [0.5, 1, 2])
        )
        expected = (x.permute(2, 0, 1).double() / 255 - mean) / std
        torch.testing.assert_close(normalize(x).double(), expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(normalize(torch.stack([x] * 2)).double()[1], expected, atol=1e-6, rtol=1e-6)
        assert not normalize.state_dict()

    def test_transform_can_be_pickled(self) -> None:
        transform = create_transform(Preprocessing((3, 64, 64)), 16, train=False)
        image = Image.fromarray(random_pixels(75, 100))
        assert torch.equal(pickle.loads(pickle.dumps(transform))(image), transform(image))


class TestCreateViews:
    @pytest.mark.parametrize("normalize", [True, False])
    @pytest.mark.parametrize("filter", ["bilinear", "lanczos"])
    def test_each_view_equals_its_own_transform(self, filter: str, normalize: bool) -> None:
        p = Preprocessing((3, 64, 64), interpolation=filter)
        image = Image.fromarray(random_pixels(75, 100))
        resolutions = {"species": None, "genus": 24, 7: 12}
        views = create_views(p, resolutions, train=False, normalize=normalize)
        for pickled in (views, pickle.loads(pickle.dumps(views))):
            found = pickled(image)
            assert list(found) == list(resolutions)
            for key, resolution in resolutions.items():
                assert torch.equal(found[key], create_transform(p, resolution, False, normalize)(image))

    def test_equal_resolutions_have_different_crops(self) -> None:
        p = Preprocessing((3, 64, 64), crop_pct=0.5)
        views = create_views(p, {"a": 24, "b": 24}, train=True)(Image.fromarray(random_pixels(75, 100)))
        assert not torch.equal(views["a"], views["b"])


class TestPreprocessing:
    def test_errors(self) -> None:
        with pytest.raises(ValueError, match="unknown shrink_filter 'bicubik'; did you mean 'bicubic'"):
            Preprocessing(shrink_filter="bicubik")
        with pytest.raises(ValueError, match="unknown resolution_of 'sides'; did you mean 'side'"):
            Preprocessing(resolution_of="sides")

    def test_saved_configuration_has_the_shrink_filter(self, small_model: C2FModel) -> None:
        saved = small_model.config.to_dict()
        assert saved["preprocessing"]["shrink_filter"] == "bilinear"
        assert saved["preprocessing"]["resolution_of"] == "side"
        saved["preprocessing"] |= {"shrink_filter": "box", "resolution_of": "area"}
        preprocessing = ModelConfig.from_dict(saved).preprocessing
        assert (preprocessing.shrink_filter, preprocessing.resolution_of) == ("box", "area")
        for key in ("shrink_filter", "resolution_of"):  # as in older saved models
            del saved["preprocessing"][key]
        assert ModelConfig.from_dict(saved) == small_model.config
