"""Make weights that come with the package from a finished run of train.py.

    python recipes/bundle.py runs/critters-1 mlph_tiny_critters.scratch --license apache-2.0

The weights are rounded to half precision, and the test images are scored again with the rounded ones: what is
recorded is of what is shipped. Into `c2f_zoo/zoo/weights/NAME` go `config.json`, `model.safetensors`, `recipe.yaml`
(the run's options, from which train.py makes such weights again) and `weights.json` (`c2f_zoo.PretrainedWeights`).
"""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from jsonargparse import auto_cli
from train import Options, accuracy_of, complaint, create_accelerator, predict_all, unreadable_in, usable_cores

from c2f_zoo.config import ModelConfig
from c2f_zoo.data import LabelledImages, create_dataset
from c2f_zoo.io.weights import CONFIG_FILE, WEIGHTS_FILE, atomic_save, write_weights
from c2f_zoo.model import C2FModel
from c2f_zoo.zoo.create import create_model, load_model
from c2f_zoo.zoo.pretrained import BUNDLED, WEIGHTS_JSON, Accuracy, Metrics, PretrainedWeights, checksum_of

RECIPE_FILE = "recipe.yaml"
OF_A_MACHINE = ("root", "file", "download", "cache")  # options of datasets that say where one has them
EVERY = 5  # the tests score every fifth image, in seconds


def main(run: str, name: str, license: str = "", folder: str = str(BUNDLED)) -> None:
    """Makes bundled weights from a run.

    Args:
        run: folder of a finished run of train.py.
        name: `arch.tag`; the run's model must be what `arch` stands for.
        license: the weights' licence, an SPDX identifier such as `apache-2.0`; it must be named.
        folder: where the folder of that name is made.
    """
    if not license:
        raise ValueError("weights need a licence; name it: --license apache-2.0")
    options = options_of(Path(run))
    model, accelerator = load_model(run), create_accelerator()
    check_arch(name, model.config)
    rounded = {key: halved(key, weight) for key, weight in model.state_dict().items()}
    model.load_state_dict(rounded)
    dataset = create_dataset(options.dataset, "test", **options.dataset_options)
    command = f"recipes/bundle.py {Path(run).name} {name} --license {license}"
    metrics = score(accelerator.prepare(model), dataset, options, command, accelerator)
    output = Path(folder) / name
    with atomic_save(output) as new:
        write_weights(new, rounded, "5GB")
        (new / CONFIG_FILE).write_text(model.config.to_json(), encoding="utf-8")
        recipe = portable(yaml.safe_load((Path(run) / "config.yaml").read_text(encoding="utf-8")))
        (new / RECIPE_FILE).write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        weights = PretrainedWeights(
            name=name,
            source="bundled",
            sha256={file: checksum_of(new / file) for file in (CONFIG_FILE, WEIGHTS_FILE)},
            licence=license,
            input=model.config.preprocessing.input_size,
            recipe=f"recipes/train.py --config c2f_zoo/zoo/weights/{name}/{RECIPE_FILE}",
            metrics=metrics,
        )
        text = json.dumps(asdict(weights), indent=2, ensure_ascii=False)
        (new / WEIGHTS_JSON).write_text(text + "\n", encoding="utf-8")
    for row in metrics[0].accuracy:
        print(f"{row.level} at {row.resolution or 'full size'}: {100 * row.accuracy:.2f} % of {row.images}")
    print(f"{sum(path.stat().st_size for path in output.iterdir()) / 1e6:.2f} MB in {output}")


def options_of(run: Path) -> Options:
    for file in (CONFIG_FILE, "config.yaml", "test.csv"):
        if not (run / file).is_file():
            raise FileNotFoundError(f"{run} is no finished run of train.py: it holds no {file}")
    return auto_cli(Options, args=["--config", str(run / "config.yaml")], as_positional=False)


def portable(about: Mapping[str, Any]) -> dict[str, Any]:
    """A run's options, or metrics, without those options of the dataset that say where one machine has it."""
    given = about.get("dataset_options") or {}
    return {**about, "dataset_options": {key: given[key] for key in given if key not in OF_A_MACHINE}}


def check_arch(name: str, config: ModelConfig) -> None:
    arch = name.rpartition(".")[0]
    expected = asdict(create_model(arch).config)
    differing = [key for key, value in asdict(config).items() if value != expected[key]]
    if differing:
        raise ValueError(f"the run's model is not what {arch!r} stands for: they differ in {', '.join(differing)}")


def halved(name: str, weight: torch.Tensor) -> torch.Tensor:
    half = weight.half() if weight.is_floating_point() else weight
    if not half.isfinite().all():
        raise ValueError(f"{name} has numbers that half precision cannot hold")
    return half


def score(
    model: torch.nn.Module, dataset: LabelledImages, options: Options, command: str, accelerator: Accelerator
) -> tuple[Metrics, Metrics]:
    """Scores every level at every level's resolution: on all images, and on every fifth alone."""
    unwrapped: C2FModel = accelerator.unwrap_model(model)
    levels, resolutions = unwrapped.levels, unwrapped.config.resolutions
    rows: dict[int, list[Accuracy]] = {1: [], EVERY: []}
    for resolution in dict.fromkeys(resolutions.get(level) for level in reversed(levels)):
        scored = predict_all(model, dataset, list(range(len(dataset))), resolution, levels, options, accelerator)
        if unreadable_in(scored):
            raise ValueError(f"{len(unreadable_in(scored))} test images cannot be read")
        for every, found in rows.items():
            part = {key: column[scored["index"] % every == 0] for key, column in scored.items()}
            for level in levels:
                accuracy, images = accuracy_of(part, level, dataset.hierarchy)
                found.append(Accuracy(level, resolution, resolutions.get(level) == resolution, accuracy, images))
    about = portable(
        {
            "dataset": options.dataset,
            "dataset_options": options.dataset_options,
            "split": "test",
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "device": device_of(accelerator),
            "command": command,
        }
    )
    whole = Metrics(every=1, accuracy=tuple(rows[1]), **about)
    return whole, Metrics(every=EVERY, accuracy=tuple(rows[EVERY]), **about)


def device_of(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return torch.cuda.get_device_name(accelerator.device)
    return f"{usable_cores()} cores, {platform.processor() or platform.machine()}"


if __name__ == "__main__":
    try:
        auto_cli(main)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"bundle.py: {complaint(error)}") from error
