"""Detections in MegaDetector's output format: which boxes are predicted, and what is written."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_cli import run
from test_predict import TREE, model_with_probabilities
from test_trusted import SHAPES, calibrate

from c2f_zoo import Hierarchy, Predictor, create_dataset, create_model
from c2f_zoo.inference.boxes import category_fields, class_ids, crop_box, read_detections
from c2f_zoo.inference.predict_boxes import predict_boxes

CATEGORIES = {"1": "animal", "2": "person", "3": "vehicle"}


def box(bbox: list[float], conf: float = 0.9, category: str = "1") -> dict[str, Any]:
    return {"category": category, "conf": conf, "bbox": bbox}


def write_json(path: Path, images: list[dict[str, Any]], version: str = "1.4", **more: Any) -> Path:
    info = {"format_version": version, "detector": "md_v5a.0.0.pt", "classifier_metadata": {"old": 1}}
    path.write_text(json.dumps({"info": info, "detection_categories": CATEGORIES, "images": images, **more}))
    return path


@pytest.fixture(scope="module")
def critters() -> list[Image.Image]:
    """Return two critters of 96 x 96 pixels."""
    dataset = create_dataset("critters", "test", per_class=1)
    return [dataset[index][0].resize((96, 96)) for index in (0, 20)]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """Return the predictor of the bundled model, calibrated by hand."""
    return Predictor(calibrate(create_model("mlph_tiny_critters", pretrained=True), 0.8))


@pytest.fixture
def scene(critters: list[Image.Image], tmp_path: Path) -> Path:
    """Write an image with two critters, at (32, 16) and (256, 48), and the same on its side; return the folder."""
    image = Image.new("RGB", (384, 192), (200, 220, 200))
    image.paste(critters[0], (32, 16))
    image.paste(critters[1], (256, 48))
    (tmp_path / "photos" / "night").mkdir(parents=True)
    image.save(tmp_path / "photos" / "night" / "1.png")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # a viewer turns it back, as the detector does
    turned.save(tmp_path / "photos" / "turned.png", exif=turned.getexif())
    return tmp_path / "photos"


LEFT = [32 / 384, 16 / 192, 96 / 384, 96 / 192]
RIGHT = [256 / 384, 48 / 192, 96 / 384, 96 / 192]


def test_boxes_get_the_trusted_class_of_their_crop(
    predictor: Predictor, critters: list[Image.Image], scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [
        {"file": "night\\1.png", "detections": [box(LEFT), box(RIGHT, 0.2), box(LEFT, 0.1), box(RIGHT, 0.9, "2")]},
        {"file": "turned.png", "detections": [{**box(RIGHT), "classifications": [["7", 0.5]], "track": 3}]},
        {"file": "empty.png", "detections": [], "failure": None},
        {"file": "broken.png", "failure": "Failure image access", "detections": None},
        {
            "file": "film.mp4",
            "frame_rate": 20,
            "frames_processed": [0],
            "detections": [{**box(LEFT), "frame_number": 0}],
        },
    ]
    source = write_json(tmp_path / "boxes.json", images, classification_categories={"7": "fox"}, extra="kept")
    assert predict_boxes(predictor, "my-model", scene, source, tmp_path / "out.json") == 0
    data = json.loads((tmp_path / "out.json").read_text())
    expected = []
    for critter in critters:
        trusted = predictor(critter).trusted
        assert trusted is not None
        expected.append((trusted[1], pytest.approx(trusted[2], abs=1e-4)))
    names = data["classification_categories"]

    def found(image: int, number: int) -> tuple[str, float]:
        ((key, confidence),) = data["images"][image]["detections"][number]["classifications"]
        return names[key], confidence

    assert [found(0, 0), found(0, 1), found(1, 0)] == [expected[0], expected[1], expected[1]]
    assert [("classifications" in one) for one in data["images"][0]["detections"]] == [True, True, False, False]
    assert data["info"]["classifier"] == "my-model" and data["info"]["format_version"] == "1.4"
    assert "classifier_metadata" not in data["info"] and data["info"]["detector"] == "md_v5a.0.0.pt"
    # All else is unchanged.
    rest = copy.deepcopy(data["images"])
    given = copy.deepcopy(images)
    for one in (detection for entry in rest + given for detection in entry["detections"] or ()):
        one.pop("classifications", None)
    assert rest == given and data["extra"] == "kept" and data["detection_categories"] == CATEGORIES
    notes = capsys.readouterr().err
    for note in (
        "boxes of other categories, left out: 1",
        "boxes with a confidence below 0.2, left out: 1",
        "files that the detector could not read, left out: 1",
        "files that are no images, such as videos, left out: 1",
        "earlier classifications, left out: 1",
        "boxes classified: 3; boxes and images that cannot be: 0",
    ):
        assert note in notes


def test_a_box_of_which_nothing_is_known_has_an_empty_list(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "1.png")
    source = write_json(tmp_path / "boxes.json", [{"file": "1.png", "detections": [box([0, 0, 1, 1])]}])
    model = model_with_probabilities(SHAPES)
    for threshold, expected in ((0.95, []), (0.8, [["0", 0.9]]), (0.5, [["2", 0.55]])):
        predict_boxes(Predictor(calibrate(model, threshold)), "shapes", tmp_path, source, tmp_path / "out.json")
        (entry,) = json.loads((tmp_path / "out.json").read_text())["images"]
        assert entry["detections"][0]["classifications"] == expected
    model.calibration = None  # the leaf class
    predict_boxes(Predictor(model), "shapes", tmp_path, source, tmp_path / "out.json")
    (entry,) = json.loads((tmp_path / "out.json").read_text())["images"]
    assert entry["detections"][0]["classifications"] == [["2", 0.55]]


@pytest.mark.filterwarnings("ignore:.*branches end above")
def test_ids_are_numbers_and_descriptions_are_paths() -> None:
    fields = category_fields(TREE)
    assert fields["classification_categories"] == {"0": "round", "1": "edged", "2": "disc", "3": "ring", "4": "box"}
    descriptions = fields["classification_category_descriptions"]
    assert descriptions == {"0": "round", "1": "edged", "2": "round;disc", "3": "round;ring", "4": "edged;box"}
    rows = [("Fruit", "Apple"), ("Banana",)]
    assert ("genus", "Banana") in class_ids(Hierarchy.from_rows(("kind", "genus"), rows))
    assert class_ids(Hierarchy.from_rows(("kind", "genus"), rows, ragged="stop")) == {
        ("kind", "Fruit"): "0",
        ("kind", "Banana"): "1",
        ("genus", "Apple"): "2",
    }


def test_a_crop_has_the_pixels_that_the_box_touches() -> None:
    rng = np.random.default_rng(0)
    width, height = 23, 17
    pixels = np.arange(width * height, dtype=np.uint16).reshape(height, width)
    image = Image.fromarray(np.stack([pixels % 256, pixels // 256, pixels * 0], axis=2).astype(np.uint8))
    for _ in range(100):
        x, y = rng.uniform(-0.3, 0.95, 2)
        w, h = max(rng.uniform(0, 1), 0.001 - x), max(rng.uniform(0, 1), 0.001 - y)  # reaches into the image
        columns = [at for at in range(width) if at + 1 > x * width and at < (x + w) * width]
        rows = [at for at in range(height) if at + 1 > y * height and at < (y + h) * height]
        crop = np.asarray(crop_box(image, [x, y, w, h])).astype(int)
        assert (crop[..., 0] + 256 * crop[..., 1]).tolist() == pixels[np.ix_(rows, columns)].tolist()
    assert crop_box(image, [0.5, 0.5, 1e-9, 1e-9]).size == (1, 1)


@pytest.fixture
def shapes_run(tmp_path: Path) -> str:
    """Save a model that predicts the same for every image."""
    model_with_probabilities(SHAPES).save_pretrained(tmp_path / "run")
    return str(tmp_path / "run")


@pytest.mark.slow
def test_faulty_boxes_and_images_are_named(shapes_run: str, scene: Path, tmp_path: Path) -> None:
    Image.new("RGB", (400, 200)).save(scene / "long.png")
    (scene / "cut.png").write_bytes((scene / "long.png").read_bytes()[:60])
    faulty = [
        [0.5, 0.5, 0, 0.2],
        [0.2, 0.2, 0.1, -0.1],
        [1.0, 0, 0.2, 0.2],
        [-0.5, 0, 0.5, 0.5],
        [float("nan"), 0, 1, 1],
    ]
    images = [
        {
            "file": "night/1.png",
            "detections": [*map(box, faulty), box([-0.1, 0.9, 1.4, 0.3])],
        },
        {"file": "long.png", "detections": [box([0, 0.5, 1, 0.001])]},
        {"file": "cut.png", "detections": [box(LEFT)]},
        {"file": "none.png", "detections": [box(LEFT)]},
        {"file": "turned.png", "detections": [box(LEFT)]},
    ]
    source, out = write_json(tmp_path / "boxes.json", images), tmp_path / "out.json"
    code, printed, errors = run("predict", shapes_run, str(scene), "--boxes", str(source), "-o", str(out))
    assert (code, printed) == (1, "")
    for text in ("has no area", "is outside the image", "is not finite", "400 x 1 pixels", "cut.png", "none.png"):
        assert text in errors
    assert errors.count("has no area") == 2 == errors.count("is outside the image")
    assert "boxes classified: 2; boxes and images that cannot be: 8" in errors
    data = json.loads(out.read_text())
    assert [["classifications" in one for one in entry["detections"]] for entry in data["images"]] == [
        [False] * 5 + [True],
        [False],
        [False],
        [False],
        [True],
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "is not JSON"),
        ("[]", "is a list of images, as PyTorch-Wildlife writes; expected MegaDetector's output format, 1.2 to 1.6"),
        ("3", "is a JSON int"),
        ('{"images": [], "annotations": [], "categories": []}', "is a COCO file"),
        ('{"predictions": []}', "is an output of SpeciesNet"),
        ('{"info": {"format_version": "1.0"}, "images": []}', "is version 1.0 of it"),
        (
            '{"boxes": 1, "info": {}}',
            "is an unknown format, without info.format_version and with the fields boxes, info",
        ),
    ],
)
def test_other_formats_are_refused_by_name(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(ValueError) as error:
        read_detections(tmp_path / "boxes.json")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detection_categories": ["animal"]}, "detection_categories is"),
        ({"images": {}}, "images is {}"),
        ({"images": [{"detections": []}]}, "images[0] is"),
        ({"images": [{"file": "1.png", "detections": 3}]}, "images[0].detections is 3"),
        ({"images": [{"file": "1.png", "detections": [box([0, 0, 1])]}]}, "images[0].detections[0] is"),
        ({"images": [{"file": "1.png", "detections": [{**box(LEFT), "conf": "0.9"}]}]}, "images[0].detections[0] is"),
    ],
)
def test_invalid_values_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = write_json(tmp_path / "boxes.json", [])
    source.write_text(json.dumps({**json.loads(source.read_text()), **change}))
    with pytest.raises(ValueError) as error:
        read_detections(source)
    assert message in str(error.value)


@pytest.mark.parametrize("version", ["1.2", "1.3", "1.5", "1.6"])
def test_all_versions_are_read(version: str, tmp_path: Path) -> None:
    data = read_detections(write_json(tmp_path / "boxes.json", [{"file": "1.png", "detections": [box(LEFT)]}], version))
    assert data["images"][0]["detections"][0]["bbox"] == LEFT


@pytest.mark.slow
def test_wrong_options_of_boxes_are_errors(shapes_run: str, scene: Path, tmp_path: Path) -> None:
    source, out = write_json(tmp_path / "boxes.json", []), tmp_path / "out.json"
    boxes, output = ("--boxes", str(source)), ("--output", str(out))
    for arguments, message in (
        ((str(scene), *boxes), "--boxes DETECTIONS and --output FILE need each other"),
        ((str(scene), *boxes, *output, "--json"), "neither --csv, --json nor --top-k"),
        ((str(scene / "none"), *boxes, *output), "there is no folder"),
        ((str(scene), *boxes, "--output", str(tmp_path / "none" / "out.json")), "there is no folder"),
    ):
        code, _, errors = run("predict", shapes_run, *arguments)
        assert code == 1 and message in errors and not out.exists()
    source.write_text(source.read_text().replace("animal", "beast"))
    code, _, errors = run("predict", shapes_run, str(scene), *boxes, *output)
    assert code == 1 and "no category of the detections is named 'animal'; they are beast, person" in errors
