"""Score a saved model with every metric, under every decoding.

    python recipes/evaluate.py runs/critters-1                             # a folder of train.py: its test images
    accelerate launch recipes/evaluate.py runs/critters-1 --decoding joint
    python recipes/evaluate.py my-model --dataset cub --dataset_options.root /data/CUB_200_2011

Each level is scored on images at its own resolution; a decoding combines what the levels say, each at its own. A
level that the model does not answer is summed up from the next finer one. The dataset's classes are found in the
model's tree by their names: its tree may be a part of the model's. Logits are not restricted to that part, so that
an answer outside it is a mistake. Every image counts exactly once, on however many processes.
"""

from __future__ import annotations

import csv
import datetime
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object
from jsonargparse import auto_cli
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassConfusionMatrix
from tqdm import tqdm
from train import atomically, complaint, create_accelerator, normalizer, shown

import c2f_zoo
from c2f_zoo.data import LabelledImages, TransformedImages, create_dataset, create_views, labels_of, name_of, read_error
from c2f_zoo.decoding import DECODINGS, decode, is_path, list_decodings, marginalize
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.metrics import LCAHeights, TopKAccuracy, TreeMetrics, metric_info
from c2f_zoo.model import C2FModel
from c2f_zoo.registry import unknown_name
from c2f_zoo.zoo.create import load_model

plt.switch_backend("agg")
plt.rcParams["text.parse_math"] = False  # names may hold dollar signs
MOST_CLASSES_SHOWN = 2000  # a confusion matrix of more has millions of cells, and its image shows nothing
MOST_NAMES_SHOWN = 60  # on an axis


def main(
    run: str,
    dataset: str | None = None,
    dataset_options: dict[str, Any] | None = None,
    split: str = "test",
    decoding: str = "all",
    batch_size: int = 32,
    num_workers: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    output: str | None = None,
) -> None:
    """Scores a saved model.

    Args:
        run: folder of a run of train.py, or any that `save_pretrained` wrote.
        dataset: one of `c2f-zoo list datasets`; without it the run's own.
        dataset_options: what the dataset takes further; without them, and without `dataset`, the run's own.
        split: `train`, `test`, or `val` where the dataset has it.
        decoding: `independent`, `top_down`, `bottom_up`, `joint`, or `all` four.
        batch_size: images in a batch, for each process.
        num_workers: processes that load images, for each process.
        on_error: what an unreadable image does: `raise` ends the run, `skip` leaves it out and lists it.
        output: folder for the results; without it `evaluation` in the run's.
    """
    accelerator = create_accelerator()
    decodings = chosen_decodings(decoding)
    model = load_model(run)
    name, options = chosen_dataset(Path(run), dataset, dataset_options)
    with accelerator.local_main_process_first():  # one process downloads
        images = create_dataset(name, split, **options)
    target = labels_in(model.hierarchy, images)
    scores, unreadable = score(model, images, target, decodings, batch_size, num_workers, on_error, accelerator)
    target[unreadable] = -1
    results = {"run": run, "dataset": name, "dataset_options": options, "split": split} | results_of(scores, model)
    results |= {"labelled": {level: int((target[:, i] >= 0).sum()) for i, level in enumerate(scores.tree.levels)}}
    faults = [f"{name_of(images, index)}: {read_error(images, index)}" for index in unreadable]
    results |= {"unreadable": faults}
    results |= {"images": len(images) - len(unreadable)} | machine(accelerator)
    confusions = {level: matrix.compute().cpu() for level, matrix in scores.confusions.items()}
    if accelerator.is_main_process:
        folder = Path(output or Path(run) / "evaluation")
        write(folder, results, confusions, scores.tree)
        print_tables(results, scores.tree)
        for fault in faults:
            print(f"could not be read and was skipped: {fault}")
        print(f"\nmetrics.json, mistakes.png and the confusion matrices (PNG, CSV) are in {folder}")
        for level, count in scores.tree.num_classes.items():
            if level not in confusions:
                print(f"{level} has no confusion matrix: its number of classes is {count}")
    accelerator.end_training()


def chosen_decodings(decoding: str) -> tuple[str, ...]:
    if decoding == "all":
        return tuple(DECODINGS.load_all())
    if decoding not in DECODINGS:
        raise unknown_name("decoding", decoding, ("all", *list_decodings()))
    return (decoding,)


