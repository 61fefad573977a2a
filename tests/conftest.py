"""Shared fixtures: a small model and a small CUB folder; soak tests are opt-in.

torch and our package are imported by fixtures only: the process of pytest-xdist that starts the others needs neither.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from c2f_zoo import C2FModel

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))  # as for a script in this folder
os.environ["OMP_NUM_THREADS"] = "1"  # faster for small tensors; in new processes too

SMALL = {"backbone": "test_convnext", "input_size": 64, "pooling_options": {"dim": 8}}

# Two families, three genera and four species of CUB, renumbered as in a subset.
BIRDS = ["001.Black_footed_Albatross", "003.Sooty_Albatross", "004.Groove_billed_Ani", "002.Laysan_Albatross"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the soak tests out unless `-m` asks for them."""
    if "soak" in config.option.markexpr.replace("not soak", ""):
        return
    soak = [item for item in items if item.get_closest_marker("soak")]
    items[:] = [item for item in items if item not in soak]
    config.hook.pytest_deselected(items=soak)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Make random numbers and sums independent of the tests that ran before."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)  # a recipe that ran in this process may have set another number


@pytest.fixture
def small_model() -> C2FModel:
    import torch

    from c2f_zoo import create_model

    torch.manual_seed(0)
    return create_model("mlph", hierarchy="cub", **SMALL)  # type: ignore[arg-type]


@pytest.fixture
def cub_folder(tmp_path: Path) -> Path:
    """Write four species with three images each: two for training, one for testing."""
    import numpy as np
    from PIL import Image

    root = tmp_path / "birds"
    lines: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    rng = np.random.default_rng(0)
    for number, name in enumerate(BIRDS, start=1):
        (root / "images" / name).mkdir(parents=True)
        for shot in range(3):
            image_id = len(lines["images"]) + 1
            pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{shot}.jpg")
            lines["images"].append(f"{image_id} {name}/{shot}.jpg")
            lines["image_class_labels"].append(f"{image_id} {number}")
            lines["train_test_split"].append(f"{image_id} {int(shot < 2)}")
    lines["classes"] = [f"{number} {name}" for number, name in enumerate(BIRDS, start=1)]
    for file, rows in lines.items():
        (root / f"{file}.txt").write_text("\n".join(rows) + "\n")
    return root
