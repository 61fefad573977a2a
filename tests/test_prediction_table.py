"""The CSV file of `c2f-zoo predict`, continued after a kill at any byte, and its other outputs."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL
from PIL import Image
from test_cli import run
from test_predict import model_with_probabilities
from test_trusted import SHAPES, calibrate

from c2f_zoo import Hierarchy, Prediction, Predictor, create_model
from c2f_zoo.inference.predict_files import predict_files
from c2f_zoo.inference.prediction_table import PredictionTable, level_columns
from c2f_zoo.io.files import read_csv
from c2f_zoo.io.weights import digest_weights

SETTINGS = {"weights": "0", "risk": 0.1}
FILES = ["=1+1.png", '@"q",y.png', "line\nbreak\r.png", "Čáp カ.png", "odd\udcff.png"]


def rows_of(files: Sequence[str]) -> list[tuple[str, Prediction | None, str]]:
    """Return for each file a prediction, or an error."""
    found = Prediction([("kind", "=round", 0.75), ("shape", "disc, flat", 0.5)], trusted_path=[("kind", "=round", 0.9)])
    return [
        (file, None, 'damaged:\n"line 2"') if number % 3 == 2 else (file, found, "")
        for number, file in enumerate(files)
    ]


def write(path: Path, rows: Sequence[tuple[str, Prediction | None, str]]) -> list[str]:
    """Write the rows that are missing in a table; return their files."""
    written = []
    with PredictionTable(path, ["kind", "shape"], SETTINGS) as table:
        for file, prediction, error in rows:
            if table.error_of(file) is None:
                table.append(file, prediction, error)
                written.append(file)
    return written


def test_a_table_has_a_row_for_each_file(tmp_path: Path) -> None:
    write(tmp_path / "out.csv", rows_of(FILES))
    text = (tmp_path / "out.csv").read_text(encoding="utf-8")
    assert text.splitlines()[0] == (
        "file,kind,kind_confidence,shape,shape_confidence,trusted_level,trusted_name,trusted_confidence,error"
    )
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        cells = list(csv.reader(file))[1:]
    assert not [cell for row in cells for cell in row if cell[:1] in {*"=+@\t\r"}]
    rows = read_csv(tmp_path / "out.csv")
    assert [row["file"] for row in rows] == [file.replace("\udcff", "\\udcff") for file in FILES]
    assert [*rows[0].values()][1:] == ["=round", "0.7500", "disc, flat", "0.5000", "kind", "=round", "0.9000", ""]
    assert [*rows[2].values()][1:] == [""] * 7 + ['damaged:\n"line 2"']


def test_a_table_that_was_cut_anywhere_is_continued(tmp_path: Path) -> None:
    rows, path = rows_of(FILES), tmp_path / "out.csv"
    assert write(path, rows) == FILES
    whole = path.read_bytes()
    assert write(path, rows) == []
    counts = set()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        counts.add(len(write(path, rows)))
        assert path.read_bytes() == whole, size
    assert counts == {*range(1, len(FILES) + 1)}


def test_another_table_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write(path, rows_of(FILES))
    whole = path.read_bytes()
    for levels, settings, message in (
        (["kind", "shape"], {**SETTINGS, "weights": "1"}, r"another model or other options \(weights\)"),
        (["kind"], SETTINGS, r"has other columns \(file, kind, .*\); name another file"),
        (["kind", "shape"], {**SETTINGS, "more": 1}, "missing or damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            PredictionTable(path, levels, settings)
        assert path.read_bytes() == whole
    (tmp_path / "out.csv.json").unlink()
    with pytest.raises(ValueError, match=r"cannot be continued: out\.csv\.json, which names its model, is missing"):
        write(path, [])
    for content in (b"some notes", b"file,note\r\nx,y"):
        path.write_bytes(whole)
        (tmp_path / "out.csv.json").write_text(json.dumps(SETTINGS))
        path.write_bytes(content)
        with pytest.raises(ValueError, match="has other columns"):
            write(path, [])
        assert path.read_bytes() == content
    path.unlink()
    assert write(path, rows_of(FILES)) == FILES  # the settings alone do not keep a new table from being written
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "none" / "out.csv", [])


@pytest.mark.parametrize(
    "levels", [["file", "error"], ["a", "a_confidence"], ["a_confidence", "a"], ["trusted_name", "level_file", "file"]]
)
def test_columns_of_levels_do_not_clash(levels: list[str], tmp_path: Path) -> None:
    columns = level_columns(levels)
    every = ["file", "trusted_level", "trusted_name", "trusted_confidence", "error"]
    every += [name for column in columns.values() for name in (column, f"{column}_confidence")]
    assert len({*every}) == len(every) == 5 + 2 * len(levels)
    with PredictionTable(tmp_path / "out.csv", levels, {}) as table:
        table.append("1.png", Prediction([(level, f"class of {level}", 0.5) for level in levels]))
    (row,) = read_csv(tmp_path / "out.csv")
    assert {level: row[columns[level]] for level in levels} == {level: f"class of {level}" for level in levels}
    assert (row["file"], row["error"]) == ("1.png", "")


# The command


@pytest.fixture
def shapes_run(tmp_path: Path) -> str:
    """Save a calibrated model that predicts the same for every image."""
    model = model_with_probabilities(SHAPES)
    calibrate(model, 0.8, weights=digest_weights(model.state_dict())).save_pretrained(tmp_path / "run")
    return str(tmp_path / "run")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write five images in nested folders, one damaged, beside other files; return the folder."""
    folder = tmp_path / "photos"
    names = ["1.png", "b/0.png", "b/=1+1.png", "b/cut.png"]
    names.append("line\nbreak ž.png" if os.name == "posix" else "line break ž.png")
    for name in [*names, "@eaDir/1.png", ".trash/1.png"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 50, 3), 90, dtype=np.uint8)).save(folder / name)
    (folder / "b" / "cut.png").write_bytes((folder / "1.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.mark.slow
def test_an_interrupted_command_goes_on(shapes_run: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    command = ("predict", shapes_run, str(photos), "--csv", str(out))
    code, printed, errors = run(*command)
    assert (code, printed) == (1, "")
    for note in ("service folders, left out: 1", "without an image extension, left out: 1", "hidden files and folders"):
        assert note in errors
    *_, reason, summary = errors.splitlines()
    assert "cut.png" in reason and summary == "c2f-zoo: 1 of 5 images cannot be predicted"
    rows, whole = read_csv(out), out.read_bytes()
    files = [os.path.relpath(row["file"], photos) for row in rows]
    assert len(files) == 5 and {"1.png", os.path.join("b", "=1+1.png")} <= {*files}
    assert {(row["kind"], row["shape"], row["trusted_name"]) for row in rows if not row["error"]} == {
        ("round", "disc", "round")
    }
    assert [bool(row["error"]) for row in rows] == ["cut.png" in row["file"] for row in rows]
    code, _, errors = run(*command, "--risk", "0.01")
    assert code == 1 and "another model or other options (risk)" in errors and out.read_bytes() == whole
    predictor = Predictor.from_pretrained(shapes_run, batch_size=2)
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for size in (5, ends[0], ends[1] + 3, ends[3], len(whole) - 1, len(whole)):
        out.write_bytes(whole[:size])
        with redirect_stderr(io.StringIO()) as stderr:
            assert predict_files(predictor, [photos], out) == 1
        assert out.read_bytes() == whole, size
        assert stderr.getvalue().splitlines()[-2:] == [reason, summary]
        assert ("has rows of" in stderr.getvalue()) == (size > ends[0])
    assert "has rows of 5 files already; 0 are left" in stderr.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.slow
def test_json_is_an_array_in_any_encoding(encoding: str, shapes_run: str, photos: Path) -> None:
    code, printed, _ = run("predict", shapes_run, str(photos), "--json", "--top-k", "2", encoding=encoding)
    rows = json.loads(printed)
    assert (code, len(rows)) == (1, 5)
    assert [os.path.basename(row["file"]) for row in rows if row["error"]] == ["cut.png"]
    good = [row for row in rows if not row["error"]]
    assert {row["trusted"]["name"] for row in good} == {"round"}
    assert [step["name"] for step in good[0]["top_k"]] == ["disc", "ring"]
    assert good[0]["provenance"]["threshold"] == 0.8
    names = {os.path.basename(row["file"]) for row in rows}
    assert any(name.startswith("line") and name.endswith("ž.png") for name in names)


@pytest.mark.slow
def test_lines_show_the_trusted_part_first(shapes_run: str, photos: Path) -> None:
    image = str(photos / "1.png")
    text = "trusted: round (0.90); guess: disc (0.55)"
    assert run("predict", shapes_run, image, "--top-k", "1") == (0, f"{text}\n  disc (0.55)\n", "")
    code, printed, errors = run("predict", shapes_run, image, str(photos / "b"), image)
    assert [line.split(": ", 1)[1] for line in printed.splitlines()] == [text] * 3
    assert code == 1 and "files named twice, predicted once: 1" in errors
    (photos / "list.txt").write_text("ring\nsquare\n")
    options = ("--species-list", str(photos / "list.txt"), "--only", "edged", "--only", "round", "--level", "kind")
    assert run("predict", shapes_run, image, *options, "--risk", "0.01")[:2] == (0, "trusted: round (1.00)\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--csv", "out.csv", "--top-k", "2"], "--top-k has no columns in a CSV file"),
        (["--only", "dics"], "unknown class 'dics'; did you mean 'disc'"),
    ],
)
@pytest.mark.slow
def test_wrong_options_are_errors(arguments: list[str], message: str, shapes_run: str, photos: Path) -> None:
    code, printed, errors = run("predict", shapes_run, str(photos / "1.png"), *arguments)
    assert (code, printed) == (1, "") and message in errors


