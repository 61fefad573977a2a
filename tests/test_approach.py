"""The approach: one photo at several resolutions, its predictions, and their figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from test_cli import c2f_zoo

from c2f_zoo import Predictor, create_dataset, create_model
from c2f_zoo.data.derived import shrink
from c2f_zoo.evaluation.approach import choose_resolutions, draw_approach, views_of
from c2f_zoo.evaluation.photo_plot import draw_predictions, plot_predictions
from c2f_zoo.inference.prediction import Prediction, Provenance, Step

LEVELS = {"family": np.ones(1), "genus": np.ones(1), "species": np.ones(1)}
PATH: list[Step] = [("family", "Anatidae", 0.9), ("genus", "Anas", 0.85), ("species", "087.Long_named_Mallard", 0.5)]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(create_model("mlph_tiny_critters", pretrained=True))


@pytest.fixture
def critter(tmp_path: Path) -> Path:
    create_dataset("critters", "test", per_class=1)[7][0].save(tmp_path / "critter.png")
    return tmp_path / "critter.png"


def prediction(trusted: int, rule: str | None = "climb") -> Prediction:
    """Return a prediction of which the first classes are trusted."""
    if rule is None:
        return Prediction(PATH, probabilities=LEVELS)
    return Prediction(PATH, PATH[:trusted], PATH[trusted:], LEVELS, Provenance(rule=rule))


def cells(figure: Figure) -> list[tuple[str, str]]:
    """Return the text and weight of the classes, in order of columns."""
    return [(one.get_text(), one.get_weight()) for ax in figure.axes if ax.patches for one in ax.texts]


def test_trusted_classes_are_bold_and_guesses_have_a_question_mark() -> None:
    images = {"20 px": Image.new("RGB", (20, 20)), "full size": Image.new("RGB", (200, 200))}
    figure = Figure(figsize=(6, 5))
    draw_predictions(figure, images, [prediction(1), prediction(3)], "a note")
    assert cells(figure) == [
        ("Anatidae 90\u00a0%", "bold"),
        ("Anas? 85\u00a0%", "normal"),
        ("Long named\nMallard? 50\u00a0%", "normal"),
        ("Anatidae 90\u00a0%", "bold"),
        ("Anas 85\u00a0%", "bold"),
        ("Long named\nMallard 50\u00a0%", "bold"),
    ]
    shown = {one.get_text() for ax in figure.axes for one in ax.texts} | {ax.get_title() for ax in figure.axes}
    assert {"family", "genus", "species", "20 px", "full size", "a note"} <= shown


def test_colours_tell_trusted_classes_guesses_and_uncalibrated_ones_apart() -> None:
    figure, image = Figure(figsize=(9, 5)), Image.new("RGB", (20, 20))
    draw_predictions(figure, {"a": image, "b": image, "c": image}, [prediction(3), prediction(0), prediction(0, None)])
    colours = [patch.get_facecolor() for ax in figure.axes for patch in ax.patches]
    assert [len({*colours[first : first + 3]}) for first in (0, 3, 6)] == [1, 1, 1]
    assert len({*colours}) == 3


def test_a_level_below_the_end_of_the_path_stays_empty() -> None:
    figure = Figure(figsize=(3, 5))
    short = Prediction(PATH[:2], PATH[:1], PATH[1:2], LEVELS, Provenance(rule="climb"))
    draw_predictions(figure, {"20 px": Image.new("RGB", (20, 20))}, [short])
    assert [text for text, _ in cells(figure)] == ["Anatidae 90\u00a0%", "Anas? 85\u00a0%"]


def test_a_long_photo_is_shown_whole(tmp_path: Path) -> None:
    for size in ((400, 40), (40, 400)):
        plot_predictions({"full size": Image.new("RGB", size, "red")}, [prediction(3)], tmp_path / "long.png")
        pixels = np.asarray(Image.open(tmp_path / "long.png").convert("RGB")).astype(int)
        red = (pixels[..., 0] > 200) & (pixels[..., 1] < 50)
        height, width = (np.flatnonzero(red.any(axis=1 - axis)).size for axis in (0, 1))
        assert width / height == pytest.approx(size[0] / size[1], rel=0.1)


def test_views_are_sorted_from_far_to_near_and_say_what_is_not_calibrated() -> None:
    views = views_of(Image.new("RGB", (300, 200)), [None, 100, 6, 6, 8], calibrated_from=8)
    sizes = {title: view.size for title, view in views.items()}
    expected = {"6 px, not calibrated": (9, 6), "8 px": (12, 8), "100 px": (150, 100), "full size, 200 px": (300, 200)}
    assert list(sizes.items()) == list(expected.items())


@pytest.mark.slow
def test_resolutions_have_equal_ratios_down_to_the_coarsest_that_the_model_knows(predictor: Predictor) -> None:
    # The critters' calibration goes down to 12 pixels; 96 is the size of the model's input.
    assert choose_resolutions(predictor, side=1000, count=4) == [None, 48, 24, 12]
    assert choose_resolutions(predictor, side=24, count=3) == [None, 17, 12]  # 24 / sqrt(2)
    assert choose_resolutions(predictor, side=5, count=3) == [None]
    model = create_model("mlph_tiny_critters")  # not calibrated: down to its coarsest level's resolution, or 8 pixels
    assert choose_resolutions(Predictor(model), side=96, count=2) == [
        None,
        min(filter(None, model.config.resolutions.values())),
    ]
    model = create_model("mlph_tiny_critters", resolutions={})
    assert choose_resolutions(Predictor(model), side=96, count=2) == [None, 8]


@pytest.mark.slow
def test_approach_predicts_the_shrunk_photo(predictor: Predictor, critter: Path, tmp_path: Path) -> None:
    found = draw_approach(predictor, critter, tmp_path / "a.png", [40, None, 12])
    photo = Image.open(critter)
    expected = predictor([shrink(photo, 12), shrink(photo, 40), photo])
    assert list(found) == ["12 px", "40 px", "full size, 96 px"]
    assert [str(one) for one in found.values()] == [str(one) for one in expected]
    assert Image.open(tmp_path / "a.png").format == "PNG"


@pytest.mark.slow
def test_an_animation_has_a_frame_for_each_resolution(predictor: Predictor, critter: Path, tmp_path: Path) -> None:
    draw_approach(predictor, critter, tmp_path / "a.GIF", [None, 40, 12])
    with Image.open(tmp_path / "a.GIF") as animation:
        assert (animation.format, animation.n_frames, animation.info["loop"]) == ("GIF", 3, 0)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_command_prints_and_writes(critter: Path, tmp_path: Path) -> None:
    options = ("-o", str(tmp_path / "a.png"), "--resolutions", "full,12", "--risk", "0.2")
    lines = c2f_zoo("approach", "mlph_tiny_critters", str(critter), *options).splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["12 px", "full size, 96 px"]
    assert lines[2] == f"written to {tmp_path / 'a.png'}"
    assert (tmp_path / "a.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("photo", "output", "resolutions", "message"),
    [
        ("critter.png", "a.jpg", "full", "a.jpg: name a file that ends with .png or .gif"),
        ("critter.png", "a", "full", "a: name a file that ends with .png or .gif"),
        ("critter.png", "none/a.png", "full", "there is no folder"),
        ("critter.png", "a.png", "96", "has 96 pixels, so it cannot be shrunk to 96; write 'full' for full size"),
        ("none.png", "a.png", "full", "there is no image"),
        ("broken.png", "a.png", "full", "cannot read the image"),
        ("critter.png", "a.png", "0", "cannot be shrunk to 0"),
    ],
)
def test_errors_name_the_file_and_keep_the_output(
    critter: Path, tmp_path: Path, photo: str, output: str, resolutions: str, message: str
) -> None:
    (tmp_path / "broken.png").write_bytes(critter.read_bytes()[:500])
    (tmp_path / "a.png").write_text("older")
    arguments = (str(tmp_path / photo), "-o", str(tmp_path / output), "--resolutions", resolutions)
    assert message in c2f_zoo("approach", "mlph_tiny_critters", *arguments, ok=False)
    assert (tmp_path / "a.png").read_text() == "older"
