"""Retrieval metrics: how well embeddings find other images of the same class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BLOCK = 256  # queries that are ranked at a time


@dataclass(frozen=True)
class Retrieval:
    """Scores of queries that have other images of their class in the gallery.

    Attributes:
        recall: k -> bool (queries,): whether one of the k most similar images is of the query's class.
        average_precision: float64 (queries,): the mean, over the images of the query's class, of the fraction of such
            images among those up to and including it.
        left_out: the number of queries without a label or without another image of their class.
    """

    recall: dict[int, np.ndarray]
    average_precision: np.ndarray
    left_out: int


def score_retrieval(
    queries: np.ndarray, gallery: np.ndarray, labels: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> Retrieval:
    """Score the retrieval of each image from all other ones, by cosine similarity.

    This is leave-one-out: image i of the gallery is left out for query i, which may be a smaller version of it. Recall
    at k is that of metric learning (Jegou, Douze and Schmid, IEEE TPAMI 33(1), 2011): whether there is a hit. Images
    of equal similarity are ranked in the order of the gallery.

    Args:
        queries: embeddings (N, D) of length 1.
        gallery: embeddings (N, D) of the same N images.
        labels: integer labels (N,); -1 where unknown.
        ks: the numbers of images to look at.

    Raises:
        ValueError: the numbers of queries, images and labels differ.

    Examples:
        >>> v = np.array([[1, 0], [0.8, 0.6], [0, 1]])
        >>> found = score_retrieval(v, v, np.array([0, 1, 0]), ks=[1, 2])
        >>> {k: hits.tolist() for k, hits in found.recall.items()}, found.average_precision, found.left_out
        ({1: [False, False], 2: [True, True]}, array([0.5, 0.5]), 1)
    """
    if not len(queries) == len(gallery) == len(labels):
        raise ValueError(
            f"{len(queries)} queries, {len(gallery)} images of the gallery and {len(labels)} labels are not of the "
            "same images"
        )
    known, counts = np.unique(labels[labels >= 0], return_counts=True)
    chosen = np.flatnonzero(np.isin(labels, known[counts > 1]))
    recall: dict[int, list[np.ndarray]] = {k: [] for k in ks}
    precision = []
    for start in range(0, len(chosen), _BLOCK):
        numbers = chosen[start : start + _BLOCK]
        hits = _rank_hits(queries[numbers], gallery, labels, numbers)
        for k in ks:
            recall[k].append(np.asarray(hits[:, :k].any(axis=1)))
        precision.append(_average_precision(hits))
    joined = {k: np.concatenate([*parts, np.zeros(0, dtype=bool)]) for k, parts in recall.items()}
    return Retrieval(joined, np.concatenate([*precision, np.zeros(0)]), len(labels) - len(chosen))


def _rank_hits(queries: np.ndarray, gallery: np.ndarray, labels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return bool (n, N - 1): whether the other images are of the query's class, most similar first.

    Args:
        queries: embeddings (n, D).
        gallery: embeddings (N, D).
        labels: labels (N,).
        numbers: the queries' own images (n,) in the gallery.
    """
    similarities = queries @ gallery.T
    similarities[np.arange(len(numbers)), numbers] = -np.inf  # ranks last, where it is cut off
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :-1]
    return labels[order] == labels[numbers][:, None]  # type: ignore[no-any-return]


def _average_precision(hits: np.ndarray) -> np.ndarray:
    """Return the average precision (n,) of ranked hits (n, N - 1), of which each row has one or more."""
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    return (precision * hits).sum(axis=1) / hits.sum(axis=1)  # type: ignore[no-any-return]
