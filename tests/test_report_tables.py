"""Tables and values of pages that are made from CSV files, and the check of the pages' numbers."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from c2f_zoo.evaluation.markdown_tables import TableSpec, make_table, provenance, selected_rows
from c2f_zoo.evaluation.pages import check_numbers, measured_numbers, render_pages, stale_blocks

ROOT = Path(__file__).parents[1]
CSV = """model,level,risk,accuracy,low,high,seed,date,device,torch
a,genus,0.1,0.5,0.4,0.605,0,2026-01-02T03:04:05,"2 cores, X",2.6
a,genus,0.01,0.25,0.2,0.3,0,2026-01-03T03:04:05,"2 cores, X",2.6
b,genus,0.1,0.75,0.7,0.8,1,2026-01-02T03:04:05,"2 cores, X",2.6
"""
PAGE = """# Page

<!-- table: accuracy -->
old
<!-- end -->

The best is <!-- value: best -->?<!-- end --> %.

```
<!-- table: an example -->
```
"""
TABLES = """
tables:
  accuracy:
    file: docs/results/a.csv
    where: {risk: 0.1}
    columns: {model: "`{model}`", accuracy: "{accuracy:%} ({low:%} to {high:%})"}
    best: {accuracy: max}
    data: some images
values:
  best: {file: docs/results/a.csv, where: {model: b}, text: "{accuracy:%}"}
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return the folder of a repository with one table and one value, not yet written."""
    results = tmp_path / "docs" / "results"
    results.mkdir(parents=True)
    (tmp_path / "README.md").write_text(PAGE)
    (results / "a.csv").write_text(CSV)
    (results / "tables.yaml").write_text(TABLES)
    (results / "numbers.yaml").write_text("{}")
    return tmp_path


def report(root: Path, check: bool) -> int:
    """Run the recipe's `main`."""
    status: int = runpy.run_path(str(ROOT / "recipes" / "report.py"))["main"](check, str(root))
    return status


def table(root: Path, **spec: Any) -> list[list[str]]:
    """Return the cells of a table of the hand-made CSV file."""
    text = make_table(root, TableSpec("docs/results/a.csv", **spec))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_cells_are_selected_formatted_and_sorted(repository: Path) -> None:
    columns = {"model": "{model}", "%": "{accuracy:%}", "x": "{accuracy:.2f}", "empty": "{none}"}
    (repository / "docs/results/a.csv").write_text("model,accuracy,none\nb,0.5,\na,0.125,\nc,nan,\n")
    header, _, *cells = table(
        repository, columns=columns, sort=["accuracy"], where=[{"model": ["a", "b"]}, {"model": "c"}]
    )
    assert header == ["model", "%", "x", "empty"]
    assert sorted(cells) == [["a", "12.5", "0.12", ""], ["b", "50.0", "0.50", ""], ["c", "-", "-", ""]]
    assert table(repository, columns=columns, sort=["model"], where={"model": ["b", "a"]})[2][0] == "a"


def test_rows_of_one_model_are_merged(repository: Path) -> None:
    spread = {"by": ["model"], "over": "risk", "of": ["accuracy"]}
    columns = {"model": "{model}", "10 %": "{accuracy@0.1:%}", "1 %": "{accuracy@0.01:%}"}
    assert table(repository, columns=columns, spread=spread)[2:] == [["a", "50.0", "25.0"], ["b", "75.0", ""]]


def test_a_column_is_compared_with_the_base_rows(repository: Path) -> None:
    relative = {"to": {"model": "a"}, "within": ["risk"], "of": ["accuracy"]}
    columns = {"model": "{model}", "ratio": "{accuracy/base:.3f}"}
    found = table(repository, columns=columns, relative=relative, where={"risk": 0.1})
    assert found[2:] == [["a", "1.000"], ["b", "0.667"]]


def test_levels_are_rows_with_their_classes_and_bold_cells(repository: Path) -> None:
    (repository / "docs/results/a.csv").write_text("genus/top1,family_top1\n0.5,1.0\n")
    found = table(
        repository,
        each={"name": "level", "prefixes": ["family", "genus"]},
        tree="critters",
        columns={"level": "{level}", "classes": "{classes}", "top1": "{top1:%}"},
        bold={"genus": ["top1"]},
    )
    assert found[2:] == [["family", "4", "100.0"], ["genus", "12", "**50.0**"]]


def test_a_table_of_methods_shows_paired_differences_and_the_machine_of_another_file(repository: Path) -> None:
    results = repository / "docs" / "results"
    (results / "summary.csv").write_text(
        "method,minus,level,value,low,high\n"
        "mlph,mlp,species,0.012,-0.001,0.025\nmlph,,genus,0.9,0.8,0.95\nmlph,,species,0.8,0.7,0.85\nmlp,,species,0.5,0.4,0.6\n"
    )
    (results / "tables.yaml").write_text("""
tables:
  accuracy: &methods
    file: docs/results/summary.csv
    about: docs/results/a.csv
    where: {minus: ""}
    spread: {by: [method, minus], over: level, of: [value, low, high]}
    columns: {method: "{method}", species: "{value@species:%}", genus: "{value@genus:%}"}
  best:
    <<: *methods
    where: {minus: [mlp]}
    columns: {methods: "{method} - {minus}", species: "{value@species:+%} ({low@species:+%} to {high@species:+%})"}
""")
    (repository / "README.md").write_text(
        "<!-- table: accuracy -->\n<!-- end -->\n<!-- table: best -->\n<!-- end -->\n"
    )
    assert report(repository, check=False) == 0
    text = (repository / "README.md").read_text()
    assert "| mlph | 80.0 | 90.0 |\n| mlp | 50.0 |  |\n" in text
    assert "| mlph - mlp | +1.2 (-0.1 to +2.5) |\n" in text
    assert (
        text.count("; 2 cores, X; torch 2.6; seeds 0, 1; command not recorded; [summary.csv](docs/results/summary.csv)")
        == 2
    )


