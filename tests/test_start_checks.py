"""Faults that are named before training, and running out of memory."""

from __future__ import annotations

import copy
import re
import runpy
import shutil
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from c2f_zoo import C2FModel, Pooling, create_dataset, create_model
from c2f_zoo.data import ImageFiles, LabelledImages
from c2f_zoo.pooling import POOLINGS
from c2f_zoo.training import stages, start_checks
from c2f_zoo.training.advice import advise
from c2f_zoo.training.dry_run import try_stages
from c2f_zoo.training.memory import is_out_of_memory
from c2f_zoo.training.objective import create_objective
from c2f_zoo.training.option_checks import check_values, find_overridden
from c2f_zoo.training.options import Stage, TrainOptions
from c2f_zoo.training.round_trip import check_round_trip, compare_predictions
from c2f_zoo.training.setup import build_model
from c2f_zoo.training.stages import fit, set_up_run
from c2f_zoo.training.start_checks import check_batch_statistics, check_disk, check_output, checkpoint_size
from c2f_zoo.training.unreadable import check_readable

RECIPE = str(Path(__file__).parents[1] / "recipes" / "train.py")
Usage = namedtuple("Usage", "total used free")
SMALLEST: dict[str, Any] = {"backbone": "test_convnext", "input_size": 32, "pooling": "avg"}


def options(**values: Any) -> TrainOptions:
    defaults: dict[str, Any] = {
        "dataset": "critters",
        "model": "mlph",
        "model_options": {"backbone": "tiny", "input_size": 32, "pooling_options": {"dim": 8}},
        "resolutions": {"species": None, "genus": 16, "family": 8},
        "stages": [Stage(epochs=1, lr=0.1), Stage(epochs=1, lr=0.1, backbone_lr=0.1)],
        "batch_size": 12,
    }
    return TrainOptions(**defaults | values)


@pytest.fixture(scope="module")
def critters() -> LabelledImages:
    return create_dataset("critters", "train", per_class=1)


def train(chosen: TrainOptions, model: C2FModel, dataset: LabelledImages, output: Path) -> None:
    output.mkdir(exist_ok=True)
    scores = dict.fromkeys(model.levels, 0.5), []
    objective, accelerator = create_objective(chosen, model), Accelerator(cpu=True)
    fit(model, dataset, range(len(dataset)), objective, lambda wrapped: scores, chosen, output, accelerator)


# Values


