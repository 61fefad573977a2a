"""Image files of every kind are read as correct RGB, or raise an error."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from c2f_zoo import Hierarchy
from c2f_zoo.data import ImageFiles, load_image, prepare_image, read_image
from c2f_zoo.data.sources import Relabelled

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def colours(path: Path) -> list[list[tuple[int, int, int]]]:
    image = read_image(path)
    assert type(image) is Image.Image and image.mode == "RGB"
    return [[tuple(pixel) for pixel in row] for row in np.asarray(image).tolist()]


def near(found: list[list[tuple[int, int, int]]], expected: list[list[tuple[int, int, int]]], most: int) -> bool:
    return abs(np.array(found, int) - np.array(expected, int)).max() <= most


def image_of(mode: str, pixels: list) -> Image.Image:
    """Return one row of pixels."""
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


def tiff(data: bytes, width: int, bits: int, photometric: int, samples: int = 1, extra: dict | None = None) -> bytes:
    """Return a TIFF file of one row in a format that Pillow reads but does not write."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: samples, 278: 1, 279: len(data)}
    tags |= extra or {}
    data += b"\0" * (len(data) % 2)
    directory = 8 + len(data)
    entries = b""
    arrays = b""
    for tag, value in sorted(tags.items()):
        if tag == 258 and samples > 1:  # one number for each sample, after the directory
            offset = directory + 2 + 12 * len(tags) + 4
            arrays = struct.pack(f"<{samples}H", *[bits] * samples)
            entries += struct.pack("<HHII", tag, 3, samples, offset)
        else:
            entries += struct.pack("<HHIHH", tag, 3, 1, value, 0)
    return (
        struct.pack("<2sHI", b"II", 42, directory) + data + struct.pack("<H", len(tags)) + entries + bytes(4) + arrays
    )