def test_unknown_columns_and_missing_rows_are_errors(repository: Path) -> None:
    with pytest.raises(ValueError, match="no column 'acuracy', the columns are model, level"):
        table(repository, columns={"x": "{acuracy:%}"})
    with pytest.raises(ValueError, match=r"no row of docs/results/a\.csv has"):
        table(repository, columns={"x": "{model}"}, where={"model": "c"})


def test_provenance_names_every_date_device_version_and_seed(repository: Path) -> None:
    spec = TableSpec("docs/results/a.csv", data="some images")
    line = provenance(selected_rows(repository, spec), spec, "[a.csv](a.csv)")
    assert line == (
        "some images; 2026-01-02 to 2026-01-03; 2 cores, X; torch 2.6; seeds 0, 1; command not recorded; [a.csv](a.csv)"
    )
    assert provenance([{}], TableSpec("a.csv"), "a.csv") == (
        "date not recorded; device not recorded; versions not recorded; command not recorded; a.csv"
    )


def test_pages_are_written_and_a_changed_file_makes_them_stale(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, file = repository / "README.md", repository / "docs/results/a.csv"
    assert report(repository, check=True) == 1
    assert "stale: README.md: accuracy\nstale: README.md: best\n" in capsys.readouterr().out
    assert page.read_text() == PAGE
    assert report(repository, check=False) == 0
    text = page.read_text()
    assert (
        "| `a` | 50.0 (40.0 to 60.5) |\n| `b` | **75.0 (70.0 to 80.0)** |\n\nsome images; 2026-01-02; 2 cores, X;"
        in text
    )
    assert "The best is <!-- value: best -->75.0<!-- end --> %." in text
    assert "[a.csv](docs/results/a.csv)" in text
    assert text.endswith(PAGE[PAGE.index("```") :])  # code is not changed
    assert report(repository, check=True) == 0 and stale_blocks(repository) == []
    file.write_text(CSV.replace("0.75,0.7,", "0.76,0.7,"))
    assert stale_blocks(repository) == ["README.md: accuracy", "README.md: best"]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- table: other -->\n<!-- end -->", "table 'other' of README.md: KeyError"),
        ("<!-- table: accuracy -->\n", "README.md: a generated block has no start .* or no end"),
        ("<!-- value: two -->0<!-- end -->", "3 rows of docs/results/a.csv have None, where a value needs one"),
    ],
)
def test_faulty_blocks_are_errors(repository: Path, page: str, message: str) -> None:
    (repository / "README.md").write_text(page)
    (repository / "docs/results/tables.yaml").write_text(
        TABLES + "  two: {file: docs/results/a.csv, text: '{accuracy}'}\n"
    )
    with pytest.raises(ValueError, match=message):
        render_pages(repository)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("90.5 and 1,289.6 of 3600 images", ["90.5", "1,289.6"]),
        ("10 % to 20 %, 5 to 7 times, 3 and 4.5 ms", ["10 %", "20 %", "5", "7 times", "3", "4.5 ms"]),
        (
            "34 images per second, 2x, 124 M, 12 MiB, 420 GFLOP/s",
            ["34 images per second", "2x", "124 M", "12 MiB", "420 GFLOP/s"],
        ),
        ("| 1.5 |\n|---|\n| 12 |", ["1.5"]),
        (
            "torch 2.14.1, 2026-11-28, [CSV](a-1.5.csv), https://a.org/1.5, `lr=0.1`, 512 x 28 x 28, d = 8192",
            [],
        ),
        ("```\n1.5\n```\nand <!-- 2.5 --> none", []),
    ],
)
def test_what_looks_measured(text: str, numbers: list[str]) -> None:
    assert measured_numbers(text) == numbers


def test_a_number_without_source_is_found(repository: Path) -> None:
    report(repository, check=False)
    page, listed = repository / "README.md", repository / "docs/results/numbers.yaml"
    page.write_text(page.read_text() + "\nIt was 99.9 % once, at lr 0.1.\n")
    assert check_numbers(repository).faults == [
        "README.md: '99.9 %' is neither generated nor listed",
        "README.md: '0.1' is neither generated nor listed",
    ]
    listed.write_text("README.md: {setting: ['0.1', '0.2']}\nother.md: {setting: ['1 %']}")
    check = check_numbers(repository)
    assert check.listed == 1
    assert check.faults == [
        "README.md: '99.9 %' is neither generated nor listed",
        "README.md: '0.2' is listed, but not there",
        "other.md is listed, but is no page",
    ]
    assert report(repository, check=False) == 1


def test_the_pages_of_this_repository_are_current() -> None:
    assert stale_blocks(ROOT) == [], "run python recipes/report.py"


def test_every_number_of_this_repository_has_a_source() -> None:
    check = check_numbers(ROOT)
    assert check.faults == []
    assert check.generated > 500
