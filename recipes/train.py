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

import sys
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from c2f_zoo.data import LabelledImages, create_dataset, labels_of, train_and_val
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
from c2f_zoo.training.dry_run import try_stages
from c2f_zoo.training.fingerprint import fingerprint
from c2f_zoo.training.interrupt import EXIT_CODE, Stopped
from c2f_zoo.training.launch import adopt_launcher, create_accelerator, error_message, start_trackers
from c2f_zoo.training.objective import create_objective
from c2f_zoo.training.option_checks import check_values, find_overridden
from c2f_zoo.training.options import TrainOptions, parse
from c2f_zoo.training.run_folder import list_unreadable, open_run_folder
from c2f_zoo.training.setup import build_model, cache_images, check_labels
from c2f_zoo.training.stages import fit, set_up_run
from c2f_zoo.training.start_checks import check_output

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "critters.yaml"
FINISHED = "test.csv"  # written last


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
    if options.dry_run:
        run = set_up_run(model, dataset, train_indices, objective, options, Path(), accelerator)
        for cost in try_stages(run):
            accelerator.print(cost)
        return
    splits = {"training": (dataset, train_indices), "validation": (dataset, val_indices)}
    data = fingerprint(dataset.hierarchy, {**splits, "test": (test_set, range(len(test_set)))})
    with open_run_folder(options, name, data, accelerator) as output:
        if (output / FINISHED).exists():
            accelerator.print(f"this run is finished; its test scores are in {output / 'test.csv'}")
            return
        record_start(output, accelerator)
        start_trackers(accelerator, options, output)
        progress = fit(model, dataset, train_indices, objective, validate_epoch, options, output, accelerator)
        accelerator.wait_for_everyone()  # the main process saves the best epoch's model
        accelerator.free_memory()
        best = C2FModel.from_pretrained(output)
        finest_first = reversed(own_resolutions(best).values())
        levels_at = {resolution: best.levels for resolution in finest_first}
        prepared = accelerator.prepare_model(best, evaluation_mode=True)  # not distributed: nothing is trained
        predictions = predict_labels(prepared, test_set, range(len(test_set)), levels_at, **scoring)
        if accelerator.is_main_process:
            held_out = set(val_indices).intersection(progress.unreadable)
            trained = sorted({*progress.unreadable} - held_out)
            skipped = {"training": (dataset, trained), "validation": (dataset, sorted(held_out))}
            list_unreadable({**skipped, "test": (test_set, predictions.unreadable)}, output)
            report(predictions, best, note_rising(progress.rows), output)
            save_scores(predictions, best, output)
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
    for line in find_overridden(options, model, len(train_indices), accelerator.num_processes):
        accelerator.print(line)
    for line in advise(options, model, dataset, train_indices):
        accelerator.print(f"advice: {line}")
    return dataset, train_indices, val_indices, test_set, model


def save_scores(predictions: Predictions, model: C2FModel, output: Path) -> None:
    """Save the predictions of every image and the accuracy of every level."""
    own = own_resolutions(model)
    write_csv(output / "test_predictions.csv", list(prediction_rows(predictions, own)))
    write_csv(output / FINISHED, accuracy_rows(predictions, own))


def report(predictions: Predictions, model: C2FModel, note: str, output: Path) -> None:
    """Write report.md, print each level's accuracy at each resolution, and the names of the files."""
    own, resolutions = own_resolutions(model), list(predictions.labels)
    accuracy = {level: {at: predictions.accuracy(level, at)[0] for at in resolutions} for level in model.levels}
    images = max(predictions.accuracy(level, own[level])[1] for level in model.levels)
    title = f"Accuracy in % on {images} test images; in brackets: own resolution"
    write_run_report(output, accuracy, own, images, note)
    print_tables(accuracy_table(title, accuracy, own, model.hierarchy.num_classes))
    if note:
        print(f"\n{note}")
    print(f"\nmodel, report.md, metrics.csv, steps.csv, test.csv, test_predictions.csv and curves.png are in {output}")
    print(f"try: c2f-zoo predict {output} IMAGE")


if __name__ == "__main__":
    try:
        main(*parse(TrainOptions, sys.argv[1:], DEFAULT_CONFIG))
    except Stopped as stopped:
        print(f"train.py: {stopped}", file=sys.stderr)
        raise SystemExit(EXIT_CODE) from None
    except (ValueError, OSError, ImportError, MemoryError) as error:
        raise SystemExit(f"train.py: {error_message(error)}") from error
