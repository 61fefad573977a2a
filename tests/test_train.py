"""The training recipe, run as a script."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from in_process import run_in_process
from PIL import Image
from test_data import write_fashion_mnist
from two_processes import run_in_two_processes

from c2f_zoo import Predictor, create_dataset, create_model
from c2f_zoo.io.files import read_csv

pytestmark = pytest.mark.slow  # every test trains

ROOT = Path(__file__).parents[1]
RECIPE = str(ROOT / "recipes" / "train.py")
SMOKE = ["--config", str(ROOT / "recipes" / "configs" / "smoke.yaml")]
LAUNCH = ["-m", "accelerate.commands.launch"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def train(folder: Path, *options: str, launcher: Sequence[str] = (), ok: bool = True) -> str:
    """Run the recipe in a folder and return its standard output, or its error output if it must fail.

    With a launcher it runs in new processes, otherwise as a script in this one, which saves the imports.
    """
    if not launcher:
        return train_here(folder, *options, ok=ok)
    command = [sys.executable, *launcher, RECIPE, *options]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert (done.returncode == 0) == ok, done.stderr[-3000:]
    return done.stdout if ok else done.stderr


def train_here(folder: Path, *options: str, ok: bool) -> str:
    code, printed, errors = run_in_process(RECIPE, options, folder)
    assert (code == 0) == ok, errors
    return printed if ok else errors


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the smoke configuration; return the folder and the output."""
    folder = tmp_path_factory.mktemp("smoke")
    printed = train(folder, *SMOKE, launcher=LAUNCH)
    return folder / "runs" / "smoke-1", printed


def test_a_run_writes_its_files(smoke: tuple[Path, str]) -> None:
    run, printed = smoke
    names = {path.name for path in run.iterdir()}
    assert names == {
        *("checkpoint-00000018", "checkpoint-00000036"),
        *("config.yaml", "data.json", "run.lock", "starts.csv", "steps.csv", "report.md"),
        "config.json",
        "curves.png",
        "metrics.csv",
        "model.safetensors",
        "test.csv",
        "test_predictions.csv",
    }
    assert "Accuracy in %" in printed
    for level in ("family", "genus", "species"):
        assert level in printed
    with Image.open(run / "curves.png") as curves:
        assert min(curves.size) > 300


def test_every_epoch_is_recorded(smoke: tuple[Path, str]) -> None:
    rows = read_csv(smoke[0] / "metrics.csv")
    assert [(row["epoch"], row["stage"]) for row in rows] == [("1", "1"), ("2", "2")]
    for row in rows:
        for level in ("family", "genus", "species"):
            assert float(row[f"loss_{level}"]) > 0
            assert 0 <= float(row[f"val_{level}"]) <= 1


def test_the_table_agrees_with_the_predictions(smoke: tuple[Path, str]) -> None:
    run, _ = smoke
    predictions = read_csv(run / "test_predictions.csv")
    assert [int(row["index"]) for row in predictions] == list(range(144)), "every image once"
    table = read_csv(run / "test.csv")
    assert len(table) == 3 * 3
    for row in table:
        assert row["images"] == "144"
        if row["own"] == "True":
            level = row["level"]
            right = sum(p[level] == p[f"predicted_{level}"] for p in predictions)
            assert float(row["accuracy"]) == pytest.approx(right / 144)


def test_the_saved_model_is_the_scored_model(smoke: tuple[Path, str]) -> None:
    run, _ = smoke
    model = create_model(f"local-dir:{run}").eval()
    assert dict(model.config.resolutions) == {"species": 48, "genus": 32, "family": 12}
    dataset = create_dataset("critters", "test", per_class=4)
    predictor = Predictor(model)
    predictions = read_csv(run / "test_predictions.csv")
    for index in (0, 71, 143):
        log_probs = predictor._log_probs([dataset[index][0]])
        for level in model.levels:
            name = model.hierarchy.class_names(level)[int(log_probs[level][0].argmax())]
            assert name == predictions[index][f"predicted_{level}"]


