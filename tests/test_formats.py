"""Which image files are opened: raster formats only, never a process or a pipe, and with any metadata."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import tarfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from c2f_zoo import Hierarchy, create_dataset
from c2f_zoo.data import CachedImages, ImageFiles, TransformedImages, read_image
from c2f_zoo.images.formats import UnsupportedImageError, image_extensions, supported_formats
from c2f_zoo.images.reading import to_upright_rgb

ORANGE = (250, 130, 10)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


class TestFormats:
    def test_extensions_are_those_of_the_formats(self) -> None:
        assert {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".tif", ".webp", ".bmp", ".mpo"} <= image_extensions()
        assert not {".eps", ".ps", ".pdf", ".wmf", ".emf", ".txt", ""} & image_extensions()
        assert (".avif" in image_extensions()) == ("AVIF" in supported_formats())
        assert (".heic" in image_extensions()) == ("HEIF" in supported_formats())

    @pytest.mark.parametrize("extension", [".jfif", ".avif", ".gif", ".mpo", ".jp2", ".qoi", ".dib", ".webp", ".JPG"])
    def test_an_image_of_each_format_is_read(self, tmp_path: Path, extension: str) -> None:
        if extension.lower() not in image_extensions():
            pytest.skip(f"this version of Pillow has no {extension}")
        Image.new("RGB", (40, 30), ORANGE).save(tmp_path / f"a{extension}")
        image = read_image(tmp_path / f"a{extension}")
        assert (image.mode, image.size) == ("RGB", (40, 30))
        assert np.abs(np.asarray(image, int) - ORANGE).max() <= 12

    def test_heic_names_the_package_it_needs(self, tmp_path: Path) -> None:
        if "HEIF" in supported_formats():
            pytest.skip("pillow-heif is installed")
        (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
        with pytest.raises(ValueError, match=r"cannot read the image .*a.heic: .* pip install pillow-heif"):
            read_image(tmp_path / "a.heic")

    @pytest.mark.parametrize("suffix", [".tga", ".pcx", ".ico"])
    def test_other_formats_name_a_way_out(self, tmp_path: Path, suffix: str) -> None:
        Image.new("RGB", (32, 32)).save(tmp_path / f"a{suffix}")
        with pytest.raises(ValueError, match=r"none of the formats .*BMP.*; convert it to PNG, replace or remove it"):
            read_image(tmp_path / f"a{suffix}")
        with Image.open(tmp_path / f"a{suffix}") as image, pytest.raises(UnsupportedImageError, match="convert it"):
            to_upright_rgb(image)


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program called `gs` on the path; it creates the returned file when it is started."""
    if sys.platform == "win32":
        pytest.skip("Ghostscript has another name")
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # Pillow has not looked for it yet
    return tmp_path / "started"


