"""The command line: the commands of `c2f-zoo`."""

from __future__ import annotations

import os
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import c2f_zoo
from c2f_zoo.paths import expand

if TYPE_CHECKING:
    from c2f_zoo.inference.image_predictor import ImagePredictor
    from c2f_zoo.model import C2FModel

app = typer.Typer(no_args_is_help=True)
data_app = typer.Typer(help="Check data.", no_args_is_help=True)
app.add_typer(data_app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"c2f-zoo {c2f_zoo.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Coarse-to-fine grained image classification."""


class Kind(str, Enum):
    """Kind of name for `c2f-zoo list`."""

    models = "models"
    backbones = "backbones"
    poolings = "poolings"
    heads = "heads"
    hierarchies = "hierarchies"
    datasets = "datasets"
    losses = "losses"
    decodings = "decodings"
    metrics = "metrics"
    rules = "rules"


@app.command("list")
def list_(
    kind: Annotated[Kind, typer.Argument(help="Kind of names to list.")] = Kind.models,
    pattern: Annotated[str, typer.Argument(help="A quoted shell-style wildcard.")] = "*",
    pretrained: Annotated[bool, typer.Option("--pretrained", help="List trained weights (arch.tag).")] = False,
) -> None:
    """List names of models, their parts, datasets, losses, decodings, metrics or rules."""
    if pretrained and kind is not Kind.models:
        raise ValueError(f"--pretrained applies to models, not {kind.value}")
    if kind is Kind.poolings:
        Console(width=max(Console().width, 130)).print(_pooling_table(pattern))  # the default of a pipe is 80
        return
    options = {"pretrained": True} if pretrained else {}
    for name in getattr(c2f_zoo, f"list_{kind.value}")(pattern, **options):
        print(name)


def _pooling_table(pattern: str) -> Table:
    """Build the table of poolings, with costs for VGG-16's maps at 448 pixels."""
    from c2f_zoo.pooling import describe_pooling
    from c2f_zoo.zoo import METHODS, num_taps_of

    table = Table(title="poolings; features, parameters and multiply-adds on maps of 512 x 28 x 28")
    for column in ("name", "description", "source", "methods"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for column in ("maps", "features", "parameters", "multiply-adds"):
        table.add_column(column, justify="right")
    for name in c2f_zoo.list_poolings(pattern):
        try:
            maps = num_taps_of(name)
            row = describe_pooling(name, [512] * maps, (28, 28))
        except Exception as error:  # one plug-in's error; the other poolings are listed
            table.add_row(name, f"cannot be shown: {error}")
            continue
        used_by = ", ".join(key for key in METHODS.names() if METHODS[key].pooling == name)
        multiply_adds = f"{row.multiply_adds / 1e6:,.1f} M"
        if row.uncounted:
            multiply_adds = f"unknown: {', '.join(row.uncounted)} not counted"
        cost = (f"{row.parameters / 1e6:.2f} M", multiply_adds)
        table.add_row(name, row.description, row.source, used_by, str(maps), f"{row.out_features:,}", *cost)
    return table


@app.command()
def info(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of a model (with or without a tag) or hierarchy, folder of a saved model, or tree.csv."
        ),
    ],
    tree: Annotated[bool, typer.Option("--tree", help="Draw the class tree.")] = False,
) -> None:
    """Show levels, parts, parameters and weights of a model, or levels of a hierarchy."""
    from c2f_zoo.hierarchy import HIERARCHIES, draw_text, open_hierarchy
    from c2f_zoo.hierarchy.escape import rich_text

    name = str(expand(name))
    if name in HIERARCHIES or name.lower().endswith(".csv"):
        hierarchy = open_hierarchy(name)
        rows = [(f"level {level}", f"{count} classes") for level, count in hierarchy.num_classes.items()]
        rows.append(("version", hierarchy.version or "none"))
    else:
        model = c2f_zoo.create_model(f"local-dir:{name}" if Path(name).is_dir() else name)
        hierarchy, rows = model.hierarchy, _model_rows(name, model)
    if tree:
        print(draw_text(hierarchy))
        return
    table = Table(title=rich_text(name), show_header=False)
    for row in rows:
        table.add_row(*map(rich_text, row))
    Console(emoji=False).print(table)


