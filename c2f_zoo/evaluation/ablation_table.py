"""The table of an ablation: its options, its cells, and the CSV file that a killed run goes on from."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from c2f_zoo.evaluation.report import write_json
from c2f_zoo.io.files import atomic_write, read_csv, write_csv
from c2f_zoo.io.progress import format_duration
from c2f_zoo.registry import check_names, check_options
from c2f_zoo.training.options import Stage, TrainOptions
from c2f_zoo.zoo.create import create_model

OF_CELL = ("method", "objective", "trained_at")  # keys of a method that are no arguments of `create_model`
FREE_TO_CHANGE = ("output", "taps_folder", "pairs", "bootstrap")
MAY_GROW = ("backbones", "checkpoints", "methods", "seeds")

Row = dict[str, Any]


@dataclass
class TableOptions:
    """The options of an ablation table.

    Args:
        dataset: one of `c2f-zoo list datasets`.
        backbones: name -> arguments of `create_model`: `backbone`, `input_size`, ...
        methods: name -> `method` and other arguments of `create_model`: `pooling_options`, `levels`, `taps`, ...; and
            `objective` (default: `in_turn`) and `trained_at` (level -> resolution, if it differs from `resolutions`).
        resolutions: level -> resolution in pixels. Null or missing: full size.
        epochs: passes over the training images; of a full training, `train` names the stages.
        learning_rates: the learning rates to choose from.
        weight_decays: the weight decays to choose from.
        seeds: seeds of the initial weights and of the batches; the first one chooses, and splits the images.
        dataset_options: additional keyword arguments of the dataset.
        checkpoints: backbone -> safetensors file with its weights.
        batch_size: number of images in a batch.
        val_fraction: fraction of each class's training images to choose on.
        optimizer: an optimizer of timm.
        mirror: mirror half of the training images.
        mixed_precision: `bf16` for the maps of the frozen backbone and for training; a VGG-16 is six times as fast with
            it on a CPU with AMX. Null: float32.
        train: further options of train.py, for a training of all weights; the learning rates of its stages are factors
            of those to choose from. Null: pooling and head are trained on the maps of the frozen backbone.
        pairs: methods to compare on the same images: `[first, second]` for first - second.
        bootstrap: number of resamples for the 95 % intervals.
        taps_folder: folder for the maps of the frozen backbone.
        output: the CSV file to write. A folder beside it, of the same name, has the predictions.
    """

    dataset: str
    backbones: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    resolutions: dict[str, int | None]
    epochs: int
    learning_rates: list[float]
    weight_decays: list[float]
    seeds: list[int]
    dataset_options: dict[str, Any] = field(default_factory=dict)
    checkpoints: dict[str, str] = field(default_factory=dict)
    batch_size: int = 32
    val_fraction: float = 0.15
    optimizer: str = "adamw"
    mirror: bool = True
    mixed_precision: Literal["bf16"] | None = None
    train: dict[str, Any] | None = None
    pairs: list[list[str]] = field(default_factory=list)
    bootstrap: int = 2000
    taps_folder: str = "runs/taps"
    output: str = "runs/ablation.csv"


@dataclass(frozen=True)
class Cell:
    """A training of the table.

    Args:
        backbone: name of the backbone.
        method: name of the method.
        lr: learning rate.
        weight_decay: weight decay.
        seed: seed of the weights and batches.
    """

    backbone: str
    method: str
    lr: float
    weight_decay: float
    seed: int

    @property
    def name(self) -> str:
        """A name for files.

        Examples:
            >>> Cell("lite0", "mlph", 0.01, 1e-4, 0).name
            'lite0-mlph-lr0.01-wd0.0001-seed0'
        """
        return f"{self.backbone}-{self.method}-lr{self.lr:g}-wd{self.weight_decay:g}-seed{self.seed}"

    def is_of(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row of the table belongs to this cell."""
        numbers = (float(row["lr"]), float(row["weight_decay"]), int(row["seed"]))
        return (row["backbone"], row["method"], *numbers) == tuple(asdict(self).values())


