"""The house rules: types and lint are clean, imports follow the layout, README's code and commands run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_types() -> None:
    run("-m", "mypy")


@pytest.mark.slow
def test_lint_format_and_import_order() -> None:
    run("-m", "ruff", "check", ".")
    run("-m", "ruff", "format", "--check", ".")
    run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()")


def test_importing_the_package_is_light() -> None:
    code = "import sys, c2f_zoo; print([m for m in ('torch', 'timm', 'torchvision', 'accelerate') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    import c2f_zoo

    for name in c2f_zoo.__all__:
        assert getattr(c2f_zoo, name) is not None
    assert set(c2f_zoo.__all__) == set(c2f_zoo._MODULE_OF)
    with pytest.raises(AttributeError, match="no attribute 'create_modle'"):
        c2f_zoo.create_modle


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr


def test_ci_runs_the_readmes_test_command() -> None:
    command = 'pip install -e ".[test]" && pytest'
    assert f"\n{command}\n" in README
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()
