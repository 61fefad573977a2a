"""Write tables and figures of README.md and docs/ from the files of docs/results, and check the pages' numbers.

    python recipes/report.py                # after a file of docs/results changed
    python recipes/report.py --check true   # changes nothing

`docs/results/tables.yaml` says what each table and figure shows. A number that looks measured must stand in a generated
table or value, or be listed in `docs/results/numbers.yaml` with the reason why it is not measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jsonargparse import auto_cli

from c2f_zoo.evaluation.pages import check_numbers, render_pages, stale_blocks
from c2f_zoo.evaluation.result_figures import open_figures, stale_figures, write_figure
from c2f_zoo.paths import expand
from c2f_zoo.training.launch import recipe_errors

ROOT = Path(__file__).parents[1]


def main(check: bool = False, root: str = str(ROOT)) -> int:
    """Write the pages and figures, and check the numbers.

    Args:
        check: change nothing, and fail if a table, a value or a figure is not current.
        root: the folder of the repository.

    Returns:
        1 if a number has no source, or `check` found something, else 0.
    """
    folder = expand(root)
    figures = stale_figures(folder)
    stale = [*stale_blocks(folder), *(f"figure {name}" for name in figures)]
    if not check:
        for name, spec in figures.items():
            write_figure(folder, name, spec)
        for path, (text, current) in render_pages(folder).items():
            if current != text:
                path.write_text(current, encoding="utf-8")
    for name in stale:
        print(f"{'stale' if check else 'written'}: {name}")
    for line in open_figures(folder)[1]:
        print(f"left out: {line}")
    numbers = check_numbers(folder)
    print("\n".join(numbers.faults), end="\n" * bool(numbers.faults))
    print(
        f"numbers that look measured: {numbers.generated} generated, {numbers.listed} listed with a reason, "
        f"{len(numbers.faults)} faults"
    )
    return int(bool(numbers.faults) or (check and bool(stale)))


if __name__ == "__main__":
    with recipe_errors("report.py"):
        sys.exit(auto_cli(main))