class TestColours:
    def test_rgb_and_grey(self, tmp_path: Path) -> None:
        image_of("RGB", [RED, (1, 2, 3)]).save(tmp_path / "a.png")
        assert colours(tmp_path / "a.png") == [[RED, (1, 2, 3)]]
        image_of("L", [0, 77, 255]).save(tmp_path / "a.png")
        assert colours(tmp_path / "a.png") == [[(0, 0, 0), (77, 77, 77), WHITE]]
        Image.new("L", (16, 16), 77).save(tmp_path / "a.jpg")
        assert near(colours(tmp_path / "a.jpg"), [[(77, 77, 77)] * 16] * 16, 1)

    @pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
    def test_one_bit(self, tmp_path: Path, suffix: str) -> None:
        image_of("1", [0, 255, 255]).save(tmp_path / f"a.{suffix}")
        assert colours(tmp_path / f"a.{suffix}") == [[(0, 0, 0), WHITE, WHITE]]

    def test_alpha_is_blended_with_white(self, tmp_path: Path) -> None:
        # 0.4 (= 102 / 255) of the colour and 0.6 of white: 153 more than 0.4 of the colour.
        image_of("RGBA", [(255, 0, 0, 102), (9, 9, 9, 0), (1, 2, 3, 255)]).save(tmp_path / "a.png")
        assert colours(tmp_path / "a.png") == [[(255, 153, 153), WHITE, (1, 2, 3)]]
        image_of("LA", [(100, 102), (9, 0), (7, 255)]).save(tmp_path / "a.png")
        assert colours(tmp_path / "a.png") == [[(193, 193, 193), WHITE, (7, 7, 7)]]

    def test_premultiplied_alpha(self, tmp_path: Path) -> None:
        (tmp_path / "a.tif").write_bytes(tiff(bytes([102, 0, 0, 102, 0, 0, 0, 0]), 2, 8, 2, samples=4, extra={338: 1}))
        assert colours(tmp_path / "a.tif") == [[(255, 153, 153), WHITE]]

    def test_palettes(self, tmp_path: Path) -> None:
        image = image_of("P", [0, 1, 2])
        image.putpalette([*RED, *GREEN, *BLUE])
        for suffix in ("png", "gif", "bmp", "tif"):
            image.save(tmp_path / f"a.{suffix}")
            assert colours(tmp_path / f"a.{suffix}") == [[RED, GREEN, BLUE]]
        for suffix in ("png", "gif"):
            image.save(tmp_path / f"a.{suffix}", transparency=1)
            assert colours(tmp_path / f"a.{suffix}") == [[RED, WHITE, BLUE]]
        image.save(tmp_path / "a.png", transparency=bytes([102, 0, 255]))
        assert colours(tmp_path / "a.png") == [[(255, 153, 153), WHITE, BLUE]]

    def test_transparent_colour(self, tmp_path: Path) -> None:
        image_of("RGB", [RED, BLUE]).save(tmp_path / "a.png", transparency=RED)
        assert colours(tmp_path / "a.png") == [[WHITE, BLUE]]
        image_of("L", [0, 9]).save(tmp_path / "a.png", transparency=0)
        assert colours(tmp_path / "a.png") == [[WHITE, (9, 9, 9)]]
        image_of("1", [0, 255]).save(tmp_path / "a.png", transparency=0)
        assert colours(tmp_path / "a.png") == [[WHITE, WHITE]]
        Image.fromarray(np.array([[0, 257 * 9]], np.uint16)).save(tmp_path / "a.png", transparency=0)
        assert colours(tmp_path / "a.png") == [[WHITE, (9, 9, 9)]]

    def test_palette_with_alpha(self, tmp_path: Path) -> None:
        image = image_of("PA", [(0, 255), (1, 102), (2, 0)])
        image.putpalette([*BLUE, *RED, *GREEN])
        image.save(tmp_path / "a.tif")
        with Image.open(tmp_path / "a.tif") as opened:
            assert opened.mode == "PA"
        assert colours(tmp_path / "a.tif") == [[BLUE, (255, 153, 153), WHITE]]

    def test_cmyk(self, tmp_path: Path) -> None:
        # A channel is (1 - ink) (1 - black): 255 * 0.6 * 0.8, 255 * 0.8 and 255 * 0.2 * 0.8.
        inks, expected = (102, 0, 204, 51), (122, 204, 41)
        Image.new("CMYK", (16, 16), inks).save(tmp_path / "a.tif")
        assert near(colours(tmp_path / "a.tif"), [[expected] * 16] * 16, 1)
        Image.new("CMYK", (16, 16), inks).save(tmp_path / "a.jpg", quality=95)
        assert near(colours(tmp_path / "a.jpg"), [[expected] * 16] * 16, 3)

    def test_ycck(self, tmp_path: Path) -> None:
        # Adobe's JPEGs store 255 - ink. Here the inks are Y, Cb, Cr = 100, 128, 178 and no black, as the marker states.
        file = io.BytesIO()
        Image.new("CMYK", (16, 16), (255 - 100, 255 - 128, 255 - 178, 0)).save(file, "JPEG", quality=95)
        data = bytearray(file.getvalue())
        transform = data.index(b"Adobe") + 11
        assert data[transform] == 0
        data[transform] = 2
        (tmp_path / "a.jpg").write_bytes(data)
        # Y + 1.402 (Cr - 128), Y - 0.714 (Cr - 128) and Y are the inks 170, 64 and 100.
        assert near(colours(tmp_path / "a.jpg"), [[(85, 191, 155)] * 16] * 16, 3)

    def test_ycbcr(self, tmp_path: Path) -> None:
        # Compressed: Pillow 12.3.0 cannot read the uncompressed files that it writes in this mode.
        Image.new("YCbCr", (2, 1), (100, 128, 178)).save(tmp_path / "a.tif", compression="tiff_lzw")
        assert near(colours(tmp_path / "a.tif"), [[(170, 64, 100)] * 2], 2)

    def test_first_frame_of_an_animation(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (4, 3), colour) for colour in (BLUE, GREEN, RED)]
        for suffix in ("gif", "png"):
            frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
            assert colours(tmp_path / f"a.{suffix}") == [[BLUE] * 4] * 3


GREYS = [0, 128, 257 * 100, 257 * 100 + 129, 65535]
GREYS_OF_8_BITS = [[(grey,) * 3 for grey in (0, 0, 100, 101, 255)]]