@pytest.mark.slow
def test_a_folder_without_images_is_an_error(shapes_run: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, errors = run("predict", shapes_run, str(tmp_path / "empty"))
    assert code == 1 and "no images in" in errors


@pytest.mark.slow
def test_levels_named_as_columns_are_predicted(tmp_path: Path) -> None:
    tree = Hierarchy.from_rows(("file", "error"), [("round", "disc"), ("edged", "box")])
    options: dict[str, Any] = {**SMALL, "hierarchy": tree}
    create_model("mlph", **options).save_pretrained(tmp_path / "run")
    Image.new("RGB", (40, 40)).save(tmp_path / "1.png")
    code, *_ = run("predict", str(tmp_path / "run"), str(tmp_path / "1.png"), "--csv", str(tmp_path / "out.csv"))
    (row,) = read_csv(tmp_path / "out.csv")
    assert (code, row["file"], row["error"]) == (0, str(tmp_path / "1.png"), "")
    assert (row["level_file"], row["level_error"]) in {("round", "disc"), ("edged", "box")}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are Unicode there")
def test_a_name_that_is_no_unicode_is_predicted_once(shapes_run: str, tmp_path: Path) -> None:
    file, out = os.path.join(os.fsencode(tmp_path), b"odd\xff.png"), tmp_path / "out.csv"
    Image.new("RGB", (40, 40)).save(tmp_path / "1.png")
    os.rename(tmp_path / "1.png", file)
    predictor, paths = Predictor.from_pretrained(shapes_run), [Path(os.fsdecode(file))]
    assert predict_files(predictor, paths, out) == 0
    whole = out.read_bytes()
    assert b"odd\\udcff.png" in whole
    with redirect_stderr(io.StringIO()) as stderr:
        assert predict_files(predictor, paths, out) == 0
    assert "0 are left" in stderr.getvalue() and out.read_bytes() == whole
    with redirect_stdout(io.StringIO()) as stdout:
        assert predict_files(predictor, paths, as_json=True) == 0
    assert json.loads(stdout.getvalue())[0]["file"] == os.fsdecode(file)
    code, printed, _ = run("predict", shapes_run, os.fsdecode(file), str(tmp_path / "none.png"), encoding="cp1252")
    assert code == 1 and printed.startswith(str(tmp_path))
