"""Models that are split between processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sharded_steps
from accelerate.utils import DistributedType
from two_processes import run_in_two_processes

from c2f_zoo.training.sharding import check_distribution


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("sgd", marks=pytest.mark.soak)])
def test_a_sharded_model_is_saved_and_restored_whole(optimizer: str, tmp_path: Path) -> None:
    """Test the optimizer with more state; `-m soak` tests the other one."""
    code, printed = run_in_two_processes(sharded_steps.__file__, [str(tmp_path), optimizer], tmp_path)
    assert code == 0, printed[-3000:]
    found = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
    assert len(found) == 9
    for name, difference in found.items():
        # Sums over the images of two processes are rounded otherwise than those of one.
        bound = 2e-3 if "alone" in name or name == "whole, next weights" else 0.0
        assert difference <= bound, (name, difference)


@pytest.mark.parametrize(
    ("kind", "is_fsdp2", "values", "error"),
    [
        (DistributedType.FSDP, False, {}, "FSDP 1 is unsupported; launch with --fsdp_version 2"),
        (DistributedType.FSDP, True, {"ema": 0.99}, "ema needs whole weights"),
        (DistributedType.FSDP, True, {"channels_last": True}, "set channels_last to false"),
        (DistributedType.DEEPSPEED, False, {}, "DEEPSPEED is unsupported; launch with DDP"),
    ],
)
def test_distributions_that_would_save_parts_are_refused(
    kind: Any, is_fsdp2: bool, values: dict[str, Any], error: str
) -> None:
    accelerator: Any = SimpleNamespace(distributed_type=kind, is_fsdp2=is_fsdp2)
    with pytest.raises(ValueError, match=error):
        check_distribution(accelerator, replace(sharded_steps.OPTIONS, **values))
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=True)
    check_distribution(accelerator, sharded_steps.OPTIONS)
