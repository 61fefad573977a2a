"""Score a saved model with all metrics and decodings.

    python recipes/evaluate.py runs/critters-1                             # a run of train.py: its test images
    accelerate launch recipes/evaluate.py runs/critters-1 --decoding joint
    python recipes/evaluate.py my-model --dataset cub --dataset_options.root /data/CUB_200_2011

Each level is scored on images at its own resolution; a decoding combines the levels' predictions. Levels that the model
does not predict are marginalized. The dataset's classes are matched by name with the model's tree, which may have more
classes; predictions of these are mistakes. Every image is scored exactly once, on any number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: waiting threads sleep, they do not spin

import torch
from accelerate import Accelerator
from jsonargparse import auto_cli
from torch import Tensor

import c2f_zoo
from c2f_zoo.data import LabelledImages, create_dataset, name_of, notes_of, read_error
from c2f_zoo.decoding import DECODINGS, list_decodings, marginalize
from c2f_zoo.evaluation.confusion import has_confusion, write_confusions
from c2f_zoo.evaluation.labels import labels_in
from c2f_zoo.evaluation.mixed_metrics import choose_grid, score_mixed
from c2f_zoo.evaluation.model_metrics import ModelMetrics
from c2f_zoo.evaluation.plots import plot_mistakes
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.evaluation.report import accuracy_table, metrics_table, print_tables, trust_table, write_json
from c2f_zoo.evaluation.scoring import (
    Predictions,
    gather_predictions,
    most_probable,
    prediction_rows,
    score_images,
)
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.hierarchy.escape import printable
from c2f_zoo.hierarchy.faults import group_similar
from c2f_zoo.io.files import write_csv
from c2f_zoo.model import C2FModel, load_model
from c2f_zoo.paths import expand
from c2f_zoo.registry import unknown_name
from c2f_zoo.training.launch import create_accelerator, recipe_errors
from c2f_zoo.training.run_folder import read_config
from c2f_zoo.training.start_checks import check_output


def main(
    run: str,
    dataset: str | None = None,
    dataset_options: dict[str, Any] | None = None,
    split: str = "test",
    decoding: str = "all",
    mixed_resolutions: list[int | None] | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    output: str | None = None,
) -> None:
    """Score a saved model.

    Args:
        run: folder of a run of train.py, or any folder written by `save_pretrained`.
        dataset: one of `c2f-zoo list datasets`; default: the run's own.
        dataset_options: additional keyword arguments of the dataset; default: the run's own, if `dataset` is not given.
        split: `train`, `test`, or `val` if the dataset has it.
        decoding: `independent`, `top_down`, `bottom_up`, `joint`, or `all` four.
        mixed_resolutions: a grid of resolutions in pixels, highest first, of which each image is scored at one; null is
            full size. Default: full size and the model's own resolutions.
        batch_size: images in a batch, for each process.
        num_workers: processes that load images, for each process.
        on_error: an unreadable image ends the run (`raise`), or is left out and listed (`skip`).
        output: folder for the results; default: `evaluation` in the run's folder.
    """
    accelerator = create_accelerator()
    decodings = choose_decodings(decoding)
    run = str(expand(run))
    folder = expand(output or Path(run) / "evaluation")
    check_output(str(folder))
    model = load_model(run)
    grid = choose_grid(model, mixed_resolutions)
    name, options = choose_dataset(Path(run), dataset, dataset_options)
    with accelerator.local_main_process_first():  # one process downloads
        images = create_dataset(name, split, **options)
    target = labels_in(model.hierarchy, images)
    for line in notes_of(images):
        accelerator.print(line)

    metrics = ModelMetrics(model, decodings, accelerator.device)
    loading: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "on_error": on_error}
    predictions = score(model, images, target, metrics, accelerator, **loading)
    unreadable = predictions.unreadable
    results = {"run": run, "dataset": name, "dataset_options": options, "split": split} | metrics.compute()
    results |= describe_images(images, target, unreadable, metrics.tree) | describe_run(accelerator)
    accuracy, confusions = metrics.compute_accuracy(), metrics.compute_confusions()
    results["mixed_resolutions"] = score_mixed(model, images, target, grid, accelerator, folder, **loading)

    if accelerator.is_main_process:
        write(folder, results, confusions, metrics.tree)
        write_csv(folder / "predictions.csv", list(prediction_rows(predictions, metrics.own, images)))
        report(results, accuracy, metrics.own, folder)
    accelerator.end_training()


def choose_decodings(decoding: str) -> tuple[str, ...]:
    """Return the decodings of the option `decoding`."""
    if decoding == "all":
        return tuple(DECODINGS.load_all())
    if decoding not in DECODINGS:
        raise unknown_name("decoding", decoding, ("all", *list_decodings()))
    return (decoding,)


def choose_dataset(run: Path, name: str | None, options: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Return the dataset's name and options, by default the run's."""
    if name is not None:
        return name, options or {}
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{run} has no config.yaml; name a dataset: --dataset NAME")
    config = read_config(run / "config.yaml")
    return config["dataset"], config["dataset_options"] if options is None else options


