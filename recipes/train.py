"""Train a coarse-to-fine model as in the paper, each level at its own resolution.

    accelerate launch recipes/train.py                                                # the synthetic dataset
    accelerate launch recipes/train.py --config recipes/configs/cub_mlph_lite0.yaml   # birds
    accelerate launch recipes/train.py --config ... --batch_size 16                   # options override the file

The first stage trains pooling and head with the backbone frozen, the next all weights. Each batch is seen at the
highest resolution for the finest level, one batch later at the next lower resolution for the next coarser level, and so
on: steps of all levels alternate (Huo et al., SIGIR 2019, section 3); `--objective` names other ways. An image is
decoded once for all its views. An image without a label at a step's level is trained on its deepest label if the head's
levels are marginals of one distribution (docs/reference/heads.md), and is skipped otherwise. Validation accuracy
chooses the best epoch; the test images are scored once, at the end.

A run that was killed goes on from its latest checkpoint with `--resume auto` and ends the same, bit for bit. SIGTERM,
SIGUSR1 and Ctrl-C save at the next step and end the process with exit code 75 (docs/how-to/resume.md).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: waiting threads sleep, they do not spin

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from c2f_zoo.data import LabelledImages, create_dataset, labels_of, notes_of, train_and_val
from c2f_zoo.evaluation.report import accuracy_table, print_tables
from c2f_zoo.evaluation.run_report import record_start, write_run_report
from c2f_zoo.evaluation.scoring import (
    Predictions,
    accuracy_rows,
    predict_labels,
    prediction_rows,
    scoring_options,
    validate,
)
from c2f_zoo.inference.resolutions import own_resolutions
from c2f_zoo.io.files import write_csv
from c2f_zoo.model import C2FModel
from c2f_zoo.training.advice import advise, note_rising
from c2f_zoo.training.describe_run import describe_data, describe_model
from c2f_zoo.training.dry_run import try_stages
from c2f_zoo.training.fingerprint import fingerprint
from c2f_zoo.training.launch import adopt_launcher, create_accelerator, recipe_errors, start_trackers
from c2f_zoo.training.objective import create_objective
from c2f_zoo.training.option_checks import check_values, find_overridden
from c2f_zoo.training.options import TrainOptions, parse
from c2f_zoo.training.run_folder import has_checkpoints, is_finished, open_run_folder
from c2f_zoo.training.setup import build_model, cache_images, check_labels
from c2f_zoo.training.stages import fit, set_up_run
from c2f_zoo.training.start_checks import check_output
from c2f_zoo.training.unreadable import check_readable, list_unreadable

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "critters.yaml"


def main(options: TrainOptions, name: str) -> None:
    """Train a model, test it once and report.

    Args:
        options: the options of the run.
        name: the run's name.
    """
    options = adopt_launcher(options)
    accelerator = create_accelerator(options)
    check_values(options, accelerator.num_processes)
    check_output(options.output)
    set_seed(options.seed)
    dataset, train_indices, val_indices, test_set, model = set_up(options, accelerator)
    objective = create_objective(options, model)
    scoring = scoring_options(options, accelerator)
    validate_epoch = partial(validate, dataset=dataset, indices=val_indices or train_indices, **scoring)
    held_out = {"validation": (dataset, val_indices), "test": (test_set, range(len(test_set)))}
    if options.dry_run:
        check_readable(held_out, model, options.on_error, accelerator)
        run = set_up_run(model, dataset, train_indices, objective, options, Path(), accelerator)
        for cost in try_stages(run):
            accelerator.print(cost)
        test(model, test_set, range(min(len(test_set), scoring["batch_size"])), scoring, accelerator)
        return
    data = fingerprint(dataset.hierarchy, {"training": (dataset, train_indices), **held_out})
    with open_run_folder(options, name, data, accelerator) as output:
        if is_finished(output, accelerator):
            accelerator.print(f"this run is finished; its test scores are in {output / 'test.csv'}")
            return
        record_start(output, accelerator)
        start_trackers(accelerator, options, output)
        if not has_checkpoints(output, accelerator):
            check_readable(held_out, model, options.on_error, accelerator)
        progress = fit(model, dataset, train_indices, objective, validate_epoch, options, output, accelerator)
        accelerator.wait_for_everyone()  # the main process saves the best epoch's model
        accelerator.free_memory()
        best = C2FModel.from_pretrained(output)
        if options.channels_last:
            best.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        predictions = test(best, test_set, range(len(test_set)), scoring, accelerator)
        if accelerator.is_main_process:
            in_validation = set(val_indices).intersection(progress.unreadable)
            trained = sorted({*progress.unreadable} - in_validation)
            skipped = {"training": (dataset, trained), "validation": (dataset, sorted(in_validation))}
            list_unreadable({**skipped, "test": (test_set, predictions.unreadable)}, output)
            write_results(predictions, best, test_set, note_rising(progress.rows), output)
            report(predictions, best, note_rising(progress.rows), output)
    accelerator.end_training()


def set_up(
    options: TrainOptions, accelerator: Accelerator
) -> tuple[LabelledImages, list[int], list[int], LabelledImages, C2FModel]:
    """Open the datasets, build the model, and check them.

    Returns:
        The dataset of training and validation images with the indices of both, the test set, and the model.
    """
    with accelerator.local_main_process_first():  # one process downloads
        dataset, train_indices, val_indices = train_and_val(
            options.dataset, options.val_fraction, options.seed, **options.dataset_options
        )
        test_set = create_dataset(options.dataset, "test", **options.dataset_options)
        model = build_model(options, dataset.hierarchy)
        preprocessing = model.config.preprocessing
        dataset, test_set = (cache_images(images, options.cache, preprocessing) for images in (dataset, test_set))
    check_labels(labels_of(dataset)[train_indices], model, "training")
    check_labels(labels_of(dataset)[val_indices or train_indices], model, "validation")
    check_labels(labels_of(test_set), model, "test")
    accelerator.print(describe_data(options, dataset, train_indices, val_indices, len(test_set)))
    accelerator.print(describe_model(options, model))
    overridden = find_overridden(options, model, len(train_indices), accelerator.num_processes)
    for line in [*notes_of(dataset, test_set), *overridden]:
        accelerator.print(line)
    for line in advise(options, model, dataset, train_indices):
        accelerator.print(f"advice: {line}")
    return dataset, train_indices, val_indices, test_set, model


def test(
    model: C2FModel, test_set: LabelledImages, indices: Sequence[int], scoring: dict[str, Any], accelerator: Accelerator
) -> Predictions:
    """Predict all levels of test images at the resolution of each level."""
    levels_at = {resolution: model.levels for resolution in reversed(own_resolutions(model).values())}
    prepared = accelerator.prepare_model(model, evaluation_mode=True)  # not distributed: nothing is trained
    return predict_labels(prepared, test_set, indices, levels_at, **scoring)


def accuracy_of(predictions: Predictions, model: C2FModel) -> tuple[dict[str, dict[int | None, float]], int]:
    """Return each level's accuracy at each resolution, and the largest number of images with a label."""
    found = {level: {at: predictions.accuracy(level, at) for at in predictions.labels} for level in model.levels}
    images = max(count for accuracy in found.values() for _, count in accuracy.values())
    return {level: {at: value for at, (value, _) in accuracy.items()} for level, accuracy in found.items()}, images


