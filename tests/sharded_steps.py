"""Save and restore a model that `fully_shard` splits.

    torchrun --nproc_per_node 2 sharded_steps.py FOLDER OPTIMIZER

Each process has its own images. A model of a single process, trained on all images, is the reference. Rank 0 prints
JSON: for each comparison its largest difference.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from c2f_zoo import C2FModel, create_dataset
from c2f_zoo.data import labels_of
from c2f_zoo.training.objective import create_objective
from c2f_zoo.training.optimizers import create_optimizer, create_schedule
from c2f_zoo.training.options import Stage, TrainOptions
from c2f_zoo.training.run_state import Run, StageState, restore_optimizer, restore_run, save_run
from c2f_zoo.training.setup import build_model
from c2f_zoo.training.stages import set_up_run

OPTIONS = TrainOptions(
    dataset="critters",
    model="mlph",
    # Without batch norm, whose statistics are those of a process.
    model_options={"backbone": "test_convnext", "input_size": 32, "pooling_options": {"dim": 8}},
    resolutions={},
    stages=[Stage(epochs=1, lr=0.1, backbone_lr=0.05)],
    batch_size=4,
    weight_decay=0.01,
    channels_last=False,  # fully_shard needs contiguous weights
)
IMAGES, STEPS = 2, 3  # of each process
LABELS = labels_of(create_dataset("critters", "train", per_class=1))


def main(folder: Path, optimizer: str) -> None:
    accelerator = Accelerator(cpu=True)
    # A large eps: otherwise AdamW turns the rounding of tiny gradients into steps.
    settings = {"eps": 1e-3} if optimizer == "adamw" else {}
    options = replace(OPTIONS, optimizer=optimizer, optimizer_options=settings)
    accelerator.print(json.dumps(compare(options, folder / optimizer, accelerator)))
    dist.destroy_process_group()


def compare(options: TrainOptions, folder: Path, accelerator: Accelerator) -> dict[str, float]:
    """Train, save and restore with a model of both kinds; return the differences."""
    sharded, alone = prepare(options, folder, accelerator, 0, True), prepare(options, folder, accelerator, 0, False)
    folder.mkdir(parents=True, exist_ok=True)
    save_run(*sharded)  # before the first step: it must not change the optimizer
    for step in range(STEPS):
        take_step(*sharded, step, whole=False)
        take_step(*alone, step, whole=True)
    sharded[0].progress.step = STEPS
    save_run(*sharded)
    accelerator.wait_for_everyone()
    checkpoint = max(folder.glob("checkpoint-*"))
    saved = {
        "weights": C2FModel.from_pretrained(checkpoint).state_dict(),
        "optimizer": torch.load(checkpoint / "training.pt", weights_only=True)["optimizer"]["state"],
    }
    found = {
        "sharded weights": 1.0 - all(isinstance(weight, DTensor) for weight in sharded[0].model.parameters()),
        "saved weights, trained alone": difference(saved["weights"], alone[0].model.state_dict()),
        "saved optimizer, trained alone": difference(saved["optimizer"], alone[1].optimizer.state_dict()["state"]),
    }
    take_step(*sharded, STEPS, whole=False)
    take_step(*alone, STEPS, whole=True)
    for kind, is_sharded in (("sharded", True), ("whole", False)):
        run, state = prepare(options, folder, accelerator, 1, is_sharded)
        restore_run(run, checkpoint)
        restore_optimizer(state, checkpoint)
        found[f"{kind}, restored weights"] = difference(run.model.state_dict(), saved["weights"])
        found[f"{kind}, restored optimizer"] = difference(state.optimizer.state_dict()["state"], saved["optimizer"])
        take_step(run, state, STEPS, whole=not is_sharded)
        expected = sharded if is_sharded else alone
        found[f"{kind}, next weights"] = difference(run.model.state_dict(), expected[0].model.state_dict())
    return found


def prepare(
    options: TrainOptions, folder: Path, accelerator: Accelerator, seed: int, is_sharded: bool
) -> tuple[Run, StageState]:
    """Build a model and its optimizer, sharded or not."""
    torch.manual_seed(seed)
    dataset = create_dataset("critters", "train", per_class=1)
    model = build_model(options, dataset.hierarchy)
    objective = create_objective(options, model)
    run = set_up_run(model, dataset, range(len(dataset)), objective, options, folder, accelerator)
    if is_sharded:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for module in (model.backbone, model):
            fully_shard(module, mesh=mesh)
    optimizer = create_optimizer(model, options.stages[0], options)
    schedule = create_schedule(optimizer, options.stages[0], steps_per_epoch=10)
    return run, StageState(options.stages[0], 1, 0, model, optimizer, schedule)


def take_step(run: Run, state: StageState, step: int, *, whole: bool) -> None:
    """Take a step on the images of all processes, or of this one."""
    generator = torch.Generator().manual_seed(step)
    count = IMAGES * dist.get_world_size()
    images, labels = torch.randn(count, 3, 32, 32, generator=generator), LABELS[step : step + count]
    here = slice(None) if whole else slice(dist.get_rank() * IMAGES, (dist.get_rank() + 1) * IMAGES)
    losses = run.objective(state.wrapped, images[here], labels[here], run.levels)
    torch.stack(list(losses.values())).sum().backward()
    state.optimizer.step()
    state.optimizer.zero_grad()


def difference(found: Any, expected: Any) -> float:
    """Return the largest difference between tensors of equal nested dictionaries, relative to the largest value."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        return max(difference(found[key], expected[key]) for key in expected)
    if expected is None:
        return float(found is not None)
    found, expected = (value.full_tensor() if isinstance(value, DTensor) else value for value in (found, expected))
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