def check_table(options: TableOptions) -> None:
    """Check names and numbers of the options.

    Raises:
        ValueError: a method has an unknown option, a pair an unknown method, or a list of numbers is empty.
    """
    for name, values in options.methods.items():
        if "method" not in values:
            raise ValueError(f"method {name!r} has no key `method`; name one of `c2f-zoo list methods`")
        check_options(f"key of method {name!r}:", create_model, [key for key in values if key not in OF_CELL])
    for name, values in options.backbones.items():
        check_options(f"key of backbone {name!r}:", create_model, values)
    check_names("backbone in checkpoints:", options.checkpoints, options.backbones)
    if options.train is not None and any("trained_at" in values for values in options.methods.values()):
        raise ValueError("train.py scores each level at the resolution it trains it at; leave trained_at out")
    for pair in options.pairs:
        check_names("method in pairs:", pair, options.methods)
        if len(pair) != 2:
            raise ValueError(f"{pair} in pairs is not a pair; write [first, second] for first - second")
    for key in ("learning_rates", "weight_decays", "seeds", "methods", "backbones"):
        if not getattr(options, key):
            raise ValueError(f"{key} is empty; name one or more")


def grid_cells(options: TableOptions, backbone: str, method: str) -> list[Cell]:
    """Return the cells that choose the learning rate and weight decay of a method, with the first seed."""
    grid = itertools.product(options.learning_rates, options.weight_decays)
    return [Cell(backbone, method, lr, decay, options.seeds[0]) for lr, decay in grid]


def method_options(options: TableOptions, cell: Cell) -> dict[str, Any]:
    """Return the arguments of `create_model` for a cell, without the tree."""
    own = {key: value for key, value in options.methods[cell.method].items() if key not in OF_CELL}
    return {**options.backbones[cell.backbone], "resolutions": options.resolutions, **own}


def train_options(options: TableOptions, cell: Cell, folder: Path) -> TrainOptions:
    """Return a cell's options for train.py.

    Args:
        options: the options of the table.
        cell: the cell.
        folder: the folder of the table's runs.
    """
    method, model_options = options.methods[cell.method], method_options(options, cell)
    if cell.backbone in options.checkpoints:
        model_options["backbone_checkpoint"] = options.checkpoints[cell.backbone]
    del model_options["resolutions"]
    own: dict[str, Any] = {"mixed_precision": options.mixed_precision, **(options.train or {})}
    stages = [Stage(**values) for values in own.pop("stages", [])]
    for stage in stages:
        stage.lr, stage.backbone_lr = cell.lr * stage.lr, cell.lr * stage.backbone_lr
    return TrainOptions(
        dataset=options.dataset,
        dataset_options=options.dataset_options,
        model=method["method"],
        model_options=model_options,
        resolutions={**options.resolutions, **method.get("trained_at", {})},
        stages=stages or [Stage(options.epochs, cell.lr, schedule="cosine")],
        objective=method.get("objective", "in_turn"),
        batch_size=options.batch_size,
        optimizer=options.optimizer,
        weight_decay=cell.weight_decay,
        val_fraction=options.val_fraction,
        seed=cell.seed,
        output=str(folder / cell.name),
        **own,
    )


class Table:
    """The rows of a CSV file: one for each cell and level. Each change is written atomically.

    Args:
        path: the file; it is created with the first rows.

    Examples:
        >>> table, cell = Table("table.csv"), Cell("lite0", "mlph", 0.01, 0.0, 0)
        >>> table.add(cell, [{"level": "genus", "val_accuracy": 0.75}])
        >>> Table("table.csv").rows_of(cell)[0]["val_accuracy"], Table("table.csv").choose([cell]) == cell
        ('0.75', True)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: list[Row] = [*read_csv(self.path)] if self.path.exists() else []

    def rows_of(self, cell: Cell) -> list[Row]:
        """Return the rows of a cell; none if it is not finished."""
        return [row for row in self.rows if cell.is_of(row)]

    def add(self, cell: Cell, rows: Sequence[Row]) -> None:
        """Add the rows of a finished cell."""
        first = {**asdict(cell), "chosen": 0}
        self.rows += [{**first, **row} for row in rows]
        write_csv(self.path, self.rows)

    def choose(self, cells: Sequence[Cell]) -> Cell:
        """Return the cell of the best mean validation accuracy over its levels; the first of equals."""
        return max(cells, key=lambda cell: np.mean([float(row["val_accuracy"]) for row in self.rows_of(cell)]))

    def set_test(self, cell: Cell, accuracy: Mapping[str, float]) -> None:
        """Mark a cell as chosen, with the test accuracy of each level."""
        for row in self.rows_of(cell):
            row |= {"chosen": 1, "test_accuracy": f"{accuracy[row['level']]:.4f}"}
        write_csv(self.path, self.rows)

    def is_tested(self, cell: Cell) -> bool:
        """Return whether a cell has its test accuracy."""
        return any(row.get("test_accuracy") for row in self.rows_of(cell))


def result_rows(history: Sequence[Mapping[str, float]], resolutions: Mapping[str, int | None]) -> Iterator[Row]:
    """Yield a row for each level of a training.

    Args:
        history: level -> validation accuracy, after each epoch.
        resolutions: level -> resolution.

    Examples:
        >>> history = [{"genus": 0.25}, {"genus": 0.5}, {"genus": 0.75}]
        >>> next(result_rows(history, {"genus": 32}))  # doctest: +NORMALIZE_WHITESPACE
        {'level': 'genus', 'resolution': 32, 'val_accuracy': '0.7500', 'test_accuracy': '', 'epochs': 3,
         'val_gain': '0.2500'}
    """
    before = max(len(history) - 1 - max(len(history) // 5, 1), 0)  # a fifth of the epochs before the end
    for level, accuracy in history[-1].items():
        yield {
            "level": level,
            "resolution": resolutions.get(level) or "full",
            "val_accuracy": f"{accuracy:.4f}",
            "test_accuracy": "",
            "epochs": len(history),
            "val_gain": f"{accuracy - history[before][level]:.4f}",
        }


def open_table(options: TableOptions, folder: Path) -> None:
    """Check that a table's folder has the same options, and write them if it is new.

    Backbones, methods and seeds may be added or left out, but not the first seed; the folder of the maps, pairs and
    the number of resamples may change.

    Raises:
        ValueError: another option differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "options.json"
    now = json.loads(json.dumps(asdict(options)))
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if difference := explain_difference(before, now):
            raise ValueError(f"{folder}.csv is the table of other options: {difference}; choose another --output")
        for key in MAY_GROW[:-1]:  # options of rows in the table, also of methods that are left out now
            now[key] = {**before[key], **now[key]}
    write_json(file, now)


