"""Pages in Markdown with generated tables, figures and values, and the check of their numbers.

A generated table stands between `<!-- table: NAME -->` and `<!-- end -->`, a figure between `<!-- figure: NAME -->` and
`<!-- end -->`, a value in a sentence between `<!-- value: NAME -->` and `<!-- end -->`. `docs/results/tables.yaml` says
what each name shows, and `docs/results/numbers.yaml` lists the numbers of pages that are not measured, with the reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from c2f_zoo.evaluation.markdown_tables import (
    TABLES,
    TableSpec,
    fill,
    make_table,
    provenance,
    read_rows,
    read_specs,
    selected_rows,
)
from c2f_zoo.evaluation.result_figures import FigureSpec, figure_path, figure_rows

NUMBERS = Path("docs", "results", "numbers.yaml")

_FENCE = re.compile(r"^ *(```+|~~~+)[^\n]*\n.*?^ *\1 *$", re.DOTALL | re.MULTILINE)
_BLOCK = re.compile(r"<!-- (table|figure|value): (\S+) -->(.*?)<!-- end -->", re.DOTALL)
_MARK = re.compile(r"<!-- (?:table: |figure: |value: |end )")
# digits that are no numbers of the text: comments, code, targets of links, DOIs, dates and versions
_NO_NUMBER = re.compile(
    r"<!--.*?-->|`[^`]*`|\]\([^)]*\)|https?://\S+|\b10\.\d{4,}/\S+|\b\d{4}-\d\d-\d\d\b|\bv?\d+\.\d+\.\d+\S*", re.DOTALL
)
_UNIT = (
    r"(?:%|(?:ms|µs|s|seconds?|minutes?|hours?|[kKMG]i?B|[GT]FLOP/s|images/s|images (?:per|a) second|times|points?"
    r"|M|(?<!\s)x)\b)"
)
_NUMBER = re.compile(
    r"(?<![\w.,/])(?<!\w-)"
    rf"(?:\d[\d,]*\.\d+(?:\s?{_UNIT})?|\d[\d,]*\s?{_UNIT}|\d+(?=(?:,? (?:to|and|or) [\d.]+)+\s?{_UNIT}))"
)


def page_paths(root: Path) -> list[Path]:
    """Return the pages of a repository: `README.md` and `docs/**/*.md`."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def render_page(text: str, make: Callable[[str, str], str]) -> str:
    """Replace the generated blocks of a page; those in code are examples and stay.

    Args:
        text: the page.
        make: the content of a block by its kind, `"table"`, `"figure"` or `"value"`, and its name.

    Raises:
        ValueError: a block has no end.

    Examples:
        >>> render_page("<!-- value: best -->90<!-- end --> %", lambda kind, name: "91")
        '<!-- value: best -->91<!-- end --> %'
    """

    def replace(found: re.Match[str]) -> str:
        kind, name, _ = found.groups()
        content = make(kind, name)
        content = content if kind == "value" else f"\n\n{content}\n\n"
        return f"<!-- {kind}: {name} -->{content}<!-- end -->"

    parts = []
    for part, is_code in _split_code(text):
        if not is_code and len(_MARK.findall(part)) != 2 * len(_BLOCK.findall(part)):
            raise ValueError("a generated block has no start `<!-- KIND: NAME -->` or no end `<!-- end -->`")
        parts.append(part if is_code else _BLOCK.sub(replace, part))
    return "".join(parts)


