"""Figures of pages from the rows of CSV files, and which of them are older than their data.

The section `figures` of `docs/results/tables.yaml` has a `FigureSpec` for each. A figure NAME is the file
`docs/assets/NAME.png`, which carries a checksum of its rows and spec.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from c2f_zoo.evaluation.detection_plot import plot_boxes
from c2f_zoo.evaluation.markdown_tables import Row, TableSpec, read_rows, read_specs, selected_rows
from c2f_zoo.evaluation.result_plots import plot_ablation, plot_cost, plot_dims, plot_resolution
from c2f_zoo.io.files import atomic_write
from c2f_zoo.registry import check_names

PLOTS: dict[str, Callable[..., Figure]] = {
    "resolution": plot_resolution,
    "ablation": plot_ablation,
    "dims": plot_dims,
    "cost": plot_cost,
    "boxes": plot_boxes,
}
ASSETS = Path("docs", "assets")
CHECKSUM = "Data sha256"  # the PNG file's text with the checksum


@dataclass(frozen=True)
class Source:
    """Rows of a figure.

    Args:
        file: a CSV file, relative to the root of the repository.
        where: column -> the value, or values, of the rows to show; or a list of these, of which a row meets one.
        costs: a CSV file of `recipes/benchmarks/models.py`, whose columns are added to the rows.
        poolings: the pooling in `costs` of each method; needed with `costs`.
    """

    file: str
    where: Mapping[str, Any] | list[Mapping[str, Any]] = field(default_factory=dict)
    costs: str = ""
    poolings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FigureSpec:
    """What a figure shows: an entry of `figures` in `docs/results/tables.yaml`.

    Args:
        plot: `resolution`, `ablation`, `dims` or `cost`, see `c2f_zoo.evaluation.result_plots`; or `boxes`, see
            `c2f_zoo.evaluation.detection_plot`.
        alt: the figure in words, for who cannot see it.
        sources: arguments of `Source`, one after the other.
        options: additional keyword arguments of the plot's function.
        data: data and conditions, for the line of provenance.
        command: the command that makes the files, if their column `command` cannot be run as it is.
        about: further files with columns of the line of provenance.

    Examples:
        >>> FigureSpec("cost", "Cost", [{"file": "a.csv", "costs": "c.csv"}, {"file": "b.csv", "costs": "c.csv"}]).files
        ['a.csv', 'c.csv', 'b.csv']
    """

    plot: str
    alt: str
    sources: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    command: str = ""
    about: Sequence[str] = ()

    @property
    def files(self) -> list[str]:
        """The files of the rows."""
        sources = [Source(**source) for source in self.sources]
        return list(dict.fromkeys(file for source in sources for file in (source.file, source.costs) if file))


def figure_rows(root: Path, spec: FigureSpec) -> list[Row]:
    """Return the rows of a figure.

    Args:
        root: the folder that the spec's files are relative to.
        spec: the figure's spec.

    Raises:
        ValueError: a source has no row, or a method not exactly one row of costs.
    """
    rows: list[Row] = []
    for source in (Source(**values) for values in spec.sources):
        own = selected_rows(root, TableSpec(source.file, where=source.where))
        rows += _add_costs(own, read_rows(root / source.costs), source) if source.costs else own
    return rows


def _add_costs(rows: Sequence[Row], costs: Sequence[Row], source: Source) -> Iterator[Row]:
    """Yield each row with the columns of its method's pooling; its own columns stay."""
    for row in rows:
        method = row["method"]
        if method not in source.poolings:
            raise ValueError(
                f"the method {method!r} of {source.file} has no pooling; name it, or leave it out by where"
            )
        found = [cost for cost in costs if cost["pooling"] == source.poolings[method]]
        if len(found) != 1:
            raise ValueError(f"{len(found)} rows of {source.costs} are of {source.poolings[method]!r}, and not one")
        yield {**found[0], **row}


def checksum(rows: Sequence[Row], spec: FigureSpec) -> str:
    """Return the sha256 of a figure's rows and spec; text and provenance do not count."""
    shown = {key: value for key, value in asdict(spec).items() if key in ("plot", "options")}
    return hashlib.sha256(json.dumps([shown, rows], sort_keys=True).encode()).hexdigest()


def figure_path(root: Path, name: str) -> Path:
    """Return the PNG file of a figure."""
    return root / ASSETS / f"{name}.png"


def write_figure(root: Path, name: str, spec: FigureSpec) -> None:
    """Draw a figure and save it atomically, with its checksum.

    Args:
        root: the folder of the repository.
        name: the figure's name.
        spec: the figure's spec.

    Raises:
        ValueError: the plot is unknown, or its rows cannot be drawn.
    """
    check_names("plot", [spec.plot], PLOTS)
    rows = figure_rows(root, spec)
    try:
        figure = PLOTS[spec.plot](rows, **spec.options)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"figure {name!r}: {error!r}; the rows are those of {', '.join(spec.files)}") from error
    path = figure_path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {CHECKSUM: checksum(rows, spec)}
    atomic_write(path, partial(figure.savefig, dpi=120, format="png", metadata=metadata))


def open_figures(root: Path) -> tuple[dict[str, FigureSpec], list[str]]:
    """Return the specs of the figures whose files exist, by name, and a line for each other figure.

    Args:
        root: the folder of the repository.
    """
    found, left_out = {}, []
    for name, values in (read_specs(root).get("figures") or {}).items():
        spec = FigureSpec(**values)
        if missing := [file for file in spec.files if not (root / file).exists()]:
            left_out.append(f"figure {name}: there is no {', '.join(missing)} yet")
        else:
            found[name] = spec
    return found, left_out


def stale_figures(root: Path) -> dict[str, FigureSpec]:
    """Return the figures that do not exist, or are of other rows or options than their files and specs have now.

    Args:
        root: the folder of the repository.
    """
    return {name: spec for name, spec in open_figures(root)[0].items() if _is_stale(root, name, spec)}


def _is_stale(root: Path, name: str, spec: FigureSpec) -> bool:
    path = figure_path(root, name)
    if not path.exists():
        return True
    with Image.open(path) as image:
        return bool(image.info.get(CHECKSUM) != checksum(figure_rows(root, spec), spec))
