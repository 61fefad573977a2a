"""Fit the detectors of a model that localizes an object, its head and its body, and save it for train.py.

    python recipes/fit_parts.py --dataset cub --dataset_options.root FOLDER --model part_rcnn_vgg16_cub \
        --model_options.backbone_checkpoint FILE --output runs/parts
    accelerate launch recipes/train.py --config recipes/configs/cub_mlph_vgg16.yaml --model local-dir:runs/parts \
        --model_options {} --dataset_options.root FOLDER

The model's candidate boxes are scored by linear detectors, and the parts' positions by a mixture of Gaussians, as in
part_rcnn.py; the weight alpha of the positions is chosen on validation images. Both become buffers of the model. Its
pooling and head are untrained. OUTPUT/backbone.safetensors has the backbone alone, for `backbone_checkpoint` of other
poolings and heads. OUTPUT/localization.csv has the candidates' recall and the fraction of regions that are
localized (PCP: an overlap of 0.5 or more) on the test images, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: waiting threads sleep, they do not spin

import torch
from jsonargparse import auto_cli
from safetensors.torch import save

from c2f_zoo.data import create_dataset, notes_of, train_and_val
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.io.files import atomic_write, write_csv
from c2f_zoo.io.freed_memory import keep_freed_memory
from c2f_zoo.parts.cache import check_space, load_regions
from c2f_zoo.parts.detectors import fit_detectors
from c2f_zoo.parts.fitting import choose_alpha, extract_candidates, part_network, set_localizer, training_positions
from c2f_zoo.parts.geometry import mixture_prior
from c2f_zoo.parts.localize import Localizer
from c2f_zoo.parts.scores import overlaps_of, pcp_rows, print_rows, recall_rows
from c2f_zoo.paths import expand
from c2f_zoo.training.launch import recipe_errors
from c2f_zoo.training.start_checks import check_output
from c2f_zoo.zoo.create import create_model


@dataclass
class FitOptions:
    """The options.

    Args:
        dataset: a dataset with annotations: `cub`.
        dataset_options: additional keyword arguments of the dataset.
        model: a name of a model or a method.
        model_options: additional keyword arguments of `create_model`: weights, and of a method the backbone.
        mixed_precision: `bf16` for the maps of the network, as in part_rcnn.py. Null: float32.
        alphas: weights of the geometric prior to choose from.
        components: number of Gaussians of each part.
        val_fraction: fraction of each class's training images that choose alpha.
        max_iter: iterations of L-BFGS.
        bootstrap: number of bootstrap resamples.
        seed: seed of the split, the fits, the untrained weights and the resamples.
        cache: folder for the regions, up to 10 GB.
        output: folder of the model.
    """

    dataset: str
    dataset_options: dict[str, Any]
    model: str = "part_rcnn_vgg16_cub"
    model_options: dict[str, Any] = field(default_factory=dict)
    mixed_precision: Literal["bf16"] | None = None
    alphas: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0)
    components: int = 4
    val_fraction: float = 0.15
    max_iter: int = 100
    bootstrap: int = 1000
    seed: int = 0
    cache: str = "runs/fit_parts-cache"
    output: str = "runs/parts"


def main(options: FitOptions) -> None:
    """Fit, score and save.

    Args:
        options: the options.
    """
    check_output(options.output)
    keep_freed_memory()
    opened = {**options.dataset_options, "annotations": True}
    dataset, train, val = train_and_val(options.dataset, options.val_fraction, options.seed, **opened)
    test_set = create_dataset(options.dataset, "test", **opened)
    if not val:
        raise ValueError("val_fraction is 0, and alpha is chosen on validation images; set it above 0")
    for line in notes_of(dataset, test_set):
        print(line)
    torch.manual_seed(options.seed)
    model = create_model(options.model, hierarchy=dataset.hierarchy, **options.model_options).eval()
    localizer = part_network(model).localizer
    check_space(len(dataset) + len(test_set), len(localizer.boxes), localizer.weight.shape[1])
    how = (expand(options.cache), options.mixed_precision == "bf16")
    known, test = (extract_candidates(model, images, *how) for images in (dataset, test_set))

    files = [known[index] for index in train]
    detectors = fit_detectors(files, max_iter=options.max_iter, seed=options.seed)
    prior = mixture_prior(training_positions(files)[1], options.components, options.seed)
    fitted = [Localizer(detectors, prior, alpha, max_roots=len(localizer.boxes)) for alpha in options.alphas]
    best = choose_alpha("mixture", fitted, [known[index] for index in val])
    set_localizer(model, best)
    model.save_pretrained(options.output)
    weights = model.backbone.body.state_dict()  # channels last, which safetensors cannot save
    content = save({name: tensor.contiguous() for name, tensor in weights.items()})
    atomic_write(expand(options.output) / "backbone.safetensors", lambda part: part.write_bytes(content))

    overlaps = [overlaps_of(best(regions).boxes, regions.truth) for regions in map(load_regions, test)]
    first = {"mode": "no_box", "geometry": "mixture", "alpha": best.alpha}
    rows = recall_rows(test, options.bootstrap, options.seed)
    rows += pcp_rows(first, torch.stack(overlaps), options.bootstrap, options.seed)
    print_rows(rows)
    about = {"images": len(test), "model": options.model, **describe_machine()}
    write_csv(expand(options.output) / "localization.csv", [{**row, **about} for row in rows])
    print(f"the model, backbone.safetensors and localization.csv are in {options.output}")
    print(f"next: accelerate launch recipes/train.py --model local-dir:{options.output} ...")


if __name__ == "__main__":
    with recipe_errors("fit_parts.py"):
        main(auto_cli(FitOptions, as_positional=False))
