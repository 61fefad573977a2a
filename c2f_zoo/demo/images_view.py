"""The images of the demo as HTML: the photo from afar, and what each level looked at."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

from c2f_zoo.config import Preprocessing
from c2f_zoo.evaluation.heat_map_plot import blend_heat, level_image
from c2f_zoo.evaluation.photo_plot import shown_name
from c2f_zoo.hierarchy.escape import printable
from c2f_zoo.inference.heat_maps import Explanation

_SIDE = 280  # pixels of the longer side of an image


def images_html(found: Explanation, preprocessing: Preprocessing, title: str) -> str:
    """Return an image and the heat map of each level, with captions.

    Args:
        found: the heat maps; its image is shown with its pixels.
        preprocessing: the model's.
        title: caption of the image.

    Examples:
        >>> predictor = Predictor.from_pretrained("mlph_tiny_critters")
        >>> from c2f_zoo.inference.heat_maps import explain
        >>> found = explain(predictor, Image.new("RGB", (30, 20)))
        >>> text = images_html(found, predictor.model.config.preprocessing, "30 x 20 pixels")
        >>> text.count("<figure"), text.count("data:image/jpeg;base64,")
        (4, 4)
    """
    scale = _SIDE / max(found.image.size)
    size = (max(1, round(found.image.width * scale)), max(1, round(found.image.height * scale)))
    figures = [_figure(found.image.resize(size, Image.Resampling.NEAREST), title, "")]
    for level, heat in found.levels.items():
        image = level_image(found.image, heat.resolution, preprocessing).resize(size)
        figures.append(_figure(blend_heat(image, heat.on_image(size)), shown_name(heat.step[1]), level))
    return f'<div class="c2f-images">{"".join(figures)}</div>'


def _figure(image: Image.Image, caption: str, level: str) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    text = escape(printable(caption))
    heading = f"<b>{escape(level)}</b> " if level else ""
    alt = f"heat map of {escape(level)}" if level else "the image"
    return f'<figure><img src="{source}" alt="{alt}"><figcaption>{heading}{text}</figcaption></figure>'