STAGE = Stage(epochs=2, lr=0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"accumulate": 0}, "accumulate is 0; it must be a number of batches, 1 or more"),
        ({"batch_size": 0}, "batch_size is 0; it must be a number of images, 1 or more"),
        ({"batch_size": 3}, "batch_size 3 cannot be split between 2 processes; choose a multiple of 2"),
        ({"clip_grad": 0.0}, "clip_grad is 0.0; it must be above 0, or null for no limit"),
        ({"cutmix": float("inf")}, "cutmix is inf; it must be a number of 0 or more"),
        ({"ema": 1.0}, "ema is 1.0; it must be 0 or more and below 1, or null for none"),
        ({"keep": 0}, "keep is 0; it must be a number of checkpoints, 1 or more"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0; it must be above 0 and at most 1"),
        ({"level_weights": {"genus": -1.0}}, "the weight of genus is -1.0; it must be 0 or more"),
        ({"loss": "cross_entrpy"}, "unknown loss 'cross_entrpy'; did you mean 'cross_entropy'"),
        ({"mixup": -0.2}, "mixup is -0.2; it must be a number of 0 or more"),
        ({"momentum": 1.0}, "momentum is 1.0; it must be 0 or more and below 1"),
        ({"num_workers": -1}, "num_workers is -1; it must be a number of processes, 0 or more"),
        ({"objective": "any_resolution", "batch_norm": "per_level"}, "use batch_norm 'shared' or 'frozen'"),
        ({"optimizer": "adamv"}, "unknown optimizer 'adamv'; did you mean"),
        ({"optimizer_options": {"nesterof": True}}, "unknown option of optimizer 'sgd': 'nesterof'; did you mean"),
        ({"resolutions": {"genus": 0}}, "the resolution of genus is 0; it must be 1 or more"),
        ({"save_every": "10 hours"}, "save_every is a time or a number of steps"),
        ({"save_every": "0 steps"}, "save_every is a time or a number of steps"),
        ({"seed": -1}, "seed is -1; it must be a number from 0 to 4294967295"),
        ({"stages": []}, "the stages have no epoch; add one"),
        ({"stages": [replace(STAGE, epochs=-1)]}, "epochs of stage 1 is -1; it must be a number of epochs, 0 or more"),
        ({"stages": [STAGE, replace(STAGE, lr=0.0)]}, "lr of stage 2 is 0.0; it must be above 0"),
        ({"stages": [replace(STAGE, backbone_lr=-1.0)]}, "backbone_lr of stage 1 is -1.0; it must be 0 or more"),
        ({"stages": [replace(STAGE, halve_every=0)]}, "halve_every of stage 1 is 0; it must be a number of epochs"),
        (
            {"stages": [replace(STAGE, warmup_epochs=-1)]},
            "warmup_epochs is -1; it must be 0 or more and",
        ),
        ({"stages": [replace(STAGE, schedule="cosine", warmup_epochs=2)]}, "warmup_epochs is 2; it must be 0 or more"),
        ({"tree_prior": -0.1}, "tree_prior is -0.1; it must be 0 or more"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0; it must be 0 or more and below 1"),
        ({"weight_decay": float("nan")}, "weight_decay is nan; it must be 0 or more"),
    ],
)
def test_a_value_out_of_range_is_an_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        check_values(options(**values), num_processes=2)
    assert str(error.value).startswith(message) or message in str(error.value)
    assert "\n" not in str(error.value)


def test_values_at_the_ends_of_the_ranges_are_accepted() -> None:
    least = {"accumulate": 1, "ema": 0.0, "keep": 1, "mixup": 0.0, "cutmix": 0.0, "momentum": 0.0, "val_fraction": 0.0}
    check_values(options(**least, clip_grad=1e-9, layer_decay=1.0, batch_size=2, save_every="1 step"), num_processes=2)
    check_values(options(seed=2**32 - 1, stages=[replace(STAGE, epochs=0), STAGE]), num_processes=1)


@pytest.mark.parametrize(
    ("values", "error"), [({"keep": 0}, "keep is 0"), ({"output": "file/run"}, "file/run: Not a directory")]
)
def test_options_are_checked_before_the_data_are_read(
    values: dict[str, Any], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    main = runpy.run_path(RECIPE)["main"]
    with pytest.raises((ValueError, OSError), match=error):
        main(options(**values, dataset="there is none"), "run")
    with pytest.raises(ValueError, match="unknown dataset 'there is none'"):
        main(options(dataset="there is none"), "run")


# Options without effect


def overridden(values: dict[str, Any], dataset: LabelledImages, images: int = 36, processes: int = 1) -> list[str]:
    chosen = options(**values)
    return list(find_overridden(chosen, build_model(chosen, dataset.hierarchy), images, processes))


def test_nothing_is_said_of_options_that_work(critters: LabelledImages) -> None:
    trained = Stage(epochs=1, lr=0.1, backbone_lr=0.1, halve_every=3, freeze_batch_norm=True)
    used = {"stages": [trained], "mixup": 0.2, "accumulate": 3, "momentum": 0.5, "filter_bias_and_bn": True}
    assert overridden(used, critters) == []


NO_NORM = {"backbone": "test_convnext", "input_size": 32, "pooling": "avg"}


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({"batch_size": 50}, ["batch_size 50 is more than the 36 training images: each batch has 36"]),
        ({"accumulate": 4}, ["accumulate 4 is more than an epoch's 3 batches: each epoch is one group"]),
        ({"batch_size": 1, "cutmix": 1.0}, ["mixup and cutmix have no effect: a process's batch has one image, which"]),
        (
            {"batch_norm": "frozen", "model_options": NO_NORM},
            ["batch_norm 'frozen' has no effect: the backbone has no batch norm"],
        ),
        (
            {"stages": [replace(STAGE, freeze_batch_norm=True, backbone_lr=1.0)], "model_options": NO_NORM},
            ["freeze_batch_norm of stage 1 has no effect: the backbone has no batch norm"],
        ),
        (
            {"stages": [STAGE], "layer_decay": 0.5, "gradient_checkpointing": True, "model_options": NO_NORM},
            ["layer_decay has no effect: no stage trains", "gradient_checkpointing has no effect: no stage trains"],
        ),
        ({"optimizer": "adamw", "momentum": 0.5}, ["momentum has no effect: the optimizer 'adamw' has none"]),
        ({"filter_bias_and_bn": True, "weight_decay": 0.0}, ["filter_bias_and_bn has no effect: weight_decay is 0"]),
        (
            {"stages": [replace(STAGE, halve_every=5, schedule="linear", backbone_lr=0.1)]},
            ["halve_every of stage 1 has no effect: its schedule is 'linear'"],
        ),
    ],
)
def test_an_option_without_effect_is_said(values: dict[str, Any], lines: list[str], critters: LabelledImages) -> None:
    found = overridden(values, critters)
    assert len(found) == len(lines)
    for said, line in zip(found, lines, strict=True):
        assert said.startswith(line)