def _split_code(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a page, and whether each is a fenced block of code."""
    end = 0
    for found in _FENCE.finditer(text):
        yield text[end : found.start()], False
        yield found[0], True
        end = found.end()
    yield text[end:], False


def render_pages(root: Path) -> dict[Path, tuple[str, str]]:
    """Return the text of each page with generated blocks, as it is and as its files say.

    Args:
        root: the folder of the repository.

    Raises:
        ValueError: a page names an unknown table, or a table cannot be made.
    """
    specs = read_specs(root)
    pages = {}
    for path in page_paths(root):
        text = path.read_text(encoding="utf-8")

        def make(kind: str, name: str, path: Path = path) -> str:
            try:
                makers: dict[str, Callable[[Path, Path, dict[str, Any]], str]]
                makers = {"table": _make_table, "figure": partial(_make_figure, name), "value": _make_value}
                return makers[kind](root, path, dict(specs[f"{kind}s"][name]))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{kind} {name!r} of {path.relative_to(root)}: {error!r}; see {TABLES}") from error

        try:
            pages[path] = text, render_page(text, make)
        except ValueError as error:
            raise ValueError(f"{path.relative_to(root)}: {error}") from error
    return pages


def _make_table(root: Path, page: Path, spec: dict[str, Any]) -> str:
    table = TableSpec(**spec)
    about = read_rows(root / table.about) if table.about else selected_rows(root, table)
    return f"{make_table(root, table)}\n\n{provenance(about, table, _link(root, page, table.file))}"


def _make_figure(name: str, root: Path, page: Path, spec: dict[str, Any]) -> str:
    figure = FigureSpec(**spec)
    rows = [*figure_rows(root, figure), *(row for file in figure.about for row in read_rows(root / file))]
    links = ", ".join(_link(root, page, file) for file in figure.files)
    about = provenance(rows, TableSpec("", data=figure.data, command=figure.command), links)
    return f"![{figure.alt}]({_relative(figure_path(root, name), page)})\n\n{about}"


def _link(root: Path, page: Path, file: str) -> str:
    """Return a link to a file of docs/, and the name of another one, which is not on the site."""
    is_on_site = (root / file).is_relative_to(root / "docs")
    return f"[{Path(file).name}]({_relative(root / file, page)})" if is_on_site else f"`{file}`"


def _relative(path: Path, page: Path) -> str:
    return Path(os.path.relpath(path, page.parent)).as_posix()


def _make_value(root: Path, page: Path, spec: dict[str, Any]) -> str:
    text = spec.pop("text")
    rows = selected_rows(root, TableSpec(**spec))
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} rows of {spec['file']} have {spec.get('where')}, where a value needs one")
    return fill(text, rows[0])


def stale_blocks(root: Path) -> list[str]:
    """Return the generated blocks that differ from their files, as `"PAGE: NAME"`."""
    stale = []
    for path, (text, current) in render_pages(root).items():
        pairs = zip(_BLOCK.finditer(text), _BLOCK.finditer(current), strict=True)
        stale += [f"{path.relative_to(root).as_posix()}: {old[2]}" for old, new in pairs if old[0] != new[0]]
    return stale


def measured_numbers(text: str) -> list[str]:
    """Return what looks like a measured number in a page: decimal numbers, and numbers with a unit.

    Units are %, s, ms, seconds, minutes, hours, bytes, FLOP/s, images per second, times, points, M and x. Whole numbers
    without a unit are not found. Code, comments, targets of links, DOIs, dates, versions (1.2.3) and names (Apache-2.0)
    are left out.

    Examples:
        >>> measured_numbers("In 12 epochs 90.5 % are right, 2 to 3 times as many as with torch 2.14.1 (`lr=0.1`).")
        ['90.5 %', '2', '3 times']
    """
    prose = "".join(part for part, is_code in _split_code(text) if not is_code)
    return [" ".join(found[0].split()) for found in _NUMBER.finditer(_NO_NUMBER.sub(" ", prose))]


@dataclass
class NumberCheck:
    """The numbers of the pages that look measured.

    Args:
        generated: how many are in generated blocks.
        listed: how many are listed in `docs/results/numbers.yaml`, with the reason.
        faults: a line for each number that is neither, and for each listed one that is not on its page.
    """

    generated: int = 0
    listed: int = 0
    faults: list[str] = field(default_factory=list)


def check_numbers(root: Path) -> NumberCheck:
    """Check that each number that looks measured is generated or listed; see `measured_numbers` for what is found.

    Args:
        root: the folder of the repository.
    """
    check = NumberCheck()
    reasons = yaml.safe_load((root / NUMBERS).read_text(encoding="utf-8"))
    for path in page_paths(root):
        page, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        listed = {str(number) for numbers in reasons.pop(page, {}).values() for number in numbers}
        written = measured_numbers(_BLOCK.sub(" ", text))
        check.generated += sum(len(measured_numbers(block[3])) for block in _BLOCK.finditer(text))
        check.listed += sum(number in listed for number in written)
        check.faults += [
            f"{page}: {number!r} is neither generated nor listed" for number in written if number not in listed
        ]
        check.faults += [f"{page}: {number!r} is listed, but not there" for number in sorted(listed - set(written))]
    check.faults += [f"{page} is listed, but is no page" for page in reasons]
    return check
