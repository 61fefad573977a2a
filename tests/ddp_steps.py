"""Three training steps of a model in several processes: `torchrun --nproc_per_node 2 ddp_steps.py MODEL`.

Each process has its own images. No weight may be without a gradient: `find_unused_parameters` is False.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from typing import Any

import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import c2f_zoo.integrations.timm  # noqa: F401  registers the models
from c2f_zoo import create_model

# Backbones of which 1 to 46 weights had no gradient when only whole modules behind the taps were removed.
OWN = ("xcit_nano_12_p16_224", "legacy_xception", "efficientvim_m1", "resnest14d", "cpubone_nano", "csatv2")
STEPS = 3
IMAGES = 2  # of each process


def main(name: str) -> None:
    """Train one level and then all levels of a model; rank 0 prints a row for each."""
    dist.init_process_group("gloo")
    for trained in ("one level", "all levels"):
        torch.manual_seed(0)  # the same weights in each process
        model = create_own(name) if name in OWN else create_bundled(name, trained)
        if name in OWN and trained == "one level":
            model = model.at_level("species")
        row = {"model": name, "trained": trained, **train(model, model.pretrained_cfg["input_size"])}
        if dist.get_rank() == 0:
            print(json.dumps(row), flush=True)
    dist.destroy_process_group()


def create_own(name: str) -> Any:
    return create_model("mlph", backbone=name, hierarchy="critters", input_size=224, pooling_options={"dim": 8})


def create_bundled(name: str, trained: str) -> nn.Module:
    return timm.create_model(name, pretrained=True) if trained == "one level" else create_model(name, pretrained=True)


def train(model: nn.Module, size: tuple[int, int, int]) -> dict[str, Any]:
    """Take three steps; compare the first gradients with the mean of those without DistributedDataParallel."""
    start, rank = time.monotonic(), dist.get_rank()
    generator = torch.Generator().manual_seed(rank)
    x, labels = torch.rand(IMAGES, *size, generator=generator), torch.randint(36, (IMAGES,), generator=generator)
    alone = copy.deepcopy(model)
    torch.manual_seed(rank)
    loss_of(alone, x, labels).backward()
    for weight in trainable(alone):
        assert weight.grad is not None
        dist.all_reduce(weight.grad)
    wrapped = DistributedDataParallel(model, find_unused_parameters=False)
    optimizer = torch.optim.SGD(trainable(model), lr=1e-3)
    losses, difference = [], math.nan
    for step in range(STEPS):
        torch.manual_seed(rank)  # dropout as without DistributedDataParallel
        optimizer.zero_grad()
        loss = loss_of(wrapped, x, labels)
        loss.backward()
        if step == 0:
            difference = gradient_difference(model, alone)
        optimizer.step()
        losses.append(loss.item())
    return {
        "weights": sum(weight.numel() for weight in trainable(model)),
        "processes": dist.get_world_size(),
        "steps": STEPS,
        "gradient_difference": difference,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "seconds": round(time.monotonic() - start, 1),
        "result": "ok" if weights_are_equal(model) else "the weights of the processes differ",
    }


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def loss_of(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the cross-entropies of all levels that the model predicts."""
    logits = model(x)
    levels = list(logits.values()) if isinstance(logits, dict) else [logits]
    return torch.stack([F.cross_entropy(level, labels % level.shape[1]) for level in levels]).sum()


def gradient_difference(model: nn.Module, alone: nn.Module) -> float:
    """Return the largest difference of two models' gradients, divided by the largest gradient."""
    weights = zip(trainable(model), trainable(alone), strict=True)
    pairs = [(ours.grad, summed.grad / dist.get_world_size()) for ours, summed in weights]
    return float(max((a - b).abs().max() for a, b in pairs) / max(b.abs().max() for _, b in pairs))


def weights_are_equal(model: nn.Module) -> bool:
    """Return whether all processes have the same finite weights."""
    for weight in model.parameters():
        first = weight.detach().clone()
        dist.broadcast(first, 0)
        different = torch.tensor(float(not torch.equal(first, weight) or not bool(weight.isfinite().all())))
        dist.all_reduce(different)
        if different:
            return False
    return True


if __name__ == "__main__":
    main(sys.argv[1])