def test_options_override_the_file_and_are_saved(tmp_path: Path) -> None:
    one_epoch = "[{epochs: 1, lr: 0.1}]"
    options = ["--dataset_options.per_class", "2", "--batch_size", "12", "--stages", one_epoch, "--output", "here"]
    train(tmp_path, *SMOKE, *options)
    kept = yaml.safe_load((tmp_path / "here" / "config.yaml").read_text())
    assert (kept["batch_size"], kept["dataset_options"], kept["momentum"]) == (12, {"per_class": 2}, 0.9)
    assert read_csv(tmp_path / "here" / "test.csv")[0]["images"] == "72"
    assert "here is not empty" in train(tmp_path, *SMOKE, *options, ok=False)
    assert len(read_csv(tmp_path / "here" / "metrics.csv")) == 1, "nothing was overwritten"


def test_runs_are_numbered(tmp_path: Path) -> None:
    for other in ("smoke-9", "smoke-10.bak", "smoke-224-11"):
        (tmp_path / "runs" / other).mkdir(parents=True)
    options = ["--dataset_options.per_class", "1", "--stages", "[{epochs: 1, lr: 0.1}]", "--val_fraction", "0"]
    assert "writing to runs/smoke-10" in train(tmp_path, *SMOKE, *options)


def test_resuming_with_other_options_is_an_error(smoke: tuple[Path, str], tmp_path: Path) -> None:
    output = ["--output", str(smoke[0])]
    error = train(tmp_path, *SMOKE, *output, "--resume", "auto", "--batch_size", "8", ok=False)
    assert "was started with other options: batch_size" in error


def test_results_that_a_kill_prevented_are_written_by_resuming(smoke: tuple[Path, str], tmp_path: Path) -> None:
    run, missing = (
        Path(shutil.copytree(smoke[0], tmp_path / "run")),
        ("curves.png", "metrics.csv", "test_predictions.csv"),
    )
    before = {name: (run / name).read_bytes() for name in missing}
    for name in missing:
        (run / name).unlink()
    printed = train(tmp_path, *SMOKE, "--output", "run", "--resume", "auto")
    assert "resumed from checkpoint-00000036" in printed
    assert {name: (run / name).read_bytes() for name in missing} == before
    assert "this run is finished" in train(tmp_path, *SMOKE, "--output", "run", "--resume", "auto")


@pytest.mark.parametrize("launcher", [[], pytest.param(TORCHRUN, marks=pytest.mark.soak)], ids=["forks", "torchrun"])
def test_two_processes_agree_with_one(launcher: Sequence[str], smoke: tuple[Path, str], tmp_path: Path) -> None:
    """Test training in two processes; `-m soak` starts them with torchrun, which imports everything twice."""
    # 144 test images in batches of 64 over two processes leave 16 for the last one: each is scored exactly once.
    if launcher:
        train(tmp_path, *SMOKE, launcher=launcher)
    else:
        code, printed = run_in_two_processes(RECIPE, SMOKE, tmp_path)
        assert code == 0, printed[-3000:]
    run = tmp_path / "runs" / "smoke-1"
    predictions = read_csv(run / "test_predictions.csv")
    assert [int(row["index"]) for row in predictions] == list(range(144))
    one, two = (read_csv(folder / "metrics.csv") for folder in (smoke[0], run))
    # The first stage has no batch norm and no dropout: the loss of a batch is the mean of its halves' losses,
    # but each process crops and flips its images at random.
    for level in ("family", "genus", "species"):
        assert float(two[0][f"loss_{level}"]) == pytest.approx(float(one[0][f"loss_{level}"]), rel=0.1)
    for row_one, row_two in zip(read_csv(smoke[0] / "test.csv"), read_csv(run / "test.csv"), strict=True):
        assert row_two["images"] == row_one["images"] == "144"
        assert abs(float(row_two["accuracy"]) - float(row_one["accuracy"])) < 0.2


def test_training_on_birds(cub_folder: Path, tmp_path: Path) -> None:
    config = {
        "dataset": "cub",
        "dataset_options": {"root": str(cub_folder)},
        "model": "hbp",
        "model_options": {"backbone": "test_convnext", "input_size": 64, "pooling_options": {"dim": 8}},
        "resolutions": {"species": None},
        "stages": [{"epochs": 1, "lr": 0.1}, {"epochs": 1, "lr": 0.1, "backbone_lr": 0.01, "freeze_batch_norm": True}],
        "batch_size": 4,
        "val_fraction": 0.5,
        "num_workers": 1,
    }
    (tmp_path / "birds.yaml").write_text(yaml.safe_dump(config))
    train(tmp_path, "--config", "birds.yaml")
    run = tmp_path / "runs" / "birds-1"
    saved = json.loads((run / "config.json").read_text())
    assert saved["levels"] == ["species"]
    assert len(saved["hierarchy"]["classes"][2]) == 4, "only the classes in the folder"
    assert len(read_csv(run / "test_predictions.csv")) == 4