def test_fewer_images_than_processes_are_an_error(critters: LabelledImages) -> None:
    with pytest.raises(ValueError, match="3 training images are too few for 4 processes: each needs one in every batc"):
        overridden({"batch_size": 8}, critters, images=3, processes=4)
    said = ["batch_size 8 is more than the 7 training images: each batch has 4"]
    assert overridden({"batch_size": 8}, critters, images=7, processes=4) == said


# Folder and disk


@pytest.mark.parametrize("output", ["file", "file/run", "/proc/run"])
def test_a_folder_that_cannot_be_written_is_named(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(OSError, match=rf"cannot write to the folder .*{output}: .*; choose another --output") as error:
        check_output(output)
    assert "\n" not in str(error.value)
    check_output("new/run")
    check_output(None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is left"


def test_every_recipe_checks_its_folder_before_it_reads_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    recipes = Path(RECIPE).parent
    evaluate, ablate, find = (
        runpy.run_path(str(recipes / f"{name}.py")) for name in ("evaluate", "probes", "find_resolutions")
    )
    data: dict[str, Any] = {"dataset": "there is none", "dataset_options": {}}
    search = {key: value for key, value in vars(options(output="file/found")).items() if key != "dataset"}
    for start in (
        lambda: evaluate["main"]("there is no run", output="file/evaluation"),
        lambda: ablate["main"](**data, model_options={}, resolutions={}, output="file/probes.csv"),
        lambda: find["main"](find["SearchOptions"](dataset="there is none", **search), None, "run"),
    ):
        with pytest.raises(OSError, match=r"cannot write to the folder .*file.*; choose another --output"):
            start()


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {"ema": 0.9, "optimizer": "adamw"},
        {"momentum": 0.0},
        {"optimizer": "lion"},
        {"stages": [replace(STAGE, epochs=1)], "optimizer": "adam"},
    ],
)
def test_the_size_of_a_checkpoint_is_estimated(
    values: dict[str, Any], critters: LabelledImages, tmp_path: Path
) -> None:
    sizable = {"backbone": "tiny", "input_size": 32, "pooling_options": {"dim": 512}}
    chosen = options(**{"stages": [replace(STAGE, epochs=1, backbone_lr=0.1)], **values}, model_options=sizable)
    model = build_model(chosen, critters.hierarchy)
    estimated = checkpoint_size(model, chosen)
    train(chosen, model, critters, tmp_path)
    files = [path for path in max(tmp_path.glob("checkpoint-*")).rglob("*") if path.suffix in (".safetensors", ".pt")]
    assert estimated == pytest.approx(sum(path.stat().st_size for path in files), rel=0.05)


