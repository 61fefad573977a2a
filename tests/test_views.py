"""Crops made by a worker and views made on the device, against create_transform."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms import v2

from c2f_zoo.config import SHRINK_FILTERS, Preprocessing
from c2f_zoo.data import Augmentation, Degrade, Normalize, Views, create_crop
from c2f_zoo.evaluation.photos import draw_photo
from c2f_zoo.images.array_transform import has_tensor_filters

# The bounds in the docstring of Views, in 1/255: in the mean and at any pixel, away from the crop's edge.
MEAN, MOST = 0.5, 3

Crop = dict[str, Tensor]


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    return draw_photo((width, height), seed)


def crop_of(image: Image.Image, p: Preprocessing, num_draws: int = 3, **augmentation: object) -> Crop:
    return create_crop(p, Augmentation(**augmentation), num_draws)(image)  # type: ignore[arg-type]


def worker_view(image: Image.Image, crop: Crop, p: Preprocessing, resolution: int | None, draw: int = 0) -> Tensor:
    """Return the view of create_transform at the place and with the flip of a crop."""
    x = v2.functional.pil_to_tensor(image) if has_tensor_filters(p) else image
    x = Degrade(resolution, p.shrink_filter, p.resize, p.interpolation, p.resolution_of)(x)
    x = x if isinstance(x, Tensor) else v2.functional.pil_to_tensor(x)
    x = v2.functional.crop(x, *crop["frame"][:, 1].int().tolist(), *p.input_size[1:])
    x = x.flip(-1) if crop["draws"][draw] < 0.5 else x
    return Normalize(p.mean, p.std)(x.movedim(0, -1))


def differences(found: Tensor, expected: Tensor, p: Preprocessing) -> Tensor:
    """Return the absolute differences of normalized images, in 1/255."""
    return (found - expected).abs() * torch.tensor(p.std).view(-1, 1, 1) * 255


class TestViews:
    @pytest.mark.parametrize("size", [(120, 160), (97, 97), (50, 70), (300, 240)])
    @pytest.mark.parametrize("measure", ["side", "area"])
    def test_equals_create_transform(self, size: tuple[int, int], measure: str) -> None:
        p = Preprocessing((3, 112, 112), resolution_of=measure)
        image = photo(*size)
        views = Views(p, {"species": None, "genus": 24, "family": 12})
        for seed in range(3):
            torch.manual_seed(seed)
            crop = crop_of(image, p, views.num_draws)
            batch = default_collate([crop])
            for draw, (key, resolution) in enumerate(views.resolutions.items()):
                found, expected = views(batch, key)[0], worker_view(image, crop, p, resolution, draw)
                difference = differences(found, expected, p)
                inside = 0 if resolution is None else math.ceil(1.5 * p.resize / resolution)
                away = difference[:, inside : 112 - inside, inside : 112 - inside]
                assert away.mean() <= MEAN and away.max() <= MOST
                assert difference.mean() <= 1.5 and difference.max() <= 40  # blind beyond the crop

    @pytest.mark.parametrize("size", [(128, 160), (200, 150)])
    def test_full_size_is_equal_if_nothing_is_enlarged(self, size: tuple[int, int]) -> None:
        p = Preprocessing((3, 112, 112))  # resized to 128
        for seed in range(3):
            torch.manual_seed(seed)
            crop = crop_of(photo(*size), p)
            found = Views(p, {"species": None, "genus": 128})
            batch = default_collate([crop | {"draws": torch.tensor([0.2, 0.7, 0.0])}])
            expected = worker_view(photo(*size), crop | {"draws": batch["draws"][0]}, p, None)
            assert torch.equal(found(batch, "species")[0], expected)
            assert torch.equal(found(batch, "genus")[0], expected.flip(-1))

    @pytest.mark.parametrize("filter", SHRINK_FILTERS)
    @pytest.mark.parametrize("up_filter", ["nearest", "bilinear", "bicubic", "lanczos"])
    def test_uncropped_images_of_the_models_size_are_equal(self, filter: str, up_filter: str) -> None:
        # Neither cropped nor resized before: the difference is the rounding to 8 bits after each of four passes.
        p = Preprocessing((3, 96, 96), crop_pct=1.0, shrink_filter=filter, interpolation=up_filter)
        image = photo(96, 96)
        crop = crop_of(image, p)
        found = Views(p, {"genus": 20, "family": 7})(default_collate([crop]), "family")[0]
        difference = differences(found, worker_view(image, crop, p, 7, 1), p)
        assert difference.mean() <= 0.5 and difference.max() <= 2

    def test_batch_equals_one_at_a_time(self) -> None:
        p = Preprocessing((3, 64, 64))
        views = Views(p, {"genus": 24, "family": 12})
        crops = [crop_of(photo(*size, seed=seed), p) for seed, size in enumerate([(80, 90), (20, 30), (200, 100)])]
        batch = default_collate(crops)
        assert batch["image"].dtype == torch.uint8
        for make in (lambda b: views(b, "genus"), lambda b: views(b, "family"), views.at_random):
            for crop, view in zip(crops, make(batch), strict=True):
                torch.testing.assert_close(make(default_collate([crop]))[0], view, atol=1e-4, rtol=1e-4)
        assert (batch["frame"][:, 0, 3].diff() != 0).any()  # images of several sizes

    def test_image_below_the_resolution_is_not_shrunk(self) -> None:
        p = Preprocessing((3, 64, 64))
        views = Views(p, {"genus": 24})
        batch = default_collate([crop_of(photo(*size), p) for size in [(24, 40), (25, 40)]])
        shrunk = views(batch, "genus")
        full = Views(p, {"genus": None})(batch, "genus")
        torch.testing.assert_close(shrunk[0], full[0], atol=1e-3, rtol=0)
        assert differences(shrunk[1], full[1], p).mean() > 0.3

    def test_at_random_shrinks_each_image_to_its_own_resolution(self) -> None:
        p = Preprocessing((3, 64, 64), crop_pct=0.8)  # resized to 80
        resolutions = {"species": None, "genus": 24, "family": 10}
        views = Views(p, resolutions)
        crops = [crop_of(photo(90, 120, seed), p, views.num_draws) for seed in range(3)]
        small = crop_of(photo(9, 12), p, views.num_draws)  # smaller than the coarsest resolution
        middle = crop_of(photo(40, 60), p, views.num_draws)
        batch = default_collate([*crops, small, middle])
        batch["draws"][:, -1] = torch.tensor([0.0, 0.5, 1.0, 0.5, 0.5])
        found = views.at_random(batch)
        expected = [10, 28, None, None, 20]  # 10 * 8 ** draw; 10 * 4 ** draw for the image of 40 pixels
        for at, resolution in enumerate(expected):
            one = {name: value[[at]] for name, value in batch.items()}
            torch.testing.assert_close(found[[at]], Views(p, {"any": resolution})(one, "any"), atol=1e-3, rtol=1e-4)

    def test_at_random_at_full_size_alone(self) -> None:
        p = Preprocessing((3, 64, 64))
        views = Views(p, {"species": None})
        batch = default_collate([crop_of(photo(80, 90), p, views.num_draws)])
        assert torch.equal(views.at_random(batch), views(batch, "species"))

    def test_each_view_has_its_own_flip(self) -> None:
        p = Preprocessing((3, 64, 64))
        views = Views(p, {"a": None, "b": None, "c": 20, "d": 20})
        batch = default_collate([crop_of(photo(80, 90), p, views.num_draws)])
        batch["draws"][0, :4] = torch.tensor([0.4, 0.5, 0.4, 0.5])
        a, b, c, d = (views(batch, key) for key in "abcd")
        assert torch.equal(a.flip(-1), b)
        torch.testing.assert_close(c.flip(-1), d, atol=1e-4, rtol=1e-4)

    def test_grey_images(self) -> None:
        p = Preprocessing((1, 64, 64), mean=(0.4,), std=(0.2,))
        image = photo(80, 90)
        crop = crop_of(image, p)
        assert crop["image"].shape[-1] == 1
        views = Views(p, {"species": None, "genus": 20})
        batch = default_collate([crop])
        assert views(batch, "genus").shape == views.at_random(batch).shape == (1, 1, 64, 64)
        expected = worker_view(Image.merge("RGB", [image.convert("L")] * 3), crop, Preprocessing((3, 64, 64)), 20, 1)
        three = expected * torch.tensor(Preprocessing().std).view(3, 1, 1) + torch.tensor(Preprocessing().mean).view(
            3, 1, 1
        )
        found = views(batch, "genus")[0] * 0.2 + 0.4
        assert (255 * (found - three[:1])).abs().mean() < 1.5

    def test_autocast_does_not_change_the_views(self) -> None:
        p = Preprocessing((3, 64, 64))
        views = Views(p, {"genus": 20})
        batch = default_collate([crop_of(photo(80, 90), p)])
        expected = views(batch, "genus")
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(views(batch, "genus"), expected)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("filter", SHRINK_FILTERS)
    def test_gpu_agrees(self, filter: str) -> None:
        p = Preprocessing((3, 64, 64), shrink_filter=filter)
        views = Views(p, {"species": None, "genus": 20})
        batch = default_collate([crop_of(photo(80, 90, seed), p) for seed in range(4)])
        expected = [views(batch, "species"), views(batch, "genus"), views.at_random(batch)]
        on_gpu = {name: value.cuda() for name, value in batch.items()}
        views.cuda()
        found = [views(on_gpu, "species"), views(on_gpu, "genus"), views.at_random(on_gpu)]
        for a, b in zip(found, expected, strict=True):
            assert a.is_cuda and differences(a.cpu(), b, p).max() < 0.05

    def test_resolution_below_one_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="the resolution of genus must be 1 pixel or more, not 0"):
            Views(Preprocessing(), {"genus": 0})


class TestCreateCrop:
    @pytest.mark.parametrize("size", [(50, 75), (100, 150)])  # smaller and larger than the model's
    def test_default_is_a_plain_crop_of_the_resized_image(self, size: tuple[int, int]) -> None:
        p = Preprocessing((3, 64, 64), crop_pct=0.8)  # resized to 80
        image, starts = photo(*size), []
        for seed in range(30):
            torch.manual_seed(seed)
            crop = crop_of(image, p)
            assert crop["image"].is_contiguous() and crop["image"].dtype == torch.uint8
            assert crop["frame"][:, 0].tolist() == list(size)
            starts.append(crop["frame"][:, 1].tolist())
            found = Views(p, {"species": None})(default_collate([crop]), "species")[0]
            assert differences(found, worker_view(image, crop, p, None), p).max() <= 1.01  # rounding
        tops, lefts = zip(*starts, strict=True)
        assert 0 <= min(tops) < 4 and 12 < max(tops) <= 16  # 80 - 64
        assert 0 <= min(lefts) < 14 and 42 < max(lefts) <= 56  # 120 - 64

    def test_random_resized_crop_is_of_the_image(self) -> None:
        # Red is the row, green the column: the view's values say where it is from.
        rows, columns = np.meshgrid(np.arange(200), np.arange(240), indexing="ij")
        image = Image.fromarray(np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8))
        p = Preprocessing((3, 64, 64), (0, 0, 0), (1 / 255,) * 3, crop_pct=0.8)
        views, areas = Views(p, {"species": None}), []
        for seed in range(40):
            torch.manual_seed(seed)
            crop = crop_of(image, p, crop_scale=0.02)
            x = views(default_collate([crop | {"draws": torch.ones(2)}]), "species")[0]
            height = (x[0, -1].mean() - x[0, 0].mean()).item() * 64 / 63
            width = (x[1, :, -1].mean() - x[1, :, 0].mean()).item() * 64 / 63
            areas.append(height * width / (200 * 240))
            assert 0.7 < width / height < 1.45
            # A region of `h` rows at 64 pixels is as a plain crop of an image of h / 0.8 rows.
            size = crop["frame"][:, 0].tolist()
            assert size[0] == pytest.approx(min(height, width) / 0.8, abs=2)
            assert size[1] / size[0] == pytest.approx(1.2, abs=0.03)
        assert 0 < min(areas) < 0.1 and 0.8 < max(areas) < 1.05

    @pytest.mark.parametrize("crop_scale", [0.01, 0.9])  # enlarged from few pixels, and resized by the worker
    def test_close_crop_has_the_blur_of_the_resolution(self, crop_scale: float) -> None:
        p = Preprocessing((3, 64, 64), (0, 0, 0), (1 / 255,) * 3, crop_pct=0.8)  # 20 of 80 pixels are 16 of 64
        views = Views(p, {"full": None, "genus": 20})
        for seed in range(5):
            torch.manual_seed(seed)
            crop = crop_of(photo(400, 500), p, crop_scale=crop_scale)
            batch = default_collate([crop | {"draws": torch.ones(3)}])
            expected = Degrade(16)(views(batch, "full"))
            assert (views(batch, "genus") - expected)[..., 4:-4, 4:-4].abs().mean() < 3

    @pytest.mark.parametrize(
        "augmentation",
        [
            {"color_jitter": 0.4},
            {"auto_augment": "randaugment"},
            {"auto_augment": "trivialaugment"},
            {"crop_scale": 0.3},
        ],
    )
    @pytest.mark.parametrize("channels", [1, 3])
    def test_augmented_crops_are_repeated_by_a_seed(self, augmentation: dict, channels: int) -> None:
        p = Preprocessing((channels, 64, 64), mean=(0.5,) * channels, std=(0.25,) * channels)
        image = photo(100, 150)
        transform = pickle.loads(pickle.dumps(create_crop(p, Augmentation(**augmentation), 2)))
        plain, crops = create_crop(p, Augmentation(), 2), []
        for seed in (0, 0, 1, 2):
            torch.manual_seed(seed)
            crops.append(transform(image))
            assert crops[-1]["image"].shape == (68, 68, channels) and crops[-1]["image"].dtype == torch.uint8
        assert all(torch.equal(crops[0][name], crops[1][name]) for name in crops[0])
        assert not torch.equal(crops[1]["image"], crops[2]["image"])
        torch.manual_seed(2)
        unchanged = plain(image)
        assert torch.equal(unchanged["draws"], crops[3]["draws"])  # they are drawn first
        changed = [not torch.equal(crop["image"], unchanged["image"]) for crop in crops]
        assert any(changed)

    def test_random_erasing_fills_with_the_mean(self) -> None:
        p = Preprocessing((3, 64, 64))
        image = Image.new("RGB", (100, 100), (255, 255, 255))
        batch = default_collate([crop_of(image, p, random_erasing=1.0)])
        x = Views(p, {"species": None})(batch, "species")
        erased = x < 1.5
        assert 0.01 < erased.double().mean() < 0.4
        assert x[erased].abs().max() < 0.01

    def test_image_that_does_not_fit(self) -> None:
        p = Preprocessing((3, 32, 96))
        with pytest.raises(
            ValueError, match="a crop of 32 x 96 does not fit into an image of 50 x 60 resized to 37 x 44"
        ):
            crop_of(photo(50, 60), p)
        assert crop_of(photo(50, 60), p, crop_scale=0.5)["image"].shape == (36, 100, 3)


class TestAugmentation:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"crop_scale": 0.0}, r"crop_scale is a fraction of the image's area in \(0, 1\], not 0.0"),
            ({"color_jitter": 1.5}, r"color_jitter must be in \[0, 1\], not 1.5; 0 turns it off"),
            ({"random_erasing": float("nan")}, "random_erasing must be in .*, not nan"),
            ({"auto_augment": "randaug"}, "unknown auto_augment 'randaug'; did you mean 'randaugment'"),
        ],
    )
    def test_errors(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Augmentation(**options)
