"""The model card (`README.md`) of a model on the Hub."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from c2f_zoo.config import ModelConfig, format_resolution
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.hierarchy.draw import draw_text
from c2f_zoo.hierarchy.escape import fenced, markdown
from c2f_zoo.io.files import read_csv
from c2f_zoo.paths import expand

MAX_TREE_LINES = 60

CITATION = """@inproceedings{huo2019coarse,
  title     = {Coarse-to-Fine Grained Classification},
  author    = {Huo, Yuqi and Lu, Yao and Niu, Yulei and Lu, Zhiwu and Wen, Ji-Rong},
  booktitle = {Proceedings of the 42nd International ACM SIGIR Conference on Research and Development in
               Information Retrieval},
  year      = {2019},
  doi       = {10.1145/3331184.3331336}
}"""


@dataclass(frozen=True)
class Run:
    """The results of a finished run of `recipes/train.py`.

    Args:
        options: its `config.yaml`.
        test: the rows of its `test.csv`: accuracy in [0, 1] of a level at a resolution.
        epochs: the rows of its `metrics.csv`.
        evaluation: the `evaluation/metrics.json` of `recipes/evaluate.py`; {} without an evaluation.
        has_curves: whether the run has a `curves.png`.
    """

    options: Mapping[str, Any]
    test: list[dict[str, str]]
    epochs: list[dict[str, str]] = field(default_factory=list)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    has_curves: bool = False


def read_run(folder: str | Path) -> Run:
    """Read the results of a finished run of `recipes/train.py` from its folder.

    Raises:
        FileNotFoundError: the folder is not a run's, or the run is not finished.
    """
    import yaml

    folder = expand(folder)
    for name, hint in (
        ("config.yaml", "pass the folder of a run of train.py"),
        ("test.csv", "the run is not finished; resume it with train.py --resume auto"),
    ):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: {hint}")
    evaluation = folder / "evaluation" / "metrics.json"
    return Run(
        options=yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")),
        test=read_csv(folder / "test.csv"),
        epochs=read_csv(folder / "metrics.csv") if (folder / "metrics.csv").is_file() else [],
        evaluation=json.loads(evaluation.read_text(encoding="utf-8")) if evaluation.is_file() else {},
        has_curves=(folder / "curves.png").is_file(),
    )


def model_card(
    config: ModelConfig,
    name: str,
    licence: str | None = None,
    run: Run | None = None,
    calibration: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of a model's `README.md`, with the Hub's metadata.

    If there are no results or no licence, the card states so. Paths among the options are reduced to their last part.

    Args:
        config: the model's configuration.
        name: the model's name on the Hub, `"owner/model"` or `"owner/model@revision"`.
        licence: an identifier of https://huggingface.co/docs/hub/repositories-licenses, e.g. `"apache-2.0"`.
        run: the results of the run that trained the model.
        calibration: the model's calibration.

    Raises:
        ValueError: the calibration is invalid.

    Examples:
        >>> model = create_model("mlph", backbone="resnet18", hierarchy="fashion_mnist", input_size=64)
        >>> text = model_card(model.config, "me/clothes", licence="mit")
        >>> "license: mit" in text, "Nothing was measured" in text
        (True, True)
    """
    title = name.partition("@")[0].split("/")[-1]
    sections = [
        f"---\n{_metadata(config, title, licence, run)}\n---",
        f"# {title}\n\n{_introduction(config)}",
        f"## Use\n\n{_use(name)}",
        f"## Results\n\n{_results(run)}",
        f"## Trust\n\n{_trust(calibration)}",
        f"## The model\n\n{_model(config)}",
        f"## The tree\n\n{_tree(config.hierarchy)}",
        f"## Training\n\n{_training(run)}",
        f"## Licence\n\n{licence or 'No licence is known. Ask the owner before you use the model.'}",
        f"## Citation\n\nThe paper that c2f_zoo implements:\n\n```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(config: ModelConfig, title: str, licence: str | None, run: Run | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    if run is not None:
        results = [
            EvalResult(
                task_type="image-classification",
                task_name=f"Coarse-to-fine image classification, {len(config.levels)} level(s)",
                dataset_type=run.options["dataset"],
                dataset_name=run.options["dataset"],
                dataset_split="test",
                metric_type="accuracy",
                metric_name=f"accuracy of {row['level']} ({format_resolution(row['resolution'])})",
                metric_value=round(float(row["accuracy"]), 4),
            )
            for row in run.test
            if row["own"] == "True"
        ]
    return ModelCardData(
        license=licence,
        library_name="c2f_zoo",
        pipeline_tag="image-classification",
        tags=["image-classification", "hierarchical-classification", "fine-grained", "timm", "c2f_zoo"],
        model_name=title,
        eval_results=results or None,
    ).to_yaml()


def _introduction(config: ModelConfig) -> str:
    counts = [f"{config.hierarchy.num_classes[level]} classes of {markdown(level)}" for level in config.levels]
    listed = " and ".join([", ".join(counts[:-1]), counts[-1]] if len(counts) > 1 else counts)
    return f"An image classifier of c2f_zoo for {listed}, with the timm backbone `{config.backbone}`."


def _use(name: str) -> str:
    return f"""```python
from c2f_zoo import Predictor, create_model
print(Predictor(create_model("hf-hub:{name}"))("image.jpg"))
```

This prints a path in the class tree, coarse to fine, with the probability of each class. If the model is calibrated, it
says which part of the path can be trusted."""


def _results(run: Run | None) -> str:
    if run is None or not run.test:
        return "Nothing was measured with c2f_zoo."
    images = sorted({int(row["images"]) for row in run.test})
    table = markdown_table(*accuracy_grid(run.test))
    count = " to ".join(map(str, dict.fromkeys((images[0], images[-1]))))
    text = (
        f"Accuracy in % of each level at each resolution, on the {count} test images of the dataset "
        f"`{run.options['dataset']}`. Bold: the level's own resolution.\n\n{table}"
    )
    return text + _evaluation(run.evaluation)


def accuracy_grid(rows: Sequence[Mapping[str, str]]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the cells of a table of accuracy in % by level and resolution.

    Args:
        rows: rows of a `test.csv`: level, resolution ("" is full size), accuracy in [0, 1], and whether the resolution
            is the level's own, which is in bold; with the number of `classes`, a column of them.

    Examples:
        >>> row = {"level": "genus", "classes": "12"}
        >>> full = {**row, "resolution": "", "accuracy": "0.9", "own": "False"}
        >>> accuracy_grid([full, {**row, "resolution": "32", "accuracy": "0.8", "own": "True"}])
        (['level', 'classes', 'full size', '32 px'], [['genus', '12', '90.0', '**80.0**']])
    """
    resolutions = list(dict.fromkeys(row["resolution"] for row in rows))
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        text = f"{100 * float(row['accuracy']):.1f}"
        line = cells.setdefault(row["level"], {"classes": row["classes"]} if "classes" in row else {})
        line[row["resolution"]] = f"**{text}**" if row["own"] == "True" else text
    columns = ["classes"] * ("classes" in rows[0]) + resolutions
    header = ["level", *("classes" if name == "classes" else format_resolution(name) for name in columns)]
    return header, [[markdown(level), *(line.get(name, "") for name in columns)] for level, line in cells.items()]


def _evaluation(report: Mapping[str, Any]) -> str:
    """Return the table of recipes/evaluate.py's metrics, a column per decoding."""
    if not report:
        return ""
    decodings = report["decodings"]
    rows = [
        [markdown(name), *[_format_metric(value)] * len(decodings)] for name, value in report["any_decoding"].items()
    ]
    for name in next(iter(decodings.values()), {}):
        rows.append([markdown(name), *(_format_metric(metrics.get(name)) for metrics in decodings.values())])
    return (
        f"\n\nHierarchical metrics by decoding, on {report['images']} images of `{report['dataset']}`, "
        f"{report['split']} split. Fractions are in [0, 1], distances in levels:\n\n"
        f"{markdown_table(['metric', *decodings], rows)}"
    )


def _format_metric(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def detail_groups(edges: Sequence[float]) -> list[str]:
    """Return the names of a calibration's groups of visible detail, coarsest first.

    Examples:
        >>> detail_groups([24.2, 60.0])
        ['below 24 px', '24 to 60 px', 'from 60 px']
    """
    if not edges:
        return ["any"]
    between = [f"{low:.0f} to {high:.0f} px" for low, high in itertools.pairwise(edges)]
    return [f"below {edges[0]:.0f} px", *between, f"from {edges[-1]:.0f} px"]


def _trust(calibration: Mapping[str, Any] | None) -> str:
    """Return what the calibration promises, and the thresholds of its groups of visible detail."""
    if calibration is None:
        return "The model is not calibrated: no level of a prediction is marked as trusted. See `c2f-zoo calibrate`."
    try:
        return _promise(calibration)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"invalid calibration: {error!r}; calibrate the model again, or remove it") from error


def _promise(calibration: Mapping[str, Any]) -> str:
    risks, names = calibration["risks"], detail_groups(calibration["edges"])
    about = ", ".join(f"{markdown(key)} {markdown(value)}" for key, value in calibration.get("about", {}).items())
    rows = [
        [name, str(images), *(f"{threshold:.4f}" for threshold in thresholds)]
        for name, images, thresholds in zip(names, calibration["images"], calibration["thresholds"], strict=True)
    ]
    text = (
        f"A prediction ends at the finest level that can be trusted: of images like those of the calibration, at most "
        f"{100 * calibration['risk']:g} % get a wrong class there. Other risks can be chosen. Rule "
        f"`{markdown(calibration['rule'])}`, calibrated on {sum(calibration['images'])} images ({about}). "
        "Thresholds by the detail that an image shows:"
    )
    return (
        f"{text}\n\n{markdown_table(['visible detail', 'images', *(f'risk {100 * risk:g} %' for risk in risks)], rows)}"
    )


def _model(config: ModelConfig) -> str:
    p = config.preprocessing
    taps = config.taps if isinstance(config.taps, tuple) else (f"the last {config.taps}",)
    levels = [
        [markdown(level), str(config.hierarchy.num_classes[level]), format_resolution(config.resolutions.get(level))]
        for level in config.levels
    ]
    rows = [
        ["backbone", f"`{config.backbone}`"],
        ["taps", ", ".join(f"`{tap}`" for tap in taps)],
        ["pooling", f"`{config.pooling}` {_options(config.pooling_options)}"],
        ["head", f"`{config.head}` {_options(config.head_options)}"],
        ["input", f"{p.input_size[1]} x {p.input_size[2]} pixels, cropped from {p.resize}"],
    ]
    levels_table = markdown_table(["level", "classes", "resolution"], levels)
    return f"{levels_table}\n\n{markdown_table(['part', ''], rows)}"


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items())


def _tree(tree: Hierarchy) -> str:
    counts = ", ".join(f"{markdown(level)} {number}" for level, number in tree.num_classes.items())
    shown, note = tree, ""
    for level in reversed(tree.levels):  # truncate the tree until it is short enough
        shown = tree.truncate(level)
        if sum(shown.num_classes.values()) <= MAX_TREE_LINES:
            break
        note = " The finest levels are not shown; all class names are in `config.json`."
    if tree.ragged == "stop":
        note += " Branches end at different levels, and so do predictions."
    lines = draw_text(shown).split("\n")
    if len(lines) > MAX_TREE_LINES:
        lines = [*lines[:MAX_TREE_LINES], f"... and {len(lines) - MAX_TREE_LINES} more"]
    drawn = fenced("\n".join(lines))
    return f"Classes of each level, coarse to fine: {counts}.{note}\n\n{drawn}"


def _training(run: Run | None) -> str:
    import yaml

    if run is None:
        return "Nothing is known about the training."
    settings = yaml.safe_dump(_public(run.options), sort_keys=False, allow_unicode=True)
    text = f"{len(run.epochs)} epochs of c2f_zoo's `recipes/train.py` with these options:\n\n"
    text += fenced(settings.strip(), "yaml")
    return text + "\n\n![loss and validation accuracy of each epoch](curves.png)" * run.has_curves


def _public(value: Any) -> Any:
    """Return options with paths reduced to their last part."""
    if isinstance(value, Mapping):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_public(item) for item in value]
    is_path = isinstance(value, PurePath) or (isinstance(value, str) and ("/" in value or "\\" in value))
    if is_path and not str(value).startswith(("hf-hub:", "https://", "http://")):
        return PureWindowsPath(str(value)).name  # splits at both kinds of slashes
    return value


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown.

    Examples:
        >>> print(markdown_table(["level", "32 px"], [["genus", "99.6"]]))
        | level | 32 px |
        | --- | --- |
        | genus | 99.6 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.strip().replace("|", "\\|") for cell in line) + " |" for line in lines)
