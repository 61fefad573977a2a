"""Boxes and part points in CUB's layout: reading, errors, and `c2f-zoo data check`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from c2f_zoo import create_dataset
from c2f_zoo.cli import app


@pytest.fixture
def annotated(cub_folder: Path) -> Path:
    """Annotate the 12 images of 50 x 40 pixels: a box, a visible beak and tail, a hidden throat."""
    (cub_folder / "parts").mkdir()
    (cub_folder / "parts" / "parts.txt").write_text("1 beak\n2 left eye\n3 tail\n4 throat\n")
    boxes = [f"{number} {number}.0 2.0 30.0 20.5" for number in range(1, 13)]
    (cub_folder / "bounding_boxes.txt").write_text("\n".join(boxes))
    points = [
        f"{number} {part} {x} {y} {int(part != 4)}"
        for number in range(1, 13)
        for part, x, y in ((1, number, 2.0), (2, 15.5, 6.0), (3, 20.0, 22.5), (4, 0.0, 0.0))
    ]
    (cub_folder / "parts" / "part_locs.txt").write_text("\n".join(points))
    return cub_folder


def replace_line(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def check(folder: Path) -> list[str]:
    done = CliRunner().invoke(app, ["data", "check", str(folder)])
    assert done.exit_code == 0, done.output
    return [line.strip() for line in done.stdout.splitlines()]


def test_each_image_has_its_box_and_visible_points(annotated: Path) -> None:
    test = create_dataset("cub", "test", root=annotated, annotations=True)
    assert [path.parent.name[:3] for path in test.paths] == ["001", "003", "004", "002"]  # images 3, 6, 9 and 12
    assert [note.box for note in test.annotations] == [(n, 2, n + 30, 22.5) for n in (3, 6, 9, 12)]
    assert test.annotations[1].points == {"beak": (6, 2), "left eye": (15.5, 6), "tail": (20, 22.5)}
    assert test.notes == ()
    assert create_dataset("cub", "test", root=annotated).annotations is None


def test_missing_files(annotated: Path) -> None:
    (annotated / "parts" / "part_locs.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"birds has no annotations: no parts/part_locs.txt"):
        create_dataset("cub", "train", root=annotated, annotations=True)
    assert len(create_dataset("cub", "train", root=annotated)) == 8
    assert check(annotated)[-1] == "training can start"


def break_annotations(folder: Path) -> list[str]:
    """Write invalid annotations; return the messages."""
    boxes, points = folder / "bounding_boxes.txt", folder / "parts" / "part_locs.txt"
    replace_line(boxes, "2 2.0 2.0 30.0 20.5\n", "")
    replace_line(boxes, "\n4 4.0 2.0 30.0 20.5", "\n4 4.0 2.0 0 20.5")
    replace_line(boxes, "\n5 5.0 2.0 30.0 20.5", "\n5 5.0 nan 30.0 20.5")
    replace_line(boxes, "\n7 7.0 2.0 30.0 20.5", "\n7 7.0 2.0 30.0")
    replace_line(points, "\n8 1 8 2.0 1", "\n8 1 8 2.0")
    replace_line(points, "\n8 2 15.5 6.0 1", "\n8 9 15.5 6.0 1")
    replace_line(points, "\n8 3 20.0 22.5 1", "\n8 3 inf 22.5 1")
    return [
        "001.Black_footed_Albatross/1.jpg: bounding_boxes.txt has no line for image 2",
        "003.Sooty_Albatross/0.jpg: the box '4.0 2.0 0 20.5' has no area",
        "003.Sooty_Albatross/1.jpg: the box '5.0 nan 30.0 20.5' is not finite",
        "004.Groove_billed_Ani/0.jpg: expected a box 'x y width height', not '7.0 2.0 30.0'",
        "part_locs.txt, line 29: expected 'image part x y visible', not '8 1 8 2.0'",
        "part_locs.txt, line 30: part 9 is not in parts.txt",
        "part_locs.txt, line 31: the point inf, 22.5 is not finite",
    ]


def test_all_errors_are_listed(annotated: Path) -> None:
    messages = break_annotations(annotated)
    with pytest.raises(ValueError, match="cannot use") as raised:
        create_dataset("cub", "train", root=annotated, annotations=True)
    assert sorted(messages) == sorted(line.strip() for line in str(raised.value).splitlines() if "    " in line)
    assert len(create_dataset("cub", "train", root=annotated)) == 8


def test_the_check_warns(annotated: Path) -> None:
    messages = break_annotations(annotated)
    boxes, points = annotated / "bounding_boxes.txt", annotated / "parts" / "part_locs.txt"
    replace_line(boxes, "\n11 11.0 2.0 30.0 20.5", "\n11 11.0 2.0 30.0 38.5")  # beyond the lower edge
    replace_line(boxes, "\n12 12.0 2.0 30.0 20.5", "\n12 20.0 2.0 30.0 38.0")  # exactly at two edges
    replace_line(points, "\n10 1 10 2.0 1", "\n10 1 9.5 2.0 1")
    lines = check(annotated)
    assert set(messages) <= set(lines)
    headings = {line for line in lines if line.startswith("warning")}
    assert headings == {
        "warning: errors in the annotations: 3",
        "warning: images without a box: 4",
        "warning: images without visible parts: 1",
        "warning: parts outside the box: 3",
        "warning: boxes outside the image: 1",
    }
    images = annotated / "images"
    assert f"{images / '002.Laysan_Albatross' / '1.jpg'}: 11, 2, 41, 40.5 of an image of 50 x 40 pixels" in lines
    assert "004.Groove_billed_Ani/1.jpg" in lines  # image 8: its three points are invalid
    outside = ["002.Laysan_Albatross/0.jpg: beak", "002.Laysan_Albatross/2.jpg: beak"]
    assert [line for line in lines if line.endswith((": beak", ": left eye"))] == [
        *outside,
        "002.Laysan_Albatross/2.jpg: left eye",
    ]
    assert lines[-1] == "training can start; see the warnings"


def test_what_is_unusual_is_noted(annotated: Path) -> None:
    replace_line(annotated / "parts" / "part_locs.txt", "\n10 1 10 2.0 1", "\n10 1 9.5 2.0 1")
    train = create_dataset("cub", "train", root=annotated, annotations=True)
    assert train.notes == (f"{annotated}: parts outside the box: 1 (002.Laysan_Albatross/0.jpg: beak)",)
