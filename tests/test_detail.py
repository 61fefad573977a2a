"""The detail that an image shows: synthetic images with a known cut-off, enlarged, compressed and noisy."""

import functools
import io
import sys

import numpy as np
import pytest
from PIL import Image, ImageFilter

from c2f_zoo.inference.detail import visible_detail

SMOOTH = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]
SHOWN = [28, 40, 80, 113]


@functools.cache
def photo(side: int, cutoff: float = np.inf, seed: int = 0) -> Image.Image:
    """Return noise whose power falls as 1 / f^2, as a photo's, up to a cut-off in cycles per side."""
    rng = np.random.default_rng(seed)
    cycles = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)) * side
    amplitude = np.where(cycles <= cutoff, 1 / np.maximum(cycles, 1), 0)
    values = np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) * amplitude).real
    return to_image(128 + 45 * (values - values.mean()) / values.std())


def to_image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8)).convert("RGB")


def shrunk(side: int, seed: int = 0) -> Image.Image:
    return photo(448, seed=seed).resize((side, side), Image.Resampling.BOX)


def compressed(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


@pytest.mark.parametrize("cutoff", [10, 14, 20, 28, 40, 56, 80])
def test_a_band_limited_image_shows_two_pixels_a_cycle(cutoff):
    # 1.2 is the scale measured on photos, whose energy is not as even as that of the noise.
    assert 1 <= visible_detail(photo(224, cutoff), 224) / (2 * cutoff) <= 1.2


@pytest.mark.parametrize("filter", SMOOTH)
@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("side", [227, 500])
def test_an_enlarged_image_shows_its_former_size(filter, shown, side):
    detail = visible_detail(shrunk(shown).resize((side, side), filter), 224)
    assert shown / 1.5 < detail < 1.5 * shown


@pytest.mark.parametrize("filter", [Image.Resampling.NEAREST, Image.Resampling.BOX])
@pytest.mark.parametrize("shown", [*SHOWN, 160])
def test_repeated_pixels_count_once(filter, shown):
    assert visible_detail(shrunk(shown).resize((500, 500), filter), 224) == pytest.approx(shown, rel=0.05)


@pytest.mark.parametrize("square", [4, 7, 8, 14])
def test_a_checkerboard_shows_one_pixel_a_square(square):
    board = (np.indices((224, 224)) // square).sum(axis=0) % 2 * 255
    assert visible_detail(to_image(board), 224) == 224 / square


@pytest.mark.parametrize("image", [shrunk(160), shrunk(224), photo(300)], ids=lambda image: str(image.width))
def test_a_sharp_image_shows_its_size(image):
    nominal = min(image.width, 224)
    assert 0.85 * nominal < visible_detail(image, 224) <= nominal


@pytest.mark.parametrize("seed", range(3))
def test_it_rises_with_the_size_before_enlarging(seed):
    details = [visible_detail(shrunk(side, seed).resize((500, 500)), 224) for side in (20, 28, 40, 57, 80, 113, 160)]
    assert details == sorted(details)


def spoil(kind: str, image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=float)
    rng = np.random.default_rng(1)
    return {
        "darker": lambda: to_image(values[:, :, 0] - 25),
        "less contrast": lambda: to_image(60 + 0.5 * values[:, :, 0]),
        "noise": lambda: Image.fromarray(np.rint(values + rng.normal(0, 4, values.shape)).clip(0, 255).astype("uint8")),
        "jpeg": lambda: compressed(image, 75),
        "tint": lambda: Image.fromarray((values * [1, 0.9, 0.8]).astype("uint8")),
        "rotated": lambda: image.transpose(Image.Transpose.ROTATE_90),
    }[kind]()


@pytest.mark.parametrize("kind", ["darker", "less contrast", "noise", "jpeg", "tint", "rotated"])
@pytest.mark.parametrize("shown", SHOWN)
def test_changes_that_leave_the_detail_hardly_matter(kind, shown):
    image = shrunk(shown).resize((227, 227), Image.Resampling.BICUBIC)
    assert visible_detail(spoil(kind, image), 224) == pytest.approx(visible_detail(image, 224), rel=0.15)


def test_a_blurred_background_hardly_matters():
    image = shrunk(224)
    mask = Image.new("L", image.size)
    mask.paste(255, (70, 70, 154, 154))
    portrait = Image.composite(image, image.filter(ImageFilter.GaussianBlur(5)), mask)
    everywhere = visible_detail(image.filter(ImageFilter.GaussianBlur(5)), 224)
    assert (
        everywhere < 0.3 * visible_detail(image, 224) < 0.8 * visible_detail(image, 224) < visible_detail(portrait, 224)
    )


def test_only_the_central_square_counts():
    wide = Image.new("RGB", (300, 100))
    wide.paste(shrunk(100), (100, 0))
    tall = Image.new("RGB", (100, 300))
    tall.paste(shrunk(100), (0, 100))
    assert visible_detail(wide, 224) == visible_detail(tall, 224) == visible_detail(shrunk(100), 224)


@pytest.mark.parametrize("size", [32, 100, 224, 448])
@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 17, 64, 301])
def test_it_is_from_one_to_the_nominal_size(side, size):
    noise = np.random.default_rng(side).integers(0, 256, (side, side + 3, 3), dtype=np.uint8)
    assert 1 <= visible_detail(Image.fromarray(noise), size) <= min(side, size)
    assert visible_detail(Image.new("RGB", (side, side), (90, 120, 7)), size) == 1


def test_grey_images_and_their_rgb_copies_are_equal():
    assert visible_detail(shrunk(100).convert("L"), 224) == visible_detail(shrunk(100), 224)


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="size is 0"):
        visible_detail(shrunk(40), 0)


@pytest.mark.parametrize("side", [40, 97, 224])
def test_the_detail_is_the_same_without_pytorch(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [shrunk(side), shrunk(side // 2).resize((side, side))]
    expected = [visible_detail(image, 224) for image in images]
    monkeypatch.setitem(sys.modules, "torch", None)
    assert [visible_detail(image, 224) for image in images] == pytest.approx(expected, rel=1e-5)