def test_a_disk_without_room_for_the_checkpoints_is_an_error_before_training(
    critters: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options(keep=3)
    model = build_model(chosen, critters.hierarchy)
    size, output = checkpoint_size(model, chosen), tmp_path / "run"
    room = {tmp_path: 5 * size - 1}  # of the folder that is there
    monkeypatch.setattr(start_checks.shutil, "disk_usage", lambda path: Usage(10**12, 0, room[path]))
    expected = (
        r"the disk of .*run has .*left, but the run's checkpoints need about .*: 5 of .* each \(keep \+ 2\), 0 of "
        r"which are there; make room, lower keep, or choose another --output"
    )
    with pytest.raises(OSError, match=expected):
        check_disk(model, chosen, output)
    check_disk(model, replace(chosen, keep=2), output)
    for step in (1, 2):  # of an earlier start
        (output / f"checkpoint-{step}").mkdir(parents=True)
    room = {output: 3 * size}
    check_disk(model, chosen, output)
    room[output] -= 1
    with pytest.raises(OSError, match="2 of which are there"):
        check_disk(model, chosen, output)
    shutil.rmtree(output)
    room = {output: 0}
    with pytest.raises(OSError, match="has 0 MiB left"):
        train(chosen, model, critters, output)
    assert list(output.iterdir()) == []


# Batch norm


def prepare(chosen: TrainOptions, dataset: LabelledImages, processes: int = 1) -> Any:
    model = build_model(chosen, dataset.hierarchy)
    objective, accelerator = create_objective(chosen, model), Accelerator(cpu=True)
    run = set_up_run(model, dataset, range(len(dataset)), objective, chosen, Path(), accelerator)
    run.batches.num_processes = processes
    return run


SMALL = {"backbone": "resnet10t", "input_size": 32, "pooling": "avg"}


def test_batch_norm_with_one_value_is_found_before_the_first_step(critters: LabelledImages) -> None:
    chosen = options(model_options=SMALL, batch_size=2)
    check_batch_statistics(prepare(chosen, critters))
    run = prepare(chosen, critters, processes=2)
    before, state = copy.deepcopy(run.model.state_dict()), torch.get_rng_state()
    with pytest.raises(ValueError) as error:
        check_batch_statistics(run)
    assert "batch norm has one value per channel in stage 2, at backbone." in str(error.value)
    assert "raise batch_size to 4, set batch_norm to 'frozen', or choose a larger input_size" in str(error.value)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(torch.get_rng_state(), state)
    run.model.train()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):  # what a step would say
        run.model(torch.zeros(1, 3, 32, 32))


def test_batch_norm_of_a_pooling_is_found_before_the_first_step(critters: LabelledImages) -> None:
    shared = {"pooling": "hbp_shared", "pooling_options": {"dim": 8}, "taps": ["layer4.0.conv1"] * 3}
    run = prepare(options(model_options=SMALL | shared, batch_size=1), critters)
    with pytest.raises(ValueError, match="hbp_shared has batch norm, and one image with one location has no variance"):
        check_batch_statistics(run)


@pytest.mark.parametrize(
    "values",
    [
        {"batch_norm": "frozen"},
        {"stages": [STAGE]},
        {"stages": [replace(STAGE, backbone_lr=0.1, freeze_batch_norm=True)]},
        {"model_options": {**SMALL, "input_size": 64}},
    ],
    ids=["frozen", "backbone frozen", "frozen in the stage", "larger input"],
)
def test_ways_to_train_with_one_image(values: dict[str, Any], critters: LabelledImages) -> None:
    check_batch_statistics(prepare(options(**{"model_options": SMALL, "batch_size": 1, **values}), critters))


# Memory


