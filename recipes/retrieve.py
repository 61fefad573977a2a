"""Measure how well embeddings find other images of the same class, at several resolutions of the query.

    python recipes/retrieve.py --roots '{cub100: data/cub100, cub50: data/cub50}' \
        --frozen.backbone_checkpoint tf_efficientnet_lite0.safetensors

Each test image is a query. The gallery is all other test images at full size: leave-one-out. Compared are the model's
embeddings (`model`), the mean of its backbone's maps over locations (`average`), and pooled features of a backbone that
was not trained on the birds, those of the linear probe (`frozen`). Written are `retrieval.csv`, with intervals of 95 %
over queries, and `retrieval-search.csv`, the time of a search in indices of several sizes.
"""

from __future__ import annotations

import os
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: waiting threads sleep, they do not spin

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from rich.table import Table

from c2f_zoo.data import LabelledImages, create_dataset, labels_of, notes_of
from c2f_zoo.evaluation.ablation_summary import estimate_accuracy
from c2f_zoo.evaluation.probe import extract_features
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.evaluation.report import print_tables
from c2f_zoo.evaluation.retrieval import score_retrieval
from c2f_zoo.inference.image_index import ImageIndex
from c2f_zoo.inference.predictor import load_trained
from c2f_zoo.io.files import write_csv
from c2f_zoo.model import C2FModel
from c2f_zoo.paths import expand
from c2f_zoo.pooling import create_pooling
from c2f_zoo.training.launch import recipe_errors
from c2f_zoo.zoo.create import create_model

FROZEN = {"backbone": "tf_efficientnet_lite0", "taps": ["bn2"], "input_size": 224}  # the linear probe of the results
KS = (1, 5, 10)
Row = dict[str, Any]


@dataclass
class RetrieveOptions:
    """The options.

    Args:
        roots: name of the data -> its folder; none: searches are timed only.
        dataset: one of `c2f-zoo list datasets`.
        model: a run of train.py, or the name of trained weights.
        frozen: arguments of `create_model` for the frozen backbone, beside those of the linear probe:
            `backbone_checkpoint`, or `backbone`, `taps`, ... Null: leave it out.
        resolutions: resolutions of the queries in pixels; null is full size.
        search_sizes: numbers of images of the indices that are searched for their time; none: they are not timed.
        bootstrap: number of resamples for the intervals.
        seed: seed of the resamples.
        output: folder of the CSV files.
    """

    roots: dict[str, str]
    dataset: str = "cub"
    model: str = "mlph_tf_efficientnet_lite0_cub100"
    frozen: dict[str, Any] | None = field(default_factory=dict)
    resolutions: list[int | None] = field(default_factory=lambda: [None, 96, 48])
    search_sizes: list[int] = field(default_factory=lambda: [1_000, 10_000, 100_000])
    bootstrap: int = 2000
    seed: int = 0
    output: str = "runs/retrieval"


def main(options: RetrieveOptions) -> None:
    """Measure the retrieval on the test images of each dataset, and write the tables.

    Args:
        options: the options.
    """
    folder = expand(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"command": shlex.join(["python", *sys.argv]), **describe_machine()}
    models = create_models(options)
    if options.search_sizes:
        times = time_searches(models["model"].pooling.out_features, options)
        write_csv(folder / "retrieval-search.csv", [{**row, **about} for row in times])
    rows: list[Row] = []
    for name, root in options.roots.items():
        images = create_dataset(options.dataset, "test", root=root)
        for line in notes_of(images):
            print(line)
        for row in score_dataset(models, images, options):
            rows.append({"data": name, **row, **about})
            write_csv(folder / "retrieval.csv", rows)
    print_tables(*tables(rows))
    print(f"the tables are in {folder}")


