"""Tables, errors, warnings and exit status of `c2f-zoo data check`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import BIRDS
from PIL import Image
from typer.testing import CliRunner

from c2f_zoo.cli import app

TREE = ["class,species", "Birds,Gull", "Birds,Jay", "Beasts,Lynx"]


def draw(path: Path, colour: int, size: tuple[int, int] = (30, 20), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 2 * colour, 0)).save(path, **options)
    return path


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def flat(tmp_path: Path) -> tuple[Path, Path]:
    """Return class folders without errors, and their tree."""
    root = tmp_path / "images"
    for number, name in enumerate(["train/Gull/a", "train/Gull/b", "train/Gull/c", "train/Jay/d", "train/Lynx/e"]):
        draw(root / f"{name}.png", number, (30 + number, 20))
    for number, name in enumerate(["test/Gull/f", "test/Jay/g", "test/Lynx/h"], start=10):
        draw(root / f"{name}.jpg", number, (20, 90))
    return root, write(tmp_path / "tree.csv", *TREE)


def check(*arguments: object, status: int = 0) -> list[str]:
    """Return the printed lines."""
    done = CliRunner().invoke(app, ["data", "check", *map(str, arguments)])
    assert done.exit_code == status, done.output
    return [line.strip() for line in done.stdout.splitlines()]


def rows(lines: list[str]) -> list[list[str]]:
    """Return the cells of the tables' rows."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def found(lines: list[str], kind: str) -> dict[str, list[str]]:
    """Return the errors or warnings: the lines below each heading."""
    findings: dict[str, list[str]] = {}
    below: list[str] = []
    for line in lines:
        if line.startswith(("error: ", "warning: ", "training ")):
            below = []
            if line.startswith(f"{kind}: "):
                findings[line.removeprefix(f"{kind}: ")] = below
        else:
            below.append(line)
    return findings


class TestTables:
    def test_flat_folders(self, flat: tuple[Path, Path]) -> None:
        lines = check(flat[0], "--hierarchy", flat[1])
        assert lines[0] == f"8 images in {flat[0]}"
        assert rows(lines) == [
            ["class", "2", "2", "8"],
            ["species", "3", "3", "8"],
            ["train", "5", "3", "1", "1", "3"],
            ["test", "3", "3", "1", "1", "1"],
            ["Jay", "1", "1"],
            ["Lynx", "1", "1"],
            ["Gull", "3", "1"],
            ["width", "20", "30", "34"],
            ["height", "20", "20", "90"],
            ["shorter side", "20", "20", "20"],
            ["PNG RGB", "5"],
            ["JPEG RGB", "3"],
        ]
        assert lines[-1] == "training can start"

    def test_csv(self, flat: tuple[Path, Path], tmp_path: Path) -> None:
        lines = ["path,label", *(f"train/{name}.png,Gull" for name in ("Gull/a", "Gull/b", "Gull/c", "Jay/d"))]
        lines += ["test/Lynx/h.jpg,Beasts", "test/Jay/g.jpg,Beasts"]
        options = ["--hierarchy", flat[1], "--root", flat[0], "--test-fraction", 0.5, "--seed", 3, "--workers", 1]
        shown = check(write(tmp_path / "list.csv", *lines), *options)
        assert rows(shown)[:4] == [
            ["class", "2", "2", "6"],
            ["species", "3", "1", "4"],
            ["train", "3", "1", "2", "2", "2"],
            ["test", "3", "1", "2", "2", "2"],
        ]
        assert rows(shown)[4:7] == [["Jay", "0", "0"], ["Lynx", "0", "0"], ["Gull", "2", "2"]]
        assert found(shown, "warning") == {"classes without a training image: 2": ["Jay", "Lynx"]}

    def test_cub(self, cub_folder: Path) -> None:
        lines = check(cub_folder)
        assert rows(lines)[:5] == [
            ["family", "2", "2", "12"],
            ["genus", "3", "3", "12"],
            ["species", "4", "4", "12"],
            ["train", "8", "4", "2", "2", "2"],
            ["test", "4", "4", "1", "1", "1"],
        ]
        assert rows(check(cub_folder, "--hierarchy", "cub_modern"))[0][0] == "order"

    def test_nested_folders(self, tmp_path: Path) -> None:
        for number, name in enumerate(["Birds/Gull", "Birds/Jay", "Beasts/Lynx"]):
            for shot in range(5):
                draw(tmp_path / name / f"{shot}.png", 10 * number + shot)
        lines = check(tmp_path, "--levels", "kind,sort")
        assert rows(lines)[:4] == [
            ["kind", "2", "2", "15"],
            ["sort", "3", "3", "15"],
            ["train", "12", "3", "4", "4", "4"],
            ["test", "3", "3", "1", "1", "1"],
        ]

    def test_smallest_of_many_classes_are_shown(self, tmp_path: Path) -> None:
        images = {f"{number:02}": 3 - (number in (7, 21)) for number in range(22)}
        for name, count in images.items():
            for shot in range(count):
                draw(tmp_path / name / f"{shot}.png", 5 * int(name) + shot)
        smallest = [["07", "1", "1"], ["21", "1", "1"]]
        others = [[name, "2", "1"] for name in images if name not in ("07", "21")]
        lines = check(tmp_path, "--levels", "sort")
        assert rows(lines)[3:-4] == smallest + others[:18]
        assert "... and 2 more sort classes; --all shows them" in lines
        lines = check(tmp_path, "--levels", "sort", "--all")
        assert rows(lines)[3:-4] == smallest + others
        assert not any("--all" in line for line in lines)