def truncate_birds(cub_folder: Path) -> tuple[list[Path], list[str]]:
    """Truncate a training and a test image; return both, and options of a training on them."""
    # Headers are intact, so that only decoding the pixels fails.
    truncated = [cub_folder / "images" / name for name in ("003.Sooty_Albatross/0.jpg", "004.Groove_billed_Ani/2.jpg")]
    for path in truncated:
        path.write_bytes(path.read_bytes()[:700])
    options = [*SMOKE, "--dataset", "cub", "--dataset_options", f"{{root: {cub_folder}}}", "--batch_size", "4"]
    return truncated, [*options, "--resolutions", "{}", "--val_fraction", "0", "--stages", "[{epochs: 1, lr: 0.1}]"]


def test_unreadable_images_are_an_error_before_or_in_the_training(cub_folder: Path, tmp_path: Path) -> None:
    intact = (cub_folder / "images" / "004.Groove_billed_Ani" / "2.jpg").read_bytes()
    (training, test), options = truncate_birds(cub_folder)
    error = train(tmp_path, *options, "--output", "not_trained", ok=False)
    assert "1 of 4 test images cannot be read: image 2 (" in error
    assert f"cannot read the image {test}" in error
    assert "on_error: skip" in error
    assert not list((tmp_path / "not_trained").glob("checkpoint-*"))
    test.write_bytes(intact)
    error = train(tmp_path, *options, "--num_workers", "1", "--output", "by_a_worker", ok=False)
    assert f"image 2 ({training}) cannot be used: cannot read the image {training}" in error
    assert "on_error: skip" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("processes", [1, 2])
def test_unreadable_images_are_skipped_and_listed(processes: int, cub_folder: Path, tmp_path: Path) -> None:
    # One image of each class is a test image.
    truncated, options = truncate_birds(cub_folder)
    options = [*options, "--on_error", "skip", "--output", "skipped"]
    if processes == 1:
        printed = train(tmp_path, *options)
    else:
        code, printed = run_in_two_processes(RECIPE, options, tmp_path)
        assert code == 0, printed[-3000:]
    rows = read_csv(tmp_path / "skipped" / "unreadable.csv")
    assert [(row["split"], row["index"]) for row in rows] == [("training", "2"), ("test", "2")]
    for row, path in zip(rows, truncated, strict=True):
        assert str(path) in row["name"]
        assert "truncated" in row["reason"]
        assert str(path) in printed
    assert [row["index"] for row in read_csv(tmp_path / "skipped" / "test_predictions.csv")] == ["0", "1", "3"]
    assert {row["images"] for row in read_csv(tmp_path / "skipped" / "test.csv")} == {"3"}


def test_a_level_without_a_readable_validation_image_is_an_error(tmp_path: Path) -> None:
    for split, number in (("train", 4), ("val", 1), ("test", 1)):
        for species in ("a/b/c", "a/b/d"):
            (tmp_path / "data" / split / species).mkdir(parents=True)
            for shot in range(number):
                file = tmp_path / "data" / split / species / f"{shot}.jpg"
                Image.new("RGB", (40, 30), (40 * shot, 90, 10)).save(file)
                if split == "val":
                    file.write_bytes(file.read_bytes()[:500])
    options = [*SMOKE, "--dataset", "folder", "--dataset_options", f"{{root: {tmp_path / 'data'}}}"]
    options += ["--batch_size", "4", "--on_error", "skip"]
    error = train(tmp_path, *options, ok=False)
    assert "no readable validation image has a label at 'family'; check the data with `c2f-zoo data check`" in error


def test_training_from_the_cache_gives_the_same_results(cub_folder: Path, tmp_path: Path) -> None:
    options = [*SMOKE, "--dataset", "cub", "--dataset_options", f"{{root: {cub_folder}}}", "--batch_size", "4"]
    options += ["--resolutions", "{genus: 24}", "--val_fraction", "0.5", "--stages", "[{epochs: 1, lr: 0.1}]"]
    train(tmp_path, *options, "--output", "files")
    train(tmp_path, *options, "--output", "cached", "--cache", "decoded")
    assert len(list((tmp_path / "decoded").glob("*.cache"))) == 2, "training and test images"
    for name in ("metrics.csv", "test.csv", "test_predictions.csv"):
        assert read_csv(tmp_path / "cached" / name) == read_csv(tmp_path / "files" / name)


