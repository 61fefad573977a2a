"""The detail that an image shows: synthetic images with a known cut-off, enlarged in all ways."""

import numpy as np
import pytest
from PIL import Image

from c2f_zoo.inference.detail import visible_detail

SMOOTH = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]


def natural(side: int, seed: int = 0, exponent: float = 2.0) -> Image.Image:
    """Return an image whose power falls as 1 / f^exponent, as a photo's."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(rng.normal(size=(side, side))) * frequency ** (-exponent / 2)
    values = np.fft.ifft2(spectrum).real
    values = 128 + 45 * (values - values.mean()) / values.std()
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("filter", SMOOTH)
@pytest.mark.parametrize("shown", [32, 40, 80, 113])
def test_an_enlarged_image_shows_its_former_size(filter, shown):
    small = natural(448).resize((shown, shown), Image.Resampling.BOX)
    assert visible_detail(small.resize((500, 500), filter), 224) == pytest.approx(shown, rel=0.5)


@pytest.mark.parametrize("filter", [Image.Resampling.NEAREST, Image.Resampling.BOX])
@pytest.mark.parametrize("shown", [32, 40, 80, 160])
def test_repeated_pixels_count_once(filter, shown):
    small = natural(448).resize((shown, shown), Image.Resampling.BOX)
    assert visible_detail(small.resize((500, 500), filter), 224) == pytest.approx(shown, rel=0.05)


@pytest.mark.parametrize("square", [4, 7, 8, 14])
def test_a_checkerboard_has_one_pixel_a_square(square):
    board = (np.indices((224, 224)) // square).sum(axis=0) % 2 * 255
    assert visible_detail(Image.fromarray(board.astype(np.uint8)).convert("RGB"), 224) == pytest.approx(224 / square)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 17, 64])
def test_tiny_images_and_constant_ones_stay_within_their_size(side):
    rng = np.random.default_rng(side)
    noise = Image.fromarray(rng.integers(0, 256, (side, side + 3, 3), dtype=np.uint8))
    assert 1 <= visible_detail(noise, 224) <= side
    assert visible_detail(Image.new("RGB", (side, side), (90, 120, 7)), 224) == 1


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="size is 0"):
        visible_detail(natural(16), 0)
