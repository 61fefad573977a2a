"""Datasets read by timm, each written by the test in its format."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_data import write_fashion_mnist

from c2f_zoo import create_dataset, list_datasets, load_hierarchy
from c2f_zoo.data import LabelledImages, labels_of, read_image, timm_readers, train_and_val
from c2f_zoo.hierarchy import Hierarchy

TREE = Hierarchy.from_rows(("kind", "shape"), [("round", "Disc"), ("edged", "Big box"), ("round", "Ring")])
# Sorted as big_box, disc, ring: neither the order nor the spelling of the tree.
LABELS = {"big_box": [1, 1], "disc": [0, 0], "ring": [0, 2]}


def colours(seed: int, mode: str = "RGB") -> Image.Image:
    """Return an image of noise, which lossy compression would change."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,), "LA": (2,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, *channels), dtype=np.uint8)
    return Image.fromarray(pixels) if mode != "CMYK" else Image.frombytes("CMYK", (32, 24), pixels.tobytes())


def write_folders(root: Path, splits: tuple[str, ...] = ("train", "validation", "test")) -> None:
    for split in splits:
        for seed, name in enumerate(LABELS):
            for shot in range(2):
                (root / split / name).mkdir(parents=True, exist_ok=True)
                colours(10 * seed + shot).save(root / split / name / f"{shot}.png")


def rows_of(dataset: LabelledImages) -> list[list[int]]:
    rows: list[list[int]] = labels_of(dataset).tolist()
    return rows


ALL_LABELS = [LABELS[name] for name in LABELS for _ in range(2)]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return Hugging Face's `datasets`, offline."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