def _model_rows(name: str, model: C2FModel) -> list[tuple[str, str]]:
    """Return rows on the levels, parts and weights of a model."""
    from c2f_zoo.backbones import pretrained_cfg
    from c2f_zoo.config import format_resolution

    config = model.config
    rows = []
    for level, count in model.hierarchy.num_classes.items():
        resolution = config.resolutions.get(level)
        at = f" at {format_resolution(resolution)}" if resolution else ""
        rows.append((f"level {level}", f"{count} classes{at}" + ("" if level in model.levels else ", not predicted")))
    rows.append(("backbone", config.backbone))
    for tap, shape in zip(model.backbone.taps, model.backbone.map_shapes, strict=True):
        rows.append(("  tap", f"{tap}: {' x '.join(map(str, shape))}"))
    rows.append(("pooling", f"{config.pooling}: {model.pooling.out_features} features"))
    rows.append(("head", config.head))
    rows.append(("input", " x ".join(map(str, config.preprocessing.input_size))))
    for part in ("backbone", "pooling", "head"):
        count = sum(weight.numel() for weight in model.get_submodule(part).parameters())
        rows.append((f"{part} parameters", f"{count / 1e6:.2f} M"))
    hub_id = pretrained_cfg(config.backbone).get("hf_hub_id")
    source = f"hf-hub:{hub_id} (pretrained_backbone=True)" if hub_id else "none known"
    return [*rows, *_weights_rows(name), ("backbone weights", source)]


def _weights_rows(name: str) -> list[tuple[str, str]]:
    """Return rows on the trained weights of a model: source, licence, accuracy."""
    from c2f_zoo.config import format_resolution
    from c2f_zoo.registry import PluginError
    from c2f_zoo.zoo import WEIGHTS, split_tag
    from c2f_zoo.zoo.pretrained import default_tag, tags_of

    if Path(name).is_dir():
        return [("weights", f"{name}/model.safetensors")]
    arch, chosen_tag = split_tag(name)
    rows = []
    for tag in [chosen_tag] if chosen_tag else tags_of(arch):
        try:
            weights = WEIGHTS[f"{arch}.{tag}"]
        except PluginError as error:
            rows.append((f"weights .{tag}", str(error)))
            continue
        suffix = " (default)" if tag == default_tag(arch) else ""
        rows += [(f"weights .{tag}", weights.source + suffix), ("  licence", weights.licence)]
        rows += [("  recipe", weights.recipe or "unknown")]
        for metrics in weights.metrics[:1]:
            scores = [
                f"{row.level} {100 * row.accuracy:.1f} % at {format_resolution(row.resolution)}"
                for row in metrics.accuracy
                if row.own
            ]
            provenance = f"{metrics.dataset}, {metrics.split} ({metrics.date}, {metrics.device})"
            rows.append(("  accuracy", f"{', '.join(scores)}; {provenance}"))
    return rows or [("weights", "none trained")]