def chosen_dataset(run: Path, name: str | None, options: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """The dataset that was asked for, or else the one that the run was trained on; its name and options."""
    if name is not None:
        return name, options or {}
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{run} holds no config.yaml that names a dataset; name one: --dataset NAME")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return config["dataset"], config["dataset_options"] if options is None else options


def labels_in(tree: Hierarchy, dataset: LabelledImages) -> Tensor:
    """A dataset's labels (n, levels) as those of another tree, which holds its classes; -1 for what is unknown.

    Raises:
        ValueError: a level or a class is not in the tree, or lies under another parent there.
    """
    own, labels = labels_of(dataset), torch.full((len(dataset), len(tree.levels)), -1)
    for depth, level in enumerate(dataset.hierarchy.levels):
        if level not in tree.levels:
            raise ValueError(
                f"the model's tree lacks a level of the dataset: {unknown_name('level', level, tree.levels)}"
            )
        names = tree.class_names(level)
        label_of = {name: label for label, name in enumerate(names)}
        for name in dataset.hierarchy.class_names(level):
            if name not in label_of:
                raise ValueError(f"the model's tree lacks a class of the dataset: {unknown_name(level, name, names)}")
        theirs = torch.tensor([label_of[name] for name in dataset.hierarchy.class_names(level)])
        labels[:, tree.levels.index(level)] = theirs[own[:, depth]].where(own[:, depth] >= 0, -1)
    for depth in reversed(range(len(tree.parents))):  # levels that the dataset does not have
        below = labels[:, depth + 1]
        parent = tree.parent_index(tree.levels[depth + 1])[below].where(below >= 0, -1)
        labels[:, depth] = labels[:, depth].where(labels[:, depth] >= 0, parent)
    strange = (~is_path(labels, tree)).nonzero()
    if len(strange):
        path = [
            tree.class_names(level)[c] for level, c in zip(tree.levels, labels[strange[0, 0]], strict=True) if c >= 0
        ]
        raise ValueError(f"the dataset has the path {' > '.join(path)}, which is none in the model's tree")
    return labels


class Scores:
    """All that is counted about a model's answers, down to the finest level that it answers.

    Args:
        model: the model.
        decodings: names of decodings.
        device: where the answers are.
    """

    def __init__(self, model: C2FModel, decodings: Sequence[str], device: torch.device) -> None:
        self.tree = model.hierarchy.truncate(model.levels[-1])
        self.own = own_resolutions(model)
        self.metrics = TreeMetrics(self.tree, decodings).to(device)
        self.heights = {how: LCAHeights(self.tree).to(device) for how in decodings}
        self.accuracy = {
            (level, resolution): TopKAccuracy(self.tree.truncate(level)).to(device)
            for level in self.tree.levels
            for resolution in dict.fromkeys(reversed(self.own.values()))
        }
        self.confusions = {
            level: MulticlassConfusionMatrix(count, ignore_index=-1).to(device)
            for level, count in self.tree.num_classes.items()
            if 2 <= count <= MOST_CLASSES_SHOWN
        }

    def update(self, at: Mapping[int | None, Mapping[str, Tensor]], target: Tensor) -> None:
        """Adds a batch.

        Args:
            at: at each resolution, log-probabilities (N, classes) of each level that the model answers.
            target: labels (N, levels of the tree); -1 for unknown.
        """
        own = {level: at[self.own[level]][level] for level in next(iter(at.values()))}
        self.metrics.update(own, target)
        for how, heights in self.heights.items():
            heights.update(decode(own, self.tree, how), target)
        for depth, (level, z) in enumerate(marginalize(own, self.tree).items()):
            if level in self.confusions:
                self.confusions[level].update(z.argmax(dim=1), target[:, depth])
        for resolution, log_probs in at.items():
            for depth, (level, z) in enumerate(marginalize(log_probs, self.tree).items()):
                self.accuracy[level, resolution].update(z, target[:, depth])


def own_resolutions(model: C2FModel) -> dict[str, int | None]:
    """The resolution of each level; one that is not answered has that of the next finer one, from which it follows."""
    own: dict[str, int | None] = {}
    levels, answered = model.hierarchy.levels, model.levels[-1]
    for level in reversed(levels[: levels.index(answered) + 1]):
        answered = level if level in model.levels else answered
        own[level] = model.config.resolutions.get(answered)
    return dict(reversed(own.items()))


@torch.no_grad()
def score(
    model: C2FModel,
    dataset: LabelledImages,
    target: Tensor,
    decodings: Sequence[str],
    batch_size: int,
    num_workers: int,
    on_error: str,
    accelerator: Accelerator,
) -> tuple[Scores, list[int]]:
    """Shows every image to the model once at each resolution; labels (n, levels) are those of the model's tree.

    Also gives the indices of the images that were skipped.
    """
    device = accelerator.device
    model = model.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    scores = Scores(model, decodings, device)
    target = target[:, : len(scores.tree.levels)]
    resolutions = list(dict.fromkeys(scores.own.values()))
    preprocessing = model.config.preprocessing
    views_at = {resolution: resolution for resolution in resolutions}
    transform = create_views(preprocessing, views_at, train=False, normalize=False)
    normalize = normalizer(model, accelerator)
    # Not the shares of accelerator.prepare, which are made equal by counting some images twice.
    share = list(range(len(dataset)))[accelerator.process_index :: accelerator.num_processes]
    views = TransformedImages(dataset, transform, share, on_error, shorter_side=preprocessing.resize)
    loader = DataLoader(views, batch_size, num_workers=num_workers)
    seen: list[int] = []
    unreadable: list[int] = []
    hidden = None if accelerator.is_main_process else True  # None: a bar on a terminal, none in a log file
    for images, _, index, readable in tqdm(loader, desc="scoring", disable=hidden, leave=False):
        logits = {resolution: model(normalize(x.to(device)), model.levels) for resolution, x in images.items()}
        at = {resolution: model.log_probs(z) for resolution, z in logits.items()}
        scores.update(at, target[index].where(readable[:, None], -1).to(device))
        seen += index.tolist()
        unreadable += index[~readable].tolist()
    seen, unreadable = gather_object(seen), sorted(gather_object(unreadable))
    if sorted(seen) != list(range(len(dataset))):
        raise RuntimeError(f"{len(dataset)} images were to be scored once, but {len(seen)} were")
    return scores, unreadable


def results_of(scores: Scores, model: C2FModel) -> dict[str, Any]:
    """What the counts come to, over all processes; each of them must call it."""
    accuracy: dict[str, dict[str, float]] = {level: {} for level in scores.tree.levels}
    for (level, resolution), metric in scores.accuracy.items():
        accuracy[level][shown(resolution)] = float(metric.compute())
    return {
        "levels": scores.tree.num_classes,
        "answered": list(model.levels),
        "resolutions": {level: shown(resolution) for level, resolution in scores.own.items()},
        "any_decoding": scores.metrics.report(),
        "decodings": {how: scores.metrics.report(how) for how in scores.heights},
        "lca_heights": {how: heights.compute().tolist() for how, heights in scores.heights.items()},
        "accuracy_by_resolution": accuracy,
    }


def machine(accelerator: Accelerator) -> dict[str, Any]:
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    versions = {package: version(package) for package in ("torch", "torchvision", "timm", "torchmetrics")}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": f"{device} ({name})",
        "processes": accelerator.num_processes,
        "versions": {"c2f_zoo": c2f_zoo.__version__, "python": platform.python_version()} | versions,
    }


