"""Rules for the whole repository: types, lint, imports, recipes and README."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "recipes").rglob("*.py"))
IMPORTING_FUNCTIONS = {"__import__", "import_module", "run_module", "run_path", "spec_from_file_location"}


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_mypy_finds_no_errors() -> None:
    # A new cache would take ten seconds to write.
    run("-m", "mypy", *([] if (ROOT / ".mypy_cache").is_dir() else ["--cache-dir", os.devnull]))


@pytest.mark.slow
def test_lint_format_and_import_order() -> None:
    run("-m", "ruff", "check", ".")
    run("-m", "ruff", "format", "--check", ".")
    run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()")


HELP = "from c2f_zoo.cli import app; app(['--help'], standalone_mode=False)"


@pytest.mark.parametrize("code", ["import c2f_zoo", HELP], ids=["package", "help"])
def test_importing_the_package_is_light(code: str) -> None:
    heavy = ("torch", "timm", "torchvision", "accelerate", "matplotlib", "numpy", "PIL", "onnxruntime")
    code = f"import sys; {code}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_public_name_is_importable() -> None:
    import c2f_zoo

    for name in c2f_zoo.__all__:
        assert getattr(c2f_zoo, name) is not None
    assert set(c2f_zoo.__all__) == set(c2f_zoo._MODULE_OF)
    with pytest.raises(AttributeError, match="no attribute 'create_modle'"):
        c2f_zoo.create_modle


@pytest.mark.slow
def test_the_python_code_of_the_readme_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = 'pip install -e ".[test]" && pytest'
    assert f"\n{command}\n" in README
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield the top-level names of all imported modules, and of files run as modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from [(node.module or "").split(".")[0]] if node.level == 0 else ["recipes"]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in IMPORTING_FUNCTIONS:
            for child in ast.walk(node):
                if isinstance(child, ast.Constant) and isinstance(child.value, str):
                    yield Path(child.value).name.split(".")[0]


def code_lines(path: Path) -> list[str]:
    """Return the lines of a file without indentation, blank lines and imports."""
    source = path.read_text(encoding="utf-8")
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    skipped = {number for node in imports for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    lines = enumerate(source.splitlines(), start=1)
    return [line.strip() for number, line in lines if line.strip() and number not in skipped]


def test_no_recipe_imports_another() -> None:
    recipes = {path.stem for path in RECIPES} | {path.parent.name for path in RECIPES}
    for path in RECIPES:
        found = recipes & set(imported_names(ast.parse(path.read_text(encoding="utf-8"))))
        assert not found, f"{path.relative_to(ROOT)} imports {sorted(found)}"


@pytest.mark.parametrize(
    "code",
    [
        "import train",
        "def f():\n    from evaluate import main",
        "from recipes.train import main",
        "from . import train",
        "importlib.import_module('train')",
        "runpy.run_path(str(HERE / 'train.py'))",
    ],
)
def test_imports_of_recipes_are_found(code: str) -> None:
    assert {"train", "evaluate", "recipes"} & set(imported_names(ast.parse(code)))


def test_recipes_have_at_most_300_lines() -> None:
    long = {path.name: count for path in RECIPES if (count := len(path.read_text().splitlines())) > 300}
    assert not long


def test_recipes_do_not_repeat_six_lines() -> None:
    first: dict[tuple[str, ...], str] = {}
    for path in RECIPES:
        lines = code_lines(path)
        for start in range(len(lines) - 5):
            block = tuple(lines[start : start + 6])
            assert block not in first, f"{path.name} and {first[block]} have the same lines:\n" + "\n".join(block)
            first[block] = path.name


WITHOUT_COMPUTATION = {"push_to_hub.py", "report.py"}


@pytest.mark.slow
@pytest.mark.parametrize("policy, spins", [(None, "0"), ("ACTIVE", "30000000000")])
def test_waiting_threads_of_a_recipe_sleep_unless_the_user_chose(policy: str | None, spins: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE"} | ({"OMP_WAIT_POLICY": policy} if policy else {})
    command = [sys.executable, str(ROOT / "recipes" / "train.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = re.search(r"GOMP_SPINCOUNT = '(\d+|INFINITY)'", done.stderr)
    if not found:
        pytest.skip("torch does not use GNU's OpenMP here")
    assert found[1] == spins


@pytest.mark.parametrize(
    "path",
    [path for path in (ROOT / "recipes").glob("*.py") if path.name not in WITHOUT_COMPUTATION],
    ids=lambda x: x.name,
)
def test_computing_recipes_choose_how_threads_wait_before_torch_is_loaded(path: Path) -> None:
    lines = path.read_text().splitlines()
    first = next(
        n for n, line in enumerate(lines) if re.match(r"(import|from) (torch|accelerate|c2f_zoo|numpy|jsonarg)", line)
    )
    assert any(line.startswith('os.environ.setdefault("OMP_WAIT_POLICY"') for line in lines[:first])
