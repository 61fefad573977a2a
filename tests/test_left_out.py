"""Files of class folders and lists: what is read, matched, left out and told, and what is an error."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest
import train
from accelerate import Accelerator
from PIL import Image
from test_folders import draw, errors_of, open_files, write
from typer.testing import CliRunner

from c2f_zoo import Hierarchy, create_dataset
from c2f_zoo.cli import app
from c2f_zoo.data import CachedImages, HideLabels, Joined, notes_of
from c2f_zoo.hierarchy.folders import SERVICE_FOLDERS
from c2f_zoo.images.formats import image_extensions
from c2f_zoo.training.options import Stage, TrainOptions

NFC, NFD = (unicodedata.normalize(form, "Pájaro") for form in ("NFC", "NFD"))


def classes_of(root: Path, **options: object) -> tuple[tuple[str, ...], ...]:
    return open_files("folder", "train", root=root, **options).hierarchy.classes


class TestKinds:
    @pytest.mark.parametrize("extension", ["jfif", "avif", "gif", "mpo", "jp2"])
    def test_no_class_vanishes(self, tmp_path: Path, extension: str) -> None:
        if f".{extension}" not in image_extensions():
            pytest.skip(f"this version of Pillow has no {extension}")
        draw(tmp_path, "train/Birds/Gull/1.jpg", "test/Birds/Gull/1.jpg")
        draw(tmp_path, f"train/Birds/Jay/1.{extension}", f"train/Birds/Jay/2.{extension.upper()}")
        dataset = open_files("folder", "train", root=tmp_path)
        assert dataset.hierarchy.classes[-1] == ("Gull", "Jay")
        assert dataset.targets == [0, 1, 1]
        assert [image.size for image, _ in dataset] == [(8, 1), (8, 1), (8, 2)]

    def test_what_is_left_out_is_told_by_kind_and_count(self, tmp_path: Path) -> None:
        draw(tmp_path, *(f"{split}/Birds/Gull/{i}.jpg" for split in ("train", "test") for i in range(3)), "loose.png")
        for name in ("train/Birds/Jay/1.eps", "train/Birds/Jay/2.EPS", "train/Birds/Gull/notes.txt", "test/Birds/x"):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.touch()
        train, test = (create_dataset("folder", split, root=tmp_path) for split in ("train", "test"))
        told = [
            f"{tmp_path}: files without an image extension, left out: 4 (2 .eps, 1 .txt, 1 without)",
            f"{tmp_path}: folders without an image, left out: 1 ({tmp_path / 'train' / 'Birds' / 'Jay'})",
        ]
        assert sorted(notes_of(train, test)) == told
        assert sorted(notes_of(Joined(train, test))) == told
        assert sorted(notes_of(HideLabels(train, "genus", [0]))) == told
        assert sorted(notes_of(CachedImages(train, tmp_path / "cache"))) == told
        assert notes_of(create_dataset("critters", "train", per_class=1)) == []

    def test_training_prints_it(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        draw(tmp_path, *(f"Birds/{name}/{i}.jpg" for name in ("Gull", "Jay") for i in range(4)), "@eaDir/Gull/1.jpg")
        (tmp_path / "Birds" / "Gull" / "5.psd").touch()
        options = TrainOptions("folder", "mlph_tiny_critters", {}, [Stage(1, 0.1)], {"root": str(tmp_path)})
        train.set_up(options, Accelerator(cpu=True))
        lines = capsys.readouterr().out.splitlines()
        assert f"{tmp_path}: service folders, left out: 1 ({tmp_path / '@eaDir'})" in lines
        assert lines.count(f"{tmp_path}: files without an image extension, left out: 1 (1 .psd)") == 1


class TestServiceFolders:
    @pytest.mark.parametrize("name", sorted(SERVICE_FOLDERS | {".ipynb_checkpoints"}))
    def test_none_is_a_class(self, tmp_path: Path, name: str) -> None:
        draw(tmp_path, *(f"Birds/{sort}/{i}.jpg" for sort in ("Gull", "Jay") for i in range(2)))
        draw(tmp_path, f"{name.upper()}/Gull/1.jpg", f"Birds/{name}/1.jpg", f"Birds/Gull/{name}/1.jpg")
        dataset = open_files("folder", "train", root=tmp_path)
        assert dataset.hierarchy.classes == (("Birds",), ("Gull", "Jay"))
        assert len(dataset) == 2
        (note,) = notes_of(dataset)
        assert ", left out: 3 (" in note and str(tmp_path / "Birds" / "Gull" / name) in note
        assert Hierarchy.from_folders(tmp_path).classes == dataset.hierarchy.classes

    def test_between_split_folders(self, tmp_path: Path) -> None:
        draw(tmp_path, "train/Birds/Gull/1.jpg", "test/Birds/Gull/1.jpg", "@eaDir/train/1.jpg", "lost+found/1.jpg")
        assert classes_of(tmp_path) == (("Birds",), ("Gull",))


class TestSplitNames:
    @pytest.mark.parametrize(
        ("train", "val", "test"),
        [
            ("Train", "Val", "Test"),
            ("training", "dev", "testing"),
            ("TRAINING_SET", "Validation", "test-set"),
            ("train_mini", "valid", "test2017"),
            ("train_dataset", "ValImages", "Test-Data-Set_2"),
        ],
    )
    def test_likely_names_are_understood(self, tmp_path: Path, train: str, val: str, test: str) -> None:
        draw(tmp_path, f"{train}/Birds/Gull/1.jpg", f"{test}/Fish/Carp/1.jpg", f"{val}/Birds/Gull/2.jpg")
        for number, split in enumerate(("train", "val", "test")):
            dataset = open_files("folder", split, root=tmp_path)
            assert dataset.hierarchy.classes == (("Birds", "Fish"), ("Gull", "Carp"))
            assert dataset.paths == [sorted(tmp_path.glob(f"{(train, val, test)[number]}/*/*/*"))[0]]
        rows = [f"{name}/Birds/Gull/1.jpg,Gull,{name}" for name in (train,)]
        rows += [f"{val}/Birds/Gull/2.jpg,Gull,{val}", f"{test}/Fish/Carp/1.jpg,Carp,{test}"]
        tree = Hierarchy.from_rows(("kind", "sort"), [("Birds", "Gull"), ("Fish", "Carp")])
        file = write(tmp_path / "list.csv", "path,label,split", *rows)
        assert [open_files("csv", split, file=file, hierarchy=tree).targets for split in ("train", "val", "test")] == [
            [0],
            [0],
            [1],
        ]

    @pytest.mark.parametrize("name", ["eval", "Holdout", "hold-out", "evaluation"])
    def test_unclear_names_are_an_error(self, tmp_path: Path, name: str) -> None:
        draw(tmp_path, "train/Birds/Gull/1.jpg", f"{name}/Birds/Gull/1.jpg")
        message = f"{name!r} may be the validation or the test set; rename it to 'val' or 'test'"
        assert message in errors_of("folder", root=tmp_path)
        tree = Hierarchy.from_rows(("kind", "sort"), [("Birds", "Gull")])
        file = write(tmp_path / "list.csv", "path,label,split", f"train/Birds/Gull/1.jpg,Gull,{name}")
        assert f"line 2: {message}" in errors_of("csv", file=file, hierarchy=tree)

    def test_a_class_with_the_name_of_a_split_is_told(self, tmp_path: Path) -> None:
        draw(tmp_path, *(f"{name}/{i}.jpg" for name in ("bus", "Train") for i in range(2)))
        dataset = create_dataset("folder", "train", root=tmp_path)
        assert dataset.hierarchy.classes == (("Train", "bus"),)
        assert notes_of(dataset)[0].endswith("used as classes, since there are no other splits: 1 (Train)")

    @pytest.mark.parametrize(
        ("train", "test"),
        [("birds_train", "birds_test"), ("Train Birds", "valid-birds"), ("x/images-train2017", "x/images-val2017")],
    )
    def test_splits_with_the_name_of_the_dataset_are_an_error(self, tmp_path: Path, train: str, test: str) -> None:
        draw(tmp_path, f"{train}/Gull/1.jpg", f"{test}/Jay/1.jpg")
        place = "x" if "x/" in train else "the top folder"
        names = ", ".join(sorted(Path(name).name for name in (train, test)))
        assert f"{place} contains {names}" in errors_of("folder", root=tmp_path)

    def test_classes_whose_names_only_contain_a_split_are_classes(self, tmp_path: Path) -> None:
        names = ("bullet train", "crash test", "Val Thorens")
        draw(tmp_path, *(f"{name}/{i}.jpg" for name in names for i in range(2)))
        assert classes_of(tmp_path) == (tuple(sorted(names)),)

    @pytest.mark.parametrize("top", ["birds", "birds/photos"])
    def test_split_folders_inside_others_are_an_error(self, tmp_path: Path, top: str) -> None:
        draw(tmp_path, f"{top}/train/Gull/1.jpg", f"{top}/test/Jay/1.jpg")
        assert f"{top} contains test, train" in errors_of("folder", root=tmp_path)


class TestSpelling:
    def test_unicode_forms_are_one_class(self, tmp_path: Path) -> None:
        draw(tmp_path, f"train/{NFC}/Gull/1.jpg", f"train/{NFD}/Jay/1.jpg", f"test/{NFD}/Gull/1.jpg")
        if len(os.listdir(tmp_path / "train")) < 2:
            pytest.skip("the file system normalizes names")
        dataset = open_files("folder", "train", root=tmp_path)
        assert dataset.hierarchy.classes == ((NFC,), ("Gull", "Jay"))
        assert sorted(image.size for image, _ in dataset) == [(8, 1), (8, 2)], "files keep their names"
        tree = write(tmp_path / "tree.csv", "kind,sort", f"{NFD},Gull", f"{NFC},Jay")
        assert Hierarchy.from_csv(tree).classes == dataset.hierarchy.classes
        parents = write(tmp_path / "parents.csv", "child,parent", f"{NFD},", f"Gull,{NFC}", f"Jay,{NFD}")
        assert Hierarchy.from_parents(parents, ("kind", "sort")).classes == dataset.hierarchy.classes
        file = write(tmp_path / "list.csv", "path,label", f"train/{NFC}/Gull/1.jpg,{NFD}")
        assert open_files("csv", "train", file=file, hierarchy=Hierarchy.from_csv(tree)).labels is not None

    def test_names_that_differ_in_case_are_an_error(self, tmp_path: Path) -> None:
        draw(tmp_path, "train/Birds/Gull/1.jpg", "test/Birds/gull/1.jpg", "test/birds/Jay/1.jpg")
        if (tmp_path / "test" / "birds" / "gull").exists() is not False:
            pytest.skip("the file system ignores case")
        lines = errors_of("folder", root=tmp_path)
        assert [line for line in lines if "differ only in case" in line] == [
            "folder Birds/gull: 'gull' and 'Gull' (folder Birds/Gull) differ only in case; rename one, or describe the "
            "classes in a CSV file",
            "folder birds: 'birds' and 'Birds' (folder Birds) differ only in case; rename one, or describe the classes "
            "in a CSV file",
        ]
        tree = write(tmp_path / "tree.csv", "kind,sort", "Birds,Gull", "birds,Jay")
        with pytest.raises(ValueError, match=r"line 3: 'birds' and 'Birds' \(line 2\) differ only in case"):
            Hierarchy.from_csv(tree)

    def test_a_short_branch_that_differs_in_case_is_an_error(self, tmp_path: Path) -> None:
        rows = ["Fruit,Apple,Gala", "Fruit,apple,", "fruit,,"]
        with pytest.raises(ValueError, match="differ only in case") as error:
            Hierarchy.from_csv(write(tmp_path / "tree.csv", "kind,genus,cultivar", *rows))
        assert [line.split(" differ")[0].strip() for line in str(error.value).splitlines()[1:]] == [
            "line 3: 'apple' and 'Apple' (line 2)",
            "line 4: 'fruit' and 'Fruit' (line 2)",
        ]

    def test_leaf_classes_of_a_table_may_differ_in_case(self, tmp_path: Path) -> None:
        tree = write(tmp_path / "letters.csv", "kind,letter", "small,a", "large,A")
        assert Hierarchy.from_csv(tree).classes[-1] == ("a", "A")

    def test_names_that_a_file_system_cannot_carry(self, tmp_path: Path) -> None:
        tree = Hierarchy.from_rows(
            ("kind", "sort"), [("Tops", "T-shirt/top"), ("Tops", "Pullover"), ("Bags", 'The "1"')]
        )
        draw(tmp_path, "train/T-shirt_top/1.jpg", "train/tops/pullover/1.jpg", "train/The _1_/1.jpg", "test/Tops/1.jpg")
        dataset = open_files("folder", "train", root=tmp_path, hierarchy=tree)
        assert dataset.targets == [0, 2, 1]  # of sorted paths
        (note,) = notes_of(dataset)
        assert "letters and digits only: 3 ('T-shirt_top' is 'T-shirt/top', " in note
        file = write(tmp_path / "list.csv", "path,label", "train/T-shirt_top/1.jpg,t shirt top")
        assert open_files("csv", "train", file=file, hierarchy=tree).targets == [0]

    def test_a_name_that_several_classes_match_is_none(self, tmp_path: Path) -> None:
        tree = Hierarchy.from_rows(("sort",), [("C+",), ("C++",), ("C#",), ("D",)])
        draw(tmp_path, "train/c/1.jpg", "train/C++/1.jpg", "train/+/1.jpg", "test/D/1.jpg")
        lines = errors_of("folder", root=tmp_path, hierarchy=tree)
        assert [line.split(";")[0] for line in lines[1:]] == [f"1 image: unknown class {name!r}" for name in "+c"]

    def test_vowel_signs_tell_names_apart(self, tmp_path: Path) -> None:
        crow, worm = "\u0915\u0940\u0906", "\u0915\u093e\u0906"  # the same letters with other vowel signs
        tree = Hierarchy.from_rows(("sort",), [(crow,), ("D",)])
        draw(tmp_path, f"train/{worm}/1.jpg", "train/D/1.jpg", "test/D/1.jpg")
        assert f"1 image: unknown class {worm!r}" in errors_of("folder", root=tmp_path, hierarchy=tree)[1]


class TestPaths:
    def test_paths_of_other_systems(self, tmp_path: Path) -> None:
        draw(tmp_path, "train/1.png", f"train/{NFC}.png")
        Image.new("RGB", (5, 5)).save(tmp_path / "train" / "2.png ", "PNG")
        tree = Hierarchy.from_rows(("sort",), [("Gull",)])
        rows = ["train\\1.png,Gull", "train/2.png ,Gull", f" train\\{NFD}.png ,Gull"]
        file = write(tmp_path / "list.csv", "path,label", *rows)
        dataset = open_files("csv", "train", file=file, hierarchy=tree, test_fraction=0)
        assert [path.name for path in dataset.paths] == ["1.png", "2.png ", f"{NFC}.png"]
        assert [image.size for image, _ in dataset] == [(8, 1), (5, 5), (8, 2)]

    def test_one_file_in_two_spellings_is_one_image(self, tmp_path: Path) -> None:
        draw(tmp_path, "train/1.png")
        tree = Hierarchy.from_rows(("sort",), [("Gull",)])
        file = write(tmp_path / "list.csv", "path,label", "train\\1.png,Gull", "train/1.png,Gull")
        dataset = create_dataset("csv", "train", file=file, hierarchy=tree)
        assert len(dataset) == 1
        assert "listed more than once, used once: 1" in notes_of(dataset)[0]

    def test_a_missing_file_is_named_as_it_is_written(self, tmp_path: Path) -> None:
        tree = Hierarchy.from_rows(("sort",), [("Gull",)])
        file = write(tmp_path / "list.csv", "path,label", "train\\1.png,Gull")
        assert errors_of("csv", file=file, hierarchy=tree)[1] == str(tmp_path / "train\\1.png")


CLOSED_TREE = Hierarchy.from_rows(("kind", "sort"), [("Birds", "Gull"), ("Birds", "Jay")])


@pytest.fixture
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Create class folders, one without read permission, as a user who is not root."""
    if sys.platform == "win32":
        pytest.skip("there are no such permissions")
    root = tmp_path_factory.mktemp("closed")
    draw(root, *(f"train/Birds/{name}/{i}.jpg" for name in ("Gull", "Jay") for i in range(3)), "test/Birds/Gull/1.jpg")
    write(root / "list.csv", "path,label", "train/Birds/Gull/1.jpg,Gull", "train/Birds/Jay/1.jpg,Jay")
    # These import what the other user may not read.
    CliRunner().invoke(app, ["data", "check", str(root)])
    create_dataset("csv", "train", file=root / "list.csv", hierarchy=CLOSED_TREE)
    (root / "train" / "Birds" / "Jay").chmod(0)
    is_root = os.geteuid() == 0
    if is_root:  # root may read everything
        for folder in (root, *takewhile(lambda parent: "pytest" in str(parent), root.parents)):
            folder.chmod(0o755)
        os.seteuid(65534)
    yield root
    if is_root:
        os.seteuid(0)
    (root / "train" / "Birds" / "Jay").chmod(0o755)


class TestPermissions:
    def test_a_folder_without_permission_is_one_error_among_the_others(self, closed: Path) -> None:
        done = CliRunner().invoke(app, ["data", "check", str(closed)])
        assert done.exit_code == 1, done.output
        lines = [line.strip() for line in done.stdout.splitlines()]
        start = lines.index("error: folders that cannot be read (change their permissions, or move them away): 1")
        assert lines[start + 1] == f"{closed / 'train' / 'Birds' / 'Jay'}: Permission denied"
        assert lines[0] == f"4 images in {closed}", "the others are read"
        assert any("Permission denied" in line for line in errors_of("folder", root=closed))
        assert errors_of("csv", file=closed / "list.csv", hierarchy=CLOSED_TREE) == [
            "listed files that cannot be read:",
            f"{closed / 'train/Birds/Jay/1.jpg'}: Permission denied",
        ]
        with pytest.raises(ValueError, match=r"cannot be read .*Jay: Permission denied"):
            Hierarchy.from_folders(closed / "train")
        with pytest.raises(OSError, match=r"cannot read the folder .*Jay: Permission denied; change its permissions"):
            create_dataset("folder", "train", root=closed / "train" / "Birds" / "Jay")