class TestNoProcess:
    def test_postscript_starts_nothing(self, tmp_path: Path, started: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(EPS)
        with pytest.raises(ValueError, match="none of the formats"):
            read_image(tmp_path / "a.jpg")
        with Image.open(tmp_path / "a.jpg") as image, pytest.raises(UnsupportedImageError, match="format EPS"):
            to_upright_rgb(image)
        assert not started.exists()
        with Image.open(tmp_path / "a.jpg") as image, pytest.raises(OSError):
            image.load()
        assert started.exists(), "Pillow by itself starts it"

    @pytest.mark.slow
    def test_nor_in_the_shards_of_a_stream(self, tmp_path: Path, started: Path) -> None:
        pytest.importorskip("webdataset")
        png = io.BytesIO()
        Image.new("RGB", (8, 8), ORANGE).save(png, "PNG")
        write_shard(tmp_path, {"a.jpg": EPS, "a.cls": b"0", "b.jpg": png.getvalue(), "b.cls": b"0"}, count=2)
        tree = Hierarchy(("class",), (("orange",),), ())
        dataset = create_dataset("wds/shards", "train", root=str(tmp_path), hierarchy=tree)
        assert [image.getpixel((0, 0)) for image, _ in dataset] == [ORANGE]
        assert not started.exists()


def write_shard(root: Path, files: dict[str, bytes], count: int) -> None:
    """Write a WebDataset of one shard, a training set of `count` samples."""
    with tarfile.open(root / "train-0.tar", "w") as shard:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    split = {"name": "train", "num_samples": count, "filenames": ["train-0.tar"], "shard_lengths": [count]}
    (root / "_info.json").write_text(json.dumps({"splits": {"train": split}}))


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """Create a named pipe; whoever reads it by mistake gets no bytes, instead of waiting forever."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("there are no named pipes")
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: os.close(os.open(path, os.O_WRONLY)))
    writer.start()
    yield path
    while writer.is_alive():
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # lets the writer end
        writer.join(0.01)


class TestPipes:
    def test_nobody_is_told_to_remove_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError) as error:
            read_image(tmp_path)
        assert str(error.value).endswith("a folder, a pipe or a device, not an image file; leave it out")

    def test_a_pipe_is_unreadable(self, pipe: Path) -> None:
        with pytest.raises(
            ValueError, match=r"pipe.png: it is a folder, a pipe or a device, not an image file; leave it out"
        ):
            read_image(pipe)

    def test_a_pipe_is_skipped(self, tmp_path: Path, pipe: Path) -> None:
        Image.new("RGB", (8, 8), ORANGE).save(tmp_path / "a.png")
        dataset = ImageFiles([pipe, tmp_path / "a.png"], [0, 0], Hierarchy(("class",), (("orange",),), ()))
        for images in (dataset, CachedImages(dataset, tmp_path / "cache")):
            items = TransformedImages(images, lambda image: image.size, on_error="skip")
            assert [(index, readable) for _, _, index, readable in items] == [(0, False), (1, True)]


def add_chunk(path: Path, kind: bytes, body: bytes, before: bytes = b"IDAT", damage: int = 0) -> None:
    """Insert a chunk into a PNG file; `damage` is added to its checksum."""
    data = path.read_bytes()
    position = data.index(before) - 4
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", (zlib.crc32(kind + body) + damage) % 2**32)
    path.write_bytes(data[:position] + chunk + data[position:])


LONG = bytes(2 * PngImagePlugin.MAX_TEXT_CHUNK)


class TestUnusualMetadata:
    @pytest.mark.parametrize(
        ("kind", "body", "damage"),
        [
            (b"zTXt", b"Comment\0\0" + zlib.compress(LONG), 0),
            (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(LONG), 0),
            (b"iCCP", b"profile\0\0" + zlib.compress(LONG), 0),
            (b"tEXt", b"Comment\0short", 1),
            (b"pHYs", b"", 0),
        ],
    )
    @pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
    def test_png(self, tmp_path: Path, kind: bytes, body: bytes, damage: int, before: bytes) -> None:
        path = tmp_path / "a.png"
        exif = Image.Exif()
        exif[274] = 6
        pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(path, exif=exif)
        expected = read_image(path)
        assert expected.size == (4, 6), "turned"
        add_chunk(path, kind, body, before, damage)
        assert read_image(path).tobytes() == expected.tobytes()

    def test_transparent_colour_is_kept(self, tmp_path: Path) -> None:
        Image.new("RGB", (1, 1), ORANGE).save(tmp_path / "a.png", transparency=ORANGE)
        add_chunk(tmp_path / "a.png", b"tEXt", b"Comment\0short", damage=1)
        assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)

    def test_damaged_pixels_are_an_error(self, tmp_path: Path) -> None:
        Image.new("RGB", (30, 30), ORANGE).save(tmp_path / "a.png")
        add_chunk(tmp_path / "a.png", b"tEXt", b"Comment\0short", damage=1)
        data = bytearray((tmp_path / "a.png").read_bytes())
        data[data.index(b"IDAT") + 6] ^= 255
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(ValueError, match="cannot read the image"):
            read_image(tmp_path / "a.png")

    def test_an_image_in_memory_is_left_as_it_is(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[274] = 6
        Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
        with Image.open(tmp_path / "a.jpg") as image:
            assert to_upright_rgb(image).size == (20, 40)
            assert (image.size, image.getexif()[274]) == ((40, 20), 6)
