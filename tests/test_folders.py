"""Datasets of image files: class folders and CSV files, and their errors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from c2f_zoo import Hierarchy, create_dataset
from c2f_zoo.data import ImageFiles, labels_of, notes_of

TREE = ["class,species", "Birds,Gull", "Birds,Jay", "Beasts,Lynx", "Beasts,Birds"]  # Birds is at two levels


def draw(root: Path, *names: str) -> None:
    """Save images 8 pixels wide, with different heights."""
    for number, name in enumerate(names, start=1):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, number), (number, 0, 0)).save(path)


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def open_files(name: str, split: str, **options: object) -> ImageFiles:
    dataset = create_dataset(name, split, **options)
    assert isinstance(dataset, ImageFiles)
    return dataset


def errors_of(name: str, **options: object) -> list[str]:
    """Return the lines of a dataset's error, without the first."""
    with pytest.raises(ValueError) as error:
        create_dataset(name, "train", **options)
    head, *lines = str(error.value).splitlines()
    assert head.startswith("cannot use ")
    return [line.strip() for line in lines]


class TestNestedFolders:
    def test_folders_are_the_tree(self, tmp_path: Path) -> None:
        draw(tmp_path / "train", "Birds/Gull/1.jpg", "Birds/Jay/1.png", "Birds/Jay/2.PNG")
        draw(tmp_path / "test", "Beasts/Lynx/1.webp", "Birds/Gull/1.jpg")
        train, test = (open_files("folder", split, root=str(tmp_path)) for split in ("train", "test"))
        assert train.hierarchy == test.hierarchy, "from both splits together"
        assert train.hierarchy.levels == ("genus", "species")
        assert train.hierarchy.classes == (("Beasts", "Birds"), ("Lynx", "Gull", "Jay"))
        assert train.targets == [1, 2, 2]
        assert test.targets == [0, 1]
        assert train.labels is None
        assert train.paths == [tmp_path / "train" / "Birds" / name for name in ("Gull/1.jpg", "Jay/1.png", "Jay/2.PNG")]
        image, label = train[2]
        assert (image.size, image.mode, label) == ((8, 3), "RGB", 2)
        assert train.splits == ("train", "test")

    def test_names_of_levels(self, tmp_path: Path) -> None:
        draw(tmp_path, "Birds/Gull/1.jpg", "Birds/Gull/2.jpg")
        assert open_files("folder", "train", root=tmp_path, levels=["kind", "sort"]).hierarchy.levels == (
            "kind",
            "sort",
        )

    @pytest.mark.parametrize("name", ["val", "valid", "validation"])
    def test_validation_folder(self, tmp_path: Path, name: str) -> None:
        draw(tmp_path, "train/Birds/Gull/1.jpg", f"{name}/Birds/Gull/2.jpg", "test/Birds/Gull/3.jpg")
        dataset = open_files("folder", "val", root=tmp_path)
        assert (dataset.splits, len(dataset), dataset[0][0].size) == (("train", "val", "test"), 1, (8, 2))

    def test_validation_folder_is_used_without_a_test_folder(self, tmp_path: Path) -> None:
        draw(tmp_path, "train/Birds/Gull/1.jpg", "val/Birds/Gull/2.jpg")
        dataset = open_files("folder", "test", root=tmp_path)
        assert (dataset.splits, dataset[0][0].size) == (("train", "test"), (8, 2))
        with pytest.raises(ValueError, match="'val'"):
            create_dataset("folder", "val", root=tmp_path)

    def test_image_in_the_folder_of_a_coarser_class(self, tmp_path: Path) -> None:
        draw(tmp_path / "train", "Birds/1.jpg", "Birds/Gull/1.jpg", "Beasts/Lynx/1.jpg")
        draw(tmp_path / "test", "Birds/Gull/2.jpg")
        dataset = open_files("folder", "train", root=tmp_path)
        assert labels_of(dataset).tolist() == [[0, 0], [1, -1], [1, 1]]
        assert dataset.targets == [0, -1, 1]
        assert notes_of(dataset) == [f"{tmp_path}: train images labelled at a coarser level only: 1 of 3"]
        assert open_files("folder", "test", root=tmp_path).labels is None

    def test_without_split_folders_each_class_is_split(self, tmp_path: Path) -> None:
        draw(tmp_path, *(f"Birds/Gull/{i}.jpg" for i in range(10)), *(f"Birds/Jay/{i}.jpg" for i in range(5)))
        datasets = {
            (seed, split): open_files("folder", split, root=tmp_path, test_fraction=0.4, seed=seed)
            for seed in (0, 1)
            for split in ("train", "test")
        }
        for seed in (0, 1):
            train, test = datasets[seed, "train"], datasets[seed, "test"]
            assert train.targets == [0] * 6 + [1] * 3
            assert test.targets == [0] * 4 + [1] * 2
            assert sorted(train.paths + test.paths) == sorted(tmp_path.glob("*/*/*.jpg"))
        assert datasets[0, "test"].paths != datasets[1, "test"].paths
        assert open_files("folder", "test", root=tmp_path, test_fraction=0.4).paths == datasets[0, "test"].paths

    def test_classes_of_one_image_leave_no_test_set(self, tmp_path: Path) -> None:
        draw(tmp_path, "Birds/Gull/1.jpg", "Birds/Jay/1.jpg", "Beasts/Lynx/1.jpg")
        assert len(open_files("folder", "train", root=tmp_path)) == 3
        with pytest.raises(ValueError, match=r"has no split 'test'; it has 'train': a class needs two images"):
            create_dataset("folder", "test", root=tmp_path)

    def test_class_called_train(self, tmp_path: Path) -> None:
        draw(tmp_path, *(f"{name}/{i}.jpg" for name in ("bus", "train") for i in range(2)))
        assert open_files("folder", "train", root=tmp_path).hierarchy.classes == (("bus", "train"),)

    def test_other_files_are_left_out(self, tmp_path: Path) -> None:
        draw(tmp_path, "1.jpg", "Birds/Gull/1.jpg", "Birds/Gull/2.jpg", "Birds/Gull/.3.jpg", ".cache/Gull/1.jpg")
        for name in ("Birds/Gull/notes.txt", "Birds/Gull/jpg", "readme.md"):
            (tmp_path / name).touch()
        (tmp_path / "Birds" / "Jay").mkdir()
        dataset = open_files("folder", "train", root=tmp_path, test_fraction=0.5)
        assert len(dataset) == 1
        assert dataset.hierarchy.classes == (("Birds",), ("Gull",))

    def test_links_are_followed_once(self, tmp_path: Path) -> None:
        draw(tmp_path / "elsewhere", "1.jpg", "deep/2.jpg")
        (tmp_path / "root" / "Birds" / "Gull").mkdir(parents=True)
        try:
            (tmp_path / "root" / "Birds" / "Gull" / "1.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
            (tmp_path / "root" / "Birds" / "Jay").symlink_to(tmp_path / "elsewhere" / "deep")
            (tmp_path / "root" / "Birds" / "Loop").symlink_to(tmp_path / "root")
        except OSError:
            pytest.skip("links are unsupported")
        dataset = open_files("folder", "train", root=tmp_path / "root")
        assert dataset.hierarchy.classes[-1] == ("Gull", "Jay")
        assert [image.size for image, _ in dataset] == [(8, 1), (8, 2)]

    def test_errors(self, tmp_path: Path) -> None:
        draw(tmp_path / "train", "Birds/Gull/1.jpg", "Beasts/Lynx /1.jpg", "Fish/1.jpg")
        draw(tmp_path, "val/Birds/Gull/1.jpg", "valid/Birds/Gull/1.jpg")
        assert errors_of("folder", root=tmp_path) == [
            "two folders for one split; remove one:",
            "val and valid",
            "the folders do not form a tree (rearrange them, or use the option 'hierarchy'):",
            "folder Beasts/Lynx : species 'Lynx ' has surrounding white space; write 'Lynx'",
        ]

    def test_repeated_level(self, tmp_path: Path) -> None:
        draw(tmp_path, "train/Birds/Gull/1.jpg", "test/Birds/Gull/1.jpg")
        assert "level 'kind' is named twice" in errors_of("folder", root=tmp_path, levels=["kind", "kind"])[1]

    def test_split_without_images(self, tmp_path: Path) -> None:
        draw(tmp_path, "train/Birds/Gull/1.jpg")
        assert errors_of("folder", root=tmp_path) == [
            "splits without an image:",
            "'test': add images, or name no splits to have them assigned (for a folder, pass its subfolder 'train')",
        ]

    def test_an_empty_root_is_a_missing_option(self) -> None:
        with pytest.raises(ValueError, match=r"dataset 'folder' needs the option root, e\.g\. root="):
            create_dataset("folder", "train", root=None)  # YAML reads `root: ~` as null

    def test_no_images(self, tmp_path: Path) -> None:
        (tmp_path / "Birds").mkdir()
        assert errors_of("folder", root=tmp_path)[0] == "there are no images in folders:"
        with pytest.raises(FileNotFoundError, match="the folder nowhere does not exist"):
            create_dataset("folder", "train", root="nowhere")


class TestFlatFolders:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        return write(tmp_path / "tree.csv", *TREE)

    def test_separate_tree(self, tmp_path: Path, tree: Path) -> None:
        draw(tmp_path / "train", "Lynx/1.jpg", "Gull/1.jpg", "Beasts/Lynx/1.jpg")
        draw(tmp_path / "test", "Jay/1.jpg")
        train, test = (open_files("folder", s, root=str(tmp_path), hierarchy=str(tree)) for s in ("train", "test"))
        assert train.hierarchy == Hierarchy.from_csv(tree), "classes without images are kept"
        assert labels_of(train).tolist() == [[1, 2], [0, 0], [1, 2]]  # Beasts/Lynx, Gull, Lynx
        assert test.targets == [1]

    def test_folder_of_a_coarser_class(self, tmp_path: Path, tree: Path) -> None:
        draw(tmp_path, "train/Beasts/1.jpg", "train/Birds/1.jpg", "train/Jay/1.jpg", "test/Jay/1.jpg")
        dataset = open_files("folder", "train", root=tmp_path, hierarchy=tree)
        assert labels_of(dataset).tolist() == [[1, -1], [1, 3], [0, 1]], "the finer of the two classes Birds"

    @pytest.mark.parametrize("kind", ["name", "tree", "parents"])
    def test_sources_of_the_tree(self, tmp_path: Path, kind: str) -> None:
        draw(tmp_path, "train/Coat/1.jpg", "test/Bag/1.jpg")
        tree = Hierarchy.from_rows(("a", "b"), [("Goods", "Bag"), ("Clothes", "Coat")])
        parents = write(tmp_path / "tree.csv", "child,parent", "Goods,", "Clothes,", "Bag,Goods", "Coat,Clothes")
        options: dict[str, object] = {
            "name": {"hierarchy": "fashion_mnist"},
            "tree": {"hierarchy": tree},
            "parents": {"hierarchy": str(parents), "levels": ["a", "b"]},
        }[kind]
        dataset = open_files("folder", "train", root=tmp_path, **options)
        assert dataset.hierarchy.path(dataset.targets[0])[-1] == "Coat"
        assert len(dataset.hierarchy.classes[-1]) == (10 if kind == "name" else 2)

    def test_classes_outside_the_tree_are_listed(self, tmp_path: Path, tree: Path) -> None:
        draw(tmp_path, "train/Gul/1.jpg", "train/Gul/2.jpg", "test/Fish/1.jpg", "train/Birds/Lynx/1.jpg")
        lines = errors_of("folder", root=tmp_path, hierarchy=tree)
        assert [line.split("; ")[0] for line in lines] == [
            "classes outside the tree (rename them, or use a tree that has them):",
            "1 image: unknown class 'Fish'",
            "1 image: unknown class 'Birds/Lynx'",
            "2 images: unknown class 'Gul'",
        ]
        assert lines[3].endswith("; did you mean 'Gull'?")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"hierarchy": "fashion_mnits"},
                "no file 'fashion_mnits', and it is an unknown hierarchy .*'fashion_mnist'",
            ),
            ({"hierarchy": "tree.csv", "levels": ["a"]}, r"levels \['a'\] cannot rename those of a hierarchy"),
            ({"hierarchy": "parents.csv"}, "has the header 'child,parent', which does not name the levels; name them"),
        ],
    )
    def test_errors_of_the_tree(
        self, tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], message: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        write(tmp_path / "parents.csv", "child,parent", "Birds,", "Gull,Birds")
        draw(tmp_path, "train/Gull/1.jpg", "test/Gull/1.jpg")
        with pytest.raises(ValueError, match=message):
            create_dataset("folder", "train", root=tmp_path, **options)


