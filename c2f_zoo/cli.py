"""The command line: `c2f-zoo list | info | predict`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from c2f_zoo.hierarchy import Hierarchy
    from c2f_zoo.model import C2FModel

app = typer.Typer(help="Coarse-to-fine grained image classification.", no_args_is_help=True)


class Kind(str, Enum):
    """What `c2f-zoo list` can list."""

    models = "models"
    backbones = "backbones"
    poolings = "poolings"
    heads = "heads"
    hierarchies = "hierarchies"
    datasets = "datasets"


@app.command("list")
def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")] = Kind.models,
    pattern: Annotated[str, typer.Argument(help="A shell-style wildcard, in quotes.")] = "*",
) -> None:
    """List what there is: models, backbones, poolings, heads, hierarchies or datasets."""
    import c2f_zoo

    if kind is Kind.poolings:
        Console(width=max(Console().width, 130)).print(_pooling_table(pattern))  # into a file or a pipe it is 80
        return
    lists: dict[Kind, Callable[[str], list[str]]] = {
        Kind.models: c2f_zoo.list_models,
        Kind.backbones: c2f_zoo.list_backbones,
        Kind.heads: c2f_zoo.list_heads,
        Kind.hierarchies: c2f_zoo.list_hierarchies,
        Kind.datasets: c2f_zoo.list_datasets,
    }
    for name in lists[kind](pattern):
        print(name)


def _pooling_table(pattern: str) -> Table:
    """What each pooling is and costs on maps of 512 x 28 x 28, those of VGG-16 at 448 pixels."""
    import c2f_zoo
    from c2f_zoo.pooling import describe_pooling
    from c2f_zoo.zoo import METHODS, num_taps_of

    table = Table(title="poolings; features, parameters and multiply-adds on maps of 512 x 28 x 28")
    for column in ("name", "what", "source", "methods"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for column in ("maps", "features", "parameters", "multiply-adds"):
        table.add_column(column, justify="right")
    for name in c2f_zoo.list_poolings(pattern):
        maps = num_taps_of(name)
        row = describe_pooling(name, [512] * maps, (28, 28))
        used_by = ", ".join(key for key in METHODS.names() if METHODS[key].pooling == name)
        cost = (f"{row.parameters / 1e6:.2f} M", f"{row.multiply_adds / 1e6:,.1f} M")
        table.add_row(name, row.what, row.source, used_by, str(maps), f"{row.out_features:,}", *cost)
    return table


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="A model's name, the folder of a saved one, or a hierarchy's name.")],
    tree: Annotated[bool, typer.Option("--tree", help="Draw the class tree instead.")] = False,
) -> None:
    """Show a model's levels, taps, parameters, input, and where its weights live; or a hierarchy's levels."""
    import c2f_zoo
    from c2f_zoo.hierarchy import HIERARCHIES, draw_text

    if name in HIERARCHIES:
        hierarchy = c2f_zoo.load_hierarchy(name)
        table = _hierarchy_table(name, hierarchy)
    else:
        model = c2f_zoo.create_model(f"local-dir:{name}" if Path(name).is_dir() else name)
        hierarchy, table = model.hierarchy, _model_table(name, model)
    if tree:
        print(draw_text(hierarchy))
    else:
        Console().print(table)


def _hierarchy_table(name: str, hierarchy: Hierarchy) -> Table:
    table = Table(title=name, show_header=False)
    for level, count in hierarchy.num_classes.items():
        table.add_row(f"level {level}", f"{count} classes")
    table.add_row("version", hierarchy.version or "none")
    return table


def _model_table(name: str, model: C2FModel) -> Table:
    from c2f_zoo.backbones import pretrained_cfg

    config = model.config
    table = Table(title=name, show_header=False)
    for level, count in model.hierarchy.num_classes.items():
        resolution = config.resolutions.get(level)
        seen = f", seen at {resolution} px" if resolution else ""
        table.add_row(f"level {level}", f"{count} classes{seen}" + ("" if level in model.levels else ", not answered"))
    table.add_row("backbone", config.backbone)
    for tap, shape in zip(config.taps, model.backbone.map_shapes, strict=True):
        table.add_row("  tap", f"{tap}: {' x '.join(map(str, shape))}")
    table.add_row("pooling", f"{config.pooling}: {model.pooling.out_features} features")
    table.add_row("head", config.head)
    table.add_row("input", " x ".join(map(str, config.preprocessing.input_size)))
    for part in ("backbone", "pooling", "head"):
        count = sum(weight.numel() for weight in model.get_submodule(part).parameters())
        table.add_row(f"{part} parameters", f"{count / 1e6:.2f} M")
    hub_id = pretrained_cfg(config.backbone).get("hf_hub_id")
    backbone_weights = f"hf-hub:{hub_id} (pretrained_backbone=True)" if hub_id else "none known"
    table.add_row("weights", f"{name}/model.safetensors" if Path(name).is_dir() else "none published yet")
    table.add_row("backbone weights", backbone_weights)
    return table


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="A run's folder, or another folder that save_pretrained wrote.")],
    images: Annotated[list[Path], typer.Argument(help="One or more picture files.")],
) -> None:
    """Name what is in a picture: its path in the tree, with a probability for each level."""
    import c2f_zoo
    from c2f_zoo.data import read_image

    predictor = c2f_zoo.Predictor(c2f_zoo.create_model(f"local-dir:{model}"))
    for path in images:
        prediction = predictor(read_image(path))
        print(f"{path}: {prediction}" if len(images) > 1 else prediction)


def main() -> None:
    """Runs the command line; a user's mistake ends in one line, not in a traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        sys.exit(f"c2f-zoo: {error}")