class TestSixteenBits:
    @pytest.mark.parametrize(("suffix", "mode"), [("png", "I;16"), ("tif", "I;16"), ("tif", "I;16B"), ("pgm", "I;16")])
    def test_grey_is_scaled(self, tmp_path: Path, suffix: str, mode: str) -> None:
        image = Image.frombytes(mode, (5, 1), np.array(GREYS, ">u2" if mode == "I;16B" else "<u2").tobytes())
        image.save(tmp_path / f"a.{suffix}")
        assert colours(tmp_path / f"a.{suffix}") == GREYS_OF_8_BITS

    def test_pgm_of_any_maximum(self, tmp_path: Path) -> None:
        (tmp_path / "a.pgm").write_bytes(b"P5 3 1 1000\n" + np.array([0, 500, 1000], ">u2").tobytes())
        assert near(colours(tmp_path / "a.pgm"), [[(0,) * 3, (128,) * 3, WHITE]], 1)

    def test_grey_of_12_bits(self, tmp_path: Path) -> None:
        (tmp_path / "a.tif").write_bytes(tiff(bytes.fromhex("fff 000".replace(" ", "")), 2, 12, 1))
        assert colours(tmp_path / "a.tif") == [[WHITE, (0, 0, 0)]]

    def test_grey_with_white_as_zero(self, tmp_path: Path) -> None:
        (tmp_path / "a.tif").write_bytes(tiff(np.array(GREYS, "<u2").tobytes(), 5, 16, 0))
        assert colours(tmp_path / "a.tif") == [
            [(255 - grey, 255 - grey, 255 - grey) for grey, _, _ in GREYS_OF_8_BITS[0]]
        ]

    def test_rgb(self, tmp_path: Path) -> None:
        row = b"\0" + np.array([257 * 200, 257 * 100, 0, 65535, 257, 514], ">u2").tobytes()
        chunks = [
            (b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(row)),
            (b"IEND", b""),
        ]
        data = b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
        assert colours(tmp_path / "a.png") == [[(200, 100, 0), (255, 1, 2)]]
        (tmp_path / "a.tif").write_bytes(tiff(np.array([257 * 200, 257, 65535], "<u2").tobytes(), 1, 16, 2, samples=3))
        assert colours(tmp_path / "a.tif") == [[(200, 1, 255)]]

    @pytest.mark.parametrize(("mode", "kind"), [("F", "floats"), ("I", "32-bit or signed integers")])
    def test_values_of_unknown_range(self, tmp_path: Path, mode: str, kind: str) -> None:
        Image.new(mode, (4, 4)).save(tmp_path / "a.tif")
        assert_unreadable(tmp_path / "a.tif", f"its pixels are {kind} of unknown range; save it with 8 or 16")

    def test_signed_values(self, tmp_path: Path) -> None:
        (tmp_path / "a.tif").write_bytes(tiff(bytes(4), 2, 16, 1, extra={339: 2}))
        assert_unreadable(tmp_path / "a.tif", "its pixels are 32-bit or signed integers")


# How a scene is stored for each orientation; EXIF names the sides of the scene at row 0 and column 0.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda scene: scene,  # top, left
    2: lambda scene: scene[:, ::-1],  # top, right
    3: lambda scene: scene[::-1, ::-1],  # bottom, right
    4: lambda scene: scene[::-1],  # bottom, left
    5: lambda scene: scene.swapaxes(0, 1),  # left, top
    6: lambda scene: scene[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda scene: scene[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda scene: scene[::-1].swapaxes(0, 1),  # left, bottom
}


class TestOrientation:
    @pytest.mark.parametrize("orientation", STORED)
    @pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
    def test_orientation_is_applied(self, tmp_path: Path, suffix: str, orientation: int) -> None:
        scene = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        exif = Image.Exif()
        exif[274] = orientation
        stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](scene)))
        stored.save(
            tmp_path / f"a.{suffix}", exif=exif, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {})
        )
        assert near(colours(tmp_path / f"a.{suffix}"), scene.tolist(), 3 if suffix == "jpg" else 0)

    @pytest.mark.parametrize("orientation", [0, 9, 6000])
    def test_unknown_orientation_is_ignored(self, tmp_path: Path, orientation: int) -> None:
        exif = Image.Exif()
        exif[274] = orientation
        image_of("RGB", [RED, BLUE]).save(tmp_path / "a.png", exif=exif)
        assert colours(tmp_path / "a.png") == [[RED, BLUE]]

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    def test_broken_exif_is_ignored(self, tmp_path: Path) -> None:
        image = Image.new("RGB", (16, 16), (50, 100, 150))
        for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff"):
            image.save(tmp_path / "a.jpg", exif=exif, quality=95)
            assert near(colours(tmp_path / "a.jpg"), [[(50, 100, 150)] * 16] * 16, 3)


