"""The cache of decoded images: content, rebuilding and incomplete files."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import train_here
from torch.utils.data import DataLoader

from c2f_zoo import Hierarchy, create_dataset
from c2f_zoo.config import Preprocessing
from c2f_zoo.data import CachedImages, TransformedImages, create_transform, read_image

TREE = Hierarchy(("shape",), (("disc", "box"),), ())
SIZES = ((90, 60), (40, 200), (30, 20), (51, 51))  # width, height; the third is smaller than the cache's side
SIDE = 32


class Files:
    """A dataset of image files that can forbid decoding."""

    def __init__(self, paths: list[Path], forbidden: bool = False) -> None:
        self.hierarchy, self.paths, self.forbidden = TREE, paths, forbidden
        self.targets = [index % 2 for index in range(len(paths))]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        assert not self.forbidden, "the image was decoded again"
        return read_image(self.paths[index]), self.targets[index]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    found = []
    for number, (width, height) in enumerate(SIZES):
        found.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(found[-1])
    return found


def pixels_of(cached: CachedImages) -> list[np.ndarray]:
    return [np.asarray(cached[index][0]) for index in range(len(cached))]


def reference(path: Path, side: int | None, filter: Image.Resampling) -> np.ndarray:
    """Return the pixels that Pillow alone reads and resizes."""
    image = Image.open(path).convert("RGB")
    if side is not None and min(image.size) > side:
        image = image.resize(tuple(length * side // min(image.size) for length in image.size), filter)
    return np.asarray(image)


@pytest.mark.parametrize("side", [None, SIDE])
@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
def test_pixels_equal_reading_and_resizing(paths: list[Path], tmp_path: Path, side: int, filter: str) -> None:
    cached = CachedImages(Files(paths), tmp_path / "cache", side, filter)
    for path, found in zip(paths, pixels_of(cached), strict=True):
        np.testing.assert_array_equal(found, reference(path, side, Image.Resampling[filter.upper()]))
    assert [label for _, label in map(cached.__getitem__, range(4))] == [0, 1, 0, 1]
    assert cached.file.stat().st_size == sum(x.size for x in pixels_of(cached)) + 4 * 16 + 32


def test_cache_is_built_once(paths: list[Path], tmp_path: Path) -> None:
    first = pixels_of(CachedImages(Files(paths), tmp_path / "cache", SIDE))
    for path in paths:
        os.utime(path, (1, 1))  # as in a copy of the folder
    second = pixels_of(CachedImages(Files(paths, forbidden=True), tmp_path / "cache", SIDE))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_changed_bytes_order_or_settings_get_a_new_cache(paths: list[Path], tmp_path: Path) -> None:
    names = {CachedImages(Files(paths), tmp_path / "cache", SIDE).file}
    names.add(CachedImages(Files(paths[::-1]), tmp_path / "cache", SIDE).file)
    names.add(CachedImages(Files(paths), tmp_path / "cache", SIDE - 1).file)
    names.add(CachedImages(Files(paths), tmp_path / "cache", SIDE, "bicubic").file)
    kept = os.stat(paths[1])
    Image.new("RGB", (50, 50), "red").save(paths[1])
    os.utime(paths[1], ns=(kept.st_atime_ns, kept.st_mtime_ns))  # only the bytes differ
    cached = CachedImages(Files(paths), tmp_path / "cache", SIDE)
    names.add(cached.file)
    assert len(names) == 5
    assert cached[1][0].getcolors() == [(SIDE * SIDE, (255, 0, 0))]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content + b"\0",
        lambda content: bytes([content[0] ^ 1]) + content[1:],  # a pixel
        lambda content: content[:-40] + bytes([content[-40] ^ 1]) + content[-39:],  # an image's size
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),  # the checksum
    ],
    ids=["cut", "cut in half", "empty", "longer", "a pixel", "a size", "the checksum"],
)
def test_damaged_file_is_rebuilt(paths: list[Path], tmp_path: Path, damage) -> None:
    file = CachedImages(Files(paths), tmp_path / "cache", SIDE).file
    written = file.read_bytes()
    file.write_bytes(damage(written))
    cached = CachedImages(Files(paths), tmp_path / "cache", SIDE)
    assert file.read_bytes() == written
    for path, found in zip(paths, pixels_of(cached), strict=True):
        np.testing.assert_array_equal(found, reference(path, SIDE, Image.Resampling.BILINEAR))


def test_workers_map_the_file(paths: list[Path], tmp_path: Path) -> None:
    cached = CachedImages(Files(paths), tmp_path / "cache")
    assert cached[0][0].size == SIZES[0]  # mapped here
    assert len(pickle.dumps(cached)) < cached.file.stat().st_size / 2
    again = pickle.loads(pickle.dumps(cached))
    for a, b in zip(pixels_of(cached), pixels_of(again), strict=True):
        np.testing.assert_array_equal(a, b)
    transform = create_transform(Preprocessing((3, 16, 16)), None, train=False)
    images = next(iter(DataLoader(TransformedImages(cached, transform), batch_size=4, num_workers=1)))[0]
    expected = next(iter(DataLoader(TransformedImages(Files(paths), transform), batch_size=4)))[0]
    torch.testing.assert_close(images, expected)


def test_changing_an_image_does_not_change_the_cache(paths: list[Path], tmp_path: Path) -> None:
    cached = CachedImages(Files(paths), tmp_path / "cache")
    image, _ = cached[0]
    image.paste("red", (0, 0, *image.size))
    np.testing.assert_array_equal(np.asarray(cached[0][0]), reference(paths[0], None, Image.Resampling.BILINEAR))


def test_unreadable_image_raises_until_it_is_repaired(paths: list[Path], tmp_path: Path) -> None:
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[:200])
    paths[2].unlink()
    cached = CachedImages(Files(paths), tmp_path / "cache", SIDE)
    assert [cached[index][0].size for index in (0, 3)] == [(48, 32), (32, 32)]
    with pytest.raises(ValueError, match=r"cannot read the image .*1\.png"):
        cached[1]
    with pytest.raises(FileNotFoundError, match=r"2\.png"):
        cached[2]
    paths[1].write_bytes(whole)
    repaired = CachedImages(Files(paths), tmp_path / "cache", SIDE)
    np.testing.assert_array_equal(np.asarray(repaired[1][0]), reference(paths[1], SIDE, Image.Resampling.BILINEAR))


def test_dataset_without_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Critters has no `paths`"):
        CachedImages(create_dataset("critters", "train", per_class=1), tmp_path)
    with pytest.raises(ValueError, match="did you mean 'bilinear'"):
        CachedImages(Files([]), tmp_path, SIDE, "bilinaer")


def build_with_a_pause(folder: Path, connection: Connection) -> None:
    """Build the cache of a folder, in a process that pauses in the middle."""

    class Pausing(Files):
        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            if index == 2:
                connection.send("in the middle")
                assert connection.recv() == "go on"
            return super().__getitem__(index)

    cached = CachedImages(Pausing([folder / f"{number}.png" for number in range(4)]), folder / "cache", SIDE)
    connection.send((cached.file.name, [int(pixels.sum()) for pixels in pixels_of(cached)]))


def start_builders(folder: Path, count: int) -> list[tuple[BaseProcess, Connection]]:
    context = multiprocessing.get_context("fork")  # a new process takes seconds to import torch
    builders: list[tuple[BaseProcess, Connection]] = []
    for _ in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=build_with_a_pause, args=(folder, theirs))
        process.start()
        assert ours.recv() == "in the middle"
        builders.append((process, ours))
    return builders


@pytest.mark.slow
def test_two_processes_build_at_once(paths: list[Path], tmp_path: Path) -> None:
    builders = start_builders(tmp_path, 2)
    assert len(list((tmp_path / "cache").glob("*.part"))) == 2
    for _, connection in builders:
        connection.send("go on")
    outputs = [connection.recv() for _, connection in builders]
    cached = CachedImages(Files(paths, forbidden=True), tmp_path / "cache", SIDE)
    sums = [int(reference(path, SIDE, Image.Resampling.BILINEAR).sum()) for path in paths]
    assert outputs == [(cached.file.name, sums)] * 2
    for process, _ in builders:
        process.join()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [cached.file.name]


@pytest.mark.slow
def test_killed_build_is_ignored(paths: list[Path], tmp_path: Path) -> None:
    [(builder, _)] = start_builders(tmp_path, 1)
    builder.kill()
    builder.join()
    left = list((tmp_path / "cache").iterdir())
    assert [path.suffix for path in left] == [".part"]
    cached = CachedImages(Files(paths), tmp_path / "cache", SIDE)
    for path, found in zip(paths, pixels_of(cached), strict=True):
        np.testing.assert_array_equal(found, reference(path, SIDE, Image.Resampling.BILINEAR))
    assert left[0].exists() and cached.file.exists()


def test_failed_build_removes_its_file(paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="decoded again"):
        CachedImages(Files(paths, forbidden=True), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.slow
def test_recipe_trains_from_the_cache(cub_folder: Path, tmp_path: Path) -> None:
    recipes = Path(__file__).parents[1] / "recipes"
    options = ["--config", str(recipes / "configs" / "smoke.yaml"), "--dataset", "cub"]
    options += ["--dataset_options", f"{{root: {cub_folder}}}", "--batch_size", "4", "--num_workers", "1"]
    train_here(tmp_path, *options, "--cache", "kept", "--output", "run", ok=True)
    assert (tmp_path / "run" / "test.csv").exists()
    # 8 training and 4 test images of 40 x 50 pixels, each with its height and width; one checksum.
    sizes = sorted(file.stat().st_size for file in (tmp_path / "kept").iterdir())
    assert sizes == [count * (40 * 50 * 3 + 16) + 32 for count in (4, 8)]
