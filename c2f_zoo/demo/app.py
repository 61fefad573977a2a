"""The demo: an image, its distance and a risk go in; the tree and heat maps come out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from c2f_zoo.data import read_image
from c2f_zoo.data.derived import shrink
from c2f_zoo.demo.examples import find_examples
from c2f_zoo.demo.images_view import images_html
from c2f_zoo.demo.tree_view import tree_html
from c2f_zoo.hierarchy.escape import printable
from c2f_zoo.images.formats import open_image
from c2f_zoo.inference.heat_maps import explain, import_captum
from c2f_zoo.inference.predict_files import tell
from c2f_zoo.inference.predictor import Predictor, load_trained
from c2f_zoo.inference.resolutions import own_resolutions
from c2f_zoo.model import C2FModel

MAX_FILE_SIZE = "20mb"
MAX_PIXELS = 50_000_000  # of an uploaded image, which take 150 MB
_KEEP_SECONDS = 3600  # of uploaded files
_HINT = "Choose an example, or drop an image; then move it away."


@dataclass(frozen=True)
class Demo:
    """What the demo computes, without its page.

    Args:
        model: the model.

    Attributes:
        predictors: risk -> the model's predictor; of a model without calibration the only risk is None.
        side: the shorter side in pixels that the model sees.
        least: the shorter side in pixels of the most distant image: half of the coarsest level's resolution.

    Examples:
        >>> demo = Demo.of(create_model("mlph_tiny_critters", pretrained=True))
        >>> demo.least, [demo.pixels_at(distance, Image.new("RGB", (200, 100))) for distance in (0, 50, 100)]
        (6, [100, 24, 6])
    """

    predictors: dict[float | None, Predictor]
    side: int
    least: int

    @classmethod
    def of(cls, model: C2FModel) -> Demo:
        """Return the demo of a model."""
        default = Predictor(model)
        risks = default.calibration.risks if default.calibration else (None,)
        side = model.config.preprocessing.resize
        coarsest = min(resolution or side for resolution in own_resolutions(model).values())
        return cls({risk: Predictor(model, risk=risk) for risk in risks}, side, max(1, coarsest // 2))

    @property
    def risks(self) -> list[float]:
        """The calibrated risks, rising; none for a model without calibration."""
        return sorted(risk for risk in self.predictors if risk is not None)

    def pixels_at(self, distance: float, image: Image.Image) -> int:
        """Return the shorter side of an image at a distance.

        Args:
            distance: from 0, the image itself, to 100, `least` pixels; equal steps have equal ratios.
            image: the image.
        """
        full = min(image.size)
        if distance <= 0:
            return full
        near = min(full, self.side)
        return max(1, round(near * (min(self.least, near) / near) ** (distance / 100)))

    def show(self, file: str | Path, distance: float, risk: float | None) -> tuple[str, str]:
        """Return the images and the tree of a prediction as HTML.

        Args:
            file: the image's file.
            distance: see `pixels_at`.
            risk: a risk that may be accepted: the largest calibrated one up to it is promised, or else the smallest.

        Raises:
            ValueError: the image cannot be read, or has more than `MAX_PIXELS` pixels.
        """
        predictor = self.predictors[self.calibrated_risk(risk)]
        image = read_bounded(file)
        side = self.pixels_at(distance, image)
        seen = image if side >= min(image.size) else shrink(image, side)
        found = explain(predictor, seen)
        title = f"{seen.width} x {seen.height} pixels"
        return images_html(found, predictor.model.config.preprocessing, title), tree_html(found.prediction)

    def calibrated_risk(self, risk: float | None) -> float | None:
        """Return the largest calibrated risk up to a risk, or else the smallest; None without calibration."""
        if not self.risks or risk is None:
            return next(iter(self.predictors)) if not self.risks else self.risks[0]
        return max((one for one in self.risks if one <= risk + 1e-9), default=self.risks[0])


def read_bounded(file: str | Path) -> Image.Image:
    """Read an image of at most `MAX_PIXELS` pixels, without decoding a larger one.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it cannot be read, or has more pixels.
    """
    try:
        with open_image(file) as image:
            pixels = image.width * image.height
    except (OSError, SyntaxError, ValueError):
        pixels = 0  # read_image says what is wrong
    if pixels > MAX_PIXELS:
        limit = f"{MAX_PIXELS / 1e6:.0f}"
        raise ValueError(f"the image has {pixels / 1e6:.0f} million pixels; the demo takes up to {limit} million")
    return read_image(file)


def serve(model: str, examples: Path | None, host: str, port: int | None) -> None:
    """Serve the demo of a model until the process is interrupted.

    Args:
        model: as in `Predictor.from_pretrained`.
        examples: a folder of images to choose from; None: drawn ones, if the model is one of the critters.
        host: the address to listen at.
        port: the port; None: the first free one from 7860.

    Raises:
        ImportError: Gradio or Captum is not installed.
        FileNotFoundError: there are no images in the folder.
        OSError: the port is in use.
        ValueError: the model is unknown.
    """
    _import_gradio()
    import_captum()  # or the first image would fail
    loaded = load_trained(model)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # for uploaded files, which vanish with it
        files, notes = find_examples(loaded.hierarchy, examples, Path(folder))
        for note in notes:
            tell(f"{examples}: {note}")
        page = create_page(Demo.of(loaded), printable(model), files)
        print(f"the demo is at {launch(page, host, port)}; Ctrl-C ends it", flush=True)
        page.block_thread()


def create_page(demo: Demo, title: str, examples: Sequence[Path]) -> Any:
    """Return the demo's page, a `gradio.Blocks`.

    Args:
        demo: what it computes.
        title: name of the model.
        examples: image files to choose from.

    Raises:
        ImportError: Gradio is not installed.
    """
    gr = _import_gradio()

    def show(file: str | None, distance: float, percent: float | None = None) -> tuple[str, str]:
        if file is None:
            return "", f"<p>{_HINT}</p>"
        try:
            return demo.show(file, distance, None if percent is None else percent / 100)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    with gr.Blocks(title=f"c2f-zoo: {title}", analytics_enabled=False, delete_cache=(600, _KEEP_SECONDS)) as page:
        gr.Markdown(f"### From family to species, as far as it can be trusted\n`{title}`")
        with gr.Row():
            with gr.Column(scale=2, min_width=260):
                image = gr.Image(
                    type="filepath", image_mode=None, label="Image", sources=["upload", "clipboard"], height=230
                )
                if examples:
                    gr.Examples([str(file) for file in examples], image, label="Examples")
                distance = gr.Slider(0, 100, 0, step=1, label="Distance", info="from near (full size) to far")
                controls = [distance, *_risk_slider(gr, demo)]
            with gr.Column(scale=3, min_width=300):
                tree = gr.HTML(f"<p>{_HINT}</p>", label="Tree", elem_id="tree")
                images = gr.HTML("", label="Images", elem_id="images")
        how = {"trigger_mode": "always_last", "show_progress": "hidden", "api_name": False}
        for control in (image, *controls):
            control.change(show, [image, *controls], [images, tree], **how)
    return page


def launch(page: Any, host: str, port: int | None) -> str:
    """Serve a page in the background; `page.close()` ends it.

    Args:
        page: the page.
        host: the address to listen at.
        port: the port; None: the first free one from 7860.

    Returns:
        The page's address.

    Raises:
        OSError: the port is in use.
    """
    gr = _import_gradio()
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            max_file_size=MAX_FILE_SIZE,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # no font is loaded
            css_paths=Path(__file__).with_name("style.css"),
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        where = "7860 to 7959" if port is None else str(port)
        raise OSError(f"cannot listen at {host}, port {where}, in use or not allowed; choose another --port") from error
    return str(address)


def _risk_slider(gr: ModuleType, demo: Demo) -> list[Any]:
    """Return the slider of the accepted risk; none for a model without calibration."""
    if not demo.risks:
        return []
    percents = [100 * risk for risk in demo.risks]
    default = next(iter(demo.predictors.values())).calibration
    value = 100 * default.risk if default else percents[0]
    info = f"% of trusted classes that may be wrong; calibrated: {', '.join(f'{percent:g}' for percent in percents)}"
    return [gr.Slider(percents[0], percents[-1], value, step=percents[0], label="Risk", info=info)]


def _import_gradio() -> ModuleType:
    try:
        import gradio
    except ImportError as error:
        raise ImportError("the demo needs Gradio: pip install 'c2f_zoo[demo]', or pip install gradio captum") from error
    return gradio