def write(folder: Path, results: dict[str, Any], confusions: Mapping[str, Tensor], tree: Hierarchy) -> None:
    """Writes all files; each under another name first, so that a kill leaves the old one or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    for level, matrix in confusions.items():
        name = "confusion_" + re.sub(r"[^\w.]+", "_", level)
        order = tree_order(tree, level)
        atomically(folder / f"{name}.csv", partial(write_confusion, matrix, tree, level, order))
        atomically(folder / f"{name}.png", partial(plot_confusion, matrix, tree, level, order))
    atomically(folder / "mistakes.png", partial(plot_mistakes, results["lca_heights"], tree))
    text = json.dumps(without_nan(results), indent=2, ensure_ascii=False, allow_nan=False)
    atomically(folder / "metrics.json", lambda path: path.write_text(text + "\n", encoding="utf-8"))


def without_nan(value: Any) -> Any:
    """JSON has no nan: what is undefined is null there."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def tree_order(tree: Hierarchy, level: str) -> list[int]:
    """A level's labels, those of one parent beside each other, and so on upwards."""
    paths = paths_to(tree, level)
    return sorted(range(len(paths)), key=paths.__getitem__)


def paths_to(tree: Hierarchy, level: str) -> list[list[int]]:
    part = tree.truncate(level)
    return part.ancestors(torch.arange(part.num_classes[level])).tolist()


def write_confusion(matrix: Tensor, tree: Hierarchy, level: str, order: Sequence[int], path: Path) -> None:
    """A row for each true class, a column for each predicted one."""
    names = tree.class_names(level)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([level, *(names[label] for label in order)])
        for label in order:
            writer.writerow([names[label], *matrix[label, order].tolist()])


