"""Class and level names that come from others: in a terminal, in drawings, in CSV files and in Markdown."""

from __future__ import annotations

import csv
from html import unescape
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image
from typer.testing import CliRunner

from c2f_zoo import Hierarchy, Predictor, cli, create_dataset, create_model
from c2f_zoo.evaluation.confusion import write_confusions
from c2f_zoo.hierarchy import draw_image, draw_text
from c2f_zoo.hierarchy.escape import fenced, markdown, printable, rich_text
from c2f_zoo.inference.prediction import Prediction
from c2f_zoo.io.card import Run, model_card
from c2f_zoo.io.files import read_csv, write_csv
from c2f_zoo.training.launch import error_message
from c2f_zoo.training.step_log import StepLog

RED, BELL, SCRIPT, FENCE = "\x1b[31mred", "bell\x07", "<script>alert(1)</script>", "```\n# heading"
FORMULAS = ["=HYPERLINK(A1)", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "＝1", "'=a", "''@b", "\tx"]
HARMLESS = ["gull", "'tis", "-0.5", "+3", "-inf", "a=b", ""]
TREE = Hierarchy(("ki|nd", "<b>shape"), ((RED, SCRIPT), (BELL, FENCE, ":cat: [bold]x")), ((0, 0, 1),))


@pytest.mark.parametrize("text", [RED, BELL, FENCE, "\x9b31m", "a\u202eb", "a\u2028b", "\udce9", "a\r\x08\x7f"])
def test_a_terminal_gets_one_line_without_control_characters(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() and shown.encode() and "\\" in shown
    assert shown.encode().decode("unicode_escape").encode("utf-16", "surrogatepass") == text.encode(
        "utf-16", "surrogatepass"
    )


@pytest.mark.parametrize("text", ["Möwe", "カモメ\u3000類", "می\u200cخواهم", "a b\u00a0c", "e\u0301"])
def test_names_of_any_script_stay(text: str) -> None:
    assert printable(text) == text


def test_predictions_drawings_and_errors_are_printable() -> None:
    assert str(Prediction([("a", RED, 0.5), ("b", BELL, 0.25)])) == "\\x1b[31mred (0.50) > bell\\x07 (0.25)"
    assert draw_text(TREE).splitlines() == [
        "\\x1b[31mred (2)", "├── bell\\x07", "└── ```\\n# heading", "<script>alert(1)</script> (1)",
        "└── :cat: [bold]x",
    ]  # fmt: skip
    drawn = {text.get_text() for text in draw_image(TREE).axes[0].texts}
    assert {"\\x1b[31mred", "bell\\x07"} <= drawn
    assert error_message(ValueError(f"{RED}\nbelow")) == "\\x1b[31mred\nbelow"


def test_info_of_a_tree_shows_names_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "tree.csv").write_text(f"[red]kind,:cat: shape\n{RED},{BELL}\n")
    shown = CliRunner().invoke(cli.app, ["info", str(tmp_path / "tree.csv")]).output
    assert "level [red]kind" in shown and "level :cat: shape" in shown
    drawn = CliRunner().invoke(cli.app, ["info", str(tmp_path / "tree.csv"), "--tree"]).output
    assert drawn == "\\x1b[31mred (1)\n└── bell\\x07\n"


def test_errors_of_the_command_line_are_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["c2f-zoo", "info", f"{RED}.csv"])
    with pytest.raises(SystemExit) as error:
        cli.main()
    assert "\\x1b[31mred.csv" in str(error.value) and "\x1b" not in str(error.value)


def test_what_a_dataset_says_of_its_folders_is_printable(tmp_path: Path) -> None:
    for name in (f"{RED}/a", "b", f"c/{BELL}"):
        (tmp_path / name).mkdir(parents=True)
        for number in "01":
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "b" / BELL).write_text("no image")
    notes = create_dataset("folder", "train", root=tmp_path, test_fraction=0.5).notes
    assert len(notes) == 2 and all(map(str.isprintable, notes))


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\nb", "a\x07", "a\x9b", "a\u2028b"])
def test_names_of_levels_have_no_control_characters(name: str) -> None:
    with pytest.raises(ValueError, match="contains control characters; rename it"):
        Hierarchy((name,), (("x",),), ())


