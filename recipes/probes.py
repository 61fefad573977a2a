"""Compare heads, decodings and a linear probe on frozen features of a backbone.

    python recipes/probes.py --config recipes/configs/probe_heads.yaml                                  # critters
    python recipes/probes.py --config recipes/configs/probe_heads.yaml --dataset cub --dataset_options.root FOLDER
    python recipes/probes.py --config recipes/configs/cub_probe_lite0.yaml --dataset_options.root FOLDER
    python recipes/probes.py --config recipes/configs/critters.yaml --methods '[linear_probe]'  # a recipe of train.py

Every level is seen at its own resolution, with the same split as in train.py. The features are extracted once. Each
method is fitted by L-BFGS to the training images, with the penalty on its weights chosen by validation accuracy. The
test images are scored once, with all metrics of `c2f_zoo.metrics`, for each decoding.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: waiting threads sleep, they do not spin

import torch
from jsonargparse import auto_cli

from c2f_zoo.data import create_dataset, labels_of, notes_of, train_and_val
from c2f_zoo.decoding import DECODINGS
from c2f_zoo.evaluation.probe import LabelledFeatures, Probe, extract_features, probe_head, probe_linear, score_probe
from c2f_zoo.evaluation.report import metrics_table, print_tables
from c2f_zoo.heads import list_heads
from c2f_zoo.io.files import write_csv
from c2f_zoo.io.freed_memory import keep_freed_memory
from c2f_zoo.paths import expand
from c2f_zoo.registry import check_names
from c2f_zoo.training.launch import recipe_errors
from c2f_zoo.training.options import read_yaml
from c2f_zoo.training.start_checks import check_output
from c2f_zoo.zoo import METHODS
from c2f_zoo.zoo.create import create_model
from c2f_zoo.zoo.models import find_model

LINEAR_PROBE = "linear_probe"
# The arguments of `create_model` that do not belong to pooling or head.
OF_BACKBONE = (
    *("backbone", "backbone_options", "backbone_checkpoint", "pretrained_backbone", "taps"),
    *("input_size", "in_chans", "preprocessing_options"),
)


def main(
    dataset: str,
    dataset_options: dict[str, Any],
    model_options: dict[str, Any],
    resolutions: dict[str, int | None],
    methods: list[str] | None = None,
    penalties: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1),
    val_fraction: float = 0.1,
    max_iter: int = 100,
    seed: int = 0,
    output: str = "runs/probes.csv",
) -> None:
    """Fit and score every method.

    Args:
        dataset: one of `c2f-zoo list datasets`.
        dataset_options: additional keyword arguments of the dataset.
        model_options: additional keyword arguments of `create_model`: backbone, taps, weights.
        resolutions: level -> resolution in pixels. Null or missing: full size.
        methods: heads, each fitted to all levels at once, or `linear_probe`, a logistic regression for each level with
            its own penalty. Default: all heads and `linear_probe`.
        penalties: l2 penalties on the weights to choose from.
        val_fraction: fraction of each class's training images to validate on.
        max_iter: iterations of L-BFGS.
        seed: seed of the split, of the heads' initial weights, and of a backbone without given weights.
        output: the CSV file to write.
    """
    methods = choose_methods(methods)
    check_output(str(Path(output).parent))
    keep_freed_memory()
    train_set, train_indices, val_indices = train_and_val(dataset, val_fraction, seed, **dataset_options)
    if not val_indices:
        raise ValueError("val_fraction is 0: there are no validation images to choose the penalty; set it above 0")
    test_set = create_dataset(dataset, "test", **dataset_options)
    for line in notes_of(train_set, test_set):
        print(line)
    tree = train_set.hierarchy
    torch.manual_seed(seed)  # a backbone without given weights
    model = create_model("mlph", hierarchy=tree, pooling="avg", **model_options).eval()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    known = LabelledFeatures(extract_features(model, train_set, resolutions), labels_of(train_set))
    train, val = known.select(train_indices), known.select(val_indices)
    test = LabelledFeatures(extract_features(model, test_set, resolutions), labels_of(test_set))

    rows, tables = [], []
    for method in methods:
        if method == LINEAR_PROBE:
            probe = probe_linear(train, val, tree, penalties, max_iter)
        else:
            probe = probe_head(method, train, val, tree, penalties, max_iter, seed)
        metrics = score_probe(probe.classify, test, tree)
        any_decoding = metrics.report()
        decodings = {decoding: metrics.report(decoding) for decoding in DECODINGS.load_all()}
        rows += method_rows(method, probe, any_decoding, decodings, len(test_set))
        tables.append(metrics_table(f"{method}, {len(test_set)} test images", any_decoding, decodings))
        accuracy = f"{100 * probe.mean_val_accuracy:.1f} %"
        print(f"{method}: penalty {format_penalties(probe)}, validation accuracy {accuracy}", flush=True)
    file = expand(output)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_csv(file, rows)
    print_tables(*tables)
    print(f"written to {output}")


def adopt_recipes(arguments: Sequence[str]) -> list[str]:
    """Replace configurations of train.py by what they say of the data and the backbone.

    Args:
        arguments: the command line's arguments; `--config FILE` or `--config=FILE` names a configuration.

    Returns:
        The arguments, with the options of such a configuration in place of its file.

    Raises:
        FileNotFoundError: a configuration does not exist.
        ValueError: a configuration is not YAML, or one of train.py has no model.
    """
    adopted: list[str] = []
    for argument in arguments:  # --config FILE or --config=FILE
        adopted += argument.split("=", 1) if argument.startswith("--config=") else [argument]
    for position, (option, file) in enumerate(itertools.pairwise(adopted)):
        recipe = read_yaml(file) if option == "--config" else {}
        if "stages" in recipe:
            if "model" not in recipe:
                raise ValueError(f"{file} has stages, but no model, whose backbone the probes need; name it there")
            options = probe_options(recipe)
            unused = ", ".join(name for name in recipe if name not in options)
            print(f"{file} is a configuration of train.py; probes use its {', '.join(options)}, and not: {unused}")
            adopted[position + 1] = json.dumps(options)
    return adopted


def probe_options(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a probe for a configuration of train.py: the same data, backbone and resolutions."""
    given: dict[str, Any] = dict(recipe.get("model_options") or {})
    own: dict[str, Any] = {}
    if recipe["model"] not in METHODS:
        spec = find_model(recipe["model"])
        if given.get("backbone", spec.backbone) == spec.backbone:
            own = {"backbone": spec.backbone, **spec.options}
    merged = {key: value for key, value in {**own, **given}.items() if key in OF_BACKBONE}
    kept = {key: recipe[key] for key in ("dataset", "resolutions", "val_fraction", "seed") if key in recipe}
    return {**kept, "dataset_options": recipe.get("dataset_options") or {}, "model_options": merged}


def choose_methods(methods: Sequence[str] | None) -> list[str]:
    """Check the names of methods; return all methods by default."""
    every = [*list_heads(), LINEAR_PROBE]
    check_names("method", methods or (), every)
    return list(methods or every)


def method_rows(
    method: str,
    probe: Probe,
    any_decoding: Mapping[str, float],
    decodings: Mapping[str, Mapping[str, float]],
    images: int,
) -> list[dict[str, Any]]:
    """Return a row with all metrics for each decoding."""
    first = {"penalty": format_penalties(probe), "val_accuracy": probe.mean_val_accuracy, "images": images}
    return [
        {"method": method, "decoding": decoding, **first, **report, **any_decoding}
        for decoding, report in decodings.items()
    ]


def format_penalties(probe: Probe) -> str:
    """Format the penalty, or each level's if they differ."""
    if len(set(probe.penalties.values())) == 1:
        return f"{next(iter(probe.penalties.values())):g}"
    return ", ".join(f"{level} {penalty:g}" for level, penalty in probe.penalties.items())


if __name__ == "__main__":
    with recipe_errors("probes.py"):
        auto_cli(main, as_positional=False, args=adopt_recipes(sys.argv[1:]))