@pytest.mark.slow
def test_out_of_memory_says_what_to_lower(
    critters: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options(accumulate=2, model_options={**options().model_options, "pooling_options": {"impl": "plain"}})
    model = build_model(chosen, critters.hierarchy)
    allocated: list[bytearray] = []

    def forward(*args: Any, **kwargs: Any) -> None:
        allocated.append(bytearray(2**29))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(MemoryError) as error:
        train(chosen, model, critters, tmp_path)
    text = str(error.value)
    assert text.startswith("out of memory: CUDA out of memory. Tried to allocate 2.00 GiB. The peak so far was ")
    assert "for each of 12 images. To need less: set batch_size to 6 and accumulate to 4 for steps of as many" in text
    for way in ("set gradient_checkpointing", "set mixed_precision to bf16", "leave pooling_options.impl"):
        assert way in text
    assert "\n" not in text
    lowest = replace(chosen, batch_size=1, gradient_checkpointing=True, mixed_precision="bf16", model_options={})
    monkeypatch.setattr("c2f_zoo.training.stages.check_batch_statistics", lambda run: None)
    with pytest.raises(MemoryError, match="To need less: choose a smaller input_size or backbone"):
        train(lowest, model, critters, tmp_path / "lowest")


def test_memory_of_each_image_is_estimated_from_the_peak(
    critters: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options()
    model = build_model(chosen, critters.hierarchy)
    peak = 2**30
    monkeypatch.setattr("c2f_zoo.training.memory.peak_memory", lambda device: peak)

    def forward(*args: Any, **kwargs: Any) -> None:
        nonlocal peak
        peak += checkpoint_size(model, chosen) + 12 * 3 * 2**20
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(MemoryError, match=r"The peak so far was 1\.\d+ GiB, at least 3 MiB for each of 12 images"):
        train(chosen, model, critters, tmp_path)


@pytest.mark.slow
def test_a_dry_run_tries_every_stage_and_writes_nothing(
    critters: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = prepare(options(stages=[Stage(epochs=2, lr=0.1), Stage(epochs=5, lr=0.1, backbone_lr=0.1)]), critters)
    steps: list[int] = []
    monkeypatch.setattr("c2f_zoo.training.dry_run.take_step", lambda run, state, step: steps.append(state.number))
    costs = list(try_stages(run))
    # Two groups make four rounds for three levels: 1 + 2 + 2 + 1 steps.
    assert steps == 6 * [1] + 6 * [2]
    assert [(cost.stage, cost.steps) for cost in costs] == [(1, 2 * 9), (2, 5 * 9)]
    assert all(cost.seconds >= 0 and cost.memory > 2**26 for cost in costs)
    assert str(costs[0]).startswith("stage 1: 18 steps of ")
    assert list(tmp_path.iterdir()) == []
    one_value = prepare(options(model_options=SMALL, batch_size=1), critters)
    with pytest.raises(ValueError, match="batch norm has one value per channel in stage 2"):
        next(try_stages(one_value))


# Saving and loading


class Tied(Pooling):
    """Two projections with one weight."""

    description = "tied"

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__(in_channels, out_features=8)
        self.one, self.other = (torch.nn.Linear(in_channels[0], 8) for _ in range(2))
        self.other.weight = self.one.weight

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        x = maps[0].mean(dim=(2, 3))
        return self.one(x) * self.other(x)


class Hidden(Pooling):
    """A random scale that is no buffer."""

    description = "hidden"

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__(in_channels, out_features=in_channels[0])
        self.scale = torch.rand(in_channels[0])

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        return maps[0].mean(dim=(2, 3)) * self.scale


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        (Tied, "the weights pooling.one.weight and pooling.other.weight share memory and cannot be saved; keep one"),
        (Hidden, "the saved model predicts something else after it is loaded (logits of family differ by"),
    ],
)
@pytest.mark.slow
def test_a_part_that_is_not_saved_is_found_before_the_first_step(
    pooling: type[Pooling], message: str, critters: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(POOLINGS._entries, "plug_in", pooling)
    monkeypatch.setattr(stages, "take_step", lambda *_: pytest.fail("a step was taken"))
    chosen = options(model_options={"backbone": "test_convnext", "input_size": 32, "pooling": "plug_in"})
    model = build_model(chosen, critters.hierarchy)
    with pytest.raises(ValueError, match=re.escape(message)):
        train(chosen, model, critters, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=re.escape(message)):
        next(try_stages(prepare(chosen, critters)))


@pytest.mark.slow
def test_a_model_that_is_saved_whole_predicts_the_same(critters: LabelledImages, tmp_path: Path) -> None:
    chosen = options(batch_norm="per_level")
    model = build_model(chosen, critters.hierarchy)
    before = copy.deepcopy(model.state_dict())
    check_round_trip(model, chosen, tmp_path, Accelerator(cpu=True))
    assert all(torch.equal(before[name], found) for name, found in model.state_dict().items())
    other = build_model(chosen, critters.hierarchy)
    with pytest.raises(ValueError, match="predicts something else"):
        compare_predictions(model, other, chosen)
    other.load_state_dict(before)
    compare_predictions(model, other, chosen)
    with torch.no_grad():  # as of memory that a plug-in did not fill
        other.head.get_classifier("genus").bias[0] = torch.nan
    with pytest.raises(ValueError, match="logits of genus differ by nan"):
        compare_predictions(model, other, chosen)


class Normed(Pooling):
    """A pooling that `copy.deepcopy` refuses, for its weight is computed."""

    description = "normed"

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__(in_channels, out_features=8)
        self.project = torch.nn.utils.weight_norm(torch.nn.Linear(in_channels[0], 8))

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.project(maps[0].mean(dim=(2, 3)))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.slow
def test_a_part_that_cannot_be_copied_is_saved_loaded_and_trained(
    critters: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(POOLINGS._entries, "plug_in", Normed)
    chosen = options(model_options={"backbone": "test_convnext", "input_size": 32, "pooling": "plug_in"})
    model = build_model(chosen, critters.hierarchy)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model.pooling)
    assert list(advise(chosen, model, critters, range(36))) == []
    check_round_trip(model, chosen, tmp_path, Accelerator(cpu=True))


# Unreadable images


@pytest.fixture
def damaged(cub_folder: Path) -> ImageFiles:
    """Four test images; the second is cut off, the third is text."""
    test_set = create_dataset("cub", "test", root=cub_folder)
    test_set.paths[1].write_bytes(test_set.paths[1].read_bytes()[:500])
    test_set.paths[2].write_text("not an image")
    return test_set


def check_test_set(dataset: LabelledImages, on_error: str, levels: list[str] | None = None) -> None:
    model = create_model("mlph", hierarchy=dataset.hierarchy, levels=levels, **SMALLEST)
    check_readable({"test": (dataset, range(len(dataset)))}, model, on_error, Accelerator(cpu=True))


@pytest.mark.slow
def test_unreadable_test_images_are_found_and_named(damaged: ImageFiles, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError) as error:
        check_test_set(damaged, "raise")
    message = str(error.value)
    assert message.startswith("2 of 4 test images cannot be read: image 1 (")
    assert str(damaged.paths[1]) in message and str(damaged.paths[2]) in message
    assert str(damaged.paths[0]) not in message and "on_error: skip" in message
    check_test_set(damaged, "skip")
    assert "2 of 4 test images cannot be read and are skipped" in capsys.readouterr().out
    for path in damaged.paths:
        path.write_text("not an image")
    with pytest.raises(ValueError, match="no readable test image has a label at 'family'"):
        check_test_set(damaged, "skip")


def test_one_image_of_a_dataset_without_files_is_read(critters: LabelledImages) -> None:
    read: list[int] = []

    class Drawn:
        hierarchy, targets = critters.hierarchy, critters.targets

        def __len__(self) -> int:
            return len(critters)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            read.append(index)
            return critters[index]

    check_test_set(Drawn(), "raise")
    assert read == [0]


@pytest.mark.slow
@pytest.mark.parametrize("dry_run", [False, True])
def test_an_unreadable_test_image_ends_the_recipe_before_training(
    dry_run: bool, damaged: ImageFiles, cub_folder: Path, tmp_path: Path
) -> None:
    main = runpy.run_path(RECIPE)["main"]
    values: dict[str, Any] = {"dataset": "cub", "dataset_options": {"root": str(cub_folder)}, "resolutions": {}}
    chosen = options(**values, val_fraction=0.0, batch_size=4, output=str(tmp_path / "run"), dry_run=dry_run)
    with pytest.raises(ValueError, match="2 of 4 test images cannot be read"):
        main(chosen, "run")
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_what_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**15)
    assert is_out_of_memory(error.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