def explain_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the first difference of two tables' options that changes results, or `""`.

    Examples:
        >>> before = {"epochs": 5, "seeds": [0], "methods": {"mlph": {"method": "mlph"}}}
        >>> explain_difference(before, {**before, "seeds": [0, 1]})
        ''
        >>> explain_difference(before, {**before, "methods": {"mlph": {"method": "mlp"}}})
        "methods.mlph was {'method': 'mlph'} and is {'method': 'mlp'}"
    """
    for key in (key for key in {**before, **now} if key not in FREE_TO_CHANGE):
        old: Any = before.get(key)
        new: Any = now.get(key)
        if key in MAY_GROW and isinstance(old, Mapping) and isinstance(new, Mapping):
            common = [name for name in old if name in new]
            pairs = {f"{key}.{name}": (old[name], new[name]) for name in common}
        else:
            pairs = {key: (old[0], new[0]) if key in MAY_GROW else (old, new)}
        for name, (was, is_now) in pairs.items():
            if was != is_now:
                return f"{name} was {was} and is {is_now}"
    return ""


def save_correct(path: Path, correct: Mapping[str, np.ndarray]) -> None:
    """Save whether each image's prediction is right: level -> int8 (images,), -1 without a label."""

    def write_to(part: Path) -> None:
        with open(part, "wb") as file:
            np.savez_compressed(file, **dict(correct))  # type: ignore[arg-type]

    atomic_write(path, write_to)


def describe_left(options: TableOptions, table: Table) -> str:
    """Describe how many cells of a table are left, and how long they will take.

    The cells of a method take as long as the finished ones of this method, or else of all methods.

    Examples:
        >>> options = TableOptions("critters", {"tiny": {}}, {"mlp": {}, "hbp": {}}, {}, 1, [0.1, 0.01], [0.0], [0, 1])
        >>> table = Table("left.csv")
        >>> table.add(Cell("tiny", "mlp", 0.1, 0.0, 0), [{"level": "genus", "seconds": 40}])
        >>> describe_left(options, table)
        '5 of 6 cells are left, about 3 min'
    """
    each = len(options.learning_rates) * len(options.weight_decays) + len(options.seeds) - 1
    seconds = {(row["backbone"], row["method"], row["lr"], row["weight_decay"], row["seed"]): row for row in table.rows}
    done = {
        (backbone, method): [float(row["seconds"]) for key, row in seconds.items() if key[:2] == (backbone, method)]
        for backbone in options.backbones
        for method in options.methods
    }
    known = [time for times in done.values() for time in times]
    left = {place: max(each - len(times), 0) for place, times in done.items()}
    text = f"{sum(left.values())} of {each * len(done)} cells are left"
    if not known or not any(left.values()):
        return text
    mean = float(np.mean(known))
    rest = sum(count * float(np.mean(done[place] or [mean])) for place, count in left.items())
    return f"{text}, about {format_duration(rest)}"
