"""Part-based R-CNN: localize the object, its head and its body, and classify their features at every level.

    python recipes/part_rcnn.py --config recipes/configs/part_rcnn_cub50_lite0.yaml --dataset_options.root FOLDER

After Zhang et al. (ECCV 2014), on frozen features. The steps are:

1. Selective search proposes up to 1000 boxes in each image. Their features come from one pass of the backbone. Both are
   cached; an interrupted run continues.
2. A linear detector each of the object, the head and the body is fitted, with hard negatives. Their best joint
   configuration is found under geometric constraints, whose weight alpha is chosen on validation images.
3. The concatenated features of the annotated regions of the training images train a linear classifier for each level.
   It is tested on annotated regions (`oracle`), on parts found in the annotated box (`box_given`), and without
   annotations (`no_box`).

The output has proposals' recall, the localized parts (PCP: an overlap of 0.5 or more) and the accuracy at every level,
with 95 % bootstrap intervals over the images. OUTPUT.png shows parts localized without annotations, and
OUTPUT-boxes.csv has these boxes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: waiting threads sleep, they do not spin

import torch
from jsonargparse import auto_cli
from torch import Tensor

from c2f_zoo.backbones.box_features import num_features
from c2f_zoo.data import ImageFiles, LabelledImages, create_dataset, labels_of, notes_of, train_and_val
from c2f_zoo.evaluation.probe import LabelledFeatures, Probe, probe_head
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.io.files import write_csv
from c2f_zoo.io.freed_memory import keep_freed_memory
from c2f_zoo.io.progress import format_duration
from c2f_zoo.parts.cache import Regions, check_space, load_regions
from c2f_zoo.parts.detectors import fit_detectors
from c2f_zoo.parts.extraction import extract_regions
from c2f_zoo.parts.fitting import choose_alpha, training_positions
from c2f_zoo.parts.geometry import NeighbourPrior, Prior, mixture_prior
from c2f_zoo.parts.localize import Found, Localizer, annotated
from c2f_zoo.parts.plots import detection_rows, plot_detections
from c2f_zoo.parts.scores import accuracy_rows, overlaps_of, pcp_rows, print_rows, recall_rows
from c2f_zoo.paths import expand
from c2f_zoo.training.launch import recipe_errors
from c2f_zoo.training.start_checks import check_output
from c2f_zoo.zoo.create import create_model

SHOWN = 12  # images of the figure

Row = dict[str, Any]
Localized = dict[tuple[str, str], tuple[list[Found], Tensor]]  # see `localize_all`


@dataclass
class PartOptions:
    """The options.

    Args:
        dataset: a dataset with annotations: `cub`.
        dataset_options: additional keyword arguments of the dataset.
        model_options: additional keyword arguments of `create_model`: backbone, one tap, weights.
        longer_side: longer side in pixels of the backbone's input.
        proposals: maximum number of proposals of an image.
        mixed_precision: `bf16` for the maps of the backbone; a VGG-16 is six times as fast with it on a CPU with AMX.
            Null: float32.
        head: the head that classifies.
        alphas: weights of the geometric prior to choose from.
        components: number of Gaussians of the mixture.
        neighbours: number of similar training images of the other prior.
        penalties: l2 penalties on the classifier's weights to choose from.
        val_fraction: fraction of each class's training images that choose alpha and penalty.
        max_iter: iterations of L-BFGS.
        bootstrap: number of bootstrap resamples.
        seed: seed of the split, the fits and the resamples.
        test_split: `test`, or `val` to score the validation images while you develop.
        cache: folder for the regions, up to 10 GB.
        output: the CSV file to write.
    """

    dataset: str
    dataset_options: dict[str, Any]
    model_options: dict[str, Any]
    longer_side: int
    proposals: int = 1000
    mixed_precision: Literal["bf16"] | None = None
    head: str = "levels"
    alphas: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0)
    components: int = 4
    neighbours: int = 20
    penalties: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1)
    val_fraction: float = 0.15
    max_iter: int = 100
    bootstrap: int = 1000
    seed: int = 0
    test_split: str = "test"
    cache: str = "runs/part_rcnn-cache"
    output: str = "runs/part_rcnn.csv"


def main(options: PartOptions) -> None:
    """Fit and score the part-based R-CNN.

    Args:
        options: the options.
    """
    start = time.perf_counter()
    check_output(str(Path(options.output).parent))
    keep_freed_memory()
    opened = {**options.dataset_options, "annotations": True}
    train_set, train, val = train_and_val(options.dataset, options.val_fraction, options.seed, **opened)
    if not val:
        raise ValueError("val_fraction is 0: there are no validation images to choose alpha; set it above 0")
    is_test = options.test_split != "val"
    test_set = create_dataset(options.dataset, options.test_split, **opened) if is_test else train_set
    test = list(range(len(test_set))) if is_test else val
    for line in notes_of(train_set, test_set):
        print(line)
    torch.manual_seed(options.seed)
    tree = train_set.hierarchy
    model = create_model("mlph", hierarchy=tree, pooling="avg", **options.model_options).eval()
    images = len(train_set) + len(test_set)
    check_space(images, options.proposals, num_features(model.backbone.out_channels[0]))
    how = (expand(options.cache), options.longer_side, options.proposals, options.mixed_precision == "bf16")
    known, of_test = (extract_regions(model, each, *how) for each in (train_set, test_set))
    _report(start, "regions extracted")

    localizers = fit_localizers([known[i] for i in train], [known[i] for i in val], options)
    _report(start, "localizers fitted")
    vectors = torch.stack([annotated(load_regions(file)).vector() for file in known])
    labelled = LabelledFeatures(dict.fromkeys(tree.levels, vectors), labels_of(train_set))
    fitted = (options.penalties, options.max_iter, options.seed)
    probe = probe_head(options.head, labelled.select(train), labelled.select(val), tree, *fitted)
    _report(start, f"classifier fitted, validation accuracy {100 * probe.mean_val_accuracy:.1f} %")

    tested = [of_test[i] for i in test]
    localized = localize_all(localizers, tested)
    rows = recall_rows(tested, options.bootstrap, options.seed)
    rows += score(localized, localizers, probe, tree.levels, labels_of(test_set)[test], options)
    print_rows(rows)
    seconds = round(time.perf_counter() - start)
    file = expand(options.output)
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {"images": len(test), "split": options.test_split, "backbone": model.config.backbone, "seconds": seconds}
    write_csv(file, [{**one, **about, **describe_machine()} for one in rows])
    show(test_set, test, localized["no_box", "mixture"][0], localized["oracle", ""][0], file.with_suffix(".png"))
    print(f"{format_duration(seconds)}; written to {options.output}")


def score(
    localized: Localized,
    localizers: Mapping[str, Localizer],
    probe: Probe,
    levels: Sequence[str],
    labels: Tensor,
    options: PartOptions,
) -> Iterator[Row]:
    """Yield the PCP of the regions and the accuracy at each level, in every mode."""
    for (mode, geometry), (found, overlaps) in localized.items():
        alpha = localizers[geometry].alpha if geometry in ("mixture", "neighbours") else ""
        first = {"mode": mode, "geometry": geometry, "alpha": alpha}
        if mode != "oracle":
            yield from pcp_rows(first, overlaps, options.bootstrap, options.seed)
        vectors = torch.stack([one.vector() for one in found])
        images = LabelledFeatures(dict.fromkeys(levels, vectors), labels)
        yield from accuracy_rows(first, probe, images, options.bootstrap, options.seed)


def fit_localizers(train: Sequence[Path], val: Sequence[Path], options: PartOptions) -> dict[str, Localizer]:
    """Fit the detectors and the priors; choose each prior's alpha on validation images.

    Returns:
        geometry -> localizer without annotations.
    """
    detectors = fit_detectors(train, max_iter=options.max_iter, seed=options.seed)
    localizers = {"none": Localizer(detectors, slack=math.inf), "inside": Localizer(detectors)}
    features, positions = training_positions(train)
    priors: dict[str, Prior] = {
        "mixture": mixture_prior(positions, options.components, options.seed),
        "neighbours": NeighbourPrior(features, positions, options.neighbours),
    }
    for name, prior in priors.items():
        localizers[name] = choose_alpha(name, [Localizer(detectors, prior, alpha) for alpha in options.alphas], val)
    return localizers


def localize_all(localizers: Mapping[str, Localizer], files: Sequence[Path]) -> Localized:
    """Localize the regions of all images in every mode.

    Returns:
        (mode, geometry) -> the regions found, and their overlaps (n, 3) with the annotated ones.
    """
    modes: dict[tuple[str, str], Callable[[Regions], Found]] = {("oracle", ""): annotated}
    for geometry, localizer in localizers.items():
        modes["box_given", geometry] = replace(localizer, box_given=True)
        modes["no_box", geometry] = localizer
    found: dict[tuple[str, str], list[Found]] = {key: [] for key in modes}
    overlaps: dict[tuple[str, str], list[Tensor]] = {key: [] for key in modes}
    for file in files:
        regions = load_regions(file)
        for key, localize in modes.items():
            found[key].append(localize(regions))
            overlaps[key].append(overlaps_of(found[key][-1].boxes, regions.truth))
    return {key: (found[key], torch.stack(overlaps[key])) for key in modes}


def show(
    images: LabelledImages, test: Sequence[int], found: Sequence[Found], truth: Sequence[Found], path: Path
) -> None:
    """Plot some of the images with the boxes found and the annotated ones, and write the boxes beside the figure."""
    shown = range(0, len(test), math.ceil(len(test) / SHOWN))
    assert isinstance(images, ImageFiles) and images.annotations is not None, "it has been extracted"
    rows = [
        {**row, **describe_machine()}
        for i in shown
        for row in detection_rows(
            str(i), images.read(test[i]).size, found[i].boxes, truth[i].boxes, images.annotations[test[i]]
        )
    ]
    write_csv(path.with_name(f"{path.stem}-boxes.csv"), rows)
    plot_detections(
        [images[test[i]][0] for i in shown], [found[i].boxes for i in shown], [truth[i].boxes for i in shown], path
    )


def _report(start: float, text: str) -> None:
    print(f"{format_duration(time.perf_counter() - start)}: {text}", flush=True)


if __name__ == "__main__":
    with recipe_errors("part_rcnn.py"):
        main(auto_cli(PartOptions, as_positional=False))
