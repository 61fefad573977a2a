"""Checkpoints: written whole or not at all, verified, chosen by number."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from c2f_zoo import C2FModel, create_model
from c2f_zoo.training.checkpoint import (
    Progress,
    checkpoint_name,
    damage,
    latest_checkpoint,
    list_checkpoints,
    publish,
    remove_old_checkpoints,
    remove_parts,
    write_checkpoint,
)


def write(output: Path, step: int, text: str = "weights") -> Path:
    return write_checkpoint(output, step, lambda folder: (folder / "model.safetensors").write_text(text))


def test_the_latest_checkpoint_is_the_one_with_the_highest_number(tmp_path: Path) -> None:
    for step in (9999, 10000, 50):
        write(tmp_path, step)
    os.rename(tmp_path / checkpoint_name(9999), tmp_path / "checkpoint-9999")
    os.rename(tmp_path / checkpoint_name(10000), tmp_path / "checkpoint-10000")
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-00020000-kept").mkdir()
    (tmp_path / "checkpoint-notes.txt").write_text("mine")
    (tmp_path / "checkpoint-30000").write_text("a file")
    names = ["checkpoint-10000", "checkpoint-9999", "checkpoint-00000050"]
    assert [path.name for path in list_checkpoints(tmp_path)] == names
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10000"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"S"), "model.safetensors differs from its hash"),
        (lambda path: path.write_bytes(path.read_bytes()[:3]), "model.safetensors differs from its hash"),
        (lambda path: path.unlink(), "model.safetensors is missing"),
        (lambda path: path.with_name("hashes.json").unlink(), "hashes.json is missing"),
        (lambda path: path.with_name("hashes.json").write_text("{"), "hashes.json cannot be read: "),
        (lambda path: path.with_name("hashes.json").write_text("[]"), "hashes.json cannot be read: "),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(spoil, reason: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    before, latest = write(tmp_path, 1), write(tmp_path, 2)
    assert damage(latest) == ""
    spoil(latest / "model.safetensors")
    said: list[str] = []
    assert latest_checkpoint(tmp_path, said.append) == before
    assert len(said) == 1
    assert said[0].startswith(f"{latest} is damaged and not used: {reason}")
    assert latest.exists() == (reason == "hashes.json is missing"), "renamed, unless it may be the user's"
    latest = write(tmp_path, 3)
    for path in (before, latest):
        spoil(path / "model.safetensors")
    with pytest.raises(ValueError, match=r"all \d checkpoints in .* are damaged, .* start again with another --output"):
        latest_checkpoint(tmp_path, said.append)


def test_damaged_checkpoints_do_not_count_among_those_to_keep(tmp_path: Path) -> None:
    for step in (80, 90, 100):
        path = write(tmp_path, step)
        if step > 80:
            (path / "model.safetensors").write_text("wrong")
    assert latest_checkpoint(tmp_path, lambda line: None) == tmp_path / checkpoint_name(80)
    write(tmp_path, 85)
    remove_old_checkpoints(tmp_path, keep=2, best="")
    assert list_checkpoints(tmp_path) == [tmp_path / checkpoint_name(85), tmp_path / checkpoint_name(80)]


def test_an_empty_folder_with_a_number_does_not_stop_the_run(tmp_path: Path) -> None:
    good = write(tmp_path, 1)
    (tmp_path / "checkpoint-0009").mkdir()
    assert latest_checkpoint(tmp_path, lambda line: None) == good
    remove_old_checkpoints(tmp_path, keep=1, best="")
    assert (tmp_path / "checkpoint-0009").is_dir(), "it may be the user's"


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    (path / "model.safetensors").write_text("wrong")
    assert damage(write(tmp_path, 1, "right")) == ""
    assert (path / "model.safetensors").read_text() == "right"


def test_old_checkpoints_are_removed_but_the_best(tmp_path: Path) -> None:
    for step in range(5):
        write(tmp_path, step)
    for name in ("checkpoint-best", "checkpoint-00000001-kept"):
        (tmp_path / name).mkdir()
    remove_old_checkpoints(tmp_path, keep=2, best=checkpoint_name(1))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*map(checkpoint_name, (1, 3, 4)), "checkpoint-best", "checkpoint-00000001-kept"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    before = write(tmp_path, 1)

    def fill_by_text(folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        Path("/dev/full").write_text("half")

    def fill_by_torch(folder: Path) -> None:
        with open("/dev/full", "wb") as file:
            torch.save(torch.zeros(10**6), file)

    for fill in (fill_by_text, fill_by_torch):
        with pytest.raises(
            OSError, match=r"cannot save the checkpoint .*; earlier checkpoints are intact. If the disk"
        ):
            write_checkpoint(tmp_path, 2, fill)
        assert list(tmp_path.iterdir()) == [before]
    assert latest_checkpoint(tmp_path) == before


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "checkpoint.part").mkdir()
    (tmp_path / "checkpoint.part" / "model.safetensors").write_text("half")
    (tmp_path / "metrics.csv.part").write_text("half")
    remove_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint_name(1)]


def test_the_published_model_is_that_of_its_checkpoint(tmp_path: Path) -> None:
    files = {"config.json": "{}", "model.safetensors": "weights", "README.md": "card", "progress.json": "{}"}

    def write_to(folder: Path) -> None:
        for name, text in files.items():
            (folder / name).write_text(text)

    publish(write_checkpoint(tmp_path, 1, write_to), tmp_path)
    published = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    assert published == {name: text for name, text in files.items() if name != "progress.json"}


def test_a_model_in_shards_is_published_whole(tmp_path: Path) -> None:
    model = create_model("mlph_tiny_critters")
    checkpoint = write_checkpoint(tmp_path, 1, lambda folder: model.save_pretrained(folder, max_shard_size="100KB"))
    assert (checkpoint / "model.safetensors.index.json").exists()
    publish(checkpoint, tmp_path)
    for name, weight in C2FModel.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_the_first_of_the_best_epochs_is_kept() -> None:
    progress = Progress()
    for step, score in ((10, 0.5), (20, 0.7), (30, 0.7), (40, 0.6)):
        progress.step = step
        progress.add_epoch({"val_genus": score, "val_species": 0.5, "loss_genus": 9.0}, [])
    assert (progress.epoch, progress.best_epoch, progress.best_checkpoint) == (4, 2, checkpoint_name(20))
    assert progress.best == pytest.approx(0.6)