class TestHuggingFace:
    def test_labels_and_images_of_a_folder(self, tmp_path: Path, offline: Any) -> None:
        write_folders(tmp_path / "Shapes")
        options = {"hierarchy": TREE, "root": str(tmp_path / "cache")}
        dataset = create_dataset(f"hfds/{tmp_path / 'Shapes'}", "train", **options)
        assert rows_of(dataset) == ALL_LABELS
        assert dataset.splits == ("train", "val", "test")  # type: ignore[attr-defined]
        for index, name in enumerate(name for name in LABELS for _ in range(2)):
            original = tmp_path / "Shapes" / "train" / name / f"{index % 2}.png"
            assert dataset[index][0].tobytes() == read_image(original).tobytes()
        joined, train, val = train_and_val(f"hfds/{tmp_path / 'Shapes'}", 0.5, seed=0, **options)
        assert (len(joined), train, val) == (12, list(range(6)), list(range(6, 12)))

    def test_missing_split(self, tmp_path: Path, offline: Any) -> None:
        write_folders(tmp_path / "shapes", ("train", "test"))
        name, options = f"hfds/{tmp_path / 'shapes'}", {"hierarchy": TREE, "root": str(tmp_path / "cache")}
        assert create_dataset(name, "train", **options).splits == ("train", "test")  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=r"cannot open its split 'validation': .*\['train', 'test'\]\.; ") as error:
            create_dataset(name, "val", **options)
        assert str(error.value).endswith(
            "; check the name and the network; if the split has another name, pass it in the option splits"
        )

    def test_named_and_sliced_splits(self, tmp_path: Path, offline: Any) -> None:
        write_folders(tmp_path / "shapes", ("train", "test"))
        cut = {"train": "train[:2]", "val": "train[2:]", "test": "test"}
        options = {"hierarchy": TREE, "root": str(tmp_path / "cache"), "splits": cut}
        train, val = (create_dataset(f"hfds/{tmp_path / 'shapes'}", split, **options) for split in ("train", "val"))
        assert rows_of(train) == ALL_LABELS[:2]
        assert rows_of(val) == ALL_LABELS[2:]
        assert train.splits == ("train", "val", "test")  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="has no split 'val'; it has 'train' and 'test'"):
            create_dataset(
                f"hfds/{tmp_path / 'shapes'}", "val", **options | {"splits": {"train": "train", "test": "test"}}
            )

    def test_names_as_labels_other_columns_and_large_jpeg(self, tmp_path: Path, offline: Any) -> None:
        file = io.BytesIO()
        Image.new("RGB", (320, 240), (200, 0, 0)).save(file, "JPEG")
        rows = {"image": [{"bytes": file.getvalue(), "path": None}] * 2, "shape": ["RING", "disc"]}
        features = offline.Features({"image": offline.Image(), "shape": offline.Value("string")})
        (tmp_path / "shapes").mkdir()
        offline.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "shapes" / "train.parquet")
        dataset = create_dataset(
            f"hfds/{tmp_path / 'shapes'}",
            "train",
            hierarchy=TREE,
            root=str(tmp_path / "cache"),
            input_key="image",
            target_key="shape",
        )
        assert rows_of(dataset) == [[0, 2], [0, 0]]
        assert dataset.read(0).size == (320, 240)  # type: ignore[attr-defined]
        assert dataset.read(0, 100).size == (160, 120), "a JPEG is decoded at half its size"  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        ("labels", "error"),
        [
            ([0, 1, 3], "has 4 classes without names, but the tree has 3 at shape"),
            ([0, 2, None], "image 2 of dataset .* has the label None, which is not one of its 3 classes"),
            ([0, 2, -1], "image 2 of dataset .* has the label -1, which is not"),
        ],
    )
    def test_numbers_as_labels(self, tmp_path: Path, offline: Any, labels: list[int | None], error: str) -> None:
        image = io.BytesIO()
        colours(0).save(image, "PNG")
        rows = {"image": [{"bytes": image.getvalue(), "path": None}] * 3, "label": labels}
        features = offline.Features({"image": offline.Image(), "label": offline.Value("int64")})
        (tmp_path / "shapes").mkdir()
        offline.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "shapes" / "train.parquet")
        with pytest.raises(ValueError, match=error):
            create_dataset(f"hfds/{tmp_path / 'shapes'}", "train", hierarchy=TREE, root=str(tmp_path / "cache"))

    def test_unreadable_image_is_not_replaced(self, tmp_path: Path, offline: Any) -> None:
        write_folders(tmp_path / "shapes")
        (tmp_path / "shapes" / "train" / "disc" / "0.png").write_bytes(b"no image")
        name = f"hfds/{tmp_path / 'shapes'}"
        dataset = create_dataset(name, "train", hierarchy=TREE, root=str(tmp_path / "cache"))
        with pytest.raises(ValueError, match=r"cannot read the image 2 of dataset 'hfds/.*shapes'"):
            dataset[2]
        assert dataset[3][1] == 0

    def test_stream_that_was_never_prepared(self, tmp_path: Path, offline: Any) -> None:
        write_folders(tmp_path / "shapes", ("train", "test"))
        name, options = f"hfids/{tmp_path / 'shapes'}", {"hierarchy": TREE, "root": str(tmp_path / "cache")}
        with pytest.raises(ValueError, match="please pass `num_samples`"):
            create_dataset(name, "train", **options)
        dataset = create_dataset(name, "train", **options, num_samples=6)
        assert rows_of(dataset) == ALL_LABELS
        assert dataset.splits == ("train", "test")  # type: ignore[attr-defined]

    def test_stream_equals_table(self, tmp_path: Path, offline: Any) -> None:
        write_folders(tmp_path / "shapes")
        options = {"hierarchy": TREE, "root": str(tmp_path / "cache")}
        rows = create_dataset(f"hfds/{tmp_path / 'shapes'}", "train", **options)
        stream = create_dataset(f"hfids/{tmp_path / 'shapes'}", "train", **options)
        assert rows_of(stream) == rows_of(rows)
        assert stream.splits == rows.splits  # type: ignore[attr-defined]
        assert [stream[i][0].tobytes() for i in range(6)] == [rows[i][0].tobytes() for i in range(6)]


