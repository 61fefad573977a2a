"""The command line, in a new process and in this one."""

from __future__ import annotations

import codecs
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL
from PIL import Image

import c2f_zoo as package
from c2f_zoo import C2FModel, Hierarchy, create_dataset, create_model, list_poolings, load_hierarchy
from c2f_zoo.cli import main
from c2f_zoo.evaluation.report import metrics_table, print_tables
from c2f_zoo.training.launch import recipe_errors


def c2f_zoo(*arguments: str, ok: bool = True, columns: int = 80) -> str:
    """Run the command line in this process; return what it wrote, or the error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        code, output, error = run(*arguments)
    assert (code == 0) == ok, error
    return output if ok else error


def run(*arguments: str, encoding: str = "utf-8") -> tuple[int, str, str]:
    """Run the command line in this process; return its exit code and what it wrote to both streams."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    code: Any = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        patch.setattr(sys, "argv", ["c2f-zoo", *arguments])
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
    texts = []
    for stream in streams:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(encoding))  # type: ignore[attr-defined]
    return code, texts[0], texts[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("models", ["mlph_vgg16_cub", "bcnn_resnet50_cars"]),
        ("backbones", ["vgg16", "convnext_tiny"]),
        ("heads", ["levels"]),
        ("hierarchies", ["cars", "critters", "cub", "fashion_mnist"]),
        ("datasets", ["critters", "cub", "fashion_mnist"]),
        ("metrics", ["ece", "fpa", "hd@5"]),
        ("rules", ["climb", "darts", "nominal"]),
    ],
)
def test_list_prints_names(kind: str, some: list[str]) -> None:
    assert set(some) <= set(c2f_zoo("list", kind).split())


@pytest.mark.slow
def test_list_poolings_prints_a_table_of_costs() -> None:
    rows = {
        line.split("│")[1].strip(): line
        for line in c2f_zoo("list", "poolings", columns=220).splitlines()
        if "│" in line
    }
    assert set(list_poolings()) <= set(rows)
    # Three projections of 512 x 8192 with bias; at 784 locations three projections, three pairs and one triple.
    parts = [part.strip() for part in rows["mlp"].strip("│").split("│")]
    multiply_adds = 784 * (3 * 512 * 8192 + (3 + 2) * 8192) + 4 * 8192  # and one root per entry
    assert parts[2:5] == ["Huo et al., SIGIR 2019, eq. 6", "mlp, mlph", "3"]
    assert parts[5:7] == ["32,768", f"{3 * (512 * 8192 + 8192) / 1e6:.2f} M"]
    assert float(parts[7].removesuffix(" M").replace(",", "")) == pytest.approx(multiply_adds / 1e6, rel=1e-4)
    assert "Gao et al., CVPR 2016" in rows["compact_bilinear"]


@pytest.mark.slow
def test_list_takes_a_wildcard() -> None:
    assert c2f_zoo("list", "models", "mlph_vgg*").split() == ["mlph_vgg16_cars", "mlph_vgg16_cub"]


@pytest.mark.slow
def test_info_shows_levels_taps_and_parameters() -> None:
    shown = c2f_zoo("info", "mlph_vgg16_cub")
    for part in ("36 classes", "113 classes", "200 classes", "features.25", "features.29", "14.71 M", "12.61 M"):
        assert part in shown
    assert "timm/vgg16" in shown, "the source of the backbone's weights"


def test_info_shows_the_levels_of_a_hierarchy() -> None:
    shown = c2f_zoo("info", "cub_modern")
    for part in ("order", "13 classes", "37 classes", "121 classes", "200 classes", "1.0"):
        assert part in shown


def test_info_draws_a_hierarchy() -> None:
    lines = c2f_zoo("info", "fashion_mnist", "--tree").splitlines()
    assert lines[:3] == ["Clothes (6)", "├── Tops (3)", "│   ├── T-shirt/top"]
    assert lines[-1] == "    └── Bag"
    assert len(lines) == 2 + 6 + 10


@pytest.mark.slow
def test_info_draws_the_tree_of_a_model(small_model: C2FModel, tmp_path: Path) -> None:
    small_model.save_pretrained(tmp_path / "run")
    assert c2f_zoo("info", str(tmp_path / "run"), "--tree") == c2f_zoo("info", "cub", "--tree")


@pytest.mark.slow
def test_predict_prints_a_path(small_model: C2FModel, tmp_path: Path) -> None:
    small_model.save_pretrained(tmp_path / "run")
    Image.new("CMYK", (50, 40)).save(tmp_path / "some.jpg")
    shown = c2f_zoo("predict", str(tmp_path / "run"), str(tmp_path / "some.jpg"), columns=500)
    names = [part.rsplit(" (", 1)[0] for part in shown.strip().split(" > ")]
    tree = small_model.hierarchy
    assert tuple(names) in {tree.path(label) for label in range(200)}


def test_predict_reuses_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr("c2f_zoo.io.freed_memory.keep_freed_memory", lambda: called.append(True))
    c2f_zoo("predict", "mlph_tiny_critters", "none.jpg", ok=False)
    assert called


@pytest.mark.slow
def test_errors_are_one_line(small_model: C2FModel, tmp_path: Path) -> None:
    assert "did you mean 'mlph_vgg16_cub'" in c2f_zoo("info", "mlph_vgg16_cup", ok=False)
    small_model.save_pretrained(tmp_path / "run")
    assert "there is no image none.jpg" in c2f_zoo("predict", str(tmp_path / "run"), "none.jpg", ok=False)
    (tmp_path / "bad.jpg").write_text("no image")
    assert "cannot read the image" in c2f_zoo("predict", str(tmp_path / "run"), str(tmp_path / "bad.jpg"), ok=False)
    assert "norun has no config.json" in c2f_zoo("predict", str(tmp_path / "norun"), "x.jpg", ok=False)
    assert run("info", "mlph_vgg16_cup")[0] == 1


