"""Bundle the weights of a finished run of train.py with the package.

    python recipes/bundle.py runs/critters-1 mlph_tiny_critters.scratch --license apache-2.0

The weights are rounded to half precision, and the rounded weights are scored on the test images and calibrated on the
run's validation images. The folder `c2f_zoo/zoo/weights/NAME` gets `config.json`, `model.safetensors`,
`calibration.json`, `recipe.yaml` (the run's options, for train.py) and `weights.json` (`c2f_zoo.PretrainedWeights`).
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: waiting threads sleep, they do not spin

import torch
import yaml
from jsonargparse import auto_cli

from c2f_zoo.config import ModelConfig, format_resolution
from c2f_zoo.data import create_dataset
from c2f_zoo.evaluation.calibrating import RECIPE_FILE, calibrate_run
from c2f_zoo.evaluation.provenance import device_name
from c2f_zoo.evaluation.scoring import accuracy_rows, predict_labels
from c2f_zoo.inference.resolutions import own_resolutions
from c2f_zoo.io.files import checksum_of
from c2f_zoo.io.weights import CALIBRATION_FILE, CONFIG_FILE, WEIGHTS_FILE, atomic_save, write_weights
from c2f_zoo.model import C2FModel
from c2f_zoo.paths import expand
from c2f_zoo.training.launch import create_accelerator, recipe_errors
from c2f_zoo.training.options import TrainOptions, read_options
from c2f_zoo.zoo.create import create_model
from c2f_zoo.zoo.pretrained import BUNDLED, WEIGHTS_JSON, Accuracy, Metrics, PretrainedWeights

MACHINE_OPTIONS = ("root", "file", "download", "cache")  # a dataset's options that depend on the machine
EVERY = 5  # the package's tests score every fifth image, which takes seconds


def main(run: str, name: str, license: str = "", risk: float = 0.1, folder: str = str(BUNDLED)) -> None:
    """Bundle the weights of a run.

    Args:
        run: folder of a finished run of train.py.
        name: `arch.tag`; `arch` must be the run's model.
        license: the weights' licence, required: an SPDX identifier such as `apache-2.0`.
        risk: the risk that the calibration promises by default.
        folder: the parent of the new folder `name`.
    """
    run = str(expand(run))
    if not license:
        raise ValueError("the weights have no licence; name one, e.g. --license apache-2.0")
    for file in (CONFIG_FILE, "config.yaml", "test.csv"):
        if not (Path(run) / file).is_file():
            raise FileNotFoundError(f"{run} is not a finished run of train.py: {file} is missing")
    model, options = C2FModel.from_pretrained(run), read_options(TrainOptions, [Path(run) / "config.yaml"])
    check_arch(name, model.config)
    rounded = {key: to_half(key, weight) for key, weight in model.state_dict().items()}
    model.load_state_dict(rounded)
    metrics = score(model, options, f"recipes/bundle.py {Path(run).name} {name} --license {license}")
    output = expand(folder) / name
    with atomic_save(output) as new:
        write_weights(new, rounded, "5GB")
        (new / CONFIG_FILE).write_text(model.config.to_json(), encoding="utf-8")
        recipe = yaml.safe_load((Path(run) / "config.yaml").read_text(encoding="utf-8"))
        (new / RECIPE_FILE).write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        calibrate_run(str(new), risk)  # on this machine, before its options are removed
        (new / RECIPE_FILE).write_text(yaml.safe_dump(portable(recipe), sort_keys=False), encoding="utf-8")
        weights = PretrainedWeights(
            name=name,
            source="bundled",
            sha256={file: checksum_of(new / file) for file in (CONFIG_FILE, WEIGHTS_FILE, CALIBRATION_FILE)},
            licence=license,
            input=model.config.preprocessing.input_size,
            recipe=f"recipes/train.py --config c2f_zoo/zoo/weights/{name}/{RECIPE_FILE}",
            metrics=metrics,
        )
        text = json.dumps(asdict(weights), indent=2, ensure_ascii=False)
        (new / WEIGHTS_JSON).write_text(text + "\n", encoding="utf-8")
    for row in metrics[0].accuracy:
        print(f"{row.level} at {format_resolution(row.resolution)}: {100 * row.accuracy:.2f} % of {row.images}")
    print(f"{sum(path.stat().st_size for path in output.iterdir()) / 1e6:.2f} MB in {output}")


def check_arch(name: str, config: ModelConfig) -> None:
    """Check that a model is the named model of its weights."""
    arch = name.rpartition(".")[0]
    expected = asdict(create_model(arch).config)
    differing = [key for key, value in asdict(config).items() if value != expected[key]]
    if differing:
        raise ValueError(f"the run's model is not {arch!r}: it differs in {', '.join(differing)}")


def to_half(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Round a weight to half precision; integers are unchanged."""
    half = weight.half() if weight.is_floating_point() else weight
    if not half.isfinite().all():
        raise ValueError(f"{name} has values outside the range of half precision")
    return half


def score(model: C2FModel, options: TrainOptions, command: str) -> tuple[Metrics, ...]:
    """Score each level at each resolution, on all test images and on every fifth."""
    accelerator, own = create_accelerator(), own_resolutions(model)
    dataset = create_dataset(options.dataset, "test", **options.dataset_options)
    levels_at = {resolution: model.levels for resolution in reversed(own.values())}
    how: dict[str, Any] = {"batch_size": 4 * options.batch_size, "num_workers": options.num_workers}
    model = accelerator.prepare(model)
    predictions = predict_labels(model, dataset, range(len(dataset)), levels_at, accelerator=accelerator, **how)
    about = portable(
        {
            "dataset": options.dataset,
            "dataset_options": options.dataset_options,
            "split": "test",
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "device": device_name(accelerator.device),
            "command": command,
        }
    )
    scored = {every: predictions.select(predictions.index % every == 0) for every in (1, EVERY)}
    accuracy = {every: tuple(Accuracy(**row) for row in accuracy_rows(part, own)) for every, part in scored.items()}
    return tuple(Metrics(every=every, accuracy=rows, **about) for every, rows in accuracy.items())


def portable(about: Mapping[str, Any]) -> dict[str, Any]:
    """Remove machine-dependent options of the dataset, and the backbone file's folder, from a run's options."""
    given, model_options = about.get("dataset_options") or {}, dict(about.get("model_options") or {})
    if "backbone_checkpoint" in model_options:
        model_options["backbone_checkpoint"] = Path(model_options["backbone_checkpoint"]).name
    kept = {key: given[key] for key in given if key not in MACHINE_OPTIONS}
    return {**about, "dataset_options": kept, **({"model_options": model_options} if model_options else {})}


if __name__ == "__main__":
    with recipe_errors("bundle.py"):
        auto_cli(main)
