"""The approach: one photo at several resolutions, from far to near, and what can be trusted at each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from c2f_zoo.data.derived import shrink
from c2f_zoo.evaluation.photo_plot import animate_predictions, plot_predictions
from c2f_zoo.images.reading import read_image
from c2f_zoo.inference.prediction import Prediction
from c2f_zoo.inference.predictor import Predictor
from c2f_zoo.inference.resolutions import own_resolutions
from c2f_zoo.io.files import check_extension
from c2f_zoo.paths import expand

FORMATS: dict[str, tuple[Callable[..., None], int]] = {  # how to draw, and the default number of resolutions
    ".png": (plot_predictions, 6),
    ".gif": (animate_predictions, 12),
}
_FEW_PIXELS = 8  # the farthest view of a model that says nothing about small images


def draw_approach(
    predictor: Predictor, photo: Path, output: Path, resolutions: Sequence[int | None] | None = None
) -> dict[str, Prediction]:
    """Draw one photo from far to near, with the predicted path and the trusted class at each resolution.

    Args:
        predictor: the predictor.
        photo: the photo's file.
        output: the file to write: `.png` for images side by side, `.gif` for an animation.
        resolutions: shorter sides in pixels that the photo is shrunk to; None is full size. Default:
            `choose_resolutions`, 6 for a PNG and 12 for a GIF.

    Returns:
        Title, such as `"48 px"` -> prediction, from far to near.

    Raises:
        FileNotFoundError: the photo or the folder of the output does not exist.
        ValueError: the output has another extension, the photo is unreadable, or a resolution is not between 1 and
            its size.

    Examples:
        >>> model = create_model("mlph_tiny_critters", pretrained=True)
        >>> create_dataset("critters", "test", per_class=1)[7][0].save("critter.png")
        >>> found = draw_approach(Predictor(model), Path("critter.png"), Path("approach.png"), [None, 40, 12])
        >>> list(found), Image.open("approach.png").width
        (['12 px', '40 px', 'full size, 96 px'], 906)
    """
    draw, count = FORMATS[check_extension(output, *FORMATS)]
    output = expand(output)
    if not output.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {output.parent}")
    image = read_image(photo)
    side = min(image.size)
    if resolutions is None:
        resolutions = choose_resolutions(predictor, side, count)
    wrong = [one for one in resolutions if one is not None and not 1 <= one < side]
    if wrong:
        raise ValueError(f"{photo} has {side} pixels, so it cannot be shrunk to {wrong[0]}; write 'full' for full size")
    images = views_of(image, resolutions, _coarsest_calibrated(predictor))
    predictions = predictor(list(images.values()))
    draw(images, predictions, output, _note(predictor))
    return dict(zip(images, predictions, strict=True))


def choose_resolutions(predictor: Predictor, side: int, count: int) -> list[int | None]:
    """Return resolutions for an approach: full size, and equal ratios down to the coarsest that the model knows.

    That is the coarsest resolution of its calibration, or of one of its levels, or 8 pixels.

    Args:
        predictor: the predictor.
        side: the photo's shorter side in pixels.
        count: the number of resolutions; fewer for a small photo.

    Examples:
        >>> predictor = Predictor(create_model("mlph_tiny_critters", pretrained=True))
        >>> choose_resolutions(predictor, side=96, count=4)
        [None, 48, 24, 12]
    """
    known = [one for one in own_resolutions(predictor.model).values() if one is not None]
    farthest = min(_coarsest_calibrated(predictor) or min(known, default=_FEW_PIXELS), side)
    nearest = min(side, *predictor.model.config.preprocessing.input_size[1:])
    steps = [round(nearest * (farthest / nearest) ** (number / (count - 1))) for number in range(1, count)]
    return [None, *dict.fromkeys(step for step in steps if step < nearest)]


def views_of(
    image: Image.Image, resolutions: Sequence[int | None], calibrated_from: int | None = None
) -> dict[str, Image.Image]:
    """Return an image at resolutions, from far to near: title -> image.

    Args:
        image: the image.
        resolutions: shorter sides in pixels; None is full size.
        calibrated_from: the coarsest calibrated resolution; the titles of those below say that they are not.

    Examples:
        >>> {title: view.size for title, view in views_of(Image.new("RGB", (90, 60)), [None, 20, 6], 8).items()}
        {'6 px, not calibrated': (9, 6), '20 px': (30, 20), 'full size, 60 px': (90, 60)}
    """
    views = {}
    for side in sorted({math.inf if one is None else one for one in resolutions}):
        if side == math.inf:
            views[f"full size, {min(image.size)} px"] = image
        else:
            suffix = ", not calibrated" if calibrated_from and side < calibrated_from else ""
            views[f"{side} px{suffix}"] = shrink(image, int(side))
    return views


def _coarsest_calibrated(predictor: Predictor) -> int | None:
    """Return the coarsest resolution of the images that the model was calibrated on; None if that is unknown."""
    if predictor.calibration is None:
        return None
    sides = [one for one in predictor.calibration.about.get("resolutions", []) if isinstance(one, int)]
    return min(sides, default=None)


def _note(predictor: Predictor) -> str:
    """Return a line that explains the colours."""
    if predictor.calibration is None:
        return "not calibrated: what can be trusted is unknown"
    risk = predictor.calibration.risk if predictor.risk is None else predictor.risk
    return f"green: trusted (risk {100 * risk:g}\u00a0%)   grey: a guess"