def test_a_second_file_overrides_the_first(tmp_path: Path) -> None:
    (tmp_path / "resolutions.yaml").write_text("resolutions: {species: null, genus: 40, family: 20}\n")
    options = ["--dataset_options.per_class", "1", "--val_fraction", "0", "--stages", "[{epochs: 1, lr: 0.1}]"]
    train(tmp_path, *SMOKE, "--config", "resolutions.yaml", *options)
    kept = yaml.safe_load((tmp_path / "runs" / "smoke-1" / "config.yaml").read_text())
    assert kept["resolutions"] == {"species": None, "genus": 40, "family": 20}


def test_fashion_mnist_is_read_from_its_files(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "idx", zipped=True)
    options = ["--config", str(ROOT / "recipes" / "configs" / "fashion_mnist.yaml"), "--batch_size", "5"]
    options += ["--dataset_options", f"{{root: {tmp_path / 'idx'}}}", "--stages", "[{epochs: 1, lr: 0.1}]"]
    train(tmp_path, *options)
    rows = read_csv(tmp_path / "runs" / "fashion_mnist-1" / "test.csv")
    assert [row["level"] for row in rows if row["own"] == "True"] == ["article", "group", "division"]


def test_the_first_stage_freezes_the_backbone(tmp_path: Path) -> None:
    # Batch norm must be in evaluation mode; otherwise its running statistics change.
    options = ["--dataset_options.per_class", "1", "--val_fraction", "0", "--seed", "5"]
    options += ["--model_options.backbone", "resnet10t", "--stages", "[{epochs: 1, lr: 0.1}]"]
    train(tmp_path, *SMOKE, *options)
    trained = create_model(f"local-dir:{tmp_path / 'runs' / 'smoke-1'}")
    torch.manual_seed(5)
    config = yaml.safe_load((tmp_path / "runs" / "smoke-1" / "config.yaml").read_text())
    fresh = create_model(config["model"], hierarchy="critters", **config["model_options"])
    for name, weight in fresh.backbone.state_dict().items():
        assert torch.equal(trained.backbone.state_dict()[name], weight), name
    changed = trained.pooling.state_dict()["projections.0.weight"] != fresh.pooling.state_dict()["projections.0.weight"]
    assert changed.any()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--batch_sise", "4"], "batch_sise"),
        (["--dataset", "critter"], "unknown dataset 'critter'; did you mean 'critters'"),
        (["--model", "mlhp"], "unknown model 'mlhp'; did you mean"),
        (["--resolutions", "{genes: 32}"], "unknown level 'genes'; did you mean 'genus'"),
        (["--model_options.backbone", "resnet5O"], "unknown backbone 'resnet5O'; did you mean 'resnet50'"),
        (["--model_options.backbon", "resnet50"], "unknown key in model_options: 'backbon'; did you mean 'backbone'"),
        (
            ["--dataset_options.perclass", "2"],
            "unknown option of dataset 'critters': 'perclass'; did you mean 'per_class'",
        ),
        (["--model_options.pooling_options.dimm", "2"], "unknown option of pooling 'mlp': 'dimm'; did you mean 'dim'"),
        (["--stages", "[{epochs: 1, lr: 0.1, halve: 2}]"], "halve"),
        (["--stages", "[]"], "train.py: the stages have no epoch; add one"),
    ],
)
def test_invalid_options_are_errors_before_training(options: list[str], error: str, tmp_path: Path) -> None:
    assert error in train(tmp_path, *SMOKE, *options, ok=False)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_key_in_the_file_is_an_error(tmp_path: Path) -> None:
    config = yaml.safe_load(Path(SMOKE[1]).read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**config, "batchsize": 4}))
    assert "batchsize" in train(tmp_path, "--config", "mine.yaml", ok=False)


def test_a_non_finite_loss_ends_the_run(tmp_path: Path) -> None:
    options = ["--stages", "[{epochs: 1, lr: 1.0e+30}]", "--dataset_options.per_class", "1", "--batch_size", "4"]
    assert "start a new run with a lower learning rate" in train(tmp_path, *SMOKE, *options, ok=False)
