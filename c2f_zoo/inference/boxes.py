"""Detections in MegaDetector's output format: the boxes to predict, and classifications in the same format.

The format is described at https://lila.science/megadetector-output-format.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.hierarchy.matching import find_listed_file
from c2f_zoo.images.formats import is_image_name
from c2f_zoo.images.reading import MAX_ELONGATION
from c2f_zoo.inference.nodes import Nodes
from c2f_zoo.paths import expand

VERSIONS = ("1.2", "1.3", "1.4", "1.5", "1.6")
CATEGORY = "animal"


@dataclass(frozen=True)
class ImageBoxes:
    """The boxes of an image that are predicted.

    Attributes:
        file: the image's file.
        boxes: the detections, as in the JSON data.
    """

    file: Path
    boxes: list[dict[str, Any]]


@dataclass(frozen=True)
class FoundBoxes:
    """The boxes of a file with detections.

    Attributes:
        images: the images with boxes that are predicted.
        faults: lines on boxes of no area or outside the image.
        left_out: numbers of boxes and files that are left out, by their reason.
    """

    images: list[ImageBoxes]
    faults: list[str]
    left_out: Counter[str]


def read_detections(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read detections in MegaDetector's output format.

    Args:
        path: the JSON file.

    Returns:
        Its data, with valid types.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another format or version, or a value is invalid; the message names it.

    Examples:
        >>> _ = Path("boxes.json").write_text('{"annotations": [], "categories": [], "images": []}')
        >>> read_detections("boxes.json")
        Traceback (most recent call last):
        ValueError: boxes.json is a COCO file; expected MegaDetector's output format, 1.2 to 1.6
    """
    try:
        data = json.loads(expand(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}; expected MegaDetector's output format") from None
    version = _version_of(data)
    if version not in VERSIONS:
        known = f"{VERSIONS[0]} to {VERSIONS[-1]}"
        raise ValueError(f"{path} is {_name_format(data)}; expected MegaDetector's output format, {known}")
    fault = _find_fault(data)
    if fault:
        raise ValueError(f"{path}: {fault}")
    return dict(data)


def find_boxes(data: dict[str, Any], folder: Path, min_conf: float) -> FoundBoxes:
    """Find the boxes to predict: those of the category "animal" with enough confidence.

    Args:
        data: the result of `read_detections`.
        folder: the folder that the files are relative to.
        min_conf: smallest confidence of a box.

    Raises:
        ValueError: no category is named "animal".
    """
    names = data["detection_categories"]
    animals = {key for key, name in names.items() if name.strip().casefold() == CATEGORY}
    if not animals:
        raise ValueError(f"no category of the detections is named {CATEGORY!r}; they are {', '.join(names.values())}")
    found = FoundBoxes([], [], Counter())
    for entry in data["images"]:
        boxes = entry.get("detections")
        if boxes is None:
            found.left_out["files that the detector could not read"] += 1
        elif boxes and not is_image_name(entry["file"]):
            found.left_out["files that are no images, such as videos"] += 1
        else:
            chosen = [box for number, box in enumerate(boxes) if _is_chosen(entry, number, animals, min_conf, found)]
            if chosen:
                found.images.append(ImageBoxes(find_listed_file(folder, entry["file"]), chosen))
    return found


def crop_box(image: Image.Image, bbox: list[float]) -> Image.Image:
    """Crop a box from an image, with all pixels that it touches.

    Args:
        image: the image, upright as the detector saw it.
        bbox: left, top, width and height as fractions of the image's width and height.

    Raises:
        ValueError: one side of the crop is over 100 times as long as the other.

    Examples:
        >>> crop_box(Image.new("RGB", (200, 100)), [0.5, 0.25, 0.5, 0.501]).size
        (100, 51)
    """
    x, y, width, height = bbox
    left, right = _pixels(x, x + width, image.width)
    top, bottom = _pixels(y, y + height, image.height)
    size = (right - left, bottom - top)
    if max(size) > MAX_ELONGATION * min(size):
        raise ValueError(f"the box {bbox} has {size[0]} x {size[1]} pixels, which is too long to be predicted")
    return image.crop((left, top, right, bottom))


def class_ids(tree: Hierarchy) -> dict[tuple[str, str], str]:
    """Return the id of each class, (level, name) -> its number from 0, level by level, coarse to fine.

    Repeats that the tree leaves out have none.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> class_ids(tree)[("shape", "disc")]
        '2'
    """
    offsets = Nodes(tree).offsets
    return {
        (level, name): str(offsets[depth] + label)
        for depth, level in enumerate(tree.levels)
        for label, name in enumerate(tree.classes[depth])
        if label not in tree.left_out[depth]
    }


def category_fields(tree: Hierarchy) -> dict[str, dict[str, str]]:
    """Return the fields `classification_categories` and `classification_category_descriptions` of a tree.

    The description of a class is its path, with semicolons.
    """
    ids, nodes = class_ids(tree), Nodes(tree)
    described = {}
    for number in ids.values():
        labels = nodes.paths[int(number)]
        names = [tree.classes[depth][label] for depth, label in enumerate(labels) if label >= 0]
        described[number] = ";".join(names)
    categories = {number: name for (_, name), number in ids.items()}
    return {"classification_categories": categories, "classification_category_descriptions": described}


def _version_of(data: Any) -> str | None:
    info = data.get("info") if isinstance(data, dict) else None
    return str(info["format_version"]) if isinstance(info, dict) and "format_version" in info else None


def _name_format(data: Any) -> str:
    """Return the name of a format that is no supported one."""
    version = _version_of(data)
    if version is not None:
        return f"version {version} of it"
    if isinstance(data, list):
        return "a list of images, as PyTorch-Wildlife writes"
    if not isinstance(data, dict):
        return f"a JSON {type(data).__name__}"
    for key, name in (("annotations", "a COCO file"), ("predictions", "an output of SpeciesNet")):
        if key in data:
            return name
    return f"an unknown format, without info.format_version and with the fields {', '.join(list(data)[:5]) or 'none'}"


def _find_fault(data: dict[str, Any]) -> str | None:
    """Return the first value with an invalid type, or None."""
    categories = data.get("detection_categories")
    if not isinstance(categories, dict) or not all(isinstance(name, str) for name in categories.values()):
        return f"detection_categories is {_shorten(categories)}, expected ids with names"
    if not isinstance(data.get("images"), list):
        return f"images is {_shorten(data.get('images'))}, expected a list"
    for number, entry in enumerate(data["images"]):
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            return f"images[{number}] is {_shorten(entry)}, expected an object with a file"
        boxes = entry.get("detections")
        if not isinstance(boxes, list | None):
            return f"images[{number}].detections is {_shorten(boxes)}, expected a list"
        for place, box in enumerate(boxes or ()):
            if not _is_box(box):
                expected = "expected an object with category, conf and bbox"
                return f"images[{number}].detections[{place}] is {_shorten(box)}, {expected}"
    return None


def _is_box(box: Any) -> bool:
    if not isinstance(box, dict) or not isinstance(box.get("category"), str) or not isinstance(box.get("bbox"), list):
        return False
    values = [box.get("conf"), *box["bbox"]]
    return len(values) == 5 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _is_chosen(entry: dict[str, Any], number: int, animals: set[str], min_conf: float, found: FoundBoxes) -> bool:
    """Return whether a box is predicted; count it or name its fault if it is not."""
    box = entry["detections"][number]
    if box["category"] not in animals:
        found.left_out["boxes of other categories"] += 1
    elif not box["conf"] >= min_conf:
        found.left_out[f"boxes with a confidence below {min_conf:g}"] += 1
    else:
        fault = _box_fault(box["bbox"])
        found.faults.extend([f"{entry['file']}: the box {box['bbox']} {fault}"] if fault else [])
        return fault is None
    return False


def _box_fault(bbox: list[float]) -> str | None:
    x, y, width, height = bbox
    if not all(map(math.isfinite, bbox)):
        return "is not finite"
    if width <= 0 or height <= 0:
        return "has no area"
    if x >= 1 or y >= 1 or x + width <= 0 or y + height <= 0:
        return "is outside the image"
    return None


def _pixels(start: float, end: float, size: int) -> tuple[int, int]:
    """Return the first pixel of a stretch, given as fractions, and the one after its last, within the image."""
    first = min(max(math.floor(start * size), 0), size - 1)
    return first, max(min(math.ceil(end * size), size), first + 1)


def _shorten(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