def write_results(predictions: Predictions, model: C2FModel, test_set: LabelledImages, note: str, output: Path) -> None:
    """Write report.md, the predictions of every image, and last test.csv, the accuracy of every level."""
    own, (accuracy, images) = own_resolutions(model), accuracy_of(predictions, model)
    write_run_report(output, accuracy, own, images, note)
    write_csv(output / "test_predictions.csv", list(prediction_rows(predictions, own, test_set)))
    write_csv(output / "test.csv", accuracy_rows(predictions, own))


def report(predictions: Predictions, model: C2FModel, note: str, output: Path) -> None:
    """Print each level's accuracy at each resolution, and the names of the files."""
    own, (accuracy, images) = own_resolutions(model), accuracy_of(predictions, model)
    title = f"Accuracy in % on {images} test images; in brackets: own resolution"
    print_tables(accuracy_table(title, accuracy, own, model.hierarchy.num_classes))
    if note:
        print(f"\n{note}")
    print(f"\nmodel, report.md, metrics.csv, steps.csv, test.csv, test_predictions.csv and curves.png are in {output}")
    print(f"try: c2f-zoo predict {output} IMAGE")


if __name__ == "__main__":
    with recipe_errors("train.py"):
        main(*parse(TrainOptions, sys.argv[1:], DEFAULT_CONFIG))