def plot_confusion(matrix: Tensor, tree: Hierarchy, level: str, order: Sequence[int], path: Path) -> None:
    """Shares of each true class, in the order of the tree; lines part the classes of each coarser level."""
    counts = matrix[order][:, order].double()
    side = min(5 + 0.16 * len(order), 14)
    figure, ax = plt.subplots(figsize=(side + 1, side), layout="constrained")
    colours = plt.get_cmap("magma_r").with_extremes(bad="0.85")  # grey: there is no image of that class
    image = ax.imshow((counts / counts.sum(dim=1, keepdim=True)).numpy(), colours, vmin=0, vmax=1, interpolation="none")
    figure.colorbar(image, label="share of the true class", shrink=0.7)
    paths = paths_to(tree, level)
    depth = len(paths[0]) - 1
    for above in reversed(range(depth)):
        width, alpha = 0.4 + 0.6 * (depth - 1 - above), 0.9 if above == 0 else 0.4
        for start, _, _ in blocks(paths, order, above)[1:]:
            for line in (ax.axhline, ax.axvline):
                line(start - 0.5, color="tab:blue", linewidth=width, alpha=alpha)
    # Names of the classes, or of the coarsest ones that they lie in, as far as there is room.
    named = depth if len(order) <= MOST_NAMES_SHOWN else 0
    found = [block for block in blocks(paths, order, named) if (block[1] - block[0]) * MOST_NAMES_SHOWN >= len(order)]
    centres = [(start + end - 1) / 2 for start, end, _ in found]
    names = [tree.class_names(tree.levels[named])[label] for _, _, label in found]
    ax.set_xticks(centres, names, rotation=90, fontsize=7)
    ax.set_yticks(centres, names, fontsize=7)
    ax.set(title=f"{level}, by itself at its own resolution", xlabel="predicted", ylabel="true")
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)


def blocks(paths: Sequence[Sequence[int]], order: Sequence[int], depth: int) -> list[tuple[int, int, int]]:
    """Where each class of a coarser level begins and ends in an order of labels, and which it is."""
    above = [paths[label][depth] for label in order]
    starts = [i for i, label in enumerate(above) if i == 0 or above[i - 1] != label]
    return [(start, end, above[start]) for start, end in zip(starts, [*starts[1:], len(order)], strict=True)]


def plot_mistakes(heights: Mapping[str, Sequence[int]], tree: Hierarchy, path: Path) -> None:
    """For each decoding, how far up the tree the predicted and the true finest class meet."""
    figure, ax = plt.subplots(figsize=(3 + 1.8 * (len(tree.levels) + 1), 4), layout="constrained")
    width = 0.8 / len(heights)
    for number, (how, counts) in enumerate(heights.items()):
        shares = [100 * count / max(sum(counts), 1) for count in counts]
        places = [height + (number - (len(heights) - 1) / 2) * width for height in range(len(counts))]
        bars = ax.bar(places, shares, width, label=how)
        ax.bar_label(bars, fmt="{:.1f}", fontsize=7, padding=1)
    ax.set_xticks(range(len(tree.levels) + 1), landings(tree))
    ax.set(ylabel="% of images", title=f"Where the predicted {tree.finest} lands")
    ax.margins(y=0.12)
    ax.legend(title="decoding")
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)


def landings(tree: Hierarchy) -> list[str]:
    """What each height of the lowest common ancestor means."""
    return ["correct", *(f"same {level}" for level in reversed(tree.levels[:-1])), "elsewhere"]


def print_tables(results: dict[str, Any], tree: Hierarchy) -> None:
    source = f"{results['images']} {results['split']} images of {results['dataset']}"
    table = Table(
        title=escape(f"{source}: shares in %, heights in levels of the tree"),
        caption="any: does not depend on the decoding. ↑ higher is better, ↓ lower",
    )
    table.add_column("metric")
    for column in ("any", *results["decodings"]):
        table.add_column(column, justify="right")
    for name, value in results["any_decoding"].items():
        table.add_row(escape(with_arrow(name)), formatted(name, value))
    table.add_section()
    for name in next(iter(results["decodings"].values())):
        values = [formatted(name, report[name]) for report in results["decodings"].values()]
        table.add_row(escape(with_arrow(name)), "", *values)
    matrix = Table(title="Accuracy in %; in brackets: own resolution", caption="each level by itself")
    matrix.add_column("level")
    matrix.add_column("classes", justify="right")
    for column in next(iter(results["accuracy_by_resolution"].values())):
        matrix.add_column(column, justify="right")
    for level, cells in results["accuracy_by_resolution"].items():
        row = [escape(level), str(tree.num_classes[level])]
        for resolution, accuracy in cells.items():
            is_own = resolution == results["resolutions"][level]
            row.append(f"[bold]\\[{100 * accuracy:.1f}][/bold]" if is_own else f"{100 * accuracy:.1f} ")
        matrix.add_row(*row)
    console = Console(width=max(Console().width, 100))  # names are not cut
    console.print(table)
    console.print(matrix)


def with_arrow(name: str) -> str:
    return f"{name} {'↑' if metric_info(name).higher_is_better else '↓'}"


def formatted(name: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if metric_info(name).unit == "levels" else f"{100 * value:.1f}"


if __name__ == "__main__":
    try:
        auto_cli(main)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"evaluate.py: {complaint(error)}") from error
