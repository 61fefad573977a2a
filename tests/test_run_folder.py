"""The files of a run: when it is finished, damaged ones, and names that files and plots must carry."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import SMALL
from PIL import Image

from c2f_zoo import C2FModel, Hierarchy, create_dataset, create_model
from c2f_zoo.data import CachedImages
from c2f_zoo.evaluation.confusion import file_stems
from c2f_zoo.io.files import atomic_write, read_csv, write_csv
from c2f_zoo.training.checkpoint import publish, write_checkpoint
from c2f_zoo.training.curves import plot_curves
from c2f_zoo.training.options import Stage, TrainOptions
from c2f_zoo.training.run_folder import RESULTS, check_data, choose_run_folder, is_finished
from c2f_zoo.training.step_log import COLUMNS, StepLog

HERE = Accelerator(cpu=True)


@pytest.fixture
def finished(small_model: C2FModel, tmp_path: Path) -> Path:
    small_model.save_pretrained(tmp_path)
    for name in RESULTS[1:]:
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize("name", ["model.safetensors", *RESULTS[:-1]])
def test_a_run_is_finished_when_all_its_results_are_there(
    name: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert is_finished(finished, HERE)
    (finished / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing in .*; there is no checkpoint"):
        is_finished(finished, HERE)
    write_checkpoint(finished, 3, lambda folder: (folder / "weights").touch())
    assert not is_finished(finished, HERE)
    assert f"{name} is missing" in capsys.readouterr().out


def test_a_run_without_test_scores_is_not_finished(finished: Path) -> None:
    (finished / "test.csv").unlink()
    assert not is_finished(finished, HERE)


def test_a_new_run_is_not_finished(tmp_path: Path) -> None:
    assert not is_finished(tmp_path, HERE)


@pytest.mark.parametrize("text", ["", "dataset: [cub", "- cub", "dataset: \0"])
def test_a_damaged_configuration_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    options = TrainOptions("critters", "mlph_tiny_critters", {}, [Stage(1, 0.1)], output=str(tmp_path), resume="auto")
    with pytest.raises(ValueError, match=r"config\.yaml is damaged; write the run's options to it again"):
        choose_run_folder(options, "run")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"levels": ["a"], "classes": None})])
def test_a_damaged_fingerprint_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(text)
    now = {"levels": ["a"], "classes": ["b"], "splits": {"training": {}}}
    with pytest.raises(ValueError, match=r"data\.json is damaged: .*remove it and resume"):
        check_data(tmp_path / "data.json", now)


def test_file_names_that_are_not_utf8_are_written(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    write_csv(tmp_path / "x.csv", [{"file": name}, {"file": "café.png"}])
    assert [row["file"] for row in read_csv(tmp_path / "x.csv")] == ["caf\\udce9.png", "café.png"]


def test_a_class_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    tree = Hierarchy(("kind",), ((os.fsdecode(b"caf\xe9"), "box"),), ())
    model = create_model("mlph", hierarchy=tree, **SMALL)
    with pytest.raises(ValueError, match=r"the name .*caf\\udce9.* is not UTF-8 and cannot be saved; rename it"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_level_names_with_dollar_signs_are_plotted(tmp_path: Path) -> None:
    level = "price in $ {"
    plot_curves([{"epoch": 1, "stage": 1, f"loss_{level}": 1.0, f"val_{level}": 0.5}], [level], tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size == (1080, 420)


def test_files_of_levels_have_different_short_names() -> None:
    levels = ["a/b", "a b", "A b", "a_b_2", 300 * "é", 300 * "é" + "x"]
    stems = file_stems(levels)
    assert stems[:2] == ["confusion_a_b", "confusion_a_b_2"]
    assert len({stem.lower() for stem in stems}) == len(levels)
    assert all(len(f"{stem}.csv.part".encode()) <= 255 for stem in stems)


def test_losses_are_kept_up_to_a_line_that_a_kill_cut_within_a_character(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps.csv")
    for step in (1, 2, 3):
        log.add({"step": step, "epoch": 1, "stage": 1, "level": "Vögel", "lr": 0.1}, torch.tensor(0.5))
    log.write()
    written = log.path.read_bytes()
    log.path.write_bytes(written[: written.rindex("ö".encode()) + 1])
    log.forget_after(3)
    assert [(row["step"], row["level"]) for row in read_csv(log.path)] == [("1", "Vögel"), ("2", "Vögel")]
    log.forget_after(1)
    assert [row["step"] for row in read_csv(log.path)] == ["1"]


# Loss of power


class Durability:
    """Watches that a file, or all files of a folder, are flushed to disk before they are renamed, and the name after.

    Attributes:
        renamed: names of the files and folders that got their final names.
        missing: what was not flushed.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.renamed: list[str] = []
        self.missing: list[str] = []
        self._flushed: dict[int, int] = {}  # inode -> time of the last change when it was flushed
        self._names: list[Path] = []  # folders whose entries changed since they were flushed
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, partial(self._rename, getattr(os, name)))
        monkeypatch.setattr(os, "fsync", partial(self._fsync, os.fsync))

    def _fsync(self, fsync: Callable[[int], None], descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        self._flushed[status.st_ino] = status.st_mtime_ns
        self._names = [folder for folder in self._names if folder.stat().st_ino != status.st_ino]

    def _rename(self, rename: Callable[[Path, Path], None], source: Path, target: Path) -> None:
        files = (
            [path for path in Path(source).rglob("*") if path.is_file()] if os.path.isdir(source) else [Path(source)]
        )
        for path in files:
            if self._flushed.get(path.stat().st_ino) != path.stat().st_mtime_ns and "removed" not in str(target):
                self.missing.append(str(path))
        rename(source, target)
        self.renamed.append(Path(target).name)
        self._names.append(Path(target).parent)

    def check(self, *names: str) -> None:
        assert self.missing == []
        assert [folder for folder in self._names if folder.exists()] == [], "the last renames may be lost"
        assert set(names) <= set(self.renamed)


def test_files_are_flushed_before_they_get_their_names(
    small_model: C2FModel, cub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    output.mkdir()
    watched = Durability(monkeypatch)
    write_csv(output / "metrics.csv", [{"epoch": 1}])
    watched.check("metrics.csv")
    checkpoint = write_checkpoint(output, 7, small_model.save_pretrained)
    watched.check("checkpoint-00000007")
    publish(checkpoint, output)
    watched.check("config.json", "model.safetensors")
    small_model.save_pretrained(output, max_shard_size="100KB")
    watched.check("model.safetensors.index.json")
    log = StepLog(output / "steps.csv")
    log.add(dict.fromkeys(COLUMNS, 1), torch.tensor(0.5))
    log.write()
    log.forget_after(0)
    watched.check("steps.csv")
    cached = CachedImages(create_dataset("cub", "train", root=cub_folder), tmp_path / "cache", 20)
    watched.check(cached.file.name)


@pytest.mark.parametrize(("number", "is_error"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_file_system_that_cannot_flush_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_error: bool
) -> None:
    def fsync(descriptor: int, flush: Callable[[int], None] = os.fsync) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=os.strerror(number)) if is_error else contextlib.nullcontext():
        write_csv(tmp_path / "a.csv", [{"epoch": 1}])
    assert (tmp_path / "a.csv").read_text().split() == ["epoch", "1"]


def test_an_error_leaves_the_file_and_no_part(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("old")

    def write_half(part: Path) -> None:
        part.write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        atomic_write(tmp_path / "x.csv", write_half)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.csv", "old")]
