"""The work of `c2f-zoo predict --boxes`: classifications of detected animals."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from c2f_zoo.images.reading import read_image
from c2f_zoo.inference.ahead import predict_ahead
from c2f_zoo.inference.boxes import ImageBoxes, category_fields, class_ids, crop_box, find_boxes, read_detections
from c2f_zoo.inference.image_predictor import ImagePredictor
from c2f_zoo.inference.predict_files import error_line, report, tell, with_progress
from c2f_zoo.inference.prediction import Prediction
from c2f_zoo.io.files import atomic_write
from c2f_zoo.paths import expand

MIN_CONF = 0.2  # MegaDetector's typical threshold


def predict_boxes(
    predictor: ImagePredictor, name: str, folder: Path, detections: Path, output: Path, min_conf: float = MIN_CONF
) -> int:
    """Predict the animals in boxes, and write their classes into a copy of the detections.

    A box gets the class that can be trusted, an empty list if none can, or without a calibration the most probable
    leaf class. Earlier classifications are removed. What is left out and what is faulty is said on standard error.

    Args:
        predictor: the predictor.
        name: the model's name, for the file.
        folder: the folder that the files of the detections are relative to.
        detections: detections in MegaDetector's output format, see `read_detections`.
        output: the file to write, in the same format.
        min_conf: smallest confidence of a box.

    Returns:
        The number of faulty boxes and unreadable images.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: the detections have another format.
    """
    folder, output = expand(folder), expand(output)
    for needed in (folder, output.parent):
        if not needed.is_dir():
            raise FileNotFoundError(f"there is no folder {needed}")
    data = read_detections(detections)
    found = find_boxes(data, folder, min_conf)
    removed = _remove_classifications(data)
    for reason, count in (found.left_out + removed).items():
        tell(f"{detections.name}: {reason}, left out: {count}")
    errors, ids = list(found.faults), class_ids(predictor.tree)
    outcomes = predict_ahead(predictor, found.images, _crops_of)
    for image, outcome in with_progress(outcomes, len(found.images), is_shown=True):
        if isinstance(outcome, Exception):
            errors.append(error_line(image.file, outcome))
            continue
        for box, prediction in zip(image.boxes, outcome, strict=True):
            box["classifications"] = _classifications(prediction, ids)
    data |= category_fields(predictor.tree)
    data["info"] |= {"classifier": name, "classification_completion_time": time.strftime("%Y-%m-%d %H:%M:%S")}
    atomic_write(output, lambda part: part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8"))
    report(errors)
    predicted = sum("classifications" in box for image in found.images for box in image.boxes)
    tell(f"{output}: boxes classified: {predicted}; boxes and images that cannot be: {len(errors)}")
    return len(errors)


def _crops_of(image: ImageBoxes) -> list[Image.Image]:
    whole = read_image(image.file)
    return [crop_box(whole, box["bbox"]) for box in image.boxes]


def _remove_classifications(data: dict[str, Any]) -> Counter[str]:
    """Remove earlier classifications, whose ids have another meaning, and return their number."""
    boxes = [box for entry in data["images"] for box in entry.get("detections") or ()]
    count = sum(box.pop("classifications", None) is not None for box in boxes)
    data["info"].pop("classifier_metadata", None)
    return Counter({"earlier classifications": count})


def _classifications(prediction: Prediction, ids: dict[tuple[str, str], str]) -> list[list[Any]]:
    """Return the pairs (id, confidence) of a box: one, or none if nothing is trusted."""
    chosen = prediction.path[-1] if prediction.provenance.rule is None else prediction.trusted
    return [] if chosen is None else [[ids[chosen[:2]], round(chosen[2], 4)]]
