"""Figures of results: what they show of their rows, when they are stale, and the entries of this repository."""

from __future__ import annotations

import itertools
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.text import Text

from c2f_zoo import list_poolings
from c2f_zoo.evaluation.markdown_tables import TABLES, TableSpec, make_table, read_specs
from c2f_zoo.evaluation.pages import render_pages
from c2f_zoo.evaluation.result_figures import PLOTS, FigureSpec, figure_path, figure_rows, stale_figures, write_figure
from c2f_zoo.evaluation.result_plots import pareto_front, plot_ablation, plot_cost, plot_dims, plot_resolution
from c2f_zoo.io.files import write_csv

ROOT = Path(__file__).parents[1]
LEVELS = ("family", "genus", "species")
MACHINE = {"date": "2026-01-02T03:04:05", "device": "2 cores, X", "torch": "2.6", "command": "python recipes/a.py"}
TABLES_YAML = """
tables: {}
figures:
  curves:
    plot: resolution
    alt: Two curves
    sources: [{file: docs/results/a.csv, where: {minus: ""}}]
    data: some images
"""


def row(model: str, level: str, value: float, minus: str = "", **more: Any) -> dict[str, str]:
    """Return a row whose interval reaches 0.01 down and 0.02 up, with every value as text."""
    names = {"model": model, "method": model, "backbone": "lite0", "minus": minus, "level": level}
    numbers = {"value": value, "low": value - 0.01, "high": value + 0.02}
    return {key: str(one) for key, one in {**names, **numbers, **more}.items()}