class TestShorterSide:
    def save(self, path: Path, height: int = 301, width: int = 402, orientation: int = 1, mode: str = "RGB") -> None:
        y, x = np.indices((height, width))
        pixels = np.stack([x % 256, y % 256, (x + y) // 4], axis=-1).astype(np.uint8)
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(pixels).convert(mode).save(path, exif=exif, quality=95)

    @pytest.mark.parametrize(
        ("shorter_side", "size"),
        [
            (302, (402, 301)),
            (301, (402, 301)),
            (151, (402, 301)),
            (150, (201, 151)),
            (75, (101, 76)),
            (37, (51, 38)),
            (1, (51, 38)),
        ],
    )
    def test_jpeg_is_decoded_at_a_sufficient_size(
        self, tmp_path: Path, shorter_side: int, size: tuple[int, int]
    ) -> None:
        self.save(tmp_path / "a.jpg")
        assert read_image(tmp_path / "a.jpg", shorter_side).size == size
        self.save(tmp_path / "a.jpg", orientation=6)
        assert read_image(tmp_path / "a.jpg", shorter_side).size == size[::-1]

    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    @pytest.mark.parametrize("orientation", [1, 6])
    def test_reduced_image_looks_the_same(self, tmp_path: Path, mode: str, orientation: int) -> None:
        self.save(tmp_path / "a.jpg", 304, 400, orientation, mode)
        whole, small = (read_image(tmp_path / "a.jpg", side) for side in (None, 100))
        assert small.mode == "RGB"
        difference = np.abs(np.asarray(whole.reduce(2), int) - np.asarray(small, int))
        assert difference.mean() < 1.5

    def test_other_formats_are_decoded_at_full_size(self, tmp_path: Path) -> None:
        self.save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png", 10).tobytes() == read_image(tmp_path / "a.png").tobytes()


def assert_unreadable(path: Path, message: str) -> None:
    """Assert that reading raises an error with the path and the message."""
    with pytest.raises(ValueError) as error:
        read_image(path)
    assert f"cannot read the image {path}: {message}" in str(error.value)


class TestBadFiles:
    @pytest.mark.parametrize(
        "content", [b"", b"not an image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + bytes(50), b"GIF89a"]
    )
    def test_not_an_image(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.jpg").write_bytes(content)
        assert_unreadable(tmp_path / "a.jpg", "")
        with pytest.raises(ValueError, match="replace or remove it"):
            read_image(tmp_path / "a.jpg")

    @pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "bmp", "webp"])
    @pytest.mark.parametrize("kept", [0.3, 0.95])
    def test_truncated_image(self, tmp_path: Path, suffix: str, kept: float) -> None:
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(kept * len(data))])
        with pytest.raises(ValueError, match=rf"cannot read the image .*a.{suffix}: .*; replace or remove it"):
            read_image(path)

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"there is no image .*nowhere.jpg"):
            read_image(tmp_path / "nowhere.jpg")
        (tmp_path / "folder.jpg").mkdir()
        assert_unreadable(tmp_path / "folder.jpg", "")

    @pytest.mark.parametrize("action", ["ignore", "error"])
    @pytest.mark.parametrize("width", [11, 30])  # Pillow warns for the first and raises an error for the second
    def test_image_with_too_many_pixels(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, action: str
    ) -> None:
        Image.new("RGB", (width, 10)).save(tmp_path / "a.png")
        Image.new("RGB", (10, 10)).save(tmp_path / "b.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with warnings.catch_warnings():
            warnings.simplefilter(action, Image.DecompressionBombWarning)  # type: ignore[arg-type]
            assert_unreadable(tmp_path / "a.png", "it has more than 100 pixels")
            with pytest.raises(ValueError, match=r"resize or remove it .*can raise PIL.Image.MAX"):
                read_image(tmp_path / "a.png")
            assert read_image(tmp_path / "b.png").size == (10, 10)
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
            assert read_image(tmp_path / "a.png").size == (width, 10)

    @pytest.mark.parametrize("size", [(3000, 1), (2, 201)])
    def test_elongated_image(self, tmp_path: Path, size: tuple[int, int]) -> None:
        Image.new("RGB", size).save(tmp_path / "a.png")
        assert_unreadable(
            tmp_path / "a.png", f"it has {size[0]} x {size[1]} pixels: resized to a model's input it would exhaust"
        )
        with pytest.raises(ValueError, match=r"the memory; crop it$"):
            read_image(tmp_path / "a.png", 512)

    def test_image_100_times_as_long_as_wide(self, tmp_path: Path) -> None:
        Image.new("RGB", (2, 200)).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png").size == (2, 200)


def _rotated() -> Image.Image:
    image = image_of("RGB", [RED, GREEN, BLUE])
    image.getexif()[0x0112] = 6  # turn it clockwise by 90 degrees
    return image


def _transparent_palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([0, 1])
    image.info["transparency"] = 1
    return image


class _Opened(list):  # type: ignore[type-arg]
    """A dataset as a plug-in may write it: its items are what `Image.open` returns."""

    def __init__(self, paths: list[Path], targets: list[int], hierarchy: Hierarchy) -> None:
        super().__init__((Image.open(path), target) for path, target in zip(paths, targets, strict=True))
        self.targets, self.hierarchy = targets, hierarchy


class TestPreparation:
    # file -> the image, how it is saved, and its pixels by hand
    FILES: ClassVar = {
        "grey.png": (image_of("L", [0, 77]), {}, [[(0, 0, 0), (77, 77, 77)]]),
        "one_bit.png": (image_of("1", [0, 1]), {}, [[(0, 0, 0), WHITE]]),
        # 257 * 77 = 19789: 16 bits of the 8-bit value 77
        "16_bits.png": (Image.fromarray(np.array([[0, 19789, 65535]], np.uint16)), {}, [[(0,) * 3, (77,) * 3, WHITE]]),
        "16_bits.tif": (Image.fromarray(np.array([[0, 19789, 65535]], np.uint16)), {}, [[(0,) * 3, (77,) * 3, WHITE]]),
        "rotated.png": (_rotated(), {}, [[RED], [GREEN], [BLUE]]),
        "rotated.tif": (_rotated(), {}, [[RED], [GREEN], [BLUE]]),
        "alpha.png": (image_of("RGBA", [(*RED, 255), (*RED, 0), (0, 0, 0, 128)]), {}, [[RED, WHITE, (127,) * 3]]),
        "grey_alpha.png": (image_of("LA", [(77, 255), (77, 0)]), {}, [[(77,) * 3, WHITE]]),
        "palette.png": (_transparent_palette(), {"transparency": 1}, [[RED, WHITE]]),
        "colour_key.png": (image_of("RGB", [RED, BLUE]), {"transparency": BLUE}, [[RED, WHITE]]),
        "cmyk.tif": (image_of("CMYK", [(0, 255, 255, 0), (0, 0, 0, 0)]), {}, [[RED, WHITE]]),
    }

    @pytest.mark.parametrize("name", FILES)
    def test_every_way_to_pass_an_image_gives_the_same_pixels(self, tmp_path: Path, name: str) -> None:
        image, options, expected = self.FILES[name]
        image.save(tmp_path / name, exif=image.getexif(), **options)
        loaded = Image.open(tmp_path / name)
        loaded.load()
        ways = [tmp_path / name, str(tmp_path / name), io.BytesIO((tmp_path / name).read_bytes())]
        for way in [*ways, Image.open(tmp_path / name), loaded]:
            found = prepare_image(way)
            assert found.mode == "RGB" and np.asarray(found).tolist() == np.array(expected).tolist()
            assert prepare_image(found) is found  # nothing is turned or blended twice

    def test_an_image_of_the_caller_is_not_changed(self, tmp_path: Path) -> None:
        _rotated().save(tmp_path / "a.png", exif=_rotated().getexif())
        image = Image.open(tmp_path / "a.png")
        assert prepare_image(image).size == (1, 3)
        assert image.size == (3, 1) and image.getexif()[0x0112] == 6

    def test_another_thread_turns_the_image_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _rotated().save(tmp_path / "a.png", exif=_rotated().getexif())
        image, load, started = Image.open(tmp_path / "a.png"), Image.Exif.load, []

        def load_while_another_thread_asks(exif: Image.Exif, data: bytes) -> None:
            if not started:  # Pillow calls the data loaded before this function loads it
                started.append(pool.submit(prepare_image, image))
                wait(started, timeout=0.1)
            load(exif, data)

        monkeypatch.setattr(Image.Exif, "load", load_while_another_thread_asks)
        with ThreadPoolExecutor(1) as pool:
            assert prepare_image(image).size == started[0].result().size == (1, 3)

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (np.array([[0, 77]], np.uint8), [[(0, 0, 0), (77, 77, 77)]]),
            (np.array([[[77], [255]]], np.uint8), [[(77, 77, 77), WHITE]]),
            (np.array([[-1e-6, 1 + 1e-6]], np.float32), [[(0, 0, 0), WHITE]]),  # rounding errors
            (np.array([[False, True]]), [[(0, 0, 0), WHITE]]),
            (np.array([[0, 19789]], np.uint16), [[(0, 0, 0), (77, 77, 77)]]),
            (np.array([[0, 19789]], ">u2"), [[(0, 0, 0), (77, 77, 77)]]),
            (np.array([[RED, BLUE]], np.uint8), [[RED, BLUE]]),
            (np.array([[RED, BLUE]], np.float64) / 255, [[RED, BLUE]]),
            (np.array([[(*RED, 255), (*RED, 0)]], np.uint8), [[RED, WHITE]]),
            (np.array([[(77, 255), (77, 0)]], np.uint8), [[(77, 77, 77), WHITE]]),
        ],
    )
    def test_arrays_and_tensors(self, values: np.ndarray, expected: list) -> None:
        for dtype in {values.dtype, np.dtype(np.float16)} if values.dtype == np.float64 else {values.dtype}:
            array = values.astype(dtype)
            tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
            tensor = tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor
            for way in (array, tensor):
                assert np.asarray(prepare_image(way)).tolist() == np.array(expected).tolist()

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (np.zeros((1, 20000), np.uint8), "it has 20000 x 1 pixels: resized .* would exhaust the memory; crop it"),
            (Image.new("RGB", (1, 20000)), "of 1 x 20000 pixels and mode RGB: it has 1 x 20000 pixels: resized"),
            (Image.new("F", (2, 2)), "its pixels are floats of unknown range"),
            (
                np.zeros((3, 20, 30), np.uint8),
                r"array has the shape \(3, 20, 30\), expected \(height, width, chan",
            ),
            (torch.zeros(20, 30, 3), r"tensor has the shape \(20, 30, 3\), expected \(channels, height, width\)"),
            (torch.zeros(2, 3, 8, 8), r"shape \(2, 3, 8, 8\), .*; for a batch pass a list of its images"),
            (torch.zeros(3, 0, 8), "has the shape"),
            (Image.new("RGB", (0, 0)), "it has 0 x 0 pixels; replace or remove it"),
            (Image.new("RGB", (0, 5)), "it has 0 x 5 pixels; replace or remove it"),
            (torch.randn(3, 8, 8), r"has values of -.*, expected 0 to 1 \(not normalized\), or uint8"),
            (torch.full((3, 8, 8), torch.nan), "has values of nan to nan"),
            (np.zeros((8, 8), np.int64), "is int64, expected uint8"),
        ],
    )
    def test_an_unsupported_image_is_an_error(self, image: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            prepare_image(image)  # type: ignore[arg-type]

    def test_an_object_of_another_type_is_an_error(self) -> None:
        with pytest.raises(TypeError, match="an image is of type dict; pass a path, a PIL image, an array"):
            prepare_image({})  # type: ignore[arg-type]

    def test_images_of_a_dataset_are_prepared(self, tmp_path: Path) -> None:
        paths = []
        for name, (image, options, _) in self.FILES.items():
            image.save(tmp_path / name, exif=image.getexif(), **options)
            paths.append(tmp_path / name)
        tree = Hierarchy(("shape",), (("disc", "box"),), ())
        files = ImageFiles(paths, [0] * len(paths), tree)
        other = Relabelled([(Image.open(path), 0) for path in paths], files.targets, tree)  # type: ignore[arg-type]
        opened = _Opened(paths, files.targets, tree)
        for index in range(len(paths)):
            expected = load_image(files, index).tobytes()
            assert load_image(opened, index).tobytes() == load_image(other, index).tobytes() == expected