class TestCSV:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        draw(tmp_path, *(f"images/{name}.jpg" for name in "abcdef"))
        return write(tmp_path / "tree.csv", *TREE)

    def test_labels_of_any_level(self, tmp_path: Path, tree: Path) -> None:
        rows = [
            "split, Path,label",
            "train,images/a.jpg,Lynx",
            "train,images/b.jpg,Beasts",
            "test,images/c.jpg,Jay",
        ]
        file = write(tmp_path / "list.csv", *rows, "valid, images/d.jpg , Birds ", "", "train,images/e.jpg,Gull")
        train, val, test = (
            open_files("csv", split, file=str(file), hierarchy=str(tree)) for split in ("train", "val", "test")
        )
        assert labels_of(train).tolist() == [[1, 2], [1, -1], [0, 0]]
        assert train.paths == [tmp_path / "images" / f"{name}.jpg" for name in "abe"]
        assert [image.size for image, _ in train] == [(8, 1), (8, 2), (8, 5)]
        assert (val.targets, test.targets) == ([3], [1]), "the finer of the two classes Birds"
        assert train.splits == ("train", "val", "test")

    def test_paths_are_relative_to_root(self, tmp_path: Path, tree: Path) -> None:
        (tmp_path / "lists").mkdir()
        absolute = tmp_path / "images" / "b.jpg"
        file = write(tmp_path / "lists" / "list.csv", "path,label", "a.jpg,Gull", f"{absolute},Gull")
        dataset = open_files(
            "csv", "train", file=file, hierarchy=tree, root=str(tmp_path / "images"), test_fraction=0.5
        )
        assert dataset.paths[0].parent == tmp_path / "images"

    def test_without_splits_each_class_is_split(self, tmp_path: Path, tree: Path) -> None:
        rows = [f"images/{name}.jpg,{'Gull' if name < 'e' else 'Beasts'}" for name in "abcdef"]
        file = write(tmp_path / "list.csv", "path,label", *rows)
        train, test = (
            open_files("csv", split, file=file, hierarchy=tree, test_fraction=0.5, seed=2)
            for split in ("train", "test")
        )
        assert labels_of(train).tolist() == labels_of(test).tolist() == [[0, 0], [0, 0], [1, -1]]
        assert sorted(train.paths + test.paths) == sorted((tmp_path / "images").iterdir())

    def test_all_errors_are_listed_with_their_lines(self, tmp_path: Path, tree: Path) -> None:
        rows = ["path,label,split", "images/a.jpg,Gull,train", "images/b.jpg,Gul,train", "images/c.jpg,Gul,test"]
        rows += ["images/./a.jpg,Jay,train", "images/a.jpg,Gull,test", "images/x.jpg,Lynx,test", ",Jay,tset"]
        rows += ["images/d.jpg,Jay", "images/e.jpg,Jay,tset"]
        assert errors_of("csv", file=write(tmp_path / "list.csv", *rows), hierarchy=tree) == [
            "errors in the file:",
            "line 8: path is empty",
            "line 8: unknown split 'tset'; did you mean 'test'?",
            "line 9: 2 cells, not 3: images/d.jpg,Jay",
            "line 10: unknown split 'tset'; did you mean 'test'?",
            "images with two labels:",
            "images/./a.jpg: 'Gull' (line 2) and 'Jay' (line 5)",
            "images in two splits:",
            "images/a.jpg: train (line 2) and test (line 6)",
            "classes outside the tree (rename them, or use a tree that has them):",
            "line 3 and 1 more: unknown class 'Gul'; did you mean 'Gull'?",
            "missing files:",
            str(tmp_path / "images" / "x.jpg"),
        ]

    @pytest.mark.parametrize(
        ("lines", "error"),
        [
            (
                ["images/a.jpg,Gull"],
                "expected the header 'path,label' or 'path,label,split', not 'images/a.jpg,Gull'",
            ),
            (["path;label", "images/a.jpg;Gull"], "line 1: cells are separated by semicolons; use commas"),
            (["path,label"], "there is no row below the header"),
            ([], "expected the header 'path,label' or 'path,label,split', not ''"),
        ],
    )
    def test_errors_in_the_file(self, tmp_path: Path, tree: Path, lines: list[str], error: str) -> None:
        assert errors_of("csv", file=write(tmp_path / "list.csv", *lines), hierarchy=tree) == [
            "errors in the file:",
            error,
        ]

    def test_image_listed_more_than_once(self, tmp_path: Path, tree: Path) -> None:
        rows = ["images/a.jpg,Gull", "images/b.jpg,Gull", "images//a.jpg,Gull", "images/a.jpg,Gull"]
        file = write(tmp_path / "list.csv", "path,label", *rows)
        splits = [open_files("csv", split, file=file, hierarchy=tree) for split in ("train", "test")]
        paths = sorted(splits[0].paths + splits[1].paths)
        assert paths == [tmp_path / "images" / "a.jpg", tmp_path / "images" / "b.jpg"], "each in one split"

    def test_path_with_several_spellings(self, tmp_path: Path, tree: Path) -> None:
        absolute, around = tmp_path / "images" / "a.jpg", "../images/a.jpg"
        file = write(tmp_path / "list.csv", "path,label", "a.jpg,Gull", f"{absolute},Jay", f"{around},Lynx")
        assert errors_of("csv", file=file, hierarchy=tree, root=tmp_path / "images") == [
            "images with two labels:",
            f"{absolute}: 'Gull' (line 2) and 'Jay' (line 3)",
            f"{around}: 'Gull' (line 2) and 'Lynx' (line 4)",
        ]

    def test_long_list_of_errors_is_cut(self, tmp_path: Path, tree: Path) -> None:
        file = write(tmp_path / "list.csv", "path,label", *(f"{i}.jpg,Gull" for i in range(30)))
        lines = errors_of("csv", file=file, hierarchy=tree)
        assert lines[1:6] == [str(tmp_path / f"{i}.jpg") for i in range(5)]
        assert lines[6:] == [
            "... and 25 more of this kind",
            "30 in all; `c2f-zoo data check --all` shows them",
        ]

    def test_thousands_of_faults_are_grouped_by_kind(self, tmp_path: Path) -> None:
        rows = [f"path{i},Gull{i},train,more" for i in range(3000)]
        rows[7:7] = [",Jay,train", ",Lynx,test"]
        tree = write(tmp_path / "tree.csv", "kind,sort", *(f"Birds,Gull{i},{i}" for i in range(3000)), ",Gull")
        with pytest.raises(ValueError, match="invalid hierarchy in") as error:
            Hierarchy.from_csv(tree)
        assert str(error.value).splitlines()[5:] == [
            "  line 6: the path 'Birds > Gull4 > 4' has 3 names, the tree has 2 levels (kind, sort)",
            "  ... and 2995 more of this kind",
            "  line 3002: kind is empty",
        ]
        file = write(tmp_path / "list.csv", "path,label,split", *rows)
        lines = errors_of("csv", file=file, hierarchy=Hierarchy.from_rows(("sort",), [("Jay",), ("Lynx",)]))
        assert lines[5:10] == [
            "line 6: 4 cells, not 3: path4,Gull4,train,more",
            "... and 2995 more of this kind",
            "line 9: path is empty",
            "line 10: path is empty",
            "3002 in all; `c2f-zoo data check --all` shows them",
        ]

    def test_missing_file(self) -> None:
        with pytest.raises(FileNotFoundError, match=r"there is no file none.csv"):
            create_dataset("csv", "train", file="none.csv", hierarchy="cub")


class TestImageFiles:
    def test_read_decodes_a_jpeg_at_a_reduced_size(self, tmp_path: Path) -> None:
        Image.new("RGB", (800, 640), (9, 99, 199)).save(tmp_path / "1.jpg")
        dataset = ImageFiles([tmp_path / "1.jpg"], [0], Hierarchy(("sort",), (("a", "b"),), ()))
        assert dataset.read(0).size == dataset[0][0].size == (800, 640)
        assert dataset.read(0, shorter_side=100).size == (200, 160)
        assert torch.equal(labels_of(dataset), torch.tensor([[0]]))

    def test_deleted_file(self, tmp_path: Path) -> None:
        draw(tmp_path, "train/Gull/1.jpg", "test/Gull/2.jpg")
        dataset = open_files("folder", "train", root=tmp_path)
        os.unlink(tmp_path / "train" / "Gull" / "1.jpg")
        with pytest.raises(FileNotFoundError, match=r"Gull.1\.jpg"):
            dataset[0]
