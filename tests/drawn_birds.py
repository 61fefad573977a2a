"""Drawn birds with annotations, in CUB's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import BIRDS
from PIL import Image, ImageDraw


def draw_bird(
    rng: np.random.Generator, colour: tuple[int, int, int]
) -> tuple[Image.Image, list[int], dict[int, list[int]]]:
    """Return an image, the box of the bird, and the points of its parts by number."""
    noise = rng.integers(90, 130, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC)
    x, y = (int(value) for value in rng.integers((10, 20), (60, 45)))
    draw = ImageDraw.Draw(image)
    draw.rectangle((x, y + 15, x + 60, y + 55), fill=colour)
    draw.rectangle((x + 50, y, x + 79, y + 24), fill=(230, 220, 60))
    points = {1: [x + 3, y + 18], 3: [x + 30, y + 53], 2: [x + 78, y + 10], 5: [x + 53, y + 2], 15: [x + 60, y + 23]}
    return image, [x, y, 80, 56], points


def write_birds(root: Path) -> Path:
    """Write four species with four training and two test images each, in CUB's layout, with annotations."""
    rng = np.random.default_rng(0)
    names = ["images", "image_class_labels", "train_test_split", "bounding_boxes", "parts/part_locs"]
    lines: dict[str, list[str]] = {name: [] for name in names}
    (root / "parts").mkdir(parents=True)
    for number, name in enumerate(BIRDS, start=1):
        (root / "images" / name).mkdir(parents=True)
        for shot in range(6):
            image_id = len(lines["images"]) + 1
            image, box, points = draw_bird(rng, (60 * number, 40, 240 - 60 * number))
            image.save(root / "images" / name / f"{shot}.png")
            lines["images"].append(f"{image_id} {name}/{shot}.png")
            lines["image_class_labels"].append(f"{image_id} {number}")
            lines["train_test_split"].append(f"{image_id} {int(shot < 4)}")
            lines["bounding_boxes"].append(f"{image_id} {' '.join(map(str, box))}")
            lines["parts/part_locs"] += [f"{image_id} {part} {x} {y} 1" for part, (x, y) in points.items()]
    lines["classes"] = [f"{number} {name}" for number, name in enumerate(BIRDS, start=1)]
    lines["parts/parts"] = ["1 back", "2 beak", "3 belly", "5 crown", "15 throat"]
    for file, rows in lines.items():
        (root / f"{file}.txt").write_text("\n".join(rows) + "\n")
    return root