class TestErrors:
    def test_unreadable_images(self, flat: tuple[Path, Path]) -> None:
        root, tree = flat
        whole = draw(root / "train" / "Jay" / "cut.jpg", 99, (200, 100)).read_bytes()
        (root / "train" / "Jay" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
        (root / "test" / "Jay" / "words.png").write_text("no image")
        (root / "test" / "Jay" / "empty.png").touch()
        errors = found(check(root, "--hierarchy", tree, status=1), "error")
        ((heading, items),) = errors.items()
        assert heading == "images that cannot be decoded (on_error: skip leaves them out): 3"
        for item, name in zip(items, ("test/Jay/empty.png", "test/Jay/words.png", "train/Jay/cut.jpg"), strict=True):
            assert item.startswith(f"cannot read the image {root / name}: ")

    def test_broken_link(self, flat: tuple[Path, Path]) -> None:
        try:
            (flat[0] / "train" / "Jay" / "gone.png").symlink_to("nowhere.png")
        except OSError:
            pytest.skip("links are unsupported")
        (items,) = found(check(flat[0], "--hierarchy", flat[1], status=1), "error").values()
        assert items == [f"there is no image {flat[0] / 'train' / 'Jay' / 'gone.png'}"]

    def test_all_errors_are_listed_and_other_images_are_read(self, cub_folder: Path) -> None:
        (cub_folder / "images" / BIRDS[0] / "0.jpg").unlink()
        (cub_folder / "images" / BIRDS[1] / "0.jpg").write_text("no image")
        classes = cub_folder / "classes.txt"
        classes.write_text(classes.read_text().replace(BIRDS[2], "004.Groovy_[b]Ani"))
        lines = check(cub_folder, status=1)
        errors = found(lines, "error")
        assert [heading.rsplit(": ", 1) for heading in errors] == [
            ["classes outside the tree (rename them, or use a tree that has them)", "1"],
            ["missing files", "1"],
            ["images that cannot be decoded (on_error: skip leaves them out)", "1"],
        ]
        assert "unknown class '004.Groovy_[b]Ani'" in next(iter(errors.values()))[0], "brackets are not markup"
        assert ["JPEG RGB", "10"] in rows(lines)
        assert lines[-1] == "training would fail; see the errors"

    def test_folders_that_do_not_form_a_tree(self, tmp_path: Path) -> None:
        for name in ("train/Birds/Gull", "train/Beasts/Lynx ", "test/Birds/Gull"):
            draw(tmp_path / name / "1.png", len(name))
        lines = check(tmp_path, status=1)
        assert list(found(lines, "error")) == [
            "the folders do not form a tree (rearrange them, or use the option 'hierarchy'): 1"
        ]
        assert ["PNG RGB", "3"] in rows(lines)

    def test_single_class(self, tmp_path: Path) -> None:
        draw(tmp_path / "train" / "Gull" / "1.png", 1)
        draw(tmp_path / "test" / "Gull" / "1.png", 2)
        lines = check(tmp_path, "--levels", "sort", status=1)
        assert found(lines, "error") == {"there is only one class: 1": ["the tree has one sort"]}
        assert list(found(lines, "warning")) == ["there is no coarser level: 1"]

    def test_level_without_a_label(self, flat: tuple[Path, Path], tmp_path: Path) -> None:
        lines = ["path,label,split", "train/Gull/a.png,Birds,train", "train/Lynx/e.png,Beasts,train"]
        lines += ["test/Gull/f.jpg,Gull,test"]
        shown = check(write(flat[0] / "list.csv", *lines), "--hierarchy", flat[1], status=1)
        heading = "levels without a label in a split (leave them out of the model's levels): 1"
        assert found(shown, "error") == {heading: ["species in 'train'"]}

    def test_no_test_images(self, tmp_path: Path) -> None:
        draw(tmp_path / "train" / "Birds" / "Gull" / "1.png", 1)
        draw(tmp_path / "train" / "Birds" / "Jay" / "1.png", 2)
        assert "splits without an image: 1" in found(check(tmp_path, status=1), "error")

    @pytest.mark.parametrize(("count", "options"), [(1, []), (3, ["--test-fraction", 0])])
    def test_classes_too_small_to_split(self, tmp_path: Path, count: int, options: list[object]) -> None:
        for number, name in enumerate(["Birds/Gull", "Birds/Jay", "Beasts/Lynx"]):
            for shot in range(count):
                draw(tmp_path / name / f"{shot}.png", 10 * number + shot)
        errors = found(check(tmp_path, *options, status=1), "error")
        ((heading, (item,)),) = errors.items()
        assert heading == "splits without an image: 1"
        assert item.startswith("'test': a class needs two images or more to be split, and test_fraction")

    def test_empty_folder(self, tmp_path: Path) -> None:
        assert list(found(check(tmp_path, status=1), "error")) == ["there are no images in folders: 1"]


class TestWarnings:
    def warnings(self, flat: tuple[Path, Path], *options: str) -> dict[str, list[str]]:
        lines = check(flat[0], "--hierarchy", flat[1], *options)
        assert lines[-1] == "training can start; see the warnings"
        return found(lines, "warning")

    def test_same_image_in_train_and_test(self, flat: tuple[Path, Path]) -> None:
        train, test = flat[0] / "train", flat[0] / "test"
        (test / "Gull" / "copy.png").write_bytes((train / "Gull" / "b.png").read_bytes())
        draw(test / "Jay" / "again.bmp", 3, (33, 20))  # the pixels of train/Jay/d.png
        assert self.warnings(flat) == {
            "the same image in train and test: 2": [
                f"same bytes: {train / 'Gull' / 'b.png'} (train, Gull), {test / 'Gull' / 'copy.png'} (test, Gull)",
                f"same pixels: {train / 'Jay' / 'd.png'} (train, Jay), {test / 'Jay' / 'again.bmp'} (test, Jay)",
            ]
        }

    def test_same_image_within_a_split(self, flat: tuple[Path, Path]) -> None:
        train = flat[0] / "train"
        draw(train / "Gull" / "x.png", 77)
        draw(train / "Jay" / "x.png", 77)
        draw(train / "Jay" / "y.png", 88)
        draw(train / "Jay" / "z.png", 88, compress_level=0)
        draw(train / "Jay" / "w.png", 88, (31, 20))
        draw(train / "Jay" / "v.png", 88, (20, 31))
        assert self.warnings(flat) == {
            "the same image under several classes: 1": [
                f"same bytes: {train / 'Gull' / 'x.png'} (train, Gull), {train / 'Jay' / 'x.png'} (train, Jay)"
            ],
            "the same image more than once: 1": [
                f"same pixels: {train / 'Jay' / 'y.png'} (train, Jay), {train / 'Jay' / 'z.png'} (train, Jay)"
            ],
        }

    def test_coarser_label_of_the_same_image_is_not_another_class(self, flat: tuple[Path, Path]) -> None:
        draw(flat[0] / "train" / "Gull" / "x.png", 77)
        draw(flat[0] / "train" / "Birds" / "x.png", 77)
        assert list(self.warnings(flat)) == ["the same image more than once: 1"]

    def test_files_and_folders_left_out(self, flat: tuple[Path, Path]) -> None:
        root = flat[0]
        (root / "train" / "Jay" / "notes[1].txt").touch()
        (root / "train" / "Empty").mkdir()
        (root / "extra").mkdir()
        draw(root / "train" / "loose.png", 1)
        assert self.warnings(flat) == {
            "folders next to the split folders, left out: 1": ["extra"],
            "files without an image extension, left out: 1": [str(root / "train" / "Jay" / "notes[1].txt")],
            "images outside class folders, left out: 1": [str(root / "train" / "loose.png")],
            "folders without an image, left out: 1": [str(root / "train" / "Empty")],
        }

    def test_classes_without_a_training_image(self, flat: tuple[Path, Path]) -> None:
        os.unlink(flat[0] / "train" / "Jay" / "d.png")
        warnings = self.warnings(flat)
        assert warnings["classes without a training image: 1"] == ["Jay"]

    def test_level_without_a_label_to_validate_on(self, tmp_path: Path) -> None:
        # Each species has 2 images: one in the test set, and one in the training set, which is not held out.
        for number, name in enumerate(["Birds/Gull", "Birds/Jay", "Beasts/Lynx"]):
            draw(tmp_path / name / "1.png", 10 * number)
            draw(tmp_path / name / "2.png", 10 * number + 1)
        for shot in range(5):
            draw(tmp_path / "Birds" / f"{shot}.png", 100 + shot)
        ((heading, items),) = found(check(tmp_path, "--levels", "kind,sort"), "warning").items()
        assert heading.startswith("levels without a label to validate on, which stops training (")
        assert items == ["sort"]
        draw(tmp_path / "Birds" / "Jay" / "3.png", 90)  # one of two training images is held out
        assert found(check(tmp_path, "--levels", "kind,sort"), "warning") == {}

    def test_named_validation_set(self, flat: tuple[Path, Path]) -> None:
        for number in range(5):
            draw(flat[0] / "train" / "Birds" / f"{number}.png", 100 + number)
        os.unlink(flat[0] / "train" / "Gull" / "b.png")
        os.unlink(flat[0] / "train" / "Gull" / "c.png")
        assert list(self.warnings(flat).values()) == [["species"]]
        draw(flat[0] / "val" / "Gull" / "1.png", 90)
        assert check(flat[0], "--hierarchy", flat[1])[-1] == "training can start"

    def test_long_lists_are_cut(self, flat: tuple[Path, Path]) -> None:
        for number in range(23):
            (flat[0] / "train" / "Jay" / f"{number}.txt").touch()
        heading = "files without an image extension, left out: 23"
        cut = self.warnings(flat)[heading]
        assert cut[5:] == ["... and 18 more of this kind", "--all shows them"]
        assert len(self.warnings(flat, "--all")[heading]) == 23

    def test_long_lists_of_different_items_are_cut(self, flat: tuple[Path, Path]) -> None:
        names = [f"{first}{second}" for first in "abcde" for second in "vwxyz"]  # without digits, which do not count
        for number, name in enumerate(names):
            for folder in ("Gull", "Jay"):
                draw(flat[0] / "train" / folder / f"{name}{name}.png", 50 + number)
        heading = "the same image under several classes: 25"
        cut = self.warnings(flat)[heading]
        assert cut[19].startswith("same bytes: ") and cut[20:] == ["... and 5 more of other kinds", "--all shows them"]
        assert len(self.warnings(flat, "--all")[heading]) == 25

    def test_one_image_many_times(self, flat: tuple[Path, Path]) -> None:
        jay = flat[0] / "train" / "Jay"
        first = draw(jay / "0.png", 99)
        for number in range(1, 30):
            draw(jay / f"{number:02}.png", 99, **({"compress_level": 0} if number % 2 else {}))
        heading = "the same image more than once: 29"
        every = self.warnings(flat, "--all")[heading]
        assert every[:2] == [
            f"same pixels: {first} (train, Jay), {jay / '01.png'} (train, Jay)",
            f"same bytes: {first} (train, Jay), {jay / '02.png'} (train, Jay)",
        ]
        assert len(every) == 29

    def test_names_are_printed_verbatim(self, flat: tuple[Path, Path]) -> None:
        name = "[red]x:cat: \x1b[31m\n.txt"
        try:
            (flat[0] / "train" / "Jay" / name).touch()
        except (OSError, ValueError):
            pytest.skip("such names are unsupported")
        (items,) = self.warnings(flat).values()
        assert items == [str(flat[0] / "train" / "Jay") + os.sep + r"[red]x:cat: \x1b[31m\n.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "the folder nowhere does not exist"),
        (["list.csv"], "list.csv needs a tree"),
        (["list.csv", "--hierarchy", "none"], "there is no file 'none', and it is an unknown hierarchy"),
        ([".", "--root", "."], r"--root \. applies to CSV files only, and \. is not one"),
        (["birds", "--levels", "a"], "birds has CUB-200-2011's layout"),
    ],
)
def test_wrong_options(cub_folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(cub_folder.parent)
    write(cub_folder.parent / "list.csv", "path,label")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        CliRunner().invoke(app, ["data", "check", *arguments], catch_exceptions=False)