def create_models(options: RetrieveOptions) -> dict[str, C2FModel]:
    """Return the models whose embeddings are compared, by name, in evaluation mode."""
    model = load_trained(options.model)
    averaged = create_pooling("avg", model.backbone.out_channels)
    models = {"model": model, "average": C2FModel(model.backbone, averaged, model.head, model.config)}
    if options.frozen is not None:
        torch.manual_seed(options.seed)  # a backbone without given weights
        about = {**FROZEN, **options.frozen}
        models["frozen"] = create_model("mlph", hierarchy=model.hierarchy, pooling="avg", **about)
    return {name: one.eval().to(memory_format=torch.channels_last) for name, one in models.items()}  # type: ignore[call-overload]


def score_dataset(models: Mapping[str, C2FModel], images: LabelledImages, options: RetrieveOptions) -> Iterator[Row]:
    """Yield a row for each embedding, resolution of the queries and level."""
    labels = images.hierarchy.cut_repeats(labels_of(images)).numpy()
    for name, model in models.items():
        gallery = embed_all(model, images, None)
        for resolution in options.resolutions:
            queries = gallery if resolution is None else embed_all(model, images, resolution)
            for depth, level in enumerate(images.hierarchy.levels):
                found = score_retrieval(queries, gallery, labels[:, depth], KS)
                if found.left_out == len(images):
                    raise ValueError(f"no test image has another one of its {level}; there is nothing to retrieve")
                row = {"embedding": name, "features": gallery.shape[1], "resolution": resolution or "full"}
                row |= {"level": level, "gallery": len(images), "queries": len(found.average_precision)}
                scores = {f"recall_{k}": hits for k, hits in found.recall.items()} | {"map": found.average_precision}
                yield row | estimates(scores, options)
            print(f"{name}, queries at {resolution or 'full size'}: recall@1 {found.recall[1].mean():.3f}", flush=True)


def embed_all(model: C2FModel, images: LabelledImages, resolution: int | None) -> np.ndarray:
    """Return the embeddings float32 (N, D) of all images at one resolution, those of `C2FModel.embed`."""
    level = model.levels[-1]
    features = extract_features(model, images, dict.fromkeys(model.levels, resolution))[level]
    return F.normalize(features, dim=1).numpy()  # type: ignore[no-any-return]


def estimates(scores: Mapping[str, np.ndarray], options: RetrieveOptions) -> Row:
    """Return the mean of each score over queries, with the ends of its interval."""
    row: Row = {}
    for key, score in scores.items():
        found = estimate_accuracy(score[None], options.bootstrap, options.seed)
        row |= {key: f"{found.value:.4f}", f"{key}_low": f"{found.low:.4f}", f"{key}_high": f"{found.high:.4f}"}
    return row


def time_searches(features: int, options: RetrieveOptions) -> Iterator[Row]:
    """Yield the median time of five searches in an index of each size, of random embeddings."""
    rng = np.random.default_rng(options.seed)
    query = rng.normal(size=features).astype(np.float32)
    for size in options.search_sizes:
        embeddings = rng.standard_normal((size, features), dtype=np.float32).astype(np.float16)
        index = ImageIndex(embeddings, [str(number) for number in range(size)], "", "", "")
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            index.search(query, 12)
            seconds.append(time.perf_counter() - start)
        row = {"images": size, "features": features, "search_ms": round(1000 * statistics.median(seconds), 2)}
        print(row, flush=True)
        yield row


def tables(rows: Sequence[Row]) -> Iterator[Table]:
    """Yield a table for each dataset: recall at 1 in % with intervals, and mAP."""
    for data in dict.fromkeys(row["data"] for row in rows):
        table = Table(
            "embedding", "query", "level", "recall@1", "recall@5", "recall@10", "mAP", title=f"{data}, test set"
        )
        for row in (row for row in rows if row["data"] == data):
            cells = [f"{100 * float(row[key]):.1f}" for key in ("recall_1", "recall_5", "recall_10", "map")]
            table.add_row(row["embedding"], str(row["resolution"]), row["level"], *cells)
        yield table


if __name__ == "__main__":
    with recipe_errors("retrieve.py"):
        main(auto_cli(RetrieveOptions, as_positional=False))