def draw_images(folder: Path, names: Sequence[str]) -> list[str]:
    for number, name in enumerate(names):
        Image.new("RGB", (50, 40), (40 * number, 90, 200)).save(folder / name)
    return [str(folder / name) for name in names]


@pytest.mark.slow
def test_predict_goes_on_after_broken_images(small_model: C2FModel, tmp_path: Path) -> None:
    small_model.save_pretrained(tmp_path / "run")
    model = str(tmp_path / "run")
    a, b, cut = draw_images(tmp_path, ["a.png", "b.png", "cut.jpg"])
    Path(cut).write_bytes(Path(cut).read_bytes()[:500])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").touch()
    broken = [cut, *(str(tmp_path / name) for name in ("text.jpg", "empty.png", "missing.png"))]
    code, printed, errors = run("predict", model, a, *broken, b)
    assert code == 1
    assert [line.split(": ")[0] for line in printed.splitlines()] == [a, b]
    *lines, summary = errors.splitlines()
    assert all(path in line for path, line in zip(broken, lines, strict=True))
    assert summary == "c2f-zoo: 4 of 6 images cannot be predicted"
    assert run("predict", model, a, b) == (0, printed, "")
    code, printed, errors = run("predict", model, cut)
    assert (code, printed, len(errors.splitlines())) == (1, "", 1)


def test_the_version_is_printed() -> None:
    assert run("--version") == (0, f"c2f-zoo {package.__version__}\n", "")
    assert version("c2f_zoo") == package.__version__


# Characters that an encoding lacks


@pytest.fixture
def czech(tmp_path: Path) -> Hierarchy:
    """Write a dataset whose names have letters that are missing in the code pages of Western Europe."""
    for kind, shapes in {"Čápovití": ["Čáp bílý", "Čáp černý"], "Café": ["Łabędź"]}.items():
        for shape in shapes:
            for split in ("train", "test"):
                folder = tmp_path / "data" / split / kind / shape
                folder.mkdir(parents=True)
                draw_images(folder, [f"ž{number}.png" for number in range(2)])
    return create_dataset("folder", "train", root=tmp_path / "data").hierarchy


@pytest.mark.slow
def test_commands_print_names_that_an_encoding_lacks(czech: Hierarchy, tmp_path: Path) -> None:
    encoding = "cp1252"
    model = create_model("mlph", hierarchy=czech, **SMALL)
    model.save_pretrained(tmp_path / "run")
    folder = str(tmp_path / "data" / "train" / "Čápovití" / "Čáp bílý")
    code, predicted, errors = run("predict", str(tmp_path / "run"), folder, encoding=encoding)
    assert (code, errors) == (0, "")
    unescaped = [
        codecs.decode(line.encode("latin-1", "backslashreplace"), "unicode_escape") for line in predicted.splitlines()
    ]
    assert all(line.startswith(folder) and " > " in line for line in unescaped)
    code, drawn, _ = run("info", str(tmp_path / "run"), "--tree", encoding=encoding)
    assert code == 0 and "|-- " in drawn
    assert len(drawn.splitlines()) == 2 + 3
    for arguments in (
        ("info", str(tmp_path / "run")),
        ("data", "check", str(tmp_path / "data")),
        ("list", "poolings", "a*"),
    ):
        code, printed, errors = run(*arguments, encoding=encoding)
        assert (code, errors) == (0, ""), arguments
        assert "Č" not in printed and printed.strip()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_tables_of_the_recipes_are_printed_in_any_encoding(encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    with redirect_stdout(stream), recipe_errors("evaluate.py"):
        print_tables(metrics_table("Čáp", {"species/top1": 0.9}, {"joint": {"fpa": 0.8, "hd@5": 1.0}}))
        print("Łabędź")
    stream.flush()
    lines = stream.buffer.getvalue().decode(encoding).splitlines()  # type: ignore[attr-defined]
    assert lines[-1] == r"\u0141ab\u0119d\u017a" if encoding == "ascii" else "u0119d" in lines[-1]
    assert any("species/top1 ^" in line and "90.0" in line for line in lines)
    assert any("hd@5 v" in line and "1.000" in line for line in lines)


@pytest.mark.slow
def test_a_new_process_obeys_the_users_encoding(czech: Hierarchy, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from c2f_zoo.cli import main; main()", "data", "check", str(tmp_path / "data")]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "COLUMNS": "100"}
    done = subprocess.run(command, capture_output=True, timeout=120, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "Café" in done.stdout.decode("cp1252")


@pytest.mark.slow
def test_predict_accepts_a_name_with_trained_weights(tmp_path: Path) -> None:
    image, species = create_dataset("critters", "test", per_class=1)[7]
    image.save(tmp_path / "critter.png")
    expected = " > ".join(load_hierarchy("critters").path(species))
    shown = c2f_zoo("predict", "mlph_tiny_critters", str(tmp_path / "critter.png"))
    assert re.sub(r" \([0-9.]+\)|trusted: ", "", shown).strip().replace("; guess:", " >") == expected
    assert "mlph_vgg16_cub" in c2f_zoo("predict", "mlph_vgg16_cub", str(tmp_path / "critter.png"), ok=False)