@app.command()
def predict(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder of a run or saved model, name of trained weights, hf-hub:OWNER/MODEL, or exported .onnx file."
        ),
    ],
    paths: Annotated[list[Path], typer.Argument(help="Image files, and folders with all images in them.")],
    csv: Annotated[Path | None, typer.Option(help="CSV file to write; an interrupted run goes on.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
    top_k: Annotated[int | None, typer.Option(help="Also print the K most probable classes.", min=1)] = None,
    level: Annotated[str | None, typer.Option(help="Finest level to predict.")] = None,
    risk: Annotated[
        float | None, typer.Option(help="Promised risk: the fraction of trusted classes that may be wrong.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Class of any level to restrict predictions to; may be repeated.")
    ] = None,
    species_list: Annotated[Path | None, typer.Option(help="File with the possible classes, one a line.")] = None,
    batch_size: Annotated[int, typer.Option(help="Largest number of images of a forward pass.", min=1)] = 32,
    boxes: Annotated[
        Path | None, typer.Option(help="Detections of MegaDetector to classify; PATHS is their folder.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="With --boxes: JSON file to write.")] = None,
    min_conf: Annotated[float, typer.Option(help="With --boxes: smallest confidence of a box.")] = 0.2,
) -> None:
    """Predict images: the part of the path in the class tree that can be trusted, and a guess below it.

    Exit with 1 if an image cannot be read.
    """
    from c2f_zoo.inference.predict_boxes import predict_boxes
    from c2f_zoo.inference.predict_files import predict_files
    from c2f_zoo.io.freed_memory import keep_freed_memory

    keep_freed_memory()

    if top_k and csv and not as_json:
        raise ValueError("--top-k has no columns in a CSV file; leave it out, or add --json")
    if (boxes is None) != (output is None):
        raise ValueError("--boxes DETECTIONS and --output FILE need each other")
    if boxes and (len(paths) > 1 or csv or as_json or top_k):
        raise ValueError("--boxes takes the folder of its images, and neither --csv, --json nor --top-k")
    predictor = _create_predictor(
        model, risk=risk, only=only or None, species_list=species_list, level=level, batch_size=batch_size
    )
    if boxes and output:
        errors = predict_boxes(predictor, model, paths[0], boxes, output, min_conf)
    else:
        errors = predict_files(predictor, paths, csv, as_json, top_k)
    if errors:
        raise typer.Exit(1)


def _create_predictor(model: str, **options: Any) -> ImagePredictor:
    """Create the predictor of a trained model, or of an exported file, which needs no PyTorch."""
    if not model.lower().endswith(".onnx"):
        return c2f_zoo.Predictor.from_pretrained(model, **options)
    from c2f_zoo.inference.onnx import OnnxPredictor

    return OnnxPredictor(model, **options)


class ExportFormat(str, Enum):
    """Format of `c2f-zoo export`."""

    onnx = "onnx"
    torch_export = "torch_export"


class ExportDtype(str, Enum):
    """Type in which an exported network computes."""

    float32 = "float32"
    float16 = "float16"


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(help="Folder of a run or saved model, name of trained weights, or hf-hub:OWNER/MODEL.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    format: Annotated[ExportFormat, typer.Option(help="File format.")] = ExportFormat.onnx,
    levels: Annotated[str | None, typer.Option(help="Levels to export, e.g. genus,species. Default: all.")] = None,
    dtype: Annotated[ExportDtype, typer.Option(help="Type in which the network computes.")] = ExportDtype.float32,
    int8: Annotated[
        Path | None, typer.Option(help="Quantize to 8-bit integers, with the images in this folder.")
    ] = None,
    any_size: Annotated[bool, typer.Option("--any-size", help="Leave height and width open.")] = False,
) -> None:
    """Export a model to a file that predicts without this package, or without PyTorch (`c2f-zoo predict FILE.onnx`)."""
    from c2f_zoo.inference.export_files import export_file

    names = levels.split(",") if levels else None
    print(export_file(model, output, format.value, names, dtype.value, any_size, int8))


@app.command()
def explain(
    model: Annotated[
        str, typer.Argument(help="Folder of a run or saved model, name of trained weights, or hf-hub:OWNER/MODEL.")
    ],
    image: Annotated[Path, typer.Argument(help="Image file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")],
) -> None:
    """Draw heat maps of what each level looked at in an image, for each tap."""
    from c2f_zoo.evaluation.heat_map_plot import plot_heat_maps
    from c2f_zoo.inference.heat_maps import explain as explain_image
    from c2f_zoo.io.files import check_extension

    check_extension(output, ".png")
    predictor = c2f_zoo.Predictor.from_pretrained(model)
    found = explain_image(predictor, image)
    plot_heat_maps(found, predictor.model.config.preprocessing, output)
    print(found.prediction)


@app.command()
def approach(
    model: Annotated[str, typer.Argument(help="As in `predict`.")],
    photo: Annotated[Path, typer.Argument(help="The photo.")],
    output: Annotated[Path, typer.Option("--output", "-o", help=".png: images side by side; .gif: an animation.")],
    resolutions: Annotated[
        str | None, typer.Option(help="Resolutions, e.g. full,80,40,20. Default: full size to the coarsest calibrated.")
    ] = None,
    risk: Annotated[float | None, typer.Option(help="Promised risk, as in `predict`.")] = None,
) -> None:
    """Draw one photo from far to near, with what is predicted and can be trusted at each resolution."""
    from c2f_zoo.evaluation.approach import FORMATS, draw_approach
    from c2f_zoo.hierarchy.escape import printable
    from c2f_zoo.io.files import check_extension

    check_extension(output, *FORMATS)
    predictor = c2f_zoo.Predictor.from_pretrained(model, risk=risk)
    for title, prediction in draw_approach(predictor, photo, output, _read_grid(resolutions)).items():
        print(f"{title}: {prediction}")
    print(f"written to {printable(output)}")


@app.command()
def index(
    model: Annotated[str, typer.Argument(help="As in `predict`.")],
    folder: Annotated[Path, typer.Argument(help="Folder with images, also in subfolders.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Index file to write, e.g. birds.index.")],
) -> None:
    """Index the images of a folder, for `c2f-zoo similar`. Exit with 1 if an image cannot be read."""
    from c2f_zoo.hierarchy.escape import printable
    from c2f_zoo.inference.embedder import Embedder
    from c2f_zoo.inference.predictor import load_trained
    from c2f_zoo.inference.similar_files import index_folder
    from c2f_zoo.io.freed_memory import keep_freed_memory

    keep_freed_memory()
    images, errors = index_folder(Embedder(load_trained(model)), model, folder, output)
    print(f"written to {printable(output)}: {images} images")
    if errors:
        raise typer.Exit(1)


@app.command()
def similar(
    model: Annotated[str, typer.Argument(help="The model of the index.")],
    photo: Annotated[Path, typer.Argument(help="The photo.")],
    index: Annotated[Path, typer.Option(help="Index file that `c2f-zoo index` wrote.")],
    top_k: Annotated[int, typer.Option(help="Number of images.", min=1)] = 12,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Contact sheet to write, a PNG file.")] = None,
) -> None:
    """Find the images of an index that are most similar to a photo."""
    from c2f_zoo.evaluation.contact_sheet import plot_contact_sheet
    from c2f_zoo.hierarchy.escape import printable
    from c2f_zoo.inference.embedder import Embedder
    from c2f_zoo.inference.image_index import ImageIndex
    from c2f_zoo.inference.predictor import load_trained
    from c2f_zoo.inference.similar_files import find_similar
    from c2f_zoo.io.files import check_extension

    if output is not None:
        check_extension(output, ".png")
    found, embedder = ImageIndex.load(index), Embedder(load_trained(model))
    found.check_model(model, embedder.digest())
    images = find_similar(embedder, found, photo, top_k)
    for file, similarity in images:
        print(f"{similarity:.3f}  {printable(file)}")
    if output is not None:
        plot_contact_sheet(photo, images, output)
        print(f"written to {printable(output)}")


@app.command()
def demo(
    model: Annotated[
        str, typer.Argument(help="Folder of a run or saved model, name of trained weights, or hf-hub:OWNER/MODEL.")
    ],
    examples: Annotated[Path | None, typer.Option(help="Folder of images to choose from.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: open to the network.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port. Default: the first free one from 7860.")] = None,
) -> None:
    """Show a model in the browser: an image at any distance, the tree, the risk, heat maps."""
    from c2f_zoo.demo.app import serve

    serve(model, examples, host, port)


@app.command()
def calibrate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of train.py.")],
    risk: Annotated[float, typer.Option(help="Promised fraction of wrong predictions, e.g. 0.1.")] = 0.1,
    resolutions: Annotated[
        str | None,
        typer.Option(help="Resolution grid, e.g. full,80,40,20. Default: full size to the coarsest level's."),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the run's dataset, if it was moved.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the views of the images.")] = 0,
) -> None:
    """Calibrate a model on its validation images, so that predictions end at a level that can be trusted."""
    from c2f_zoo.evaluation.calibrating import calibrate_run, calibration_tables
    from c2f_zoo.evaluation.report import print_tables
    from c2f_zoo.io.weights import CALIBRATION_FILE

    found = calibrate_run(str(run), risk, _read_grid(resolutions), str(root) if root else None, seed)
    print_tables(*calibration_tables(found))
    print(f"\nwritten to {run / CALIBRATION_FILE}; try: c2f-zoo predict {run} IMAGE")


def _read_grid(text: str | None) -> list[int | None] | None:
    """Read a resolution grid, e.g. `full,80,40`."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    wrong = [word for word in words if word != "full" and not word.isdecimal()]
    if wrong:
        raise ValueError(f"{wrong[0]!r} in --resolutions is no number of pixels; write e.g. full,80,40,20")
    return [None if word == "full" else int(word) for word in words]


@data_app.command()
def check(
    path: Annotated[Path, typer.Argument(help="Class folders, a folder with CUB-200-2011's layout, or a .csv file.")],
    hierarchy: Annotated[
        str | None, typer.Option(help="The class tree: a CSV file, or a name from `list hierarchies`.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Root folder of the paths in a .csv file.")] = None,
    levels: Annotated[str | None, typer.Option(help="Level names, coarse to fine, e.g. family,genus,species.")] = None,
    ragged: Annotated[
        str | None, typer.Option(help="Treatment of branches that end above the leaf level: repeat or stop.")
    ] = None,
    test_fraction: Annotated[float, typer.Option(help="Fraction for the test set, if there are no splits.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of that random split.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Number of decoding threads.", min=1)] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Show long lists in full.")] = False,
) -> None:
    """Read all images once and report problems; exit with 1 if training would fail."""
    from c2f_zoo.data.check import check_images, list_images, print_report

    listing = list_images(path, hierarchy, root, levels.split(",") if levels else None, ragged)
    report = check_images(listing, workers, test_fraction, seed)
    print_report(report, Console(emoji=False, highlight=False), show_all)
    if any(report.errors.values()):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; print errors in one line, without a traceback."""
    from c2f_zoo.io.terminal import make_output_printable

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: waiting threads sleep
    make_output_printable()
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        from c2f_zoo.hierarchy.escape import printable

        sys.exit("\n".join(map(printable, f"c2f-zoo: {error}".splitlines())))