@torch.no_grad()
def score(
    model: C2FModel,
    dataset: LabelledImages,
    target: Tensor,
    metrics: ModelMetrics,
    accelerator: Accelerator,
    **loading: Any,
) -> Predictions:
    """Update the metrics with all images; return each level's predictions at its own resolution.

    Args:
        model: the model.
        dataset: the dataset.
        target: its labels (n, levels) in the model's tree; -1 for unknown labels.
        metrics: the metrics.
        accelerator: the processes.
        **loading: batch size, number of workers and error handling, as in `score_images`.
    """
    model = model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    levels_at = dict.fromkeys(metrics.resolutions, model.levels)
    target = target[:, : len(metrics.tree.levels)]
    parts: list[Predictions] = []
    for batch in score_images(model, dataset, range(len(dataset)), levels_at, accelerator=accelerator, **loading):
        log_probs = {resolution: model.log_probs(logits) for resolution, logits in batch.logits.items()}
        known = target[batch.index].where(batch.readable[:, None], -1)
        metrics.update(log_probs, known.to(accelerator.device))
        found = marginalize({level: log_probs[metrics.own[level]][level] for level in model.levels}, metrics.tree)
        own: dict[int | None, dict[str, Tensor]] = {}
        for level, z in found.items():
            own.setdefault(metrics.own[level], {})[level] = z
        parts.append(most_probable(metrics.tree, replace(batch, truth=known), own, own))
    return gather_predictions(parts)


def describe_images(dataset: LabelledImages, target: Tensor, unreadable: list[int], tree: Hierarchy) -> dict[str, Any]:
    """Return the numbers of scored and labelled images, and the unreadable images."""
    readable = torch.ones(len(target), dtype=torch.bool)
    readable[unreadable] = False
    target = tree.cut_repeats(target)
    return {
        "images": int(readable.sum()),
        "labelled": {level: int((target[readable, i] >= 0).sum()) for i, level in enumerate(tree.levels)},
        "unreadable": [f"{name_of(dataset, index)}: {read_error(dataset, index)}" for index in unreadable],
    }


def describe_run(accelerator: Accelerator) -> dict[str, Any]:
    """Return the date, device and versions of the evaluation."""
    machine = describe_machine(accelerator.device)
    return {
        "date": machine.pop("date"),
        "device": machine.pop("device"),
        "processes": accelerator.num_processes,
        "versions": {"c2f_zoo": c2f_zoo.__version__, **machine},
    }


def write(folder: Path, results: dict[str, Any], confusions: Mapping[str, Tensor], tree: Hierarchy) -> None:
    """Write all results, each file atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    write_confusions(folder, confusions, tree)
    plot_mistakes(results["lca_heights"], tree, folder / "mistakes.png")
    write_json(folder / "metrics.json", results)


def report(
    results: dict[str, Any],
    accuracy: Mapping[str, Mapping[int | None, float]],
    own: Mapping[str, int | None],
    folder: Path,
) -> None:
    """Print the tables, the unreadable images and the names of the files."""
    source = f"{results['images']} {results['split']} images of {results['dataset']}"
    title = "Accuracy in %; in brackets: own resolution"
    print_tables(
        metrics_table(source, results["any_decoding"], results["decodings"]),
        accuracy_table(title, accuracy, own, results["levels"]),
    )
    report_mixed(results["mixed_resolutions"], results["levels"])
    for fault in group_similar(results["unreadable"]):
        print(printable(f"unreadable and skipped: {fault}"))
    print(f"\nmetrics.json, predictions.csv, the plots and the confusion matrices (PNG, CSV) are in {folder}")
    for level, count in results["levels"].items():
        if not has_confusion(count):
            print(f"{level} has no confusion matrix: its number of classes is {count}")


def report_mixed(mixed: Mapping[str, Any], levels: Mapping[str, int]) -> None:
    """Print the table of the rules at mixed resolutions."""
    at = ", ".join(f"{count} at {resolution}" for resolution, count in mixed["images_at"].items())
    if mixed["rules"]:
        print_tables(trust_table(f"Images at mixed resolutions ({at})", mixed["rules"]))
        unknown = next(iter(mixed["rules"].values()))["unknown"]
    else:
        unknown = "all"
    if unknown:
        print(f"mixed resolutions: {unknown} images have no known {list(levels)[-1]} and are left out")


if __name__ == "__main__":
    with recipe_errors("evaluate.py"):
        auto_cli(main)