class TestCSV:
    def test_a_spreadsheet_sees_no_formula_and_names_come_back(self, tmp_path: Path) -> None:
        rows = [{"name": name, "=column": number - 0.5} for number, name in enumerate([*FORMULAS, *HARMLESS])]
        write_csv(tmp_path / "a.csv", rows)
        with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
            header, *cells = csv.reader(file)
        assert header == ["name", "'=column"]
        assert [cell[0] for cell in cells] == ["'" + name for name in FORMULAS] + HARMLESS
        assert cells[0][1] == "-0.5", "numbers stay"
        assert [row["name"] for row in read_csv(tmp_path / "a.csv")] == [*FORMULAS, *HARMLESS]
        assert list(read_csv(tmp_path / "a.csv")[0]) == ["name", "=column"]
        write_csv(tmp_path / "b.csv", read_csv(tmp_path / "a.csv"))
        assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()

    def test_confusion_matrices(self, tmp_path: Path) -> None:
        tree = Hierarchy(("shape",), (("=1+1", "disc"),), ())
        write_confusions(tmp_path, {"shape": torch.eye(2, dtype=torch.int64)}, tree)
        lines = (tmp_path / "confusion_shape.csv").read_text().split()
        assert lines == ["shape,'=1+1,disc", "'=1+1,1,0", "disc,0,1"]

    def test_steps(self, tmp_path: Path) -> None:
        log = StepLog(tmp_path / "steps.csv")
        log.add({"step": 1, "epoch": 1, "stage": 1, "level": "@kind", "lr": 0.1}, torch.tensor(-0.5))
        log.write()
        assert (tmp_path / "steps.csv").read_text().split()[1] == "1,1,1,'@kind,0.1,-0.5"
        assert read_csv(tmp_path / "steps.csv")[0]["level"] == "@kind"


class TestMarkdown:
    @pytest.mark.parametrize(
        "text", [SCRIPT, "a|b", "*a* _b_ __c__ `d`", "[x](y)", "\\|", "$$x$$", "&lt;", "a_b", "~~a~~"]
    )
    def test_names_are_plain_text(self, text: str) -> None:
        (token,) = MarkdownIt("gfm-like", {"linkify": False}).parseInline(f"x {markdown(text)} x")
        assert {child.type for child in token.children or []} == {"text"}
        assert "".join(child.content for child in token.children or []) == f"x {text} x"
        assert unescape(markdown(text)) == text and not set("<>|") & set(markdown(text))

    @pytest.mark.parametrize("text", ["plain", "```", "a\n```\n~~~\n# b", "````` x"])
    def test_fences_hold(self, text: str) -> None:
        (token,) = MarkdownIt().parse(fenced(text, "yaml"))
        assert (token.type, token.info, token.content) == ("fence", "yaml", text + "\n")

    def test_a_card(self) -> None:
        model = create_model("mlph", hierarchy=TREE, **SMALL)  # type: ignore[arg-type]
        row = {"resolution": "32", "own": "True", "accuracy": "0.5", "images": "4"}
        test = [{"level": level, **row} for level in TREE.levels]
        report = {
            "any_decoding": {"<b>shape/top1": 0.5}, "decodings": {"joint": {"fpa": 0.5}},
            "images": 4, "dataset": "x", "split": "test",
        }  # fmt: skip
        run = Run({"dataset": "x", "note": "```\n<script>"}, test, evaluation=report)
        text = model_card(model.config, "me/shapes", run=run)
        assert not {"\x1b", "\x07"} & set(text)
        body = ModelCard(text).text
        tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(body)
        assert not [token for token in tokens if token.type == "html_block"]
        inline = [child for token in tokens for child in token.children or []]
        assert not [child for child in inline if child.type == "html_inline"]
        assert "<b>shape" in {child.content for child in inline}
        titles = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
        assert titles[:5] == ["shapes", "Use", "Results", "Trust", "The model"]
        assert titles[5:] == ["The tree", "Training", "Licence", "Citation"]
        assert [len(row) for row in _rows(tokens, "ki|nd")] == [2, 3]


def _rows(tokens: list, first: str) -> list[list[str]]:
    """Return the rows of tables that start with a cell."""
    rows: list[list[str]] = []
    for number, token in enumerate(tokens):
        if token.type == "tr_open":
            rows.append([])
        if token.type in ("th_open", "td_open"):
            rows[-1].append("".join(child.content for child in tokens[number + 1].children or []))
    return [row for row in rows if row[0] == first]


def test_a_predicted_name_is_kept_as_it_is() -> None:
    model = create_model("mlph", hierarchy=TREE, **SMALL)  # type: ignore[arg-type]
    path = Predictor(model)(Image.new("RGB", (64, 64))).path
    assert {name for _, name, _ in path} <= {name for names in TREE.classes for name in names}
    assert rich_text("[bold]x") == "\\[bold]x"