def lines(ax: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Return the labelled lines of a panel."""
    found = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in found}


def bars(ax: Axes, axis: int) -> list[list[float]]:
    """Return the ends of the lines of two points that are parallel to an axis (0: x), in order of their place."""
    ends = [np.column_stack(line.get_data()).astype(float) for line in ax.get_lines() if len(line.get_xdata()) == 2]
    parallel = sorted((both for both in ends if both[0, 1 - axis] == both[1, 1 - axis]), key=lambda b: b[0, 1 - axis])
    return [[float(both[0, axis]), float(both[1, axis])] for both in parallel]


def test_resolution_has_a_panel_for_each_level_with_the_intervals_of_the_rows() -> None:
    scores = {"a": {24: 0.5, 227: 0.9, 80: 0.8}, "b": {24: 0.4, 227: 0.7, 80: 0.6}}
    rows = [
        row(model, level, value, resolution=at)
        for model, of in scores.items()
        for at, value in of.items()
        for level in LEVELS
    ]
    axes = plot_resolution(rows, names={"a": "our model"}).axes
    assert [ax.get_title() for ax in axes] == list(LEVELS)
    for ax in axes:
        found = lines(ax)
        assert found["our model"] == ([24, 80, 227], pytest.approx([50, 80, 90]))
        assert found["b"] == ([24, 80, 227], pytest.approx([40, 60, 70]))
        band = ax.collections[0].get_paths()[0].vertices
        assert sorted({(round(x), round(y, 6)) for x, y in band}) == [
            (24, 49),
            (24, 52),
            (80, 79),
            (80, 82),
            (227, 89),
            (227, 92),
        ]
        assert ax.get_xscale() == "log" and [text.get_text() for text in ax.get_xticklabels()] == ["24", "80", "227"]


def test_labels_of_close_resolutions_are_left_out() -> None:
    row = {"model": "a", "level": "genus", "value": "0.5", "low": "0.4", "high": "0.6"}
    (ax,) = plot_resolution([{**row, "resolution": str(at)} for at in (24, 80, 96, 112, 227)]).axes
    assert [text.get_text() for text in ax.get_xticklabels()] == ["24", "80", "", "112", "227"]


def test_dims_are_those_of_the_methods_names() -> None:
    rows = [
        row(f"{name}_{d}", "genus", value)
        for name, d, value in [("mlph", 8192, 0.9), ("mlph", 256, 0.7), ("hbp", 256, 0.6)]
    ]
    (ax,) = plot_dims(rows).axes
    assert lines(ax) == {"mlph": ([256, 8192], pytest.approx([70, 90])), "hbp": ([256], pytest.approx([60]))}
    with pytest.raises(ValueError, match="the method 'mlph' is not called NAME_D"):
        plot_dims([row("mlph", "genus", 0.5)])


def test_ablation_sorts_methods_and_shows_which_differences_are_not_zero() -> None:
    rows = [
        row("a", "genus", 0.5),
        row("b", "genus", 0.75),
        row("a", "species", 0.25),
        row("b", "genus", 0.25, minus="a"),
    ]
    rows.append(row("a", "genus", 0.005, minus="b"))
    left, right, below, empty = plot_ablation(rows, names={"b": "B"}).axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["B", "a"]
    assert bars(left, 0) == [pytest.approx([74, 77]), pytest.approx([49, 52])]
    assert [text.get_text() for text in right.get_yticklabels()] == ["B \N{MINUS SIGN} a", "a \N{MINUS SIGN} B"]
    assert bars(right, 0) == [pytest.approx([24, 27]), pytest.approx([-0.5, 2.5])]
    dots = [line for line in right.get_lines() if line.get_marker() == "o"]
    assert [to_rgba(dot.get_markerfacecolor()) == to_rgba("white") for dot in dots] == [False, True]
    assert left.get_ylim()[0] > left.get_ylim()[1], "the best method is at the top"
    assert below.get_title() == "species" and not empty.get_visible()
    with pytest.raises(ValueError, match="several backbones: lite0, vgg16"):
        plot_ablation([*rows, {**rows[0], "backbone": "vgg16"}])


def test_the_pareto_front_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        points = [tuple(point) for point in rng.integers(0, 5, (rng.integers(1, 9), 2)).tolist()]
        better = [
            any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points) for cost, value in points
        ]
        front = pareto_front([cost for cost, _ in points], [value for _, value in points])
        assert sorted(front) == [i for i, is_beaten in enumerate(better) if not is_beaten]
        assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def cost_rows() -> list[dict[str, str]]:
    """Return rows of methods that are close to each other in accuracy, time and memory."""
    speeds = [20, 21, 22, 22, 23, 24, 12, 11, 20, 22, 23]
    return [
        row(f"method {i}", "species", 0.9 - 0.004 * i, images_s=speed, peak_mib=100 + 3 * i, batch=8)
        for i, speed in enumerate(speeds)
    ]


def test_cost_shows_time_and_memory_and_fills_the_front() -> None:
    rows = cost_rows()
    figure = plot_cost(rows, batch=8)
    time, memory = figure.axes
    for ax, costs in (
        (time, [1000 / float(one["images_s"]) for one in rows]),
        (memory, [100 + 3 * i for i in range(11)]),
    ):
        dots = [line for line in ax.get_lines() if line.get_marker() == "o"]
        assert [float(dot.get_xdata()[0]) for dot in dots] == pytest.approx(costs)
        filled = [i for i, dot in enumerate(dots) if to_rgba(dot.get_markerfacecolor()) != to_rgba("white")]
        assert filled == sorted(pareto_front(costs, [float(one["value"]) for one in rows]))
        assert len(bars(ax, 1)) == 11
        assert bars(ax, 1)[0] == pytest.approx(sorted(bars(ax, 1)[0]))
    with pytest.raises(ValueError, match="11 rows have a batch of 8 in place of 4"):
        plot_cost(rows, batch=4)


def test_labels_cover_neither_points_nor_labels() -> None:
    figure = plot_cost(cost_rows(), batch=8)
    figure.draw_without_rendering()
    for ax in figure.axes:
        boxes = [Text.get_window_extent(text) for text in ax.texts]  # without the lines to their points
        points = ax.transData.transform([line.get_xydata()[0] for line in ax.get_lines() if line.get_marker() == "o"])
        assert len(boxes) == len(points) == 11
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        assert not any(box.contains(*point) for box in boxes for point in points)
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return the folder of a repository with a figure that is not drawn yet."""
    results = tmp_path / "docs" / "results"
    results.mkdir(parents=True)
    rows = [
        row(model, "genus", value, resolution=at)
        for model, at, value in [("a", 24, 0.5), ("a", 80, 0.75), ("b", 24, 0.25)]
    ]
    write_csv(
        results / "a.csv", [{**one, **MACHINE} for one in [*rows, row("a", "genus", 0.125, minus="b", resolution=24)]]
    )
    (results / "tables.yaml").write_text(TABLES_YAML)
    (results / "numbers.yaml").write_text("{}")
    (tmp_path / "README.md").write_text("# Page\n\n<!-- figure: curves -->\n<!-- end -->\n")
    return tmp_path


def report(root: Path, check: bool) -> int:
    """Run the recipe's `main`."""
    status: int = runpy.run_path(str(ROOT / "recipes" / "report.py"))["main"](check, str(root))
    return status


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_figure_is_drawn_and_a_changed_file_makes_it_stale(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(repository, check=True) == 1
    assert "stale: figure curves\n" in capsys.readouterr().out
    assert not figure_path(repository, "curves").exists()
    assert report(repository, check=False) == 0
    assert (repository / "README.md").read_text() == (
        "# Page\n\n<!-- figure: curves -->\n\n![Two curves](docs/assets/curves.png)\n\n"
        "some images; 2026-01-02; 2 cores, X; torch 2.6; `python recipes/a.py`; [a.csv](docs/results/a.csv)\n\n"
        "<!-- end -->\n"
    )
    drawn = figure_path(repository, "curves").read_bytes()
    assert report(repository, check=True) == 0 and not stale_figures(repository)
    change(repository / "docs/results/a.csv", "0.125,0.115", "0.126,0.115")  # of the difference
    assert not stale_figures(repository), "a row that the figure does not show"
    change(repository / "docs/results/a.csv", "0.75,0.74", "0.76,0.74")
    capsys.readouterr()
    assert report(repository, check=True) == 1
    assert "stale: figure curves\n" in capsys.readouterr().out
    assert report(repository, check=False) == 0 and not stale_figures(repository)
    assert figure_path(repository, "curves").read_bytes() != drawn
    change(repository / TABLES, "some images", "some images\n    options: {names: {a: A}}")
    assert list(stale_figures(repository)) == ["curves"]


def test_the_same_rows_give_the_same_file(repository: Path) -> None:
    spec = stale_figures(repository)["curves"]
    drawn = set()
    for _ in range(2):
        write_figure(repository, "curves", spec)
        drawn.add(figure_path(repository, "curves").read_bytes())
    assert len(drawn) == 1


def test_a_figure_without_its_file_is_left_out_and_named(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "README.md").write_text("# Page\n")
    (repository / "docs/results/a.csv").unlink()
    assert report(repository, check=False) == report(repository, check=True) == 0
    assert "left out: figure curves: there is no docs/results/a.csv yet\n" in capsys.readouterr().out


def test_costs_are_those_of_a_methods_pooling(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "costs.csv", [{"pooling": "avg", "ms": 1, "device": "C"}, {"pooling": "mlp", "ms": 2, "device": "C"}]
    )
    write_csv(tmp_path / "rows.csv", [row("probe", "genus", 0.5), row("mlph", "genus", 0.75)])

    def rows_of(**poolings: str) -> list[dict[str, str]]:
        source = {"file": "rows.csv", "costs": "costs.csv", "poolings": poolings}
        return figure_rows(tmp_path, FigureSpec("cost", "", [source]))

    assert [(one["method"], one["ms"]) for one in rows_of(probe="avg", mlph="mlp")] == [("probe", "1"), ("mlph", "2")]
    with pytest.raises(ValueError, match=r"the method 'mlph' of rows\.csv has no pooling"):
        rows_of(probe="avg")
    with pytest.raises(ValueError, match=r"0 rows of costs\.csv are of 'hbp', and not one"):
        rows_of(probe="avg", mlph="hbp")


def test_rows_that_cannot_be_drawn_are_an_error_with_the_figures_name(repository: Path) -> None:
    spec = stale_figures(repository)["curves"]
    with pytest.raises(
        ValueError, match=r"figure 'curves': KeyError\('resolution'\); the rows are those of docs/results/a"
    ):
        change(repository / "docs/results/a.csv", "resolution", "pixels")
        write_figure(repository, "curves", spec)
    with pytest.raises(ValueError, match="unknown plot 'resolutions'"):
        write_figure(repository, "curves", FigureSpec("resolutions", "", spec.sources))


def test_the_figures_of_this_repository_are_current() -> None:
    assert not stale_figures(ROOT), "run python recipes/report.py"


def test_the_entries_of_this_repository_are_drawn_from_hand_made_files(tmp_path: Path) -> None:
    """Also tables and figures whose files are not measured yet."""
    results, specs = tmp_path / "docs" / "results", read_specs(ROOT)
    results.mkdir(parents=True)
    shutil.copy(ROOT / TABLES, results)
    methods = yaml.safe_load((ROOT / "recipes/configs/ablation_cub100_lite0.yaml").read_text())["methods"]
    pairs = yaml.safe_load((ROOT / "recipes/configs/ablation_cub100_lite0.yaml").read_text())["pairs"]
    dims = yaml.safe_load((ROOT / "recipes/configs/ablation_cub100_dims.yaml").read_text())["methods"]
    grid = yaml.safe_load((ROOT / "recipes/configs/resolutions_cub100.yaml").read_text())["grid"]
    summary = [row(method, level, 0.8 + 0.01 * i) for i, method in enumerate(methods) for level in LEVELS]
    summary += [row(first, level, 0.01, minus=second) for first, second in pairs for level in LEVELS]
    models = [("any_resolution", ""), ("linear_probe", ""), ("any_resolution", "linear_probe")]
    files = {
        "ablation-cub100-lite0-summary": summary,
        "ablation-cub100-lite0": [{**MACHINE, "seed": "0"}],
        "ablation-cub100-dims-summary": [row(method, level, 0.8) for method in dims for level in LEVELS],
        "ablation-cub100-dims": [{**MACHINE, "seed": "0"}],
        "resolution-cub100": [
            row(model, level, 0.5, minus=minus, resolution=at)
            for model, minus in models
            for at in grid
            for level in LEVELS
        ],
        "poolings-lite0-cpu": [
            {"pooling": name, "images_s": 10 + i, "peak_mib": 100 - i, "batch": 8}
            for i, name in enumerate(list_poolings())
        ],
        "part_rcnn-cub50_vgg16-boxes": [
            {
                "image": 0,
                "width": 40,
                "height": 30,
                "kind": kind,
                "of": of,
                "left": 1,
                "top": 2,
                "right": 21,
                "bottom": 22,
            }
            for kind in ("found", "annotated")
            for of in ("object", "head", "body")
        ],
    }
    for name, rows in files.items():
        write_csv(results / f"{name}.csv", [{**one, **MACHINE} for one in rows])
    tables = {"ablation_lite0": len(methods), "ablation_lite0_pairs": len(pairs)}
    tables |= dict.fromkeys(("resolution_cub100", "resolution_cub100_probe", "resolution_cub100_pairs"), len(grid))
    for name, count in tables.items():
        cells = make_table(tmp_path, TableSpec(**specs["tables"][name])).splitlines()[2:]
        assert len(cells) == count and all(line.count(" to ") == 3 for line in cells), name
    (tmp_path / "README.md").write_text(
        "\n".join(f"<!-- figure: {name} -->\n<!-- end -->" for name in specs["figures"])
    )
    ((_, text),) = render_pages(tmp_path).values()
    for name, spec in stale_figures(tmp_path).items():
        assert spec.alt in text and spec.plot in PLOTS
        write_figure(tmp_path, name, spec)
    assert not stale_figures(tmp_path) and all(figure_path(tmp_path, name).exists() for name in specs["figures"])