def write_shards(root: Path, images: dict[str, bytes], labels: list[int], info: bool = True) -> None:
    """Write two training shards, the first with two images, and a test shard."""
    webdataset = pytest.importorskip("webdataset")
    root.mkdir(parents=True, exist_ok=True)
    samples = [
        {"__key__": f"{at:04d}", Path(name).suffix[1:]: data, "cls": str(label)}
        for at, ((name, data), label) in enumerate(zip(images.items(), labels, strict=True))
    ]
    shards = {"train-0.tar": samples[:2], "train-1.tar": samples[2:], "test-0.tar": samples[:1]}
    for file, shard in shards.items():
        with webdataset.TarWriter(str(root / file), encoder=True) as writer:
            for sample in shard:
                writer.write(sample)
    splits = {
        split: {
            "name": split,
            "num_samples": sum(len(shards[file]) for file in files),
            "filenames": files,
            "shard_lengths": [len(shards[file]) for file in files],
        }
        for split, files in {"train": ["train-0.tar", "train-1.tar"], "test": ["test-0.tar"]}.items()
    }
    if info:
        (root / "_info.json").write_text(json.dumps({"splits": splits}))


def encoded(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


class TestWebDataset:
    def test_labels_by_order_and_images(self, tmp_path: Path) -> None:
        images = {f"{seed}.png": encoded(colours(seed)) for seed in range(4)}
        write_shards(tmp_path, images, [2, 0, 1, 1])
        dataset = create_dataset("wds/shapes", "train", hierarchy=TREE, root=str(tmp_path))
        assert rows_of(dataset) == [[0, 2], [0, 0], [1, 1], [1, 1]]
        assert dataset.splits == ("train", "test")  # type: ignore[attr-defined]
        for index in range(4):
            assert dataset[index][0].tobytes() == colours(index).tobytes(), "lossless"
        test = create_dataset("wds/shapes", "test", hierarchy=TREE, root=str(tmp_path))
        assert rows_of(test) == [[0, 2]], "a test set need not have all classes"

    def test_class_names(self, tmp_path: Path) -> None:
        write_shards(tmp_path, {f"{seed}.png": encoded(colours(seed)) for seed in range(2)}, [0, 1])
        options = {"hierarchy": TREE, "root": str(tmp_path)}
        with pytest.raises(ValueError, match=r"dataset 'wds/shapes' has 2 classes without names, but the tree has 3"):
            create_dataset("wds/shapes", "train", **options)
        dataset = create_dataset("wds/shapes", "train", **options, class_names=["ring", "big box"])
        assert rows_of(dataset) == [[0, 2], [1, 1]]

    def test_shards_without_info(self, tmp_path: Path) -> None:
        write_shards(tmp_path, {f"{seed}.png": encoded(colours(seed)) for seed in range(3)}, [0, 1, 2], info=False)
        options = {"hierarchy": TREE, "root": str(tmp_path), "splits": {"train": "train-{0..1}.tar"}}
        dataset = create_dataset("wds/shapes", "train", **options)
        assert rows_of(dataset) == [[0, 0], [1, 1], [0, 2]]
        assert dataset.splits == ("train",)  # type: ignore[attr-defined]

    @pytest.mark.parametrize("info", [True, False])
    def test_images_that_timm_leaves_out_are_counted(self, tmp_path: Path, info: bool) -> None:
        images = {"0.png": encoded(colours(0)), "1.png": b"no image", "2.png": encoded(colours(2)), "3.png": b"nor"}
        write_shards(tmp_path, images, [0, 1, 2, 0], info)
        options = {} if info else {"splits": {"train": "train-{0..1}.tar"}}
        told = "'wds/shapes' has 2 images; timm left out 2 more, the first: .*cannot identify"
        with pytest.warns(UserWarning, match=told):
            dataset = create_dataset("wds/shapes", "train", hierarchy=TREE, root=str(tmp_path), **options)
        assert rows_of(dataset) == [[0, 0], [0, 2]]

    def test_a_split_of_another_name_is_told(self, tmp_path: Path) -> None:
        write_shards(tmp_path, {f"{seed}.png": encoded(colours(seed)) for seed in range(3)}, [0, 1, 2])
        splits = json.loads((tmp_path / "_info.json").read_text())["splits"]
        splits |= {"dev": splits["test"] | {"name": "dev"}, "unlabelled": splits["test"] | {"name": "unlabelled"}}
        (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
        options = {"hierarchy": TREE, "root": str(tmp_path)}
        with pytest.warns(UserWarning, match=r"has splits that are not used, dev; .*splits=.*'val': 'dev'"):
            dataset = create_dataset("wds/shapes", "train", **options)
        assert dataset.splits == ("train", "test")  # type: ignore[attr-defined]
        named = {"train": "train", "val": "dev", "test": "test"}
        assert len(create_dataset("wds/shapes", "val", splits=named, **options)) == 1

    def test_fewer_images_than_the_shards_should_have(self, tmp_path: Path) -> None:
        write_shards(tmp_path, {f"{seed}.png": encoded(colours(seed)) for seed in range(3)}, [0, 1, 2])
        info = (tmp_path / "_info.json").read_text()
        (tmp_path / "_info.json").write_text(info.replace('"num_samples": 3', '"num_samples": 10'))
        with pytest.warns(UserWarning, match=r"has 3 images; timm left out 7 more, check the number in its _info.json"):
            create_dataset("wds/shapes", "train", hierarchy=TREE, root=str(tmp_path))

    def test_errors(self, tmp_path: Path) -> None:
        pytest.importorskip("webdataset")
        with pytest.raises(ValueError, match="dataset 'wds/shapes' needs the option root"):
            create_dataset("wds/shapes", "train", hierarchy=TREE)
        with pytest.raises(ValueError, match="cannot open its split 'train': split train not found in info"):
            create_dataset("wds/shapes", "train", hierarchy=TREE, root=str(tmp_path))


def palette(transparent: bool) -> bytes:
    image = colours(5).quantize(8)
    return encoded(image, transparency=3) if transparent else encoded(image)


def grey_16() -> bytes:
    return encoded(Image.fromarray(np.random.default_rng(6).integers(0, 2**16, (24, 32), dtype=np.uint16)))


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(colours(7), "JPEG", exif=exif)


FILES = {
    "grey": lambda: encoded(colours(0, "L")),
    "1 bit": lambda: encoded(colours(0, "L").convert("1")),
    "grey and alpha": lambda: encoded(colours(1, "LA")),
    "RGB": lambda: encoded(colours(2)),
    "RGB with a transparent colour": lambda: encoded(colours(2), transparency=colours(2).getpixel((3, 3))),
    "RGB and alpha": lambda: encoded(colours(3, "RGBA")),
    "CMYK": lambda: encoded(colours(4, "CMYK"), "JPEG"),
    "palette": lambda: palette(transparent=False),
    "palette with a transparent colour": lambda: palette(transparent=True),
    "16 bits": grey_16,
    "rotated by EXIF": rotated,
    "rotated by XMP": lambda: encoded(colours(7), "JPEG", xmp=b'<x tiff:Orientation="6"/>'),
    "broken EXIF": lambda: encoded(colours(7), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff"),
    "too long for WebP": lambda: encoded(Image.new("RGB", (16384, 164), (1, 2, 3))),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", FILES)
def test_stream_keeps_images_unchanged(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(FILES[kind]())
    with Image.open(tmp_path / "file") as image:
        image.load()
    kept = tmp_path / "kept"
    kept.write_bytes(timm_readers._encode(image))
    assert read_image(kept).size == read_image(tmp_path / "file").size
    assert read_image(kept).tobytes() == read_image(tmp_path / "file").tobytes()


def test_stream_keeps_values_of_unknown_range(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(timm_readers._encode(Image.new("F", (4, 4))))
    with pytest.raises(ValueError, match="its pixels are floats"):
        read_image(kept)


class TestTorchvision:
    def test_images_in_memory(self, tmp_path: Path) -> None:
        images = write_fashion_mnist(tmp_path / "FashionMNIST" / "raw", zipped=False)
        dataset = create_dataset("torch/fashion_mnist", "test", hierarchy="fashion_mnist", root=str(tmp_path))
        assert dataset.splits == ("train", "test")  # type: ignore[attr-defined]
        assert dataset.hierarchy == load_hierarchy("fashion_mnist")
        assert dataset.targets == list(range(10))
        assert np.array_equal(np.asarray(dataset[9][0]), np.stack([images[9]] * 3, axis=-1))

    def test_folders_of_a_split(self, tmp_path: Path) -> None:
        write_folders(tmp_path, ("train", "val"))
        transparent = tmp_path / "train" / "ring" / "1.png"
        Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(transparent)
        dataset = create_dataset("torch/image_folder", "train", hierarchy=TREE, root=str(tmp_path))
        assert rows_of(dataset) == ALL_LABELS
        assert dataset.splits == ("train", "val")  # type: ignore[attr-defined]
        assert dataset.paths[5] == transparent  # type: ignore[attr-defined]
        assert dataset[5][0].getpixel((0, 0)) == (255, 255, 255), "blended with white as by read_image"
        options = {"hierarchy": TREE, "root": str(tmp_path)}
        hint = "it has 'train' and 'val'; to test on 'val', pass splits={'train': 'train', 'test': 'val'}"
        with pytest.raises(ValueError, match=f"has no split 'test'; {hint}$"):
            create_dataset("torch/image_folder", "test", **options)
        test = create_dataset("torch/image_folder", "test", **options, splits={"train": "train", "test": "val"})
        assert test.paths[0].parent.parent == tmp_path / "val"  # type: ignore[attr-defined]

    @pytest.mark.parametrize("folders", [("train", "train_mini"), ("val", "valid"), ("eval",)])
    def test_folders_that_may_be_a_split(self, tmp_path: Path, folders: tuple[str, ...]) -> None:
        write_folders(tmp_path, ("train", "test", *folders))
        options = {"hierarchy": TREE, "root": str(tmp_path)}
        with pytest.raises(
            ValueError, match=rf"splits of .* are unclear: {', '.join(folders)}; .* option splits, e.g."
        ):
            create_dataset("torch/image_folder", "train", **options)
        dataset = create_dataset("torch/image_folder", "train", splits={"train": "train", "test": "test"}, **options)
        assert dataset.paths[0].parent.parent == tmp_path / "train"  # type: ignore[attr-defined]

    def test_class_missing_from_a_tree_file(self, tmp_path: Path) -> None:
        write_folders(tmp_path, ("train",))
        (tmp_path / "tree.csv").write_text("kind,shape\nedged,Big Box\nround,Ring\n")
        options = {"hierarchy": str(tmp_path / "tree.csv"), "root": str(tmp_path)}
        with pytest.raises(ValueError, match=r"'torch/image_folder' has a class that is not in the tree: .*'disc'"):
            create_dataset("torch/image_folder", "train", **options)

    def test_errors(self, tmp_path: Path) -> None:
        options = {"hierarchy": TREE, "root": str(tmp_path)}
        with pytest.raises(ValueError, match="cannot open its split 'train': Unknown torchvision dataset mnistt"):
            create_dataset("torch/mnistt", "train", **options)
        with pytest.raises(ValueError, match="'torch/mnist' has no split 'val'; it has 'train' and 'test'"):
            create_dataset("torch/mnist", "val", **options)
        with pytest.raises(ValueError, match="no file 'treee', and it is an unknown hierarchy 'treee'"):
            create_dataset("torch/mnist", "train", hierarchy="treee", root=str(tmp_path))
        with pytest.raises(ValueError, match="unknown dataset 'hfd/'; did you mean 'hfds/'"):
            create_dataset("hfd/user/birds", "train", **options)


def test_prefixes_are_listed() -> None:
    assert set(list_datasets("*/")) == {"hfds/", "hfids/", "tfds/", "torch/", "wds/"}


@pytest.mark.parametrize(
    ("name", "package"),
    [("hfds/x", "datasets"), ("hfids/x", "datasets"), ("tfds/x", "tensorflow-datasets"), ("wds/x", "webdataset")],
)
def test_missing_package(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=f"dataset '{name}' needs .*: pip install {package}"):
        create_dataset(name, "train", hierarchy=TREE, root="here")
